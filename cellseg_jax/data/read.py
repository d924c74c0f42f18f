"""What a dataset yields, and the reading of image files that datasets share.

A file that cannot be read whole is an InputError that names it: nothing is padded, repaired,
rotated (EXIF orientation is ignored, masks do not carry it) or left out in silence.
"""

import io
import pathlib
import struct
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from skimage.measure import label as connected_components

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.errors import InputError, pick
from cellseg_jax.normalize import LUMINANCE

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg")  # JPEG changes values: fit for images alone
KINDS = {".png": "PNG", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}  # any other is TIFF
JUNK = ("thumbs.db", "desktop.ini")
NUM_CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}
PNG_PALETTE = 3
SIGNATURES = {b"\x89PNG": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
              b"MM\0+": "TIFF", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}
ORIENTATION = 274  # of EXIF and TIFF: 1 is upright


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, sorted by name, without hidden files and Thumbs.db."""
    try:
        paths = list(depends_on(folder).iterdir())
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


def read_image(path, page=None) -> np.ndarray:
    """(H, W, C) uint8 or uint16 of a file of SUFFIXES: gray, gray + alpha, RGB or RGBA.

    Palettes become colours; 1-bit images become 0 and 255; other types are read where all
    values are whole numbers from 0 to 65535, so that nothing is lost.

    Args:
      page: of a TIFF with several: an index from 0, or "channels" where the pages are those.
    """
    image = _decode(pathlib.Path(path), False, page)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype not in (np.uint8, np.uint16):
        if not whole(image, 2**16):
            raise InputError(f"{path}: pixels are {image.dtype} from {image.min():g} to "
                             f"{image.max():g}; expected 8 or 16 bit unsigned, rescale and save "
                             "again (ImageJ: Image > Type > 16-bit)")
        image = image.astype(np.uint16)
    return image


def read_mask(path, page=None) -> np.ndarray:
    """(H, W, 1 or 3) integers as stored: palette indices, and 0 and 1 for 1-bit files.

    Where alpha is 0 the mask is 0; a mask that alpha hides as a whole is refused. `page` as
    in read_image.
    """
    mask = _decode(pathlib.Path(path), True, page)
    if mask.dtype == bool:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind == "f":
        if not whole(mask, 2**24):
            raise InputError(f"{path}: mask values are {mask.dtype} with fractions; expected whole "
                             "numbers, export the mask again without interpolation")
        mask = mask.astype(np.int32)
    if mask.shape[-1] in (2, 4):
        colour, alpha = mask[..., :-1], mask[..., -1:]
        mask = colour * (alpha > 0)
        if colour.any() and not mask.any():
            raise InputError(f"{path}: alpha is 0 wherever the mask has a colour, so nothing is "
                             "left of it; export the mask without alpha")
    return mask


def num_pages(path) -> int:
    """2-D pages of a TIFF, without decoding them; 1 of any other file."""
    return _open_tiff(path, _count_pages) if _kind(path) == "TIFF" else 1


def check_size(mask_path, mask: np.ndarray, image_path, image: np.ndarray) -> None:
    """InputError if a mask has not the height and width of its image."""
    if mask.shape[:2] != image.shape[:2]:
        hint = ""
        if mask.shape[1::-1] == image.shape[:2]:
            turned = orientation(image_path)
            hint = (f"; EXIF orientation {turned} of the image was applied to the mask: turn the "
                    "image's pixels too (mogrify -auto-orient)" if turned > 4 else
                    "; is the mask transposed? Save it again with rows and columns exchanged")
        raise InputError(f"{mask_path}: mask is {mask.shape[0]}x{mask.shape[1]}, its image "
                         f"{image_path.name} is {image.shape[0]}x{image.shape[1]}{hint}")


def pieces_and_holes(label: np.ndarray) -> tuple[list[int], list[int]]:
    """Ids of an (H, W) label that have several pieces, and those that have a hole.

    Pieces are 8-connected, so a hole is 4-connected; another object inside is a hole too. Both
    are allowed, but a target that parts objects, or fills them, does not give them back.
    """
    if label.max() < label.size:
        values, dense = np.arange(label.max() + 1), label
    else:  # ids with large gaps; the 0 in front is there where the label has none
        values, dense = np.unique(np.append(0, label), return_inverse=True)
        dense = dense[1:].reshape(label.shape)
    component = connected_components(dense, connectivity=2).reshape(-1)
    owner = np.zeros(component.max() + 1, np.int64)
    owner[component] = dense.reshape(-1)
    num_pieces = np.bincount(owner[1:], minlength=len(values))
    holes = num_pieces - _euler_numbers(dense, len(values))
    return values[1:][num_pieces[1:] > 1].tolist(), values[1:][holes[1:] > 0].tolist()


def _euler_numbers(label, count) -> np.ndarray:
    """(count,) int, pieces less holes of every value of a label, from its windows of 2x2 pixels.

    For 8-connected pieces: (windows with one pixel of the value - windows with three - 2 x windows
    with two diagonal ones) / 4. Source: Gray 1971, IEEE Transactions on Computers C-20, 551-561.
    """
    padded = np.pad(label, 1)
    corners = [padded[y : y + label.shape[0] + 1, x : x + label.shape[1] + 1]
               for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))]  # neighbours, then around
    uneven = (corners[0] != corners[1]) | (corners[1] != corners[2]) | (corners[2] != corners[3])
    corners = [corner[uneven] for corner in corners]  # few, and windows of one value count 0
    total = np.zeros(count)
    for n, corner in enumerate(corners):
        beside = corner == corners[n - 1], corner == corners[n - 3]
        across = corner == corners[n - 2]
        equal = 1 + beside[0] + beside[1].astype(np.int8) + across
        weight = np.array([0, 1, 0, -1 / 3, 0])[equal]  # each of three pixels counts its window
        weight[across & (equal == 2)] = -1  # -2, for each of two pixels
        total += np.bincount(corner, weight, count)
    return np.rint(total / 4).astype(np.int64)


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


def orientation(path) -> int:
    """The EXIF or TIFF orientation of an image file, 1 to 8; 1, which is upright, if none."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return 1  # else Pillow would decode all pixels to look behind them
            return image.getexif().get(ORIENTATION, 1)
    except OSError:  # a TIFF that Pillow cannot open, which tifffile can
        with tifffile.TiffFile(path) as tiff:
            tag = tiff.pages[0].tags.get(ORIENTATION)
            return int(tag.value) if tag else 1


def _kind(path) -> str:
    return KINDS.get(pathlib.Path(path).suffix.lower(), "TIFF")


def whole(array: np.ndarray, end: int) -> bool:
    """Whether all values are whole numbers in [0, end); NaN and infinity are not."""
    return bool(((array >= 0) & (array < end) & (array % 1 == 0)).all())


def _decode(path: pathlib.Path, as_values: bool, page) -> np.ndarray:
    suffixes = MASK_SUFFIXES if as_values else SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: expected one of {', '.join(suffixes)}; convert the file")
    kind = _kind(path)
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
        image = _open_tiff(path, lambda tiff: _tiff_pixels(tiff, as_values, page))
    else:
        decode = _decode_png if kind == "PNG" else _decode_pillow
        image = named(path, lambda: decode(data, as_values))
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
    """InputError with the byte where a PNG is cut or damaged: libpng is content with less."""
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


def _open_tiff(path, function):
    """function(the open TIFF)."""
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


def _count_pages(tiff: tifffile.TiffFile) -> int:
    return max(len(tiff.pages), tiff.series[0].size // tiff.pages[0].size)


def _tiff_pixels(tiff: tifffile.TiffFile, as_values: bool, index) -> np.ndarray:
    series, page, pages = tiff.series[0], tiff.pages[0], _count_pages(tiff)
    named = series.axes == "CYX" and series.shape[0] <= 4  # the file itself says channels
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
