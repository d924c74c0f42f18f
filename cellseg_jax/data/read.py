"""The reading of folders, images and masks that datasets share.

A file that cannot be read whole is an InputError that names it. EXIF orientation is ignored:
masks do not carry it.
"""

import itertools
import os
import pathlib

import numpy as np

from cellseg_jax.data.decode import (
    PILLOW,
    SUFFIXES,
    check_file,
    decoded,
    dtype_of_whole,
    kind_of,
    named,
    open_tiff,
    whole,
)
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.image_planes import COLOURS, INDICES, STORED, WHITE_NOTE
from cellseg_jax.data.limits import check_pixels
from cellseg_jax.data.microscopes import OIF_FOLDER, microscope_stacks
from cellseg_jax.data.nnunet_channels import by_number, names, root_of
from cellseg_jax.data.stacks import (
    AS_IT_IS,
    Pixels,
    ReadOptions,
    Stack,
    StackAxes,
    axes_of,
    check_single,
    chosen_channels,
    images_of,
)
from cellseg_jax.data.tiff_stacks import tiff_stacks
from cellseg_jax.data.zarr_stacks import is_zarr, zarr_stack
from cellseg_jax.errors import InputError
from cellseg_jax.files.strangers import check_regular

SLICES = ReadOptions(pages="slices")
JUNK = ("thumbs.db", "desktop.ini")
ORIENTATION = 274  # of EXIF and TIFF: 1 is upright


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """What lies in a folder, sorted by name, without hidden files, Thumbs.db and parts of an OIF.

    Raises: InputError for what is no file and no folder, such as a FIFO, or if it cannot be read.
    """
    try:
        with os.scandir(depends_on(folder)) as found:
            names = sorted(entry.name for entry in found
                           if entry.is_file() or entry.is_dir() or not check_regular(entry.path))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    return [folder / name for name in names if not name.startswith(".")
            and name.lower() not in JUNK and not name.lower().endswith(OIF_FOLDER)]


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


def pixels_of(path, options: ReadOptions = AS_IT_IS, as_mask: bool = False) -> list[Pixels]:
    """The images of a file or OME-Zarr folder, of any dtype, not yet read.

    Where several channels are chosen that NAME_0000 lacks, and NAME_0001, ... lie beside it, these
    are its other channels; in a dataset of nnU-Net they always are.

    Raises: InputError, in one line that names the file.
    """
    path = pathlib.Path(path)
    options = options if as_mask else by_number(path, options)
    files = () if as_mask else _channel_files(path, options)
    made = lambda of: [image for one in of for image in images_of(one, options, as_mask)]
    if len(files) > 1 and root_of(path):
        return named(path, lambda: made(_joined(files, options)))
    stacks = _stacks(path, options, as_mask)
    try:
        return named(path, lambda: made(stacks))
    except InputError:
        try:
            joined = _joined(files, options) if len(files) > 1 else []
        except InputError:
            joined = []
        if not joined:
            raise
    return named(path, lambda: made(joined))


def _channel_files(path, options) -> tuple[pathlib.Path, ...]:
    """NAME_0000, NAME_0001, ... in order, if several channels are chosen; () for other names.

    In a dataset of nnU-Net, where they can be nothing else, as many as dataset.json says.
    """
    root = root_of(path)
    if not path.stem.endswith("_0000") or not (
            root or len(chosen_channels(options.channel_index)) > 1):
        return ()
    numbers = range(len(names(root)) if root else 10_000)
    numbered = (path.with_name(f"{path.stem[:-4]}{n:04d}{path.suffix}") for n in numbers)
    return tuple(itertools.takewhile(pathlib.Path.is_file, numbered))


def other_channels(path, options: ReadOptions) -> tuple[pathlib.Path, ...]:
    """The files that `pixels_of` reads as further channels of a file; () where it needs none."""
    files = _channel_files(path, options)
    if root_of(path):
        return files[1:]
    try:
        for stack in _stacks(path, options, False) if len(files) > 1 else ():
            images_of(stack, options)
    except InputError:
        try:
            pixels_of(path, options)
        except InputError:
            return ()
        return files[1:]
    return ()


def image_axes(path, options: ReadOptions) -> StackAxes:
    """How the images of a file are numbered, from its header alone.

    Raises: InputError, as `pixels_of`.
    """
    path = pathlib.Path(path)
    return named(path, lambda: axes_of(_stacks(path, options, False), options))


def _stacks(path, options, as_mask) -> list[Stack]:
    check_regular(path)
    values = STORED if as_mask else INDICES if options.channels == "gray" else COLOURS
    if path.suffix.lower() not in SUFFIXES and not as_mask and is_zarr(path):
        return [named(path, lambda: zarr_stack(path))]
    if kind_of(path) == "MICROSCOPE" and not as_mask:
        return named(path, lambda: microscope_stacks(path))
    data = check_file(path, as_mask)
    if kind_of(path) == "TIFF":
        return open_tiff(path, lambda tiff: tiff_stacks(tiff, values))
    return [Stack("", (), [decoded(path, data, values)])]


def _joined(paths, options) -> list[Stack]:
    """The stack of an image whose channels are files of their own."""
    found = [_stacks(path, options, False) for path in paths]
    first, *others = [stacks[0] for stacks in found]
    if any(len(stacks) > 1 for stacks in found) or "C" in first.axes or any(
            (one.axes, one.lengths) != (first.axes, first.lengths) for one in others):
        raise InputError(f"{paths[0]}: it and the files of its other channels have "
                         f"{'; '.join(stack.text for stacks in found for stack in stacks)}; "
                         "expected one channel each, and the same planes")
    planes = [plane for stacks in found for plane in stacks[0].planes]
    return [Stack(f"C{first.axes}", (len(paths), *first.lengths), planes, (), first.pixel_size)]


def _only(path, options, number, as_mask) -> Pixels:
    """Image `number` of a file or of a tuple of them, one for each channel, or the only one."""
    if isinstance(path, tuple) and len(path) > 1:
        stacks, path = _joined(path, options), path[0]
    else:
        path = pathlib.Path(path[0] if isinstance(path, tuple) else path)
        stacks = _stacks(path, options, as_mask)

    def choose():
        images = [image for stack in stacks for image in images_of(stack, options, as_mask)]
        if number is None:
            check_single(stacks, images)
        elif number >= len(images):
            raise InputError(f"has no image {number}: there are {len(images)}, from 0")
        return images[number or 0]

    return named(path, choose)


def _whole(path, image: Pixels) -> np.ndarray:
    named(path, lambda: check_pixels(*image.shape[:2], "has"))
    pixels = named(path, lambda: image.rows(0, image.shape[0]))
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"{path}: pixels are {pixels.dtype} with {np.isnan(pixels).sum()} NaN and "
                         f"{np.isinf(pixels).sum()} infinite; replace them and save again as "
                         "16 bit")
    return pixels


def read_image(path, options: ReadOptions = AS_IT_IS, number: int | None = None) -> np.ndarray:
    """(H, W, C) uint8 or uint16 of a file of SUFFIXES.

    Without options.channel_index that is gray, gray + alpha, RGB or RGBA; else the chosen channels.
    1-bit images become 0 and 255; other types are read where all values are whole numbers from 0 to
    65535, so that nothing is lost.

    Args:
      number: of the images that `options` make of the file; None: there must be one.
    """
    return image_with_notes(path, options, number)[0]


def image_with_notes(path, options=AS_IT_IS, number=None) -> tuple[np.ndarray, tuple[str, ...]]:
    """`read_image`, and what a user should know of the file; or of files, one for each channel."""
    chosen = _only(path, options, number, False)
    path = path[0] if isinstance(path, tuple) else path
    image = _whole(path, chosen)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype not in (np.uint8, np.uint16):
        if not whole(image, 2**16):
            raise InputError(f"{path}: pixels are {image.dtype} from {image.min():g} to "
                             f"{image.max():g}; expected 8 or 16 bit unsigned, rescale and save "
                             "again (ImageJ: Image > Type > 16-bit)")
        image = image.astype(dtype_of_whole(image.max(initial=0), chosen.alpha))
    return image, chosen.notes


def read_mask(path, options: ReadOptions = AS_IT_IS, number: int | None = None) -> np.ndarray:
    """(H, W, 1 or 3) integers as stored: palette indices, and 0 and 1 for 1-bit files.

    Where alpha is 0 the mask is 0; a mask that alpha hides as a whole is refused. `number` as in
    read_image.
    """
    return mask_with_notes(path, options, number)[0]


def mask_with_notes(path, options=AS_IT_IS, number=None) -> tuple[np.ndarray, tuple[str, ...]]:
    """`read_mask`, and what a user should know of the file."""
    image = _only(path, options, number, True)
    mask = _whole(path, image)
    if mask.dtype == bool:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind == "f":
        if not whole(mask, 2**24):
            wrong = mask[~((mask >= 0) & (mask < 2**24) & (mask % 1 == 0))][0]
            raise InputError(f"{path}: has a mask value {wrong:g} ({mask.dtype}); expected whole "
                             "numbers from 0, export the mask again without interpolation")
        mask = mask.astype(np.int32)
    if image.alpha:
        colour, alpha = mask[..., :-1], mask[..., -1:]
        mask = colour * (alpha > 0)
        if colour.any() and not mask.any():
            raise InputError(f"{path}: alpha is 0 wherever the mask has a colour, so nothing is "
                             "left of it; export the mask without alpha")
    notes = image.notes
    if WHITE_NOTE in notes and 2 * np.count_nonzero(mask) <= mask.size:
        notes = tuple(note for note in notes if note != WHITE_NOTE)
    return mask, notes


def num_images(path, options: ReadOptions = AS_IT_IS, as_mask: bool = False) -> int:
    """Images of a file by `options`, from its header alone; 1 of PNG, JPEG and BMP."""
    may_be_several = kind_of(path) in ("TIFF", "MICROSCOPE")
    return len(pixels_of(path, options, as_mask)) if may_be_several else 1


def image_size(path) -> tuple[int, int]:
    """Height and width of an image file (of the first image of a TIFF), from its header alone."""
    path = pathlib.Path(path)
    if is_zarr(path) or kind_of(path) == "MICROSCOPE":
        return _stacks(path, AS_IT_IS, False)[0].planes[0].shape[:2]
    if kind_of(path) == "TIFF":
        return open_tiff(path, lambda tiff: tiff_stacks(tiff, STORED)[0].planes[0].shape[:2])

    def size():
        with _opened(path) as image:
            return image.size[::-1]

    return named(path, size)


def _opened(path):
    """A PNG, JPEG or BMP, whose pixels are not read."""
    check_regular(path)
    return PILLOW[kind_of(path)](path)


def check_size(mask_path, mask: np.ndarray, image_path, image: np.ndarray) -> None:
    """InputError if a mask has not the height and width of its image."""
    if mask.shape[:2] != image.shape[:2]:
        hint = "; expected the pixels of the image: export the mask at its size"
        if mask.shape[1::-1] == image.shape[:2]:
            turned = orientation(image_path)
            hint = (f"; EXIF orientation {turned} of the image was applied to the mask: turn the "
                    "image's pixels too (mogrify -auto-orient)" if turned > 4 else
                    "; is the mask transposed? Save it again with rows and columns exchanged")
        raise InputError(f"{mask_path}: mask is {mask.shape[0]}x{mask.shape[1]}, its image "
                         f"{image_path.name} is {image.shape[0]}x{image.shape[1]}{hint}")


def orientation(path) -> int:
    """The EXIF or TIFF orientation of an image file, 1 to 8; 1, which is upright, if none."""
    path = pathlib.Path(path)
    if path.is_file() and kind_of(path) == "TIFF":  # Pillow complains of kinds that it cannot open
        def tagged(tiff):
            tag = tiff.pages[0].tags.get(ORIENTATION)
            return int(tag.value) if tag else 1

        return open_tiff(path, tagged)
    if kind_of(path) == "MICROSCOPE":
        return 1
    try:
        with _opened(path) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return 1  # else Pillow would decode all pixels to look behind them
            return image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError):  # the second is Pillow's for a file of another format
        return 1
