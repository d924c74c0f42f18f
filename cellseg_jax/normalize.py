"""Pixels to numbers a network likes. The range comes with the sample, one for the whole image."""

import jax.numpy as jnp
import numpy as np


def normalize(image, range, dtype):
    """The image scaled so that its range becomes [0, 1], not clipped.

    (image - low) / (high - low) of each channel; 0 where high <= low, a channel that says
    nothing. Computed in float32 or wider whatever the dtype, then rounded to it.

    Args:
      image: (..., H, W, C) uint8, uint16 or float.
      range: (..., C, 2), low and high of each channel.
      dtype: floating dtype of the result.
    Returns: (..., H, W, C) of dtype, numpy if both arrays are numpy; the same numbers either way.
    Raises: ValueError if the shapes do not belong together.
    """
    if range.shape != (*image.shape[:-3], image.shape[-1], 2):
        raise ValueError(f"image {image.shape} and range {range.shape}: expected (..., C, 2)")
    xp = np if isinstance(image, np.ndarray) and isinstance(range, np.ndarray) else jnp
    wide = jnp.promote_types(dtype, jnp.float32)
    bounds = range[..., None, None, :, :].astype(wide)
    low, width = bounds[..., 0], bounds[..., 1] - bounds[..., 0]
    # A factor per channel, not a division per pixel: XLA would make it one of its own accord and
    # then differ from numpy in the last bit.
    scale = xp.where(width > 0, 1 / xp.where(width > 0, width, 1), 0)
    return ((image.astype(wide) - low) * scale).astype(dtype)
