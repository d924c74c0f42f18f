"""Star-convex polygons: object probability and ray lengths of each pixel; instance ids in and out.

Ray k of R leaves a pixel at the angle 2 pi k / R: 0 points along the columns, a quarter of a turn
along the rows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32, Integer, Num
from scipy.special import logit

from cellseg_jax.targets.geometry import decode_each, in_reading_order, remove_small
from cellseg_jax.targets.object_distance import edge_distance, normalised
from cellseg_jax.targets.polygons import drawn, kept
from cellseg_jax.targets.target import Target, first_above, first_sigmoid

SHORTEST = 1e-3  # pixels: the least length of a ray, as in StarDist
TOGETHER = 4  # steps along a ray in one pass over memory


def encode(
    label: Integer[ArrayLike, "*n h w"], *, num_rays: int = 32
) -> Float32[Array, "*n h w outputs"]:
    """Object probability, then the lengths of num_rays rays in pixels; 0 in background.

    The probability is the distance to the nearest pixel of another id, relative to the largest of
    the object. A ray goes in steps of one pixel until the nearest pixel has another id or lies
    outside of the image; its length is that to the edge of the last pixel within.

    Raises: ValueError if num_rays is below 3.
    Source: Schmidt et al. 2018, Cell Detection with Star-convex Polygons; equal to stardist 0.9
      (star_dist, edt_prob), but where a step ends exactly between two pixels, as with 12 rays.
    """
    if num_rays < 3:
        raise ValueError(f"num_rays {num_rays}: expected at least 3")
    label = jnp.asarray(label)
    probability = normalised(edge_distance(label), label)
    return jnp.concatenate([probability[..., None], _ray_lengths(label, num_rays)], -1)


def _ray_lengths(label, num_rays):
    """Pixels that all start at whole numbers take the same whole step: shifts of the image."""
    shape, (height, width) = label.shape, label.shape[-2:]
    # int32 has room for the -1 outside: in uint16 it would be the id 65535.
    label = label.reshape(-1, height, width).astype(jnp.int32)
    directions, shifts = _steps(num_rays, max(height, width))
    padded = jnp.pad(label, [(0, 0), (height, height), (width, width)], constant_values=-1)

    def along(_, ray):
        def step(carry):
            start, length = carry
            for shift in jax.lax.dynamic_slice_in_dim(shifts_of_ray, start, TOGETHER):
                at = jnp.zeros_like(shift[0]), height + shift[0], width + shift[1]
                there = jax.lax.dynamic_slice(padded, at, label.shape)
                length += (length == start) & (there == label)
                start += 1
            return start, length

        shifts_of_ray = jnp.asarray(shifts)[ray]
        # A pixel's ray goes on as long as its length is the number of steps.
        inside = lambda carry: (carry[1] == carry[0]).any() & (carry[0] < shifts.shape[1])
        return _, jax.lax.while_loop(inside, step, (0, jnp.where(label > 0, 0, -1)))[1]

    _, lengths = jax.lax.scan(along, None, jnp.arange(num_rays))
    lengths = jnp.moveaxis(lengths, 0, -1)
    beyond = (0.5 / np.abs(directions).max(-1)).astype(np.float32)
    return jnp.where(lengths < 0, 0, lengths + beyond).reshape(*shape, num_rays)


def _steps(num_rays, longest):
    """Unit vectors (num_rays, 2) of (rows, columns), and the pixels of steps along them.

    (num_rays, steps, 2) int32. Steps are added in float32, as in StarDist, so that halves fall on
    the same side; they are as many as the diagonal of a square of the longest side takes.
    """
    angles = np.arange(num_rays, dtype=np.float32) * np.float32(2 * np.pi / num_rays)
    directions = np.stack([np.sin(angles), np.cos(angles)], -1)
    steps = -(-int(1.5 * longest + 1) // TOGETHER) * TOGETHER
    places = np.cumsum(np.broadcast_to(directions[:, None], (num_rays, steps, 2)), 1,
                       dtype=np.float32)
    return directions, np.clip(np.rint(places), -longest, longest).astype(np.int32)


def cell_mask(maps: Float[ArrayLike, "... h w k"], threshold=0.5) -> Bool[ArrayLike, "... h w 1"]:
    """Cells, roughly: where the object probability exceeds a tenth of the threshold.

    At the rim of a cell it is small, one divided by the cell's radius, so that the rims of cells
    of radius 20 count, of larger ones not all. What the decoded label covers is not known here.
    """
    return maps[..., :1] >= threshold / 10


def decode(
    logits: Num[ArrayLike, "*n h w k"], *, threshold: float = 0.5, nms: float = 0.4,
    star_grid: int = 1, min_size: int = 0,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of (logit of the object probability, ray lengths), or of a target.

    Every pixel whose probability exceeds the threshold proposes the polygon of its rays. From the
    most probable on, each removes those that overlap with it; the rest are drawn, the most
    probable on top.

    Args:
      nms: polygons that share more than this part of the smaller one's area overlap.
      star_grid: only pixels of every so many rows and columns propose: fewer polygons by its
        square. Cells with less than about so many pixels above the threshold across are lost.
      min_size: objects of fewer pixels are dropped.
    Returns: 0 is background, cells are numbered in reading order.
    Raises: ValueError for another shape.
    Source: Schmidt et al. 2018, section 2; stardist 0.9 with grid (1, 1), which ignores the two
      outermost pixels of an image, where cells that it cuts have their largest probability.
    """

    def decode_one(logits):
        points = star_grid * np.argwhere(
            logits[::star_grid, ::star_grid, 0] > logit(threshold))
        probability, rays = np.split(logits[tuple(points.T)], [1], -1)
        order = np.argsort(-probability[:, 0], kind="stable")
        points, rays = points[order], np.maximum(rays[order].astype(np.float64), SHORTEST)
        stay = kept(points, rays, nms)
        label = drawn(points[stay], rays[stay], logits.shape[:2])
        return remove_small(in_reading_order(label), min_size)

    return decode_each(decode_one, logits, max(np.shape(logits)[-1], 4))


def turned(maps: Num[np.ndarray, "n h w k"], view: int) -> Num[np.ndarray, "n h w k"]:
    """Maps of a turned image after tile_blending.turns_back, with rays in the image's directions.

    Lengths between two rays are interpolated: where columns are flipped, of odd numbers of rays;
    where rows and columns are exchanged, of those that are no multiple of 4.
    """
    num_rays = maps.shape[-1] - 1
    ray = np.arange(num_rays, dtype=float)
    for bit, at_zero in ((4, num_rays / 4), (2, num_rays / 2), (1, 0)):
        ray = at_zero - ray if view & bit else ray
    return _with_rays(maps, ray, 1)


def rescaled(
    maps: Num[np.ndarray, "... h w k"], factors: tuple[float, float]
) -> Num[np.ndarray, "... h w k"]:
    """Maps resized by factors (rows, columns), with ray lengths in pixels of their new size."""
    num_rays = maps.shape[-1] - 1
    angles = 2 * np.pi * np.arange(num_rays) / num_rays
    before = np.stack([np.sin(angles), np.cos(angles)]) / np.reshape(factors, (2, 1))
    ray = np.arctan2(*before) * num_rays / (2 * np.pi)
    return _with_rays(maps, ray, 1 / np.linalg.norm(before, axis=0))


def _with_rays(maps, ray, factor):
    """Maps with the lengths of other rays, by numbers with fractions, times a factor."""
    num_rays = maps.shape[-1] - 1
    ray = np.round(ray, 9)  # whole where it should be
    first = np.floor(ray).astype(int)
    share = (ray - first).astype(maps.dtype)
    lengths = maps[..., 1:]
    between = lengths[..., first % num_rays]
    if share.any():
        between = (1 - share) * between + share * lengths[..., (first + 1) % num_rays]
    return np.concatenate(
        [maps[..., :1], between * np.asarray(factor, maps.dtype)], -1)


def names(*, num_rays: int = 32) -> tuple[str, ...]:
    """Of all outputs."""
    return "object probability", *(f"ray {k} in pixels" for k in range(num_rays))


STAR = Target(
    names=names, encode=encode, probs=first_sigmoid, mask=first_above, cell_mask=cell_mask,
    decode=decode, num_binary=1, reach=lambda **_: math.inf,  # lengths and shares of whole objects
    regression_weight=lambda target: target[..., 0], turned=turned, rescaled=rescaled,
    of_objects=True, is_share=True, losses={"bce": 1.0, "mae": 0.2})
