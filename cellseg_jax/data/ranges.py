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
    """
    low, high = pick(RANGES, normalize, "config.data.normalize")(image)
    ranges = np.empty((image.shape[-1], 2), np.float32)
    ranges[:] = low, high
    if image.shape[-1] == 4 and normalize != "minmax_joint":
        ranges[3] = _dtype(image)
    return ranges


def _minmax(image):
    return _minmax_joint(image[..., :3])


def _minmax_joint(image):
    return image.min(), image.max()


def _percentile(image):
    return np.percentile(image[..., :3], (1, 99.8))


def _dtype(image):
    return 0, np.iinfo(image.dtype).max


RANGES = {
    "minmax": _minmax,
    "minmax_joint": _minmax_joint,
    "percentile": _percentile,
    "dtype": _dtype,
}
