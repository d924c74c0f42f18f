"""LIVECell 2021: phase contrast, eight cell types, every cell outlined by a polygon.

5,239 images of 520x704, 8 bit, and 1.7 million cells; about 1.3 GB of images, 1 GB of
annotations. CC BY-NC 4.0: not for commercial use. Source:
https://sartorius-research.github.io/LIVECell/ (images.zip and livecell_coco_train.json,
livecell_coco_val.json, livecell_coco_test.json). There is no official checksum; a whole copy
lists 3,253 + 570 + 1,564 images. Layout, the level <cell type> in some copies only:

    [images/]livecell_train_val_images/[<cell type>/]<file>.tif
    [images/]livecell_test_images/[<cell type>/]<file>.tif
    [annotations/LIVECell/]livecell_coco_<train, val or test>.json

A file is called <cell type>_Phase_<well>_<site>_<time>_<tile>.tif. Known of the whole dataset
(https://github.com/sartorius-research/LIVECell/issues 14, 21, 26): some files are listed twice
or in both train and val, and nine images have only one to nine of their cells annotated.
"""

import collections
import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.annotations import coco
from cellseg_jax.data.decode import SUFFIXES
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import check_root, entries, read_image
from cellseg_jax.data.records import BadFiles, Finding, Record, Records, Sample, some
from cellseg_jax.data.split import PARTS
from cellseg_jax.errors import InputError, pick

COUNT, PIXELS = 5239, 520 * 704  # images, and pixels of each
DOWNLOAD = ("Get images.zip and livecell_coco_train.json, _val.json and _test.json (CC BY-NC 4.0) "
            "from https://sartorius-research.github.io/LIVECell/")
FOLDERS = ("livecell_train_val_images", "livecell_test_images")
FIELD = re.compile("(.+_Phase_[A-Z][0-9]+_[0-9]+)_[^_]+_[^_]+")
LOST = 0.01  # share of annotations without an image above which ids are taken for wrong
FEW = 10  # annotations: of images with fewer, most cells are not outlined


class _Listed(NamedTuple):
    """An image as an annotation file lists it."""

    stem: str
    file_name: str
    image_id: int
    size: tuple[int, int]  # height and width
    part: str
    json: pathlib.Path
    places: np.ndarray  # of its annotations in the json file


def records(root, cell_types=(), min_annotations=0) -> Records:
    """One record per annotated image, sorted by name; labels are instances.

    The group is the field of view, <cell type>_Phase_<well>_<site>: its times and its four tiles
    show the same culture, often the same cells. `part` is the official split; its train and val
    share fields, its test has wells of its own. The stratum is the cell type.

    Where cells overlap, the smaller one keeps the pixels (see `coco.paint`). A file listed more
    than once is one record: in test rather than val rather than train, so that nothing leaks
    into training, and there with the listing that has most annotations.

    Args:
      root: the folder with the json files and the folders of images.
      cell_types: such as ("A172", "BV2"); () for all.
      min_annotations: images with fewer are left out; 10 leaves out the known partial ones.
    Raises: BadFiles if more than 1 % of a file's annotations have an image_id without image.
    """
    root = check_root(root, DOWNLOAD)
    listed, findings = _listed(root)
    files = _files(root)
    findings += _unlisted(root, files, listed)
    known_types = {_cell_type(item.stem): None for item in listed}
    for name in cell_types:
        pick(known_types, name, "config.data.cell_types")
    listed = [item for item in listed if _cell_type(item.stem) in (cell_types or known_types)]
    listed, doubles = _without_doubles(listed)
    kept = [item for item in listed if len(item.places) >= min_annotations]
    if not kept:
        raise InputError(f"config.data.min_annotations: got {min_annotations}; no image has that "
                         f"many, the most is {max(len(item.places) for item in listed)}")
    findings += doubles + _few(root, listed, min_annotations)
    paths, other_case = _find(root, files, kept)
    found = Records(
        (Record(item.stem, _field(item.stem), (path, item.json),
                functools.partial(_read, path, item), item.part)
         for item, path in zip(kept, paths, strict=True)),
        [finding for finding in findings + other_case if finding.level != "error"])
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise BadFiles(errors, found)
    return found


def _cell_type(stem: str) -> str:
    return stem.split("_")[0]


def _field(stem: str) -> str:
    match = FIELD.fullmatch(stem)
    return match[1] if match else stem


def _listed(root):
    """All images of the annotation files that are there, sorted by name, and findings."""
    listed, findings = [], []
    for part in PARTS:
        name = f"livecell_coco_{part}.json"
        places = [root / sub / name for sub in ("", "annotations", "annotations/LIVECell")]
        path = next((path for path in places if depends_on(path).is_file()), None)
        if path is None:
            findings.append(Finding("note", str(root / name), "not found; its images are left out"))
            continue
        index = coco.index(path)
        for image in index.images:
            file_name = pathlib.PurePosixPath(image["file_name"]).name
            listed.append(_Listed(
                pathlib.PurePosixPath(file_name).stem, file_name, image["id"],
                (image["height"], image["width"]), part, path, index.of(image)))
        strays = index.strays()
        if strays:
            lost, used = sum(strays.values()), sum(len(index.of(image)) for image in index.images)
            level = "error" if lost > LOST * (lost + used) else "warning"
            findings.append(Finding(level, str(path), (
                f"{lost:,} annotations have an image_id without image and are "
                f"left out: {some(strays)}")))
    if not listed:
        raise InputError(f"config.data.root: folder '{root}' has no livecell_coco_train.json, "
                         f"_val.json or _test.json with images. {DOWNLOAD}")
    odd = sorted({item.stem for item in listed if not FIELD.fullmatch(item.stem)})
    if odd:
        findings.append(Finding("warning", str(root), (
            f"{len(odd)} names are not <cell type>_Phase_<well>_<site>_<time>_<tile>; each is a "
            f"group of its own: {some(odd)}")))
    return sorted(listed, key=lambda item: item.stem), findings


def _files(root) -> dict[str, list[pathlib.Path]]:
    """Lower-case name -> image files, lying flat or in a folder per cell type."""
    files = collections.defaultdict(list)
    for folder in (root / sub / name for sub in ("", "images") for name in FOLDERS):
        for path in entries(folder) if depends_on(folder).is_dir() else ():
            for file in entries(path) if path.is_dir() else (path,):
                if file.suffix.lower() in SUFFIXES:
                    files[file.name.lower()].append(file)
    if not files:
        raise InputError(f"config.data.root: folder '{root}' has no images in {FOLDERS[0]} or "
                         f"{FOLDERS[1]}. {DOWNLOAD}")
    return files


def _unlisted(root, files, listed):
    lone = sorted(files.keys() - {item.file_name.lower() for item in listed})
    names = [files[name][0].name for name in lone]
    return [Finding("note", str(root), f"{len(lone)} image files are in no annotation file and "
                                       f"are left out: {some(names)}")] if lone else []


def _find(root, files, kept):
    """The file of each image, and a finding on those written in another case."""
    paths, missing, other_case = [], [], []
    for item in kept:
        same = files.get(item.file_name.lower(), [])
        exact = [path for path in same if path.name == item.file_name]
        found = exact or same
        if len(found) > 1:
            raise InputError(f"{found[0]}: ambiguous, {found[1]} has the same name; keep one")
        paths += found
        missing += [item] * (not found)
        other_case += [(item, path) for path in found if not exact]
    if missing:
        raise InputError(f"{missing[0].json}: lists {missing[0].file_name}, which is not in "
                         f"{FOLDERS[0]} or {FOLDERS[1]} of '{root}'; {len(missing):,} of "
                         f"{len(kept):,} images are not there. {DOWNLOAD}")
    if not other_case:
        return paths, []
    item, path = other_case[0]
    return paths, [Finding("note", str(root), (
        f"{item.file_name} not found; found {path.name} and took it, so for {len(other_case)} of "
        f"{len(kept)} images"))]


def _without_doubles(listed):
    """Each file once, and findings on those that were listed more often."""
    by_stem = collections.defaultdict(list)
    for item in listed:
        by_stem[item.stem].append(item)
    ids = {stem: [str(item.image_id) for item in items] for stem, items in by_stem.items()
           if len(items) > 1}
    parts = {stem: sorted({item.part for item in by_stem[stem]}, key=PARTS.index) for stem in ids}
    leaks = [f"{stem} ({', '.join(found)})" for stem, found in parts.items() if len(found) > 1]
    findings = []
    if ids:
        named = [f"{stem} ({', '.join(numbers)})" for stem, numbers in ids.items()]
        findings.append(Finding("note", str(listed[0].json.parent), (
            f"{len(ids)} images are listed more than once; the listing with most annotations is "
            f"used: {some(named)}")))
    if leaks:
        findings.append(Finding("note", str(listed[0].json.parent), (
            f"{len(leaks)} images are in several official parts; they count for the last one: "
            f"{some(leaks)}")))
    return [max(items, key=lambda item: (PARTS.index(item.part), len(item.places)))
            for items in by_stem.values()], findings


def _few(root, listed, min_annotations):
    few = [item for item in listed if len(item.places) < max(FEW, min_annotations)]
    dropped = [item for item in few if len(item.places) < min_annotations]
    kept = [item for item in few if len(item.places) >= min_annotations]
    findings = []
    if dropped:
        findings.append(Finding("note", str(root), (
            f"{len(dropped)} images with fewer than {min_annotations} annotations are left out: "
            + some(_counted(dropped)))))
    if kept:
        findings.append(Finding("warning", str(root), (
            f"{len(kept)} images have fewer than {FEW} annotations, so most of their cells may "
            f"not be outlined; config.data.min_annotations={FEW} leaves them out: "
            + some(_counted(kept)))))
    return findings


def _counted(items):
    return [f"{item.stem} ({len(item.places)})" for item in items]


def _read(path, item) -> Sample:
    image = read_image(path)
    if image.shape[:2] != item.size:
        raise InputError(f"{path}: image is {image.shape[0]}x{image.shape[1]}, {item.json.name} "
                         f"says {item.size[0]}x{item.size[1]}; its polygons do not fit")
    annotations = coco.annotations(item.json, item.places)
    label, overlap, hidden, problems = coco.paint(annotations, *item.size)
    findings = []
    if problems:
        first, problem = next(iter(problems.items()))
        findings.append(Finding("warning", str(path), (
            f"annotation {annotations[first].get('id')}: {problem}, skipped; {len(problems)} "
            f"skipped of {len(annotations):,}")))
    if overlap:
        findings.append(Finding("note", str(path), (
            f"{overlap} pixels ({overlap / label.size:.2%}) belong to two or more cells; the "
            "smaller one keeps them" + (f", {hidden} cells keep none" if hidden else ""))))
    return Sample(image, label, _cell_type(item.stem), tuple(findings))
