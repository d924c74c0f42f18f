"""Which files among the images of a folder are masks of others, and must not be segmented.

By their place: folders masks, labels, ... beside a folder images, or beside images of their names;
and folders of any name whose files hold numbers of objects, beside a folder with pictures of the
same names. In the folder of an image, which holds it and its masks alone, by content.
By their name: x_masks.png beside x.png, with any of the endings that training pairs. By their
content: a file whose name continues that of another, of the same size, that holds numbers of
objects.
"""

import collections
import itertools
import pathlib
from collections.abc import Iterable

import numpy as np

from cellseg_jax.data import lazy
from cellseg_jax.data.annotations import image_folders
from cellseg_jax.data.annotations.layouts import FOLDERS
from cellseg_jax.data.annotations.pairing import DERIVED, ENDINGS, IMAGE_ENDINGS
from cellseg_jax.errors import InputError

IMAGE_FOLDERS = ("images", "imagesTr", "imagesTs")
MASK_FOLDERS = ("masks", *FOLDERS, "labelsTr", "labelsTs")
MADE = (*ENDINGS, *(pathlib.PurePath(name).stem for name in DERIVED if name.startswith("_")))
LARGEST = 2**26  # pixels of a file that is looked into
TRIED = 3  # files of a folder that are looked into
INSIDE = 0.75  # share of the pixels of objects whose right neighbour has the same number


def in_mask_folders(paths: Iterable[pathlib.Path], root: pathlib.Path) -> list[pathlib.Path]:
    """The files below `root` in a folder of masks that is beside one of images, or beside images.
    """
    paths = list(paths)
    folders = _by_folder(paths)
    return [path for path in paths if _in_mask_folder(path, root, folders)]


def _by_folder(paths) -> dict[pathlib.Path, dict[str, pathlib.Path]]:
    """{folder: {name without suffix: file}}."""
    folders = {}
    for path in paths:
        folders.setdefault(path.parent, {})[path.stem] = path
    return folders


def _in_mask_folder(path, root, folders) -> bool:
    """Args: folders: as _by_folder makes them."""
    for n, part in enumerate(path.relative_to(root).parts[:-1]):
        above = root.joinpath(*path.relative_to(root).parts[:n])
        beside = folders.get(above, ())
        if part in MASK_FOLDERS and (
                any((above / name).is_dir() for name in IMAGE_FOLDERS)
                or path.stem in beside or _by_name(path.stem, beside)):
            return True
    return False


def in_folders_of_labels(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The files in folders of labels, by content, that are beside a folder with their pictures.

    The first TRIED files of each folder are looked into, and those of the same names, without
    suffix, in the other one.
    """
    folders = _by_folder(sorted(paths))
    siblings = collections.Counter(folder.parent for folder in folders)
    labels = {folder for folder, files in folders.items() if siblings[folder.parent] > 1
              and all(map(_is_label, _first(files.values())))}
    beside = lambda folder: (files for other, files in folders.items()
                             if other.parent == folder.parent and other not in labels)
    return [path for folder in labels if any(
        _are_pictures(folders[folder], files) for files in beside(folder))
        for path in folders[folder].values()]


def _first(things) -> list:
    return list(itertools.islice(things, TRIED))


def _is_label(path) -> bool:
    try:
        return holds_labels(lazy.open_images(path)[0])
    except InputError:  # named when its turn comes
        return False


def _are_pictures(labels: dict, files: dict) -> bool:
    """Whether files have the names and sizes of labels."""
    pairs = _first((path, files[stem]) for stem, path in labels.items() if stem in files)
    try:
        return bool(pairs) and all(
            lazy.open_images(a)[0].shape[:2] == lazy.open_images(b)[0].shape[:2] for a, b in pairs)
    except InputError:
        return False


def in_folders_of_images(paths: Iterable[pathlib.Path], root: pathlib.Path) -> list[pathlib.Path]:
    """The masks in folders, in `root` or below, that hold an image and its masks alone."""
    paths, masks = set(paths), set()
    folders = {path.parents[n] for path in paths for n in range(min(2, len(path.parents)))}
    for folder in folders:
        if folder != root and root not in folder.parents:
            continue
        try:
            found = image_folders.groups(folder)
        except InputError:  # of a file that is no image
            continue
        for name, other in itertools.permutations(found) if len(found) == 2 else ():
            image = image_folders.only_image(found[other])
            of = [path for path in found[name] if path in paths]
            if image and of and not _is_label(image) and all(
                    _is_label(path) and _are_pictures({"": path}, {"": image})
                    for path in _first(of)):
                masks.update(of)
    return sorted(masks)


def images_beside(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of images that a folder of masks lies beside; None if it is no such folder."""
    above = folder.absolute().parent
    found = [above / name for name in IMAGE_FOLDERS if (above / name).is_dir()]
    return found[0] if found and folder.absolute().name in MASK_FOLDERS else None


def masks_among(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The image files that are masks of, or were made from, others of the same folder."""
    return [path for files in _by_folder(paths).values() for stem, path in files.items()
            if _by_name(stem, files) or _by_content(path, stem, files)]


def _by_name(stem: str, stems) -> bool:
    names = (stem.removesuffix(end) for end in MADE if stem.endswith(end))
    return any(name in stems or any(name + end in stems for end in IMAGE_ENDINGS)
               for name in names)


def _by_content(path, stem: str, files: dict) -> bool:
    cut = (n for n, letter in enumerate(stem) if letter in "_-. ")
    of = [files[stem[:n]] for n in cut if stem[:n] in files]
    return bool(of) and _is_label(path) and any(
        _are_pictures({"": path}, {"": other}) and not _is_label(other) for other in of)


def holds_labels(image: lazy.Image) -> bool:
    """Whether an image holds numbers of objects: 0, 1, 2, ... or two values, constant in objects.

    A picture has other values beside most of its pixels. False of more than LARGEST pixels.
    """
    if image.shape[2] != 1 or image.shape[0] * image.shape[1] > LARGEST:
        return False
    pixels = image.read()[..., 0]
    values = np.unique(pixels)
    if len(values) < 2 or values[0] != 0 or (len(values) > 2 and values[-1] >= 2 * len(values)):
        return False
    inside = pixels[:, :-1] > 0
    return bool(np.mean((pixels[:, :-1] == pixels[:, 1:])[inside] if inside.any() else 0) >= INSIDE)
