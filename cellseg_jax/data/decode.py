"""Pixels of PNG, TIFF, JPEG and BMP files, checked to be complete.

Nothing is padded, repaired or rotated: a file that cannot be read whole is an InputError.
"""

import io
import pathlib
import struct
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from cellseg_jax.errors import InputError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg")  # JPEG changes values: fit for images alone
KINDS = {".png": "PNG", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}  # any other is TIFF
PNG_PALETTE = 3
SIGNATURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
              b"MM\0+": "TIFF", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}


def kind_of(path) -> str:
    """The format that the suffix of a file names."""
    return KINDS.get(pathlib.Path(path).suffix.lower(), "TIFF")


def whole(array: np.ndarray, end: int) -> bool:
    """Whether all values are whole numbers in [0, end); NaN and infinity are not."""
    return bool(((array >= 0) & (array < end) & (array % 1 == 0)).all())


def decode(path: pathlib.Path, as_values: bool, page) -> np.ndarray:
    """(H, W, 1 to 4) of an image file, of the dtype that it has.

    Args:
      as_values: palette indices and stored bits, as masks have them, instead of colours.
      page: as in `read.read_image`.
    Raises: InputError, which names the file, where it cannot be read whole.
    """
    suffixes = MASK_SUFFIXES if as_values else SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: expected one of {', '.join(suffixes)}; convert the file")
    kind = kind_of(path)
    try:
        with open(path, "rb") as file:
            data = file.read(8 if kind == "TIFF" else -1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise InputError(f"{path}: is empty (0 bytes); copy it again or remove it")
    found = next((name for start, name in SIGNATURES.items() if data.startswith(start)), None)
    if found != kind:
        what = (f"is a {found} file under another name" if found else
                f"is not a PNG, TIFF, JPEG or BMP image (it starts with {data[:8]!r})")
        raise InputError(f"{path}: {what}; expected {kind}, convert it or move it away")
    if kind == "TIFF":
        image = open_tiff(path, lambda tiff: _tiff_pixels(tiff, as_values, page))
    else:
        pixels = _decode_png if kind == "PNG" else _decode_pillow
        image = named(path, lambda: pixels(data, as_values))
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, 2, 3, 4):
        hint = "; channels first? Save it as (H, W, C)" if image.shape[0] in (2, 3, 4) else ""
        raise InputError(f"{path}: shape is {image.shape}; expected (H, W) or (H, W, 1 to 4){hint}")
    return image


def _decode_png(data: bytes, as_values: bool) -> np.ndarray:
    _check_png(data)
    depth, colour_type = data[24], data[25]  # fixed places in the first chunk
    if as_values and colour_type == PNG_PALETTE:
        return np.asarray(Image.open(io.BytesIO(data)))  # libpng would give the colours
    image = imagecodecs.png_decode(data)
    if as_values and depth < 8:
        image = image // (255 // (2**depth - 1))  # libpng stretched the values to 0..255
    return image


def _check_png(data: bytes) -> None:
    """InputError with the byte where a PNG is cut or damaged: libpng accepts less."""
    place, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        end = place + length + 12
        if end > len(data):
            another = len(data) - place >= 8 and kind != b"IEND"  # after this one, of 12 bytes
            missing = end - len(data) + 12 * another
            raise InputError(f"is truncated: it ends at byte {len(data)}, at least {missing} too "
                             "early; copy it again from its source")
        (checksum,) = struct.unpack(">I", data[end - 4 : end])
        if zlib.crc32(data[place + 4 : end - 4]) != checksum:
            raise InputError(f"is damaged between bytes {place} and {end} (wrong checksum); copy "
                             "it again from its source")
        place = end


def _decode_pillow(data: bytes, as_values: bool) -> np.ndarray:
    """JPEG and BMP."""
    image = Image.open(io.BytesIO(data))
    # The end of a JPEG comes after its last scan; Pillow overlooks a cut behind the last pixels.
    if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError(f"is truncated: it ends at byte {len(data)} without the end of a JPEG; "
                         "copy it again from its source")
    if image.mode == "P" and not as_values:
        image = image.convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise InputError(f"its colours are {image.mode}; expected gray or RGB, convert it")
    return np.asarray(image)


def open_tiff(path, function):
    """function(the open TIFF), with errors as `named`."""
    def run():
        with tifffile.TiffFile(path) as tiff:
            return function(tiff)

    return named(path, run)


def named(path, function):
    """function(), where whatever goes wrong is an InputError that names the file."""
    try:
        return function()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types; all of them mean a damaged file
        raise InputError(f"{path}: cannot be decoded, truncated or damaged ({error}); copy it "
                         "again from its source") from error


def count_pages(tiff: tifffile.TiffFile) -> int:
    """2-D pages; ImageJ describes only the first of a large stack."""
    return max(len(tiff.pages), tiff.series[0].size // tiff.pages[0].size)


def _tiff_pixels(tiff: tifffile.TiffFile, as_values: bool, index) -> np.ndarray:
    series, page, pages = tiff.series[0], tiff.pages[0], count_pages(tiff)
    named = series.axes == "CYX" and series.shape[0] <= 4  # the file itself names them channels
    if index == "channels" or (index is None and named):
        image = np.moveaxis(series.asarray().reshape(-1, *page.shape), 0, -1)
    elif pages == 1 or index is not None:
        # A large ImageJ stack describes its first page alone: the others follow it.
        image = (tiff.pages[index or 0].asarray() if (index or 0) < len(tiff.pages)
                 else series.asarray().reshape(-1, *page.shape)[index])
        image = np.moveaxis(image, 0, -1) if page.axes == "SYX" else image
    else:
        raise InputError(f"has {pages} pages ({series.axes} {series.shape}); expected one 2-D "
                         "image; export each page as its own file, or with data.name=folder "
                         "set config.data.pages=slices (a sample each) or channels (colours)")
    if image.dtype.kind not in "buif":
        raise InputError(f"pixels are {image.dtype}; expected 8 or 16 bit integers")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(f"pixels are {image.dtype} with {np.isnan(image).sum()} NaN and "
                         f"{np.isinf(image).sum()} infinite; replace them and save again as "
                         "16 bit")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not as_values:
        image = (page.colormap >> 8).astype(np.uint8).T[image]  # TIFF palettes have 16 bits
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not as_values:
        image = ~image
    return image
