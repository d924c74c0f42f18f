"""A folder for each image, with its mask, or one mask for each object.

    IMG/image.png   IMG/mask.png
    IMG/image.tif   IMG/masks/1.png, 2.png, ...
    IMG/photo/x.png IMG/cells/1.png, 2.png, ...    folders of any names

Which of the two is the mask is told by the words in their names, by numbers of files (one image,
several masks), or by config.data.folders.
"""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.annotations import format_of, suffix_of
from cellseg_jax.data.annotations.raster import Drawn, Shape, drawn
from cellseg_jax.data.decode import SUFFIXES
from cellseg_jax.data.ome_sets import set_of
from cellseg_jax.data.read import entries, read_mask
from cellseg_jax.data.records import Finding, some
from cellseg_jax.errors import InputError

OF_MASKS = re.compile(r"mask|label|annot|seg|truth|(?<![a-z])(gt|roi)s?(?![a-z])", re.IGNORECASE)
PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
KEY = "config.data.folders"


class ImageFolder(NamedTuple):
    """What lies in the folder of an image."""

    image: pathlib.Path
    masks: list[pathlib.Path]


def groups(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """{name: files}: of each folder in a folder, and "." of the files beside these.

    Without folders in it: "mask" of the files whose names say so, "image" of the others.
    """
    here = entries(folder)
    folders = [path for path in here if path.is_dir() and suffix_of(path) != ".zarr"]
    files = _files(path for path in here if path not in folders)
    if folders:
        found = {path.name: _files(entries(path)) for path in folders} | {".": files}
    else:
        is_mask = {path: bool(OF_MASKS.search(path.stem)) for path in files}
        found = {name: [path for path in files if is_mask[path] == (name == "mask")]
                 for name in ("image", "mask")}
    return {name: files for name, files in found.items() if files}


def _files(paths) -> list[pathlib.Path]:
    return [path for path in paths if suffix_of(path) == ".zarr" or (path.is_file() and (
        path.suffix.lower() in SUFFIXES or format_of(path)))]


def only_image(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The image of a group of files, if there is one alone; a set of OME-TIFFs is one."""
    images = (path for path in files
              if path.suffix.lower() in (*SUFFIXES, ".zarr") and set_of(path).first == path)
    found = list(itertools.islice(images, 2))
    return found[0] if len(found) == 1 else None


def listed(root: pathlib.Path, named: str = "") -> tuple[dict[str, ImageFolder], list[Finding]]:
    """({name of the folder: what lies in it}, errors); both empty where this is another layout.

    Args:
      named: names of the folders of image and masks in each folder, with a comma; "" if it is to
        be found out.
    Raises: InputError where folders are alike but it is not clear which file is the mask.
    """
    here = entries(root)
    folders = [path for path in here if path.is_dir() and suffix_of(path) != ".zarr"]
    if len(folders) < 2 or len(_files(path for path in here if path not in folders)) or any(
            path.name.lower() in PARTS for path in folders):
        return {}, []
    found = {path: held for path in folders if len(held := groups(path)) == 2}
    wanted = [name.strip() for name in named.split(",")] if named else []
    masks = wanted[-1] if wanted else _masks_of(found.values())
    good, bad = {}, []
    for path in folders:
        held = found.get(path, {})
        name = masks if masks in held else next(filter(OF_MASKS.search, held), "")
        image = only_image(next((held[one] for one in held if one != name), []))
        if name and image and (not wanted or wanted[0] in held):
            good[path.name] = ImageFolder(image, held[name])
        else:
            bad.append(Finding("error", str(path), f"holds {_words(held) or 'other files'}; "
                               "expected one image and its mask, as in the other folders"))
    if 2 * len(good) > len(folders):
        return good, bad
    one, other = next(iter(found.values()), ("", ""))
    if not named and found.keys() == set(folders) and all(
            held.keys() == {one, other} and all(len(files) == 1 for files in held.values())
            for held in found.values()):
        raise InputError(f"config.data.root: '{root}' holds {len(found)} folders with {one} and "
                         f"{other}, a file in each; name first that of the image and then that of "
                         f"the mask: --{KEY}={one},{other} or --{KEY}={other},{one}")
    return {}, []


def _masks_of(found) -> str:
    """The name of the group of masks, by numbers of files; "" if words have to tell."""
    several = {name for held in found for name, files in held.items() if len(files) > 1}
    worded = {name for held in found for name in held if OF_MASKS.search(name)}
    return several.pop() if len(several) == 1 and not worded else ""


def _words(held) -> str:
    return " and ".join(f"{len(files)} in {name}" for name, files in held.items())


def check_objects(found: dict[str, ImageFolder]) -> None:
    """InputError where several masks of an image look like masks of kinds, not of objects."""
    names = {tuple(path.stem for path in one.masks) for one in found.values()}
    if len(found) > 1 and len(names) == 1 and not re.search("[0-9]", "".join(*names)):
        first = next(iter(found.values()))
        raise InputError(f"{first.masks[0].parent}: holds {some(p.name for p in first.masks)}, as "
                         "every folder of an image does; expected a mask, or one for each object: "
                         f"choose one, such as config.data.mask_suffix={first.masks[0].stem}")


def read_objects(paths: Sequence[pathlib.Path], shape: tuple[int, int], plane=None) -> Drawn:
    """The objects of an image, of which each has a mask of 0 and one other value.

    Raises: InputError for a mask of another size, or of more values.
    """
    shapes = []
    for path in paths:
        mask = read_mask(path)
        if mask.shape[:2] != shape:
            raise InputError(f"{path}: mask is {mask.shape[0]}x{mask.shape[1]}, its image is "
                             f"{shape[0]}x{shape[1]}")
        inside = mask.any(-1)
        if len(np.unique(mask[inside], axis=0)) > 1:
            raise InputError(f"{path}: mask has several values beside 0, and is one of "
                             f"{len(paths)} of its image; expected one object in each, or one mask")
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        window = tuple(slice(at[0], at[-1] + 1) if len(at) else slice(0, 1)
                       for at in (rows, columns))
        shapes.append(Shape(path.stem, "", window, inside[window]))
    return drawn(paths[0].parent, shapes, (), shape)
