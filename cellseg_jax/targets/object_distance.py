"""Distances within objects of an instance label, in JAX: to the object's edge, to its centre.

All take labels (*n, H, W) with any integer ids, 0 is background, and work on whole images at once.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32, Integer

SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def edge_distance(
    label: Integer[ArrayLike, "*n h w"], limit: float = jnp.inf, dtype=jnp.float32
) -> Float[Array, "*n h w"]:
    """Pixels from each pixel of an object to the nearest pixel of another id; 0 in background.

    Exact Euclidean distances between pixel centres: 1 at an object's rim. The border of the image
    is no edge. An object that fills its image has no edge: its distances are inf. Distances above
    `limit` need not be right, but are above it. Of `dtype`.

    Source: Felzenszwalb & Huttenlocher 2012, Distance transforms of sampled functions, section
      2.1: along rows, then the minimum of parabolas along columns, tried from near to far until
      none can be lower.
    """
    label = jnp.asarray(label)
    shape, height = label.shape, label.shape[-2]
    label = label.reshape(-1, *shape[-2:])
    along = _run_distance(label, dtype) ** 2
    # Beyond its borders an image repeats: those rows are nearer in truth, so they do no harm.
    pad = lambda x: jnp.pad(x, [(0, 0), (height, height), (0, 0)], mode="edge")
    labels, alongs = pad(label), pad(along)
    together = 4  # offsets tried in one pass over memory

    def farther(carry):
        offset, squared = carry
        return (offset < height) & (
            (offset**2).astype(dtype)
            < jnp.minimum(jnp.where(label > 0, squared, 0).max(), limit**2))

    def lower(carry):
        offset, squared = carry
        for k in range(together):
            for start in (height - offset - k, height + offset + k):
                other, distance = (jax.lax.dynamic_slice_in_dim(x, start, height, 1)
                                   for x in (labels, alongs))
                there = jnp.where(other == label, distance, 0)
                squared = jnp.minimum(squared, there + ((offset + k) ** 2).astype(dtype))
        return offset + together, squared

    _, squared = jax.lax.while_loop(farther, lower, (jnp.int32(1), along))
    return jnp.where(label > 0, jnp.sqrt(squared), 0).reshape(shape)


def _run_distance(label, dtype):
    """Pixels along each row to the nearest pixel of another id, inf without one."""
    axis = label.ndim - 1
    place = jax.lax.broadcasted_iota(dtype, label.shape, axis)
    change = label[..., 1:] != label[..., :-1]
    pad = lambda before, after: jnp.pad(change, [(0, 0)] * axis + [(before, after)])
    start = jax.lax.cummax(jnp.where(pad(1, 0), place, -jnp.inf), axis)
    end = jax.lax.cummin(jnp.where(pad(0, 1), place, jnp.inf), axis, reverse=True)
    return 1 + jnp.minimum(place - start, end - place)


def centre_distance(label: Integer[ArrayLike, "*n h w"]) -> Float32[Array, "*n h w"]:
    """Length of the shortest path within the object from each pixel to its centre; 0 in background.

    For the centre see `centres`. Paths go from pixel to pixel
    through sides, and through a corner, in steps of sqrt(2), where a pixel beside it is of the
    object too: up to 8 % longer than straight lines. So every pixel but the centre has a pixel of
    the object beside it that is nearer, and an object of any shape has one minimum. inf in pieces
    that no path reaches, as borders of an image may cut them off.
    """
    label = jnp.asarray(label)
    shape = label.shape
    label = label.reshape(-1, *shape[-2:])
    same = {(y, x): (label > 0) & (_shifted(label, y, x, 0) == label) for y, x in SIDES + CORNERS}
    for y, x in CORNERS:
        same[y, x] &= same[y, 0] | same[0, x]

    def nearer(carry):
        distance, _ = carry
        least = lambda places: functools.reduce(jnp.minimum, (
            jnp.where(same[y, x], _shifted(distance, y, x, jnp.inf), jnp.inf) for y, x in places))
        new = jnp.minimum(distance, jnp.minimum(least(SIDES) + 1, least(CORNERS) + 2**0.5))
        return new, (new < distance).any()

    start = jnp.where(jax.vmap(centres)(label)[0], jnp.float32(0), jnp.inf)
    distance, _ = jax.lax.while_loop(lambda carry: carry[1], nearer, (start, (start == 0).any()))
    return jnp.where(label > 0, distance, 0).reshape(shape)


def _shifted(array, y, x, fill):
    """The pixels (y, x) away from all pixels of (N, H, W); `fill` beyond the image."""
    pad = [(0, 0, 0), (-y, y, 0), (-x, x, 0)]
    return jax.lax.pad(array, jnp.asarray(fill, array.dtype), pad)


def centres(
    label: Integer[Array, "h w"]
) -> tuple[Bool[Array, "h w"], Int32[Array, "h w 2"]]:
    """True at the centre of each object, and at all its pixels the rows and columns it spans.

    The centre is the pixel nearest to the mean of the object's pixels, the first of equals.
    """
    size, rank = label.size, ranks(label).reshape(-1)
    number = jnp.arange(size, dtype=jnp.int32)
    place = jnp.stack(jnp.divmod(number, label.shape[1]), -1)
    least = jax.ops.segment_min(jnp.concatenate([place, -place], -1), rank, size)[rank]
    first, last = least[:, :2], -least[:, 2:]
    # From the middle of the object, so that sums stay small.
    place = place - (first + last) // 2
    sums = jax.ops.segment_sum(jnp.pad(place, ((0, 0), (0, 1)), constant_values=1), rank, size)
    distance = ((place - (sums[:, :2] / sums[:, 2:])[rank]) ** 2).sum(-1)
    nearest = distance == jax.ops.segment_min(distance, rank, size)[rank]
    chosen = jax.ops.segment_min(jnp.where(nearest, number, size), rank, size)[rank]
    centre = (number == chosen) & (label.reshape(-1) > 0)
    return centre.reshape(label.shape), (last - first + 1).reshape(*label.shape, 2)


def ranks(label: Integer[Array, "h w"]) -> Int32[Array, "h w"]:
    """The place of each pixel's id among the ids of its image: 0, 1, ... in order."""
    ids, order = jax.lax.sort_key_val(
        label.reshape(-1), jax.lax.iota(jnp.int32, label.size))
    number = jnp.cumsum(jnp.pad(ids[1:] != ids[:-1], (1, 0)).astype(jnp.int32))
    return jnp.zeros(label.size, jnp.int32).at[order].set(
        number, unique_indices=True).reshape(label.shape)


def normalised(values: Float32[ArrayLike, "*n h w"],
               label: Integer[ArrayLike, "*n h w"]) -> Float32[Array, "*n h w"]:
    """Values of objects divided by the largest finite one of their object; 0 in background.

    inf becomes 1; so does everything in an object of which all values are inf or 0.
    """
    values, label = jnp.asarray(values), jnp.asarray(label)

    def one(values, label):
        rank = ranks(label).reshape(-1)
        flat = values.reshape(-1)
        finite = jnp.where(jnp.isfinite(flat), flat, 0)
        largest = jax.ops.segment_max(finite, rank, label.size)[rank]
        share = jnp.where(jnp.isfinite(flat) & (largest > 0),
                          finite / jnp.where(largest > 0, largest, 1), 1)
        return jnp.where(label > 0, share.reshape(label.shape), 0)

    images = label.reshape(-1, *label.shape[-2:])
    return jax.vmap(one)(values.reshape(images.shape), images).reshape(label.shape)
