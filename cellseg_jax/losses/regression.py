"""Losses of regressed outputs: ray lengths, flows, distances.

They see those outputs alone, in their own unit, as `Target.probs` gives them. pixel_weight (N, H,
W), w in the formulas, says where an output means something, such as in cells; None: everywhere.
Half-precision outputs are converted to float32 first. All raise ValueError where shapes differ.
"""

from collections.abc import Callable

import jax.numpy as jnp

from cellseg_jax.losses.shared import Logits, Loss, PixelWeight, Target, checked, sums_over_pixels


def mae(outputs: Logits, target: Target, *, pooled: bool = False, axis_name: str | None = None,
        pixel_weight: PixelWeight = None) -> Loss:
    """Mean absolute error of each image over the pixels that count.

    sum w e / sum w, with e the mean over outputs of |output - target|; 0 where all w are 0.

    Args:
      pooled, axis_name: sums over the whole batch, see losses.
    Returns: in the unit of the outputs, float32 or wider.
    Source: Schmidt et al. 2018, Cell Detection with Star-convex Polygons, equation 1; with w the
      object probability and `pooled`, StarDist's masked loss, but for its weight of rays in the
      background.
    """
    return _mean(jnp.abs, outputs, target, pooled, axis_name, pixel_weight)


def mse(outputs: Logits, target: Target, *, pooled: bool = False, axis_name: str | None = None,
        pixel_weight: PixelWeight = None) -> Loss:
    """Mean squared error of each image over the pixels that count: see `mae`.

    Source: PyTorch MSELoss, which Cellpose applies to its flows at all pixels.
    """
    return _mean(jnp.square, outputs, target, pooled, axis_name, pixel_weight)


def _mean(error: Callable, outputs, target, pooled, axis_name, pixel_weight):
    y, t, w = checked(outputs, target, pixel_weight)
    each = error(y - t).mean(-1, keepdims=True)
    total, count = sums_over_pixels((each, jnp.ones_like(each)), w, pooled, axis_name)
    mean = jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
    return jnp.broadcast_to(mean[:, 0], len(y))


def distance_dice(outputs: Logits, target: Target, *, pooled: bool = False,
                  axis_name: str | None = None, pixel_weight: PixelWeight = None) -> Loss:
    """Dice loss of distance maps in [0, 1], the mean over outputs.

    1 - 2 sum w y t / (sum w y^2 + sum w t^2). An output that is 0 in both costs 0.

    Args:
      pooled, axis_name: sums over the whole batch, see losses.
    Returns: float32 or wider.
    Source: torch-em's Dice of masked distances, with w its mask.
    """
    y, t, w = checked(outputs, target, pixel_weight)
    both, either = sums_over_pixels((y * t, y * y + t * t), w, pooled, axis_name)
    score = jnp.where(either > 0, 2 * both / jnp.where(either > 0, either, 1), 1)
    return jnp.broadcast_to((1 - score).mean(-1), len(y))
