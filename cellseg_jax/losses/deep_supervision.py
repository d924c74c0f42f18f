"""Deep supervision: the weights and targets of losses at several sizes."""

import jax.numpy as jnp
from jaxtyping import ArrayLike, Shaped


def supervision_weights(levels: int) -> tuple[float, ...]:
    """The weight of the loss at each of `levels` sizes, full size first: 1, 1/2, 1/4, ... of all.

    Source: nnU-Net, which makes one level more and gives it the weight 0.
    """
    weights = [2.0**-level for level in range(levels)]
    return tuple(weight / sum(weights) for weight in weights)


def coarse(array: Shaped[ArrayLike, "n h w *k"], level: int) -> Shaped[ArrayLike, "n _ _ *k"]:
    """The pixels at the centres of squares of 2**level pixels, as nnU-Net resizes its labels.

    Args:
      array: target or weights.
    Returns: (N, ceil(H / 2**level), ceil(W / 2**level), ...): the last centre of a size that does
      not divide may be the last pixel.
    """
    size = 2**level
    if size == 1:
        return array
    for axis in (1, 2):
        length = array.shape[axis]
        centres = jnp.minimum(jnp.arange(0, length, size) + size // 2, length - 1)
        array = array.take(centres, axis)
    return array
