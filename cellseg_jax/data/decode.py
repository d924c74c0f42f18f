"""Pixels of PNG, TIFF, JPEG and BMP files, checked to be complete.

Nothing is padded, repaired or rotated: a file that cannot be read whole is an InputError.
"""

import io
import os
import pathlib
import struct
import zlib

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin

from cellseg_jax.data.image_planes import COLOURS, STORED, TABLE_NOTE
from cellseg_jax.data.limits import check_pixels
from cellseg_jax.data.microscopes import READERS
from cellseg_jax.data.ome_sets import COMPANION, open_described
from cellseg_jax.data.stacks import Plane
from cellseg_jax.errors import InputError
from cellseg_jax.files.strangers import check_regular

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff", ".lsm", ".qptiff")
# Fit for images alone: JPEG changes values, and microscopes write no masks.
SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg", *TIFF_SUFFIXES[2:], *READERS)
KINDS = {".png": "PNG", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG",
         **dict.fromkeys(READERS, "MICROSCOPE")}  # any other is TIFF
PNG_PALETTE = 3
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
DEFLATE_RATIO = 1032  # the most that deflate packs: 258 bytes into 2 bits
# Pillow's own readers: Image.open refuses more than 179 million pixels, whatever memory there is.
PILLOW = {"PNG": PngImagePlugin.PngImageFile, "JPEG": JpegImagePlugin.JpegImageFile,
          "BMP": BmpImagePlugin.BmpImageFile}
SIGNATURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
              b"MM\0+": "TIFF", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}


def kind_of(path) -> str:
    """The format that the suffix of a file names."""
    return KINDS.get(os.path.splitext(path)[1].lower(), "TIFF")  # pathlib takes three times as long


def whole(array: np.ndarray, end: int) -> bool:
    """Whether all values are whole numbers in [0, end); NaN and infinity are not."""
    return bool(((array >= 0) & (array < end) & (array % 1 == 0)).all())


def dtype_of_whole(top, alpha: bool) -> np.dtype:
    """The type that whole numbers from 0 to `top`, of a wider type, are kept as.

    16 bit; with alpha, whose largest value means opaque, 8 bit where none is above 255.
    """
    return np.dtype(np.uint8 if alpha and top < 2**8 else np.uint16)


def check_file(path: pathlib.Path, as_mask: bool) -> bytes:
    """The bytes of an image file, of a TIFF the first ones alone.

    Args:
      as_mask: only formats that keep values are allowed.
    Raises: InputError where the file cannot be opened, or is of another format than it says.
    """
    if path.name.lower().endswith(COMPANION):
        raise InputError(f"{path}: describes TIFFs, and is read with them; pass the first of these "
                         "or their folder")
    suffixes = MASK_SUFFIXES if as_mask else SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: expected one of {', '.join(suffixes)}; convert the file")
    kind = kind_of(path)
    check_regular(path)
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
    return data


def decoded(path: pathlib.Path, data: bytes, values: str) -> Plane:
    """The pixels of a PNG, JPEG or BMP file, decoded whole.

    Args:
      data: all bytes of the file.
      values: image_planes.COLOURS | INDICES | STORED.
    """
    decode = _decode_png if kind_of(path) == "PNG" else _decode_pillow
    image, notes = named(path, lambda: decode(data, values))
    image = image[..., None] if image.ndim == 2 else image
    alpha = image.shape[-1] in (2, 4)
    return Plane(image.shape, image.dtype, lambda start, stop: image[start:stop],
                 coloured=image.shape[-1] > 2, alpha=alpha, notes=notes)


def _decode_png(data: bytes, values: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels, notes)."""
    _check_png(data)
    depth, colour_type = data[24], data[25]  # fixed places in the first chunk
    if colour_type not in PNG_SAMPLES:
        raise InputError(f"has the colour type {colour_type}, which PNG does not know")
    _check_size(data, depth * PNG_SAMPLES[colour_type])
    if values != COLOURS and colour_type == PNG_PALETTE:
        return np.asarray(PILLOW["PNG"](io.BytesIO(data))), ()  # libpng would give the colours
    image = imagecodecs.png_decode(data)
    if values == STORED and depth < 8:
        image = image // (255 // (2**depth - 1))  # libpng stretched the values to 0..255
    return image, (TABLE_NOTE,) if colour_type == PNG_PALETTE else ()


def _check_size(data: bytes, bits: int) -> None:
    """InputError for a PNG that declares more than memory, or its own data, can hold.

    Args:
      bits: of a pixel.
    """
    width, height = struct.unpack(">II", data[16:24])
    check_pixels(height, width)
    declared, most = height * (-(-width * bits // 8) + 1), DEFLATE_RATIO * len(data)
    if declared > most:
        raise InputError(f"declares {width} x {height} pixels, {declared:,} bytes, but its "
                         f"{len(data):,} bytes cannot hold more than {most:,}; copy it again from "
                         "its source")


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


def _decode_pillow(data: bytes, values: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels, notes) of JPEG and BMP."""
    image = PILLOW["JPEG" if data.startswith(b"\xff\xd8") else "BMP"](io.BytesIO(data))
    check_pixels(*image.size[::-1])
    # The end of a JPEG comes after its last scan; Pillow overlooks a cut behind the last pixels.
    if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError(f"is truncated: it ends at byte {len(data)} without the end of a JPEG; "
                         "copy it again from its source")
    notes = ()
    if image.mode == "P" and values == COLOURS:
        image, notes = image.convert("RGB"), (TABLE_NOTE,)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise InputError(f"its colours are {image.mode}; expected gray or RGB, convert it")
    return np.asarray(image), notes


def open_tiff(path, function):
    """function(the open TIFF, with the OME-XML of its set), with errors as `named`."""
    def run():
        check_regular(path)
        with open_described(path) as tiff:
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
    except MemoryError as error:
        raise InputError(f"{path}: does not fit memory ({error or 'of unknown size'}); save it "
                         "as a tiled TIFF, in parts or smaller") from error
    except Image.DecompressionBombError as error:  # of a library that opens images by Pillow
        raise InputError(f"{path}: has more pixels than this format is opened with ({error}); "
                         "save it as TIFF or OME-Zarr") from error
    except Exception as error:  # decoders raise many types; all others mean a damaged file
        if isinstance(error, (ImportError, NotImplementedError)) or "UnknownCodec" in repr(error):
            raise InputError(f"{path}: is stored in a way that is not known here ({error}); save "
                             "it with another compression") from error
        raise InputError(f"{path}: cannot be decoded, truncated or damaged ({error}); copy it "
                         "again from its source") from error
