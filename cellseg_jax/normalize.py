"""The intensity range of one whole image, from which the compiled step normalises."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cellseg_jax.errors import pick

COUNTED_AT_ONCE = 2**18  # values
PERCENTILES = (1.0, 99.8)  # of "percentile", unless others are given
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as MATLAB, PIL and OpenCV; equal parts sum to 1


def normalize(image, range, dtype):
    """The image scaled so that its range becomes [0, 1], not clipped.

    (image - low) / (high - low) of each channel; 0 where high <= low, a constant
    channel. Computed in float32 or wider whatever the dtype, then rounded to it.

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
    # A factor per channel, not a division per pixel: XLA would replace it by one and
    # then differ from numpy in the last bit.
    scale = xp.where(width > 0, 1 / xp.where(width > 0, width, 1), 0)
    return ((image.astype(wide) - low) * scale).astype(dtype)


def image_ranges(image: np.ndarray, normalize: str, percentiles=PERCENTILES, *,
                 each: bool = False) -> np.ndarray:
    """(C, 2) float32 (low, high) of an original (H, W, C) uint8 or uint16 image.

    Taken before any resizing or cropping, so that crops, tiles and prediction normalise alike.
    A constant image has low == high; the normaliser maps it to 0. Colour channels share one
    range, which keeps the colours; alpha, the 4th channel, has (0, the dtype's maximum), but not
    with minmax_joint. `RANGES` describes each choice of `normalize`; `percentiles` are (low, high)
    of "percentile" and read by it alone.

    Args:
      each: channels are stains, not colours: each has a range of its own, and none is alpha.
    """
    return band_ranges([image], image.shape[-1], image.dtype, normalize, percentiles, each=each)


def band_ranges(bands, channels: int, dtype, normalize: str, percentiles=PERCENTILES, *,
                each: bool = False) -> np.ndarray:
    """`image_ranges` of an image that comes in (h, W, C) bands, one after the other.

    Percentiles are exact too: they come from the counts of the integer values.
    """
    ranges = np.empty((channels, 2), np.float32)
    range_ = range_of(normalize, percentiles)
    if each and range_.percentiles:
        counts = sum(np.stack([_counts(band[..., c], dtype) for c in range(channels)])
                     for band in bands)
        ranges[:] = [_percentile_of(one, range_.percentiles) for one in counts]
        return ranges
    ranges[:] = range_.bounds(bands, dtype)
    if channels == 4 and range_.alpha_apart and not each:
        ranges[3] = _dtype(bands, dtype)
    return ranges


class Contrast(NamedTuple):
    """How far the values of an image lie apart."""

    dtype: str  # of the pixels
    width: float  # between the two percentiles; of several channels of their own the least
    stretch: float  # the whole range as a multiple of it; of channels the largest


def contrast(image: np.ndarray, percentiles=PERCENTILES, *, each: bool = False) -> Contrast:
    """The Contrast of an original (H, W, C) image; `each` as in `image_ranges`."""
    whole, inner = (image_ranges(image, name, percentiles, each=each)
                    for name in ("minmax", "percentile"))
    return contrast_of(whole[None], inner[None], image.dtype, each=each)


def contrast_of(whole: np.ndarray, inner: np.ndarray, dtype, *, each: bool = False) -> Contrast:
    """The least width and the largest stretch of (m, C, 2) ranges, minmax and percentile.

    A channel that is constant between the percentiles has no stretch. Of four channels that are
    colours (not `each`) the last is alpha, and left out.
    """
    channels = slice(None) if each else slice(3)
    whole, inner = (np.diff(ranges[:, channels]).astype(np.float64) for ranges in (whole, inner))
    stretch = np.where(inner > 0, whole / np.where(inner > 0, inner, 1), 0)
    return Contrast(str(np.dtype(dtype)), float(inner.min()), float(stretch.max()))


def _minmax(bands, dtype):
    return _minmax_joint((band[..., :3] for band in bands), dtype)


def _minmax_joint(bands, dtype):
    low, high = zip(*((band.min(), band.max()) for band in bands), strict=True)
    return min(low), max(high)


def _percentile(bands, dtype, percentiles):
    """From a histogram of the integer values: numpy's linear method."""
    return _percentile_of(sum(_counts(band[..., :3], dtype) for band in bands), percentiles)


def _counts(values, dtype) -> np.ndarray:
    """How often each value is there; numpy's count makes 8 bytes of each, so some rows at once."""
    counts = np.zeros(np.iinfo(dtype).max + 1, np.int64)
    step = max(1, COUNTED_AT_ONCE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        counts += np.bincount(values[start : start + step].reshape(-1), minlength=len(counts))
    return counts


def _percentile_of(counts, percentiles) -> np.ndarray:
    ranks = np.cumsum(counts)
    place = (ranks[-1] - 1) * np.array(percentiles) / 100
    below = np.searchsorted(ranks, np.floor(place), "right")
    above = np.searchsorted(ranks, np.ceil(place), "right")
    return below + (above - below) * (place % 1)


def _dtype(bands, dtype):
    return 0, np.iinfo(dtype).max


def _symmetric(bands, dtype):
    return np.iinfo(dtype).max / 2, np.iinfo(dtype).max


class Range(NamedTuple):
    """What low and high of an image are: computed, and described for those who use an export."""

    bounds: Callable  # (bands, dtype) -> low, high
    words: str
    python: str  # low and high of `image`, (H, W, C), whose first three channels are `colour`
    percentiles: tuple[float, float] | None  # the same; None if they depend on the dtype alone
    alpha_apart: bool = True  # alpha has (0, the dtype's maximum) instead


def percentile_range(low: float, high: float) -> Range:
    """The range from one percentile of an image to another, as StarDist and Cellpose normalise.

    Source: csbdeep.utils.normalize(image, 1, 99.8), which does not clip either; it adds 1e-20 to
      the width of the range, here a constant image is 0. Cellpose: 1 and 99 of each channel.
    """
    return Range(
        functools.partial(_percentile, percentiles=(low, high)),
        f"percentiles {low:g} and {high:g} of the whole image, over its colour channels",
        f"np.percentile(colour, ({low:g}, {high:g}))", (float(low), float(high)))


RANGES = {
    "minmax": Range(
        _minmax, "the smallest and the largest value of the whole image, over its colour channels",
        "colour.min(), colour.max()", (0.0, 100.0)),
    "minmax_joint": Range(  # opaque alpha makes high the dtype's maximum, as the report's tools do
        _minmax_joint, "the smallest and the largest value of the whole image, over all channels",
        "image.min(), image.max()", (0.0, 100.0), alpha_apart=False),
    "percentile": percentile_range(*PERCENTILES),
    "dtype": Range(
        _dtype, "0 and the largest value that the image's integer type can hold",
        "0, np.iinfo(image.dtype).max", None),
    "symmetric": Range(  # pixels lie in [-1, 1]
        _symmetric, "half the largest value that the image's integer type can hold, and that value",
        "np.iinfo(image.dtype).max / 2, np.iinfo(image.dtype).max", None),
}


def range_of(normalize: str, percentiles=PERCENTILES) -> Range:
    """The entry of RANGES of that name; of "percentile" with the given (low, high).

    Raises: InputError for an unknown name.
    """
    range_ = pick(RANGES, normalize, "config.data.normalize")
    return percentile_range(*percentiles) if normalize == "percentile" else range_
