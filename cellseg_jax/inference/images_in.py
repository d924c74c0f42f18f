"""Which images are predicted and where their outputs go; what predict wrote is no image.

Nor are masks beside images (`masks_beside`), unless a file is named itself.
"""

import collections
import functools
import glob
import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from cellseg_jax.data import lazy
from cellseg_jax.data.annotations.coco import OF_FOLDER
from cellseg_jax.data.decode import kind_of
from cellseg_jax.data.microscopes import OIF_FOLDER
from cellseg_jax.data.ome_sets import COMPANION, set_of
from cellseg_jax.data.read import other_channels
from cellseg_jax.data.records import some
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError
from cellseg_jax.files import LONGEST_NAME, read_json, remove_leftovers, write_atomic
from cellseg_jax.inference import masks_beside, outputs
from cellseg_jax.inference.outputs.table import COLUMNS_FILE
from cellseg_jax.report import terminal

NOTE = "predict.json"  # in a folder of predictions: what made them


class Plane(NamedTuple):
    """One image of a file."""

    path: pathlib.Path
    number: int  # of the image in its file
    stem: pathlib.Path  # path of the outputs, without suffix


def find(images: list[str], out) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, output path without suffix) of every image, sorted.

    Args:
      images: files, folders and globs.
      out: the folder to write to; folders below those of `images` are kept below it.
    Raises: InputError where nothing is found, or two images of the same name.
    """
    found = {}
    for text in images:
        found |= dict(_found(text, pathlib.Path(out)))
    stems = [place.with_suffix("") for place in found.values()]
    places = set(found.values())
    if len(set(found.values())) < len(found):
        raise InputError(f"--images: two of {', '.join(images)} have images of the same name; "
                         "expected one folder above them, or one command for each")
    # a.png and a.tif side by side keep their suffix, or one would overwrite the other, and so does
    # a.tif.png, which would have the name that a.tif keeps
    twice = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    return sorted((path, place if stem in twice or stem in places else stem)
                  for (path, place), stem in zip(found.items(), stems, strict=True))


def _found(text: str, out: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, place below out) of one --images."""
    if not text.strip():  # of an unset variable, say; pathlib takes it for this folder
        raise InputError(f"--images: got {text!r}; expected a file, a folder or a quoted glob")
    root = pathlib.Path(text).expanduser()
    named = root.exists()
    if root.is_dir() and not lazy.is_image(root):
        beside = masks_beside.images_beside(root)
        if beside:
            raise InputError(f"--images: {text!r} is a folder of masks; expected images, pass "
                             f"--images='{beside}', or name the files themselves")
        named, files = False, list(_below(root))
        paths = [path for path in files if lazy.is_image(path)]
        _log_others(text, set(files) - set(paths), out)
    else:
        root, paths = _matching(root)
    noted = functools.cache(
        lambda folder: any((f / NOTE).is_file() for f in (folder, *folder.parents)))
    written = lambda path: _is_inside(path, out) or noted(path.resolve().parent)
    paths = [path for path in paths if path.name != NOTE and not (
        path.name.endswith(outputs.SUFFIXES) and written(path))]
    paths = paths if named else _without_masks(text, root, paths)
    if not paths:
        raise InputError(f"--images: no image in {text!r}; expected a file, a folder with PNG, "
                         "TIFF, BMP, JPEG, OME-Zarr or microscope images, or a quoted glob such "
                         "as 'in/*.tif'")
    # The parts of an OME set beside its first file are read with it.
    there, first = set(paths), {path: set_of(path).first for path in paths}
    return [(path, out / path.relative_to(root)) for path in paths
            if first[path] == path or first[path] not in there]


def _without_masks(text: str, root: pathlib.Path, paths) -> list[pathlib.Path]:
    """The images that are no masks of others; a line counts and names what is left out."""
    masks = set(masks_beside.in_mask_folders(paths, root))
    masks |= set(masks_beside.in_folders_of_labels(path for path in paths if path not in masks))
    masks |= set(masks_beside.in_folders_of_images(
        (path for path in paths if path not in masks), root))
    masks |= set(masks_beside.masks_among(path for path in paths if path not in masks))
    if masks:
        names = some(sorted(path.relative_to(root).as_posix() for path in masks))
        terminal.log(f"{len(masks)} files in {text} are masks of other images, or were made from "
                     f"them, and left out: {names}; to segment one, name the file itself")
    return [path for path in paths if path not in masks]


def _matching(pattern: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(folder above the first part with a wildcard, images) of a file or a glob.

    A folder that is there as it is written, such as "plate [1]", is no wildcard.
    """
    names = pattern.parts
    fixed = len(names) - 1
    if pattern.exists():
        paths = [pattern]
    else:
        there = next(n for n in range(len(names), -1, -1) if pathlib.Path(*names[:n]).is_dir())
        text = [glob.escape(name) for name in names[:there]] + list(names[there:])
        paths = [pathlib.Path(path) for path in glob.glob(str(pathlib.Path(*text)), recursive=True)]
        fixed = min([fixed, *(n for n, name in enumerate(names)
                              if n >= there and glob.has_magic(name))])
    return (pathlib.Path(*names[:fixed]),
            [path for path in paths if (path.is_file() or lazy.is_image(path))
             and not _in_loop(path.parent)])


def _log_others(text: str, files, out: pathlib.Path) -> None:
    """One line on the files that are no images, if there are some beside our own outputs."""
    others = sum(path.name not in (NOTE, COLUMNS_FILE, OF_FOLDER) and not _is_inside(path, out)
                 and not path.name.endswith((*outputs.SUFFIXES, COMPANION)) for path in files)
    if others:
        terminal.log(f"{others} files in {text} are no PNG, TIFF, BMP, JPEG, OME-Zarr "
                     "or file of a microscope, and left out")


def _is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files and OME-Zarr images in a folder and those below it, without hidden ones.

    Nor are the planes of an OIF, which are read with it.
    """
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.lower().endswith(OIF_FOLDER):
            continue
        if path.is_dir() and not lazy.is_image(path):
            yield from () if _in_loop(path) else _below(path)
        else:
            yield path


@functools.cache
def _in_loop(folder: pathlib.Path) -> bool:
    """Whether a link leads to a folder from one inside of it."""
    here = os.path.realpath(folder)
    return any(os.path.realpath(above) == here for above in folder.parents)


def without_channels(jobs, options: ReadOptions) -> list:
    """The jobs but those of files that are read as further channels of another one."""
    others = {file for path, _ in jobs for file in other_channels(path, options)}
    return [job for job in jobs if job[0] not in others]


def planes(path: pathlib.Path, stem: pathlib.Path, options: ReadOptions) -> list[Plane]:
    """Every image of a file; one where it cannot be read, which fails when its turn comes.

    Args:
      stem: path of the outputs of the file, without suffix.
      options: of the run, which planes of a file are images.
    """
    if path.is_file() and kind_of(path) not in ("TIFF", "MICROSCOPE"):
        return [Plane(path, 0, stem)]
    try:
        count = len(lazy.open_images(path, options))
    except InputError:
        return [Plane(path, 0, stem)]
    if count == 1:
        return [Plane(path, 0, stem)]
    return [Plane(path, n, stem.with_name(f"{stem.name}_{n:04d}")) for n in range(count)]


def check_distinct(planes: list[Plane], stacks=()) -> None:
    """InputError for two images, or one and a stacks_out.StackOut, with outputs of one name."""
    first = {}
    joined = {Plane(stack.source, 0, stack.stem) for stack in stacks}
    for plane in [*planes, *sorted(joined)]:
        other = first.setdefault(plane.stem, plane)
        if other is not plane:
            which = " and ".join(f"{one.path}" + f" (image {one.number} of it)" * (one.number > 0)
                                 for one in (other, plane))
            raise InputError(f"--images: {which} would both be written as {plane.stem.name}_label"
                             ".tif and the like; rename one of them, or predict them into "
                             "different folders")


def without_long_names(planes: list[Plane], formats, out) -> tuple[list[Plane], list[InputError]]:
    """(planes, errors of the others), whose outputs have names that the folder's disk cannot hold.
    """
    try:
        most = os.pathconf(out, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # Windows has no such call
        most = LONGEST_NAME
    fitting, errors = [], []
    for plane in planes:
        longest = max((outputs.output_path(name, plane.stem).name for name in formats), key=_bytes)
        if _bytes(longest) <= most:
            fitting.append(plane)
        else:
            errors.append(InputError(
                f"{plane.path}: its output {longest} has a name of {_bytes(longest)} bytes; the "
                f"disk takes {most}, rename the image"))
    return fitting, errors


def _bytes(name: str) -> int:
    return len(os.fsencode(name))


def claim(out, made_by: dict, jobs=(), formats=()) -> None:
    """Make the folder and note what fills it; another run's labels there would pass for these.

    Args:
      jobs: [(image, output path without suffix), ...] and the formats that will be written: a
        user's own a_label.tif must be neither replaced nor taken for a prediction.
    Raises: InputError where it holds other predictions or such files, or cannot be written to.
    """
    out = pathlib.Path(out)
    note = out / NOTE
    if not note.exists():
        there = [path for _, stem in jobs for first in (stem, stem.with_name(f"{stem.name}_0000"))
                 for path in (outputs.output_path(name, first) for name in formats)
                 if os.path.lexists(path)]
        if there:
            raise InputError(f"--out: {len(there)} files such as {there[0]} would be replaced, and "
                             f"predict has not written them ({NOTE} is missing); choose another "
                             "folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = read_json(note, made_by)
        if before == made_by:
            write_atomic(note, json.dumps(made_by, indent=1))
    except OSError as error:
        raise InputError(f"--out: cannot write to {out} ({error.strerror or error}); "
                         "choose another folder") from error
    changed = [key for key in (*made_by, *(before.keys() - made_by.keys()))
               if before.get(key) != made_by.get(key)]
    if changed:
        raise InputError(f"--out: {out} holds predictions made with another {changed[0]} "
                         f"({before.get(changed[0])}, now {made_by.get(changed[0])}); choose "
                         "another folder or delete it")
    remove_leftovers({out, *(pathlib.Path(stem).parent for _, stem in jobs)})


def give_up(out) -> None:
    """Take the note from a folder that got no output: other options may be tried there."""
    if [path.name for path in pathlib.Path(out).iterdir()] == [NOTE]:
        (pathlib.Path(out) / NOTE).unlink()


def is_finished(plane: Plane, formats) -> bool:
    """Whether every output is there and not older than the image."""
    files = [outputs.output_path(name, plane.stem) for name in formats]
    return all(f.exists() and f.stat().st_mtime >= plane.path.stat().st_mtime for f in files)
