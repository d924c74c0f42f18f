"""What a dataset yields, and the reading of PNG and TIFF files that datasets share.

A file that cannot be read whole is an InputError that names it: nothing is padded, repaired,
rotated (EXIF orientation is ignored, masks do not carry it) or left out in silence.
"""

import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from cellseg_jax.errors import InputError, pick

SUFFIXES = (".png", ".tif", ".tiff")
JUNK = ("thumbs.db", "desktop.ini")
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as MATLAB, PIL and OpenCV; equal parts sum to 1
NUM_CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}
PNG_PALETTE = 3
SIGNATURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
              b"MM\0+": "TIFF", b"\xff\xd8\xff": "JPEG"}


class Finding(NamedTuple):
    """Something a user should know of the data. An error stops training, a note is information."""

    level: str  # "error" | "warning" | "note"
    where: str  # the file, folder or key
    what: str  # found, expected, how to fix; one line


class Sample(NamedTuple):
    """One decoded image with its truth."""

    image: np.ndarray  # (H, W, C) uint8 or uint16
    label: np.ndarray  # (H, W) int32, instance ids or classes, 0 background
    stratum: str  # what a split balances: modality, class, look
    findings: tuple[Finding, ...] = ()  # such as "3 of 120 polygons have no area: left out"


class Record(NamedTuple):
    """One sample not yet decoded. Samples of one `group` never straddle a split."""

    name: str
    group: str
    files: tuple[pathlib.Path, ...]  # everything `read` depends on, image first; () if in memory
    read: Callable[[], Sample]
    part: str = ""  # "train" | "val" | "test" where the dataset's own split says so


class Records(list):
    """A dataset's Records sorted by name, and what was noticed while listing its files."""

    def __init__(self, records, findings=()):
        super().__init__(records)
        self.findings = tuple(findings)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, sorted by name, without hidden files and Thumbs.db."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(p for p in paths if not p.name.startswith(".") and p.name.lower() not in JUNK)



def check_root(root, download: str) -> pathlib.Path:
    """The data folder as a path; InputError if it is not set, missing or empty."""
    key = "config.data.root"
    if not root:
        raise InputError(f"{key}: not set; pass --{key}=DIR. {download}")
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{key}: folder '{root}' does not exist; pass --{key}=DIR. {download}")
    if not entries(root):
        raise InputError(f"{key}: folder '{root}' is empty. {download}")
    return root


def read_image(path) -> np.ndarray:
    """(H, W, C) uint8 or uint16 of a PNG or TIFF: gray, gray + alpha, RGB or RGBA.

    Palettes become colours; 1-bit images become 0 and 255.
    """
    image = _decode(pathlib.Path(path), as_values=False)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: pixels are {image.dtype}; expected 8 or 16 bit unsigned")
    return image


def read_mask(path) -> np.ndarray:
    """(H, W, 1 or 3) integers as stored: palette indices, and 0 and 1 for 1-bit files.

    Where alpha is 0 the mask is 0; a mask that alpha hides as a whole is refused.
    """
    mask = _decode(pathlib.Path(path), as_values=True)
    mask = mask.astype(np.uint8) if mask.dtype == bool else mask
    if mask.shape[-1] in (2, 4):
        colour, alpha = mask[..., :-1], mask[..., -1:]
        mask = colour * (alpha > 0)
        if colour.any() and not mask.any():
            raise InputError(f"{path}: alpha is 0 wherever the mask has a colour, so nothing is "
                             "left of it; export the mask without alpha")
    return mask


def num_pages(path) -> int:
    """Pages of a TIFF stack, each an image of its own."""
    return _open_stack(path, _count_pages)


def read_page(path, page: int) -> np.ndarray:
    """(H, W) uint8 or uint16, one gray page of a TIFF stack as stored; no other page is decoded."""
    image = _open_stack(path, lambda tiff: _page_pixels(tiff.pages[page], as_values=True))
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: page {page} is {image.dtype} of shape {image.shape}; expected "
                         "(H, W) with 8 or 16 bit unsigned pixels")
    return image


def check_size(mask_path, mask: np.ndarray, image_path, image: np.ndarray) -> None:
    """InputError if a mask has not the height and width of its image."""
    if mask.shape[:2] != image.shape[:2]:
        hint = "; is the mask transposed?" if mask.shape[1::-1] == image.shape[:2] else ""
        raise InputError(f"{mask_path}: mask is {mask.shape[0]}x{mask.shape[1]}, its image "
                         f"{image_path.name} is {image.shape[0]}x{image.shape[1]}{hint}")


def to_channels(image: np.ndarray, channels: str) -> np.ndarray:
    """(H, W, 1, 3 or 4) of an (H, W, 1 to 4) image, same dtype.

    gray is the luminance 0.299 R + 0.587 G + 0.114 B, rounded; gray to RGB repeats the channel;
    a missing alpha is opaque (the dtype's maximum).
    """
    num_channels = pick(NUM_CHANNELS, channels, "config.data.channels")
    has_alpha = image.shape[-1] in (2, 4)
    colour = image[..., :-1] if has_alpha else image
    if num_channels == 1:
        if colour.shape[-1] == 3:
            colour = np.rint(colour @ np.array(LUMINANCE))[..., None].astype(image.dtype)
        return colour
    if colour.shape[-1] == 1:
        colour = np.repeat(colour, 3, axis=-1)
    if num_channels == 3:
        return colour
    opaque = np.full(image.shape[:2] + (1,), np.iinfo(image.dtype).max, image.dtype)
    return np.concatenate([colour, image[..., -1:] if has_alpha else opaque], axis=-1)


def _decode(path: pathlib.Path, as_values: bool) -> np.ndarray:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected one of {', '.join(SUFFIXES)}; convert the file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise InputError(f"{path}: is empty (0 bytes)")
    kind = "PNG" if path.suffix.lower() == ".png" else "TIFF"
    found = next((name for start, name in SIGNATURES.items() if data.startswith(start)), None)
    if found != kind:
        what = (f"is a {found} file under another name" if found else
                f"is not a PNG or TIFF image (it starts with {data[:8]!r})")
        raise InputError(f"{path}: {what}; expected {kind}, convert it or move it away")
    try:
        decode = _decode_png if kind == "PNG" else _decode_tiff
        image = decode(data, as_values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # decoders raise many types; all of them mean a damaged file
        raise InputError(f"{path}: cannot be decoded, truncated or damaged ({error})") from error
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4):
        raise InputError(f"{path}: shape is {image.shape}; expected (H, W) or (H, W, 1 to 4)")
    return image


def _open_stack(path, function):
    try:
        with tifffile.TiffFile(path) as tiff:
            if _count_pages(tiff) > len(tiff.pages):
                raise InputError("is one block of several images; save it as a stack of pages")
            return function(tiff)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # decoders raise many types; all of them mean a damaged file
        raise InputError(f"{path}: cannot be decoded, truncated or damaged ({error})") from error


def _decode_png(data: bytes, as_values: bool) -> np.ndarray:
    if b"IEND" not in data:  # libpng is content once all rows are there; a cut file is not whole
        raise InputError("is truncated, the end of the PNG is missing")
    depth, colour_type = data[24], data[25]  # fixed places in the first chunk
    if as_values and colour_type == PNG_PALETTE:
        return np.asarray(Image.open(io.BytesIO(data)))  # libpng would give the colours
    image = imagecodecs.png_decode(data)
    if as_values and depth < 8:
        image = image // (255 // (2**depth - 1))  # libpng stretched the values to 0..255
    return image


def _decode_tiff(data: bytes, as_values: bool) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        num_pages = _count_pages(tiff)
        if num_pages > 1:
            raise InputError(f"has {num_pages} pages; expected one 2-D image; export each page "
                             "as its own file, or as RGB if the pages are channels")
        return _page_pixels(tiff.pages[0], as_values)


def _count_pages(tiff: tifffile.TiffFile) -> int:
    return max(len(tiff.pages), tiff.series[0].size // tiff.pages[0].size)


def _page_pixels(page, as_values: bool) -> np.ndarray:
    image = page.asarray()
    if image.dtype.kind not in "bui":
        nans = np.count_nonzero(np.isnan(image)) if image.dtype.kind == "f" else 0
        raise InputError(f"pixels are {image.dtype}" + (f" with {nans} NaN" if nans else "")
                         + "; expected 8 or 16 bit integers, rescale and export again")
    if page.axes == "SYX":
        image = np.moveaxis(image, 0, -1)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not as_values:
        image = (page.colormap >> 8).astype(np.uint8).T[image]  # TIFF palettes have 16 bits
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not as_values:
        image = ~image
    return image
