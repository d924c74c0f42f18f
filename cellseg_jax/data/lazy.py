"""Images of any size for prediction: opened without their pixels, read in bands of rows.

The pixels are those of `read.read_image`, so that prediction and training have equal input. More is
read here than in training:

- A stack is one image for every plane, numbered from 0 in the order of the file, where the run's
  config.data.z does not say otherwise. The channels of a plane are one image.
- Pixels that are not 8 or 16 bit unsigned and not whole numbers from 0 to 65535 (float, signed,
  32 bit) are stretched to 16 bit: the darkest value of the whole image becomes 0, the brightest
  65535. The normalisations minmax and percentile then show a network the same picture as before,
  to 1/65535 of its range; dtype does not.
- OME-Zarr (NGFF 0.4 in Zarr v2, 0.5 in v3; the package zarr) at its full resolution.

Bands of TIFF and Zarr need memory for their own rows and one row of tiles or chunks alone; a
compressed TIFF that is one strip is decoded whole. PNG, JPEG and BMP are read whole.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.decode import (
    SIGNATURES,
    SUFFIXES,
    TIFF_SUFFIXES,
    dtype_of_whole,
    kind_of,
    named,
    open_tiff,
)
from cellseg_jax.data.decode import whole as is_whole
from cellseg_jax.data.micrometres import checked
from cellseg_jax.data.microscopes import microscope_stacks
from cellseg_jax.data.read import pixels_of
from cellseg_jax.data.stacks import AS_IT_IS, Pixels, ReadOptions
from cellseg_jax.data.tiff_stacks import tiff_pixel_size
from cellseg_jax.data.zarr_stacks import is_zarr, zarr_stack
from cellseg_jax.errors import InputError

BLOCK = 2**24  # values in memory while the range of a whole image is looked for


class Image(NamedTuple):
    """One 2-D image whose pixels are read on demand."""

    name: str  # of the file without suffix, with _0000, _0001, ... for the planes of a stack
    shape: tuple[int, int, int]  # (H, W, C)
    dtype: np.dtype  # uint8 or uint16
    # Height and width of a pixel in micrometres, as the file says; `calibrated` if it is believed.
    pixel_size: tuple[float, float] | None
    rows: Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, W, C) of dtype
    path: pathlib.Path | None = None  # the file it is from
    alpha: bool = False  # the last channel is alpha
    channels: tuple[str, ...] = ()  # their names, or numbers; () where there is no file
    notes: tuple[str, ...] = ()  # what a user should know of the file

    def read(self) -> np.ndarray:
        """(H, W, C), the whole image."""
        return self.rows(0, self.shape[0])

    def calibrated(self) -> "Image":
        """The same image without a pixel size that cannot be right; then a note says so."""
        pixel_size, notes = checked(self.pixel_size)
        return self._replace(pixel_size=pixel_size, notes=(*self.notes, *notes))

    def loaded(self) -> "Image":
        """The same image with its pixels in memory."""
        pixels = self.read()
        return self._replace(rows=lambda start, stop: pixels[start:stop])


def from_array(pixels: np.ndarray, name: str = "image", pixel_size=None, path=None,
               alpha: bool | None = None) -> Image:
    """An Image of (H, W, C) uint8 or uint16 pixels in memory; None: alpha is the last of four."""
    alpha = pixels.shape[-1] == 4 if alpha is None else alpha
    return Image(name, pixels.shape, pixels.dtype, pixel_size,
                 lambda start, stop: pixels[start:stop], path, alpha)


def of_pixels(pixels: np.ndarray, name: str = "image", pixel_size=None) -> Image:
    """An Image of an (H, W, C) array of any real dtype, read as a file that holds it would be.

    The last of four channels is alpha, as `from_array` says.
    """
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{name}: pixels are {pixels.dtype}; expected 8 or 16 bit integers")
    made = Pixels(pixels.shape, pixels.dtype, lambda start, stop: pixels[start:stop],
                  pixels.shape[-1] == 4, (), (), pixel_size)
    return _image(name, name, made)._replace(path=None)


def is_image(path) -> bool:
    """Whether a path looks like an image: a suffix of decode.SUFFIXES, or an OME-Zarr folder."""
    path = pathlib.Path(path)
    return is_zarr(path) if path.is_dir() else path.suffix.lower() in SUFFIXES


def open_images(path, options: ReadOptions = AS_IT_IS) -> list[Image]:
    """The images of a file or OME-Zarr folder: one, or one for every plane of a stack.

    Raises: InputError, in one line that names the file. Where damage lies in the pixels, `rows`
      raises it.
    """
    path = pathlib.Path(path)
    found = pixels_of(path, options)
    stem = path.name.removesuffix(path.suffix)
    names = [stem] if len(found) == 1 else [f"{stem}_{n:04d}" for n in range(len(found))]
    return [_image(path, name, pixels) for name, pixels in zip(names, found, strict=True)]


def _image(path, name, pixels) -> Image:
    """The Image with these pixels as 8 or 16 bit."""
    dtype, read = pixels.dtype, pixels.rows
    if dtype.kind == "b":
        convert, dtype = (lambda band: band.astype(np.uint8) * 255), np.dtype(np.uint8)
    elif dtype in (np.uint8, np.uint16):
        dtype = dtype.newbyteorder("=")
        convert = lambda band: band.astype(dtype, copy=False)
    else:
        limits = functools.cache(lambda: _limits(read, pixels.shape))
        # The type follows from the pixels with alpha alone: else they need not be read yet.
        top = named(path, limits).top_of_whole if pixels.alpha else math.inf
        dtype = dtype_of_whole(top, pixels.alpha)
        convert = lambda band: _stretch(band, limits(), dtype)
    rows = lambda start, stop: named(path, lambda: convert(read(start, stop)))
    return Image(name, pixels.shape, dtype, pixels.pixel_size, rows, path, pixels.alpha,
                 pixels.names, pixels.notes)


class Limits(NamedTuple):
    """Of the values of a whole image."""

    low: float
    high: float
    whole: bool  # whether all can be kept as 16 bit

    @property
    def top_of_whole(self) -> float:
        """The largest value where all are kept, else infinity."""
        return self.high if self.whole else math.inf


def _limits(read, shape) -> Limits:
    low, high, whole = np.inf, -np.inf, True
    step = max(1, BLOCK // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        band = read(start, min(start + step, shape[0]))
        low, high = min(low, float(band.min())), max(high, float(band.max()))
        if not np.isfinite(low + high):
            raise InputError(f"pixels are {band.dtype} with NaN or infinity in rows {start} to "
                             f"{start + len(band)}; replace them and save again")
        whole = whole and is_whole(band, 2**16)
    return Limits(low, high, whole)


def _stretch(band, limits, dtype):
    low, high, whole = limits
    if whole:
        return band.astype(dtype)
    scaled = (band.astype(np.float64) - low) * (65535 / (high - low or 1))
    return np.rint(scaled).astype(np.uint16)


def pixel_size_of(path) -> tuple[float, float] | None:
    """(height, width) of a pixel in micrometres from the header of a file; None if it has none.

    It is what the file says, believed or not.

    Raises: InputError where the header cannot be read.
    """
    path = pathlib.Path(path)
    if is_zarr(path):
        return named(path, lambda: zarr_stack(path)).pixel_size
    if kind_of(path) == "MICROSCOPE":
        return named(path, lambda: microscope_stacks(path))[0].pixel_size
    return open_tiff(path, tiff_pixel_size) if _is_tiff(path) else None


def _is_tiff(path) -> bool:
    """Whether name and first bytes are those of a TIFF."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        with open(path, "rb") as file:
            return SIGNATURES.get(file.read(4)) == "TIFF"
    except OSError:
        return False
