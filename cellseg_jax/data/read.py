"""The reading of folders, images and masks that datasets share.

A file that cannot be read whole is an InputError that names it. EXIF orientation is ignored:
masks do not carry it.
"""

import pathlib

import numpy as np
import tifffile
from PIL import Image

from cellseg_jax.data.decode import count_pages, decode, kind_of, named, open_tiff, whole
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.errors import InputError

JUNK = ("thumbs.db", "desktop.ini")
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
    image = decode(pathlib.Path(path), False, page)
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
    mask = decode(pathlib.Path(path), True, page)
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
    return open_tiff(path, count_pages) if kind_of(path) == "TIFF" else 1


def image_size(path) -> tuple[int, int]:
    """Height and width of an image file (of the first page of a TIFF), from its header alone."""
    path = pathlib.Path(path)
    if kind_of(path) == "TIFF":
        return open_tiff(path, lambda tiff: tiff.pages[0].shape[:2])

    def size():
        with Image.open(path) as image:
            return image.size[::-1]

    return named(path, size)


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
