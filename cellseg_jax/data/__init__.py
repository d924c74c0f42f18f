"""Datasets: one file each, decoded once into a cache, split and ordered by pure functions.

To add one: a file with `records(root, **options) -> Records`, and a line in DATASETS; where options
are many, a NamedTuple `Options` in the file holds them. Folders are listed by `read.entries`; any
other file or folder that the list of records depends on is passed to `dependencies.depends_on`,
else its change is not noticed within a process. COUNT and PIXELS of the file are used by plans
where there is no data.
"""

import collections
import inspect
import os
import pathlib
import sys

import numpy as np

from cellseg_jax import files
from cellseg_jax.data import folds, select, split, synthetic
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.data.cache import CacheOptions, open_cache
from cellseg_jax.data.datasets import bbbc039, ctc, dsb2018, ebhi_seg, folder, isbi2012, livecell
from cellseg_jax.data.dependencies import depends_on, tracked, unchanged
from cellseg_jax.data.fingerprint import content_fingerprint, contents
from cellseg_jax.data.records import Records
from cellseg_jax.data.scale import ScaleOptions
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError, pick

DATASETS = {
    "bbbc039": bbbc039.records,
    "ctc": ctc.records,
    "dsb2018": dsb2018.records,
    "ebhi_seg": ebhi_seg.records,
    "folder": folder.records,
    "isbi2012": isbi2012.records,
    "livecell": livecell.records,
    "synthetic": synthetic.records,
}

# Options that datasets got later: at these values they are left out of a cache's key.
LATER_OPTIONS = {"ignore": "", "rim": 5, "annotations": "", "mask_suffix": "", "folders": "",
                 "classes": (), "z": "", "channel_index": ""}
FRACTIONS = (0.8, 0.1, 0.1)  # of an official split, for the parts that it lacks
MAX_LOADED = 4  # decoded datasets that a process keeps open
_LOADED = {}  # what arrays follow from -> (arrays, states of the files), the last used last


def options(name: str) -> dict:
    """The options of a dataset with their defaults; they are keys of config.data."""
    make = pick(DATASETS, name, "config.data.name")
    if hasattr(sys.modules[make.__module__], "Options"):
        return dict(sys.modules[make.__module__].Options._field_defaults)
    parameters = inspect.signature(make).parameters
    return {key: p.default for key, p in parameters.items() if key != "root"}


def published(name: str) -> tuple[int | None, int | None]:
    """(images, pixels of one) of a dataset's download, for plans without the data; None: unknown.

    They are COUNT and PIXELS of the dataset's module.
    """
    module = sys.modules[DATASETS[name].__module__]
    return getattr(module, "COUNT", None), getattr(module, "PIXELS", None)


def class_names(data_config) -> tuple[str, ...]:
    """Names of the classes 1, 2, ... of labels of classes; "class 1" where the user names none.

    Args:
      data_config: config.data, or a mapping with its keys.
    """
    module = sys.modules[DATASETS[data_config["name"]].__module__]
    known = getattr(module, "CLASS_NAMES", None) or tuple(data_config.get("classes", ()))
    numbers = range(1, data_config["num_classes"])
    return known if len(known) == len(numbers) else tuple(f"class {n}" for n in numbers)


def records_of(data_config) -> Records:
    """The samples of config.data, not yet decoded, sorted by name, then those of data.mix.

    Of the dataset itself those of data.only_size, if set. A dataset that is mixed in,
    "bbbc039:DIR", has its default options but for channels and planes; all of it is for training,
    as are data.blank_images.
    """
    records = _records(data_config["name"], data_config["root"], _chosen(data_config))
    if data_config["only_size"]:
        records = select.of_size(records, tuple(data_config["only_size"]))
    mixed_before = collections.Counter()
    for text in data_config["mix"]:
        name, _, root = text.partition(":")
        pick(DATASETS, name, "config.data.mix")
        kind, extra = (options(n).get("labels", "instances") for n in (data_config["name"], name))
        if data_config.get("labels", kind) != extra:
            raise InputError(f"config.data.mix: the labels of {name} are {extra}, those of "
                             f"{data_config['name']} {kind}; expected datasets with equal labels")
        shared = {key: data_config[key] for key in ReadOptions._fields[1:] if key in options(name)}
        mixed = _mixed(name, root, options(name) | shared)
        mixed_before[name] += 1
        again = f"_{mixed_before[name]}" if mixed_before[name] > 1 else ""
        prefix = f"{split.MIXED}{name}{again}/"
        records = Records(
            [*records, *(r._replace(name=prefix + r.name, group=prefix + r.group, part="train")
                         for r in mixed)], (*records.findings, *mixed.findings))
    blank = select.blank(data_config["blank_images"], tuple(data_config["size"]))
    return Records([*records, *blank], records.findings)


def _mixed(name, root, chosen) -> Records:
    """The samples of a dataset that is mixed in; its InputError names data.mix."""
    if name != "synthetic" and not root:
        raise InputError(f"config.data.mix: got {name!r}; expected its folder too, as "
                         f"('{name}:DIR',)")
    try:
        return _records(name, root, chosen)
    except InputError as error:
        text = str(error).replace("config.data.root", f"config.data.mix: {name}", 1)
        raise InputError(text.replace("--config.data.root=DIR",
                                      f"--config.data.mix=\"('{name}:DIR',)\"")) from error


def load(data_config, progress=None, records: Records | None = None) -> Arrays:
    """The decoded samples of config.data, from the cache where they are there already.

    A process that loads an unchanged dataset again gets the arrays that it has, after one stat
    call per file; the last MAX_LOADED datasets are kept so.

    Args:
      data_config: name, root, size, fit, grid, channels, percentiles, diameter, pixel_size, target,
        mix, cache ("" = the user's cache folder), the options of the dataset and of pixel weights;
        other keys are not read.
      progress: called with (samples done, samples in all) while decoding.
      records: other samples than all of records_of(data_config).
    """
    options = cache_options(data_config)
    directory = data_config["cache"] or files.user_cache()
    if records is not None:
        return open_cache(records, options, directory, progress)
    names = [data_config["name"], *(text.partition(":")[0] for text in data_config["mix"])]
    chosen = [data_config[key] for key in ("root", "only_size", "blank_images")]
    key = (repr((options, os.path.abspath(directory), chosen, os.getcwd())),
           *map(DATASETS.get, names))
    if key in _LOADED:
        arrays, states = _LOADED.pop(key)
        if unchanged(states):
            _LOADED[key] = arrays, states  # the last one used comes last
            return arrays
    with tracked() as states:
        records = records_of(data_config)
        for path in (path for record in records for path in record.files):
            for part in contents(path):
                depends_on(part)
    arrays = open_cache(records, options, directory, progress)
    with tracked() as kept:
        depends_on(arrays.folder)
    _LOADED[key] = arrays, states | kept
    while len(_LOADED) > MAX_LOADED:
        del _LOADED[next(iter(_LOADED))]
    return arrays


def fingerprint_of(data_config) -> str:
    """Arrays.fingerprint of what `load` gives, without decoding."""
    options = cache_options(data_config)
    directory = pathlib.Path(data_config["cache"] or files.user_cache()).expanduser()
    return content_fingerprint(records_of(data_config), directory, options.dataset,
                               options.options)


def load_few(data_config, count: int = 12) -> Arrays:
    """The decoded samples of at most `count` images, evenly taken: for a first look at the data."""
    records = records_of(data_config)
    return load(data_config, records=Records(records[:: -(-len(records) // count)]))


def cache_options(data_config) -> CacheOptions:
    """What decoded arrays follow from, of config.data."""
    later = {k: v for k, v in LATER_OPTIONS.items()
             if (data_config["name"], k) != ("ebhi_seg", "classes")}  # there from the first
    return CacheOptions(
        dataset=data_config["name"],
        options={k: v for k, v in _chosen(data_config).items()
                 if k != "channels" and later.get(k) != v}
        | {"mix": list(data_config["mix"])},
        size=tuple(data_config["size"]), fit=data_config["fit"], grid=data_config["grid"],
        channels=data_config["channels"], channel_index=data_config["channel_index"],
        target=data_config["target"],
        weight_options={"w0": data_config["weight_w0"], "sigma": data_config["weight_sigma"]},
        percentiles=tuple(data_config["percentiles"]),
        scale=ScaleOptions(data_config["diameter"], data_config["pixel_size"]))


def split_of(data_config, arrays: Arrays) -> dict:
    """{"train", "val", "test"}: indices of samples, by config.data.split, split_by, split_seed.

    Patches follow their image. Of the training images train_fraction is used, and all that
    data.mix adds. With keep_blank=False training leaves out samples without foreground. Of a split
    of all images, data.strata leaves those of some strata, in each part. Images without an
    annotated pixel are in no part but "train": nothing of them can be scored.

    Raises: InputError for a stratum that no image has, or a part without an annotated pixel.
    """
    how, seed = data_config["split"], data_config["split_seed"]
    groups, strata, fixed = _grouping(data_config, arrays)
    if folds.is_fold(how):
        parts = folds.split(folds.parse(how), groups, strata, arrays.image_names, seed=seed,
                            parts=arrays.image_parts, fixed=fixed)
    elif how == "official":
        parts = split.official(groups, strata, arrays.image_parts, fractions=FRACTIONS, seed=seed,
                               keep=np.array(fixed) != "", dataset=data_config["name"])
    elif isinstance(how, str):
        parts = split.from_file(how, arrays.image_names, parts=fixed)
    else:
        parts = split.split(groups, strata, fractions=how, seed=seed, parts=fixed)
    parts["train"] = split.share(
        parts["train"], groups, strata, fraction=data_config["train_fraction"], seed=seed,
        keep=np.array(fixed) != "")
    if data_config["strata"]:
        chosen = select.of_strata(strata, data_config["strata"], np.array(fixed) != "")
        parts = {name: i[chosen[i]] for name, i in parts.items()}
    for name in split.PARTS[1:]:
        parts[name] = _scorable(data_config, arrays, parts[name], name)
    cells = np.arange(arrays.grid**2, dtype=np.int32)
    parts = {name: (i[:, None] * len(cells) + cells).reshape(-1) for name, i in parts.items()}
    # Patches of augmented images are blank where others are: data.order leaves them out.
    if not data_config["keep_blank"] and not (
            data_config["augment_before_grid"] and data_config["copies"]):
        parts["train"] = parts["train"][arrays.holds_cells[parts["train"]]]
    return parts


def outer_test_images(data_config, arrays: Arrays) -> np.ndarray:
    """(m,) int32: images in no fold of a cross-validation, kept for the end; see data.folds.

    Images, not samples: patches are not counted. Of data.strata those alone.
    """
    groups, strata, fixed = _grouping(data_config, arrays)
    found = folds.outer(folds.parse(data_config["split"]), groups, strata,
                        seed=data_config["split_seed"], parts=arrays.image_parts, fixed=fixed)
    if data_config["strata"]:
        chosen = select.of_strata(strata, data_config["strata"], np.array(fixed) != "")
        found = found[chosen[found]]
    return _scorable(data_config, arrays, found, "the outer test part")


def annotated(data_config, arrays: Arrays) -> np.ndarray:
    """(n,) bool: the images of which the network sees an annotated pixel."""
    out = np.ones(len(arrays.image_names), bool)
    if not data_config.get("ignore") and data_config.get("partial") != "ignore":
        return out
    foreground, cells = np.reshape(arrays.foreground, (len(out), -1)), arrays.grid**2
    for i in np.flatnonzero(foreground.max(1) == 0):  # no label of the others has to be read
        out[i] = any(label.max() >= 0 for label in arrays.label[i * cells : (i + 1) * cells])
    return out


def _scorable(data_config, arrays, images, part: str) -> np.ndarray:
    """Of the images of a part those with an annotated pixel: an error where there is none."""
    kept = images[annotated(data_config, arrays)[images]]
    if len(images) and not len(kept):
        raise InputError(f"{split.KEY}: got {data_config['split']!r}, but of the {len(images)} "
                         f"images of {part} none has an annotated pixel (where windows are cut: in "
                         "the middle one), so that nothing can be scored; expected some: choose "
                         "another data.split or data.split_seed")
    return kept


def _grouping(data_config, arrays):
    """Groups and strata of the images; the part of those mixed in, "" of the others."""
    by = {"group": arrays.image_groups, "image": arrays.image_names}
    fixed = [part if name.startswith(split.MIXED) else ""
             for name, part in zip(arrays.image_names, arrays.image_parts, strict=True)]
    return by[data_config["split_by"]], arrays.image_strata, fixed


def never_copied(data_config, arrays: Arrays) -> np.ndarray:
    """(n,) bool: the samples that data.copies makes no augmented variants of."""
    prefix = select.BLANK if data_config["mix_copies"] else split.MIXED  # how BLANK begins too
    return np.repeat([name.startswith(prefix) for name in arrays.image_names], arrays.grid**2)


def _records(name, root, chosen) -> Records:
    make = pick(DATASETS, name, "config.data.name")
    return make(*((root,) if "root" in inspect.signature(make).parameters else ()), **chosen)


def _chosen(data_config) -> dict:
    values = {key: data_config[key] for key in options(data_config["name"]) if key in data_config}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
