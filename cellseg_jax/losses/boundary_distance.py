"""The loss of the distance between boundaries, and the signed distance behind it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float

from cellseg_jax.losses.shared import Logits, Loss, PixelWeight, Target, checked, mean_of_pixels
from cellseg_jax.targets.object_distance import edge_distance


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
    """
    distance = edge_distance(mask.astype(jnp.int8) + 1, dtype=dtype)
    distance = jnp.where(jnp.isfinite(distance), distance, 0)
    return jnp.where(mask, jnp.minimum(1 - distance, 0), distance)
