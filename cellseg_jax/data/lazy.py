"""Images of any size for prediction: opened without their pixels, read in bands of rows.

The pixels are those of `read.read_image`, so that prediction and training have equal input. More is
read here than in training:

- A stack is one image for every plane. Up to four channels of an axis C are one image; other
  axes (z, time, more channels) are planes, numbered from 0 in the order of the file.
- Pixels that are not 8 or 16 bit unsigned and not whole numbers from 0 to 65535 (float, signed,
  32 bit) are stretched to 16 bit: the darkest value of the whole image becomes 0, the brightest
  65535. The normalisations minmax and percentile then show a network the same picture as before,
  to 1/65535 of its range; dtype does not.
- OME-Zarr (NGFF 0.4 in Zarr v2, 0.5 in v3; the package zarr) at its full resolution.

Bands of TIFF and Zarr need memory for their own rows and one row of tiles or chunks alone; a
compressed TIFF that is one strip is decoded whole. PNG, JPEG and BMP are read whole.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from cellseg_jax.data.decode import SIGNATURES, SUFFIXES, named, open_tiff
from cellseg_jax.data.decode import whole as is_whole
from cellseg_jax.data.image_planes import Plane, mapped_plane, tiff_plane
from cellseg_jax.data.read import read_image
from cellseg_jax.errors import InputError

MAX_CHANNELS = 4  # RGBA
BLOCK = 2**24  # values in memory while the range of a whole image is looked for
BELIEVED_UM = (1e-5, 1e4)  # smallest and largest pixel; other values are mistakes
MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "millimeter": 1e3, "centimeter": 1e4, "nm": 1e-3,
               "nanometer": 1e-3, "angstrom": 1e-4, "inch": 25400, "um": 1, "\xb5m": 1,
               "\u03bcm": 1, "\\u00B5m": 1, "micron": 1, "microns": 1, "micrometer": 1}


class Image(NamedTuple):
    """One 2-D image whose pixels are read on demand."""

    name: str  # of the file without suffix, with _0000, _0001, ... for the planes of a stack
    shape: tuple[int, int, int]  # (H, W, C), C from 1 to 4
    dtype: np.dtype  # uint8 or uint16
    pixel_size: tuple[float, float] | None  # height and width of a pixel in micrometres
    rows: Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, W, C) of dtype
    path: pathlib.Path | None = None  # the file it is from

    def read(self) -> np.ndarray:
        """(H, W, C), the whole image."""
        return self.rows(0, self.shape[0])


def from_array(pixels: np.ndarray, name: str = "image", pixel_size=None, path=None) -> Image:
    """An Image of (H, W, C) uint8 or uint16 pixels in memory."""
    return Image(name, pixels.shape, pixels.dtype, pixel_size,
                 lambda start, stop: pixels[start:stop], path)


def of_pixels(pixels: np.ndarray, name: str = "image", pixel_size=None) -> Image:
    """An Image of an (H, W, C) array of any real dtype, read as a file that holds it would be."""
    plane = Plane(pixels.shape, pixels.dtype, lambda start, stop: pixels[start:stop])
    return _image(name, name, [plane], pixel_size)._replace(path=None)


def is_image(path) -> bool:
    """Whether a path looks like an image: a suffix of decode.SUFFIXES, or an OME-Zarr folder."""
    path = pathlib.Path(path)
    return _is_zarr(path) if path.is_dir() else path.suffix.lower() in SUFFIXES


def open_images(path, pages: str = "") -> list[Image]:
    """The images of a file or OME-Zarr folder: one, or one for every plane of a stack.

    Args:
      pages: "" as above | slices: every page is an image, axis C or not | channels: the pages are
        the channels of one image. As config.data.pages of the training.
    Raises: InputError, in one line that names the file. Where damage lies in the pixels, `rows`
      raises it.
    """
    path = pathlib.Path(path)
    if _is_zarr(path):
        return named(path, lambda: _zarr_images(path, pages))
    if _is_tiff(path):
        return named(path, lambda: _tiff_images(path, pages))
    return [from_array(read_image(path), path.stem, path=path)]


def _is_zarr(path) -> bool:
    return path.is_dir() and (path.suffix.lower() == ".zarr" or (path / "zarr.json").exists()
                              or (path / ".zattrs").exists())


def _is_tiff(path) -> bool:
    """Whether name and first bytes are those of a TIFF; `read_image` explains errors in others."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with open(path, "rb") as file:
            return SIGNATURES.get(file.read(4)) == "TIFF"
    except OSError:
        return False


def _image(path, name, planes, pixel_size) -> Image:
    """The Image whose channels are those of all planes."""
    (height, width, _), dtype = planes[0].shape, planes[0].dtype
    channels = sum(plane.shape[-1] for plane in planes)
    if channels > MAX_CHANNELS or any(plane.shape[:2] != (height, width) for plane in planes):
        raise InputError(f"its pages are {[plane.shape for plane in planes]}; expected one "
                         f"(H, W, 1 to {MAX_CHANNELS}) image")
    if dtype.kind not in "buif":
        raise InputError(f"pixels are {dtype}; expected 8 or 16 bit integers")

    def read(start, stop):
        bands = [plane.rows(start, stop) for plane in planes]
        return np.concatenate(bands, -1) if len(bands) > 1 else bands[0]

    shape = height, width, channels
    if dtype.kind == "b":
        convert, dtype = (lambda band: band.astype(np.uint8) * 255), np.dtype(np.uint8)
    elif dtype in (np.uint8, np.uint16):
        dtype = dtype.newbyteorder("=")
        convert = lambda band: band.astype(dtype, copy=False)
    else:
        dtype = np.dtype(np.uint16)
        limits = functools.cache(lambda: _limits(read, shape))
        convert = lambda band: _stretch(band, limits())
    rows = lambda start, stop: named(path, lambda: convert(read(start, stop)))
    return Image(name, shape, dtype, pixel_size, rows, path)


def _limits(read, shape):
    """Darkest and brightest value of a whole image; None where all can be kept as 16 bit."""
    low, high, whole = np.inf, -np.inf, True
    step = max(1, BLOCK // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        band = read(start, min(start + step, shape[0]))
        low, high = min(low, float(band.min())), max(high, float(band.max()))
        if not np.isfinite(low + high):
            raise InputError(f"pixels are {band.dtype} with NaN or infinity in rows {start} to "
                             f"{start + len(band)}; replace them and save again")
        whole = whole and is_whole(band, 2**16)
    return None if whole else (low, high)


def _stretch(band, limits):
    if limits is None:
        return band.astype(np.uint16)
    low, high = limits
    scaled = (band.astype(np.float64) - low) * (65535 / (high - low or 1))
    return np.rint(scaled).astype(np.uint16)


def _tiff_images(path, pages) -> list[Image]:
    with tifffile.TiffFile(path) as tiff:
        series, first = tiff.series[0], tiff.pages[0]
        count = series.size // first.size
        others = tiff.pages[count:] if len(tiff.pages) > count else ()
        if any(not page.is_reduced for page in others):  # several series: their axes differ
            leading, planes = [], [tiff_plane(page) for page in tiff.pages]
        else:
            lengths = zip(series.axes, series.shape, strict=True)
            leading = [(axis, length) for axis, length in lengths if axis not in "YXS"]
            if count > len(series.pages):  # a large ImageJ stack describes its first page alone
                planes = [mapped_plane(first, series.dataoffset + n * first.nbytes)
                          for n in range(count)]
            else:
                planes = [tiff_plane(series.pages[n]) for n in range(count)]
        return _images(path, planes, leading, pages, _tiff_pixel_size(tiff))


def _images(path, planes, leading, pages, pixel_size) -> list[Image]:
    """An Image of each plane, or of several where they are its channels.

    `leading` is (axis, length) of all axes that the planes are numbered by, in their order.
    """
    numbers = np.arange(len(planes))
    axes, lengths = "".join(axis for axis, _ in leading), [length for _, length in leading]
    channel = axes.find("C")
    if pages == "channels":
        grouped = numbers[None]
    elif pages == "" and channel >= 0 and lengths[channel] <= MAX_CHANNELS:
        grouped = np.moveaxis(numbers.reshape(lengths), channel, -1).reshape(-1, lengths[channel])
    else:
        grouped = numbers[:, None]
    stem = path.name.removesuffix(path.suffix)
    names = [stem] if len(grouped) == 1 else [f"{stem}_{n:04d}" for n in range(len(grouped))]
    return [_image(path, name, [planes[n] for n in group], pixel_size)
            for name, group in zip(names, grouped, strict=True)]


def pixel_size_of(path) -> tuple[float, float] | None:
    """(height, width) of a pixel in micrometres from the header of a file; None if it has none.

    Raises: InputError where the header cannot be read.
    """
    path = pathlib.Path(path)
    if _is_zarr(path):
        return _zarr_images(path, "")[0].pixel_size
    return open_tiff(path, _tiff_pixel_size) if _is_tiff(path) else None


def _tiff_pixel_size(tiff):
    """(height, width) in micrometres from OME-XML, ImageJ metadata or tags in centimetres."""
    if tiff.is_ome:
        try:
            pixels = ElementTree.fromstring(tiff.ome_metadata).find(".//{*}Pixels")
            return _micrometres(*((pixels.get(f"PhysicalSize{axis}"),
                                   pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "YX"))
        except (ElementTree.ParseError, AttributeError, ValueError):
            return None  # the pixels are good all the same
    tags = tiff.pages[0].tags
    unit = {3: "cm"}.get(tags.valueof("ResolutionUnit"))  # inches are those of a screen
    if tiff.is_imagej:
        unit = tiff.imagej_metadata.get("unit")
    per_unit = [tags.valueof(f"{axis}Resolution") or (0, 1) for axis in "YX"]
    return _micrometres(*((below / above if above else None, unit) for above, below in per_unit))


def _micrometres(*sizes):
    """Sizes given as (value, unit); None if one is missing, of no known unit, or impossible."""
    known = [float(value) * MICROMETRES[unit] for value, unit in sizes
             if value and unit in MICROMETRES]
    possible = len(known) == len(sizes) and all(
        BELIEVED_UM[0] <= one <= BELIEVED_UM[1] for one in known)
    return tuple(known) if possible else None


def _zarr_images(path, pages) -> list[Image]:
    try:
        import zarr  # here: an extra that only OME-Zarr needs
    except ImportError as error:
        raise InputError("OME-Zarr needs another package: pip install zarr") from error
    try:
        group = zarr.open_group(path, mode="r")
    except FileNotFoundError as error:
        raise InputError("has no Zarr group; expected the folder of an OME-Zarr image") from error
    attributes = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        inside = ", ".join(sorted(name for name, _ in group.groups())[:5])
        raise InputError("has no multiscales as an OME-Zarr image has; expected one"
                         + (f": is it one of {inside} inside?" if inside else ""))
    level = multiscales[0]["datasets"][0]
    array = group[level["path"]]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in
            multiscales[0].get("axes", "tczyx"[-array.ndim :])]
    if axes[-2:] != ["y", "x"]:
        raise InputError(f"its axes are {axes}; expected y and x last")

    def plane(index):
        return Plane((*array.shape[-2:], 1), np.dtype(array.dtype),
                      lambda start, stop: array[(*index, slice(start, stop))][..., None])

    leading = list(zip((axis.upper() for axis in axes), array.shape[:-2], strict=False))
    planes = [plane(index) for index in np.ndindex(*array.shape[:-2])]
    return _images(path, planes, leading, pages, _zarr_pixel_size(multiscales[0], level))


def _zarr_pixel_size(multiscale, level):
    units = [axis.get("unit") if isinstance(axis, dict) else None
             for axis in multiscale.get("axes", ())][-2:]
    scales = [np.asarray(transform["scale"][-2:]) for part in (multiscale, level)
              for transform in part.get("coordinateTransformations", ()) if "scale" in transform]
    if len(units) < 2 or not scales:
        return None
    return _micrometres(*zip(np.prod(scales, 0), units, strict=True))
