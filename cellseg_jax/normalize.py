"""The intensity range of one whole image, from which the compiled step normalises."""

import jax.numpy as jnp
import numpy as np

from cellseg_jax.errors import pick

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as MATLAB, PIL and OpenCV; equal parts sum to 1


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


def image_ranges(image: np.ndarray, normalize: str) -> np.ndarray:
    """(C, 2) float32 (low, high) of an original (H, W, C) uint8 or uint16 image.

    Taken before any resizing or cropping, so that crops, tiles and prediction normalise alike.
    A constant image has low == high; the normaliser maps it to 0. Colour channels share one
    range, which keeps the colours; alpha, the 4th channel, has (0, the dtype's maximum).

      minmax: darkest and brightest colour value.
      minmax_joint: the same over all channels with alpha, as the report's tools did it: opaque
        alpha makes `high` the dtype's maximum.
      percentile: 1st and 99.8th percentile of the colour values.
      dtype: 0 and the dtype's maximum.
      symmetric: half the dtype's maximum and the maximum, so that pixels lie in [-1, 1].
    """
    return band_ranges([image], image.shape[-1], image.dtype, normalize)


def band_ranges(bands, channels: int, dtype, normalize: str) -> np.ndarray:
    """`image_ranges` of an image that comes in (h, W, C) bands, one after the other."""
    ranges = np.empty((channels, 2), np.float32)
    ranges[:] = pick(RANGES, normalize, "config.data.normalize")(bands, dtype)
    if channels == 4 and normalize != "minmax_joint":
        ranges[3] = _dtype(bands, dtype)
    return ranges


def _minmax(bands, dtype):
    return _minmax_joint((band[..., :3] for band in bands), dtype)


def _minmax_joint(bands, dtype):
    low, high = zip(*((band.min(), band.max()) for band in bands))
    return min(low), max(high)


def _percentile(bands, dtype):
    """From a histogram, which holds all that an integer image says: numpy's linear method."""
    counts = sum(np.bincount(band[..., :3].reshape(-1), minlength=np.iinfo(dtype).max + 1)
                 for band in bands)
    ranks = np.cumsum(counts)
    place = (ranks[-1] - 1) * np.array(PERCENTILES) / 100
    below = np.searchsorted(ranks, np.floor(place), "right")
    above = np.searchsorted(ranks, np.ceil(place), "right")
    return below + (above - below) * (place % 1)


def _dtype(bands, dtype):
    return 0, np.iinfo(dtype).max


def _symmetric(bands, dtype):
    return np.iinfo(dtype).max / 2, np.iinfo(dtype).max


PERCENTILES = (1, 99.8)
RANGES = {
    "minmax": _minmax,
    "minmax_joint": _minmax_joint,
    "percentile": _percentile,
    "dtype": _dtype,
    "symmetric": _symmetric,
}
