"""`cellseg_jax.train`: one run from a few settings and arrays in memory, back as what `load` gives.

    run = cellseg_jax.train({"model.name": "unet", "train.epochs": 50}, images, labels,
                            workdir="runs/mine")
    label = run.predict(image)

The arrays are kept as TIFF files in the folder WORKDIR_data, so that the run is one like any other:
the commands continue, score, tune and export it.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import tifffile
from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.crops import round_up
from cellseg_jax.data.colours import NUM_CHANNELS
from cellseg_jax.errors import InputError
from cellseg_jax.files import atomic_file
from cellseg_jax.inference.trained_run import TrainedRun, as_image, load, python_words
from cellseg_jax.train.one_run import train_and_score

IGNORE = "_ignore"  # ends the names of masks of pixels that are not annotated
CROP = 256  # pixels of the sides of crops; less where all images are smaller
FROM_ARRAYS = {"data.fit": "random_crop", "data.normalize": "percentile", "data.oversample": 0.5,
               "augment.flip_horizontal": (0.5, 1.0), "augment.flip_vertical": (0.5, 1.0)}


def train_run(settings=None, images=None, labels=None, *, workdir) -> TrainedRun:
    """Train a run, or continue it, score it on its test images, and load it.

    Args:
      settings: {config key: value}, such as {"train.epochs": 20}, sections nested or not; or the
        path of a config file; or a ConfigDict. With arrays and a dict, `settings_of` are the
        defaults of some keys.
      images: list of (H, W) or (H, W, C) arrays; None where settings name data on disk.
      labels: list of (H, W) integers, a label for each image: ids, 0 background, -1 not annotated;
        or what settings name by data.labels.
      workdir: the folder of the run; the arrays are kept beside it, in WORKDIR_data.
    Raises: InputError for what has to be changed, KeyboardInterrupt if stopped after saving.
    """
    with python_words():
        in_memory = {}
        if images is not None or labels is not None:
            in_memory = _kept(pathlib.Path(f"{workdir}_data"), images, labels)
        config = _config({} if settings is None else settings, in_memory)
        result = train_and_score(config, workdir)
    if result.status == "interrupted":
        raise KeyboardInterrupt(f"saved step {result.step}; the same call continues")
    if result.status == "non-finite":
        raise InputError(f"optimizer.lr: got {config.optimizer.lr:g}; loss or gradient not finite "
                         f"after step {result.step}, a lower one usually helps")
    return load(workdir)


def _config(settings, in_memory: dict):
    """The complete config of `train_run`; `in_memory` are the settings of arrays, if there are."""
    if isinstance(settings, (str, pathlib.Path)):
        settings = config_lib.load(str(settings))
    if isinstance(settings, ConfigDict):
        _check_ignored(settings.data.get("ignore", ""), in_memory)
        only = ("data.name", "data.root", "data.ignore")
        return config_lib.changed(settings, {k: in_memory[k] for k in only if k in in_memory})
    if not isinstance(settings, Mapping):
        raise InputError(f"settings: got {type(settings).__name__}; expected a dict of config "
                         "keys, the path of a config file or a ConfigDict")
    given = config_lib.flatten(settings)
    if other := [key for key in given if not isinstance(key, str)]:
        raise InputError(f"settings: got the key {other[0]!r}; expected keys of the config, such "
                         "as train.epochs")
    twice = [key for key in ("data.name", "data.root") if key in given and in_memory]
    if twice:
        raise InputError(f"config.{twice[0]}: got {given[twice[0]]!r} and arrays; expected one of "
                         "the two")
    _check_ignored(given.get("data.ignore"), in_memory)
    return config_lib.changed(config_lib.default(), {**in_memory, **given})


def _check_ignored(chosen: str | None, in_memory: dict) -> None:
    """InputError where settings mark other pixels as not annotated than the -1 of labels do."""
    key = "data.ignore"
    if key in in_memory and chosen not in (None, "", in_memory[key]):
        raise InputError(f"config.{key}: got {chosen!r} and labels with -1; expected one of the "
                         "two: mark all pixels that are not annotated by -1")


def _kept(folder: pathlib.Path, images, labels) -> dict:
    """Keep arrays as the files of a dataset of name "folder"; returns their settings.

    Raises: InputError where they are no images with labels, or the folder has others.
    """
    if images is None or labels is None or len(images) != len(labels) or not len(images):
        count = lambda arrays: "none" if arrays is None else len(arrays)
        raise InputError(f"images, labels: got {count(images)} and {count(labels)}; expected as "
                         "many labels as images, one at least")
    images = [as_image(one, f"image {n}").read() for n, one in enumerate(images)]
    labels = [_checked(np.asarray(label), n, images[n]) for n, label in enumerate(labels)]
    files = {}
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{n:0{len(str(len(images) - 1))}d}"
        files[f"images/{name}.tif"] = image[..., 0] if image.shape[-1] == 1 else image
        files[f"masks/{name}.tif"] = np.maximum(label, 0)
        if label.min() < 0:
            files[f"masks/{name}{IGNORE}.tif"] = (label < 0).astype(np.uint8)
    _write(folder, files)
    return settings_of(images) | {"data.name": "folder", "data.root": str(folder)} | (
        {"data.ignore": f"suffix:{IGNORE}"} if any(label.min() < 0 for label in labels) else {})


def settings_of(images) -> dict:
    """The settings of arrays where a dict names no others: what the README advises for cells.

    Crops at the image's own scale, half of them sure to hold a cell, mirrored at random. Of other
    numbers of channels than 1 (gray), 3 (RGB) and 4 (RGBA) each counts as it is.
    """
    longest = max(max(image.shape[:2]) for image in images)
    channels = max(image.shape[-1] for image in images)
    kind = {n: k for k, n in NUM_CHANNELS.items()}.get(channels)
    seen = ({"data.channels": kind} if kind else
            {"data.channel_index": ",".join(map(str, range(channels)))})
    return {**seen, "data.size": (min(CROP, round_up(longest, 32)),) * 2, **FROM_ARRAYS}


def _checked(label, n: int, image) -> np.ndarray:
    """A label as it is kept: uint16, or int32 where it has larger or negative values."""
    if label.shape != image.shape[:2] or label.dtype.kind not in "bui":
        raise InputError(f"label {n}: got {label.dtype} of shape {label.shape}; expected integers "
                         f"of its image's {image.shape[:2]}")
    if label.max(initial=0) > np.iinfo(np.int32).max or label.min(initial=0) < -1:
        raise InputError(f"label {n}: got {label.min()} to {label.max()}; expected -1 (not "
                         "annotated) to 2^31 - 1")
    small = label.min(initial=0) >= 0 and label.max(initial=0) < 2**16
    return label.astype(np.uint16 if small else np.int32)


def _write(folder: pathlib.Path, files: dict) -> None:
    """{path below the folder: pixels} as TIFF; files that are there already must be the same."""
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*.tif")}
    same = there <= files.keys() and all(
        np.array_equal(tifffile.imread(folder / path), files[path]) for path in sorted(there))
    if not same:
        raise InputError(f"workdir: {folder} holds other images or labels than these; choose "
                         "another workdir, or delete both folders")
    for path in files.keys() - there:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / path) as temporary:
            tifffile.imwrite(temporary, files[path], compression="zlib",
                             **_colours(files[path].shape))


def _colours(shape) -> dict:
    """What a TIFF says of the pixels of an array of that shape: alpha is the last of four alone."""
    samples = shape[2] if len(shape) == 3 else 1
    if samples in (3, 4):
        return {"photometric": "rgb"}
    return {"photometric": "minisblack", "planarconfig": "contig" if samples > 1 else None,
            "extrasamples": [0] * (samples - 1)}
