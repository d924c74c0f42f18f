"""The intensity range of one whole image, from which the compiled step normalises."""

import numpy as np

from cellseg_jax.errors import pick


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
