"""The loss of the distance between boundaries, and the distance transform behind it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float

from cellseg_jax.losses.shared import Logits, Loss, PixelWeight, Target, checked, mean_of_pixels


def boundary(
    logits: Logits, target: Target, *, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Boundary loss of each image: wrong pixels count by their distance to the true boundary.

    mean of w (p - g) d, with d the signed distance of `signed_distance`. A channel that is empty
    or full in the target has no boundary and costs 0 whatever is predicted, and pixels at the
    boundary cost nothing: add another loss, as the authors add Dice.

    Args:
      target: in {0, 1}; d is that of target > 0.5.
      class_weights, pixel_weight: see losses; d is that of the whole image whatever they are.
    Returns: pixels, float32 or wider.
    Raises: ValueError as losses says.
    Source: Kervadec et al. 2019, Boundary loss, equations 4 and 5, half of 4 with the constant
      term kept that 5 leaves out, so that 0 is perfect. MONAI BoundaryLoss(sigmoid=True) is the
      same minus its own value at p = g.
    """
    z, g, w = checked(logits, target, pixel_weight)
    distance = jnp.moveaxis(signed_distance(jnp.moveaxis(g > 0.5, -1, 1), z.dtype), 1, -1)
    return mean_of_pixels((jax.nn.sigmoid(z) - g) * distance, w, class_weights)


def signed_distance(
    mask: Bool[ArrayLike, "*n h w"], dtype=jnp.float32
) -> Float[jax.Array, "*n h w"]:
    """The distance of each pixel from the mask's boundary, negative inside.

    Outside the Euclidean distance to the nearest pixel of the mask; inside 1 minus that to the
    nearest pixel outside, so 0 in the mask's outermost pixels. 0 everywhere where a mask is
    empty or full. Exact: equals scipy.ndimage.distance_transform_edt.

    Args:
      dtype: of the result.
    Returns: pixels.
    Source: Felzenszwalb & Huttenlocher 2012, Distance transforms of sampled functions, section
      2.1: along one axis, then the minimum of parabolas along the other. These are tried from
      near to far, in whole images at a time, until none can be lower.
    """
    height, rows = mask.shape[-2], mask.ndim - 2
    sign = jnp.where(mask, -1, 1).astype(dtype)
    # Squared distances along rows, with the sign of the pixel they belong to: a pixel needs of
    # another row the positive part of what has its own sign, and 0 where the kinds differ.
    along = sign * jnp.swapaxes(_run_distance(jnp.swapaxes(mask, -1, -2), dtype), -1, -2) ** 2
    some = mask.any((-1, -2), keepdims=True) & ~mask.all((-1, -2), keepdims=True)
    squared = jnp.where(some, jnp.abs(along), 0)
    # Beyond its borders an image repeats: those rows are nearer in truth, so they do no harm.
    padded = jnp.pad(along, [(0, 0)] * rows + [(height, height), (0, 0)], mode="edge")
    together = 8  # offsets tried in one pass over memory

    def farther(carry):
        offset, squared = carry
        return (offset < height) & ((offset**2).astype(dtype) < squared.max())

    def lower(carry):
        offset, squared = carry
        for step in range(together):
            k = offset + step
            above, below = (sign * jax.lax.dynamic_slice_in_dim(padded, start, height, rows)
                            for start in (height - k, height + k))
            nearest = jnp.maximum(jnp.minimum(above, below), 0)
            squared = jnp.minimum(squared, nearest + (k**2).astype(dtype))
        return offset + together, squared

    _, squared = jax.lax.while_loop(farther, lower, (jnp.int32(1), squared))
    distance = jnp.sqrt(squared)
    return jnp.where(mask, jnp.minimum(1 - distance, 0), distance)


def _run_distance(mask, dtype):
    """(..., L, M): distance along L to the nearest pixel of the other kind, inf without one."""
    axis = mask.ndim - 2
    place = jax.lax.broadcasted_iota(dtype, mask.shape, axis)
    change = jnp.diff(mask, axis=axis)
    pad = lambda before, after: jnp.pad(
        change, [(0, 0)] * axis + [(before, after), (0, 0)])
    start = jax.lax.cummax(jnp.where(pad(1, 0), place, -jnp.inf), axis)
    end = jax.lax.cummin(jnp.where(pad(0, 1), place, jnp.inf), axis, reverse=True)
    return 1 + jnp.minimum(place - start, end - place)
