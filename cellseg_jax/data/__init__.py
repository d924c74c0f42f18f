"""Datasets: one file each, decoded once into a cache, split and ordered by pure functions.

To add one: a file with `records(root, **options) -> Records`, and a line in DATASETS.
"""

import inspect
import os
import pathlib

from cellseg_jax.data import dsb2018, folder, split, synthetic
from cellseg_jax.data.cache import Arrays, open_cache
from cellseg_jax.data.records import Records
from cellseg_jax.errors import pick

DATASETS = {
    "dsb2018": dsb2018.records,
    "folder": folder.records,
    "synthetic": synthetic.records,
}


def options(name: str) -> dict:
    """The options of a dataset with their defaults; they are keys of config.data."""
    parameters = inspect.signature(pick(DATASETS, name, "config.data.name")).parameters
    return {key: p.default for key, p in parameters.items() if key != "root"}


def records_of(data_config) -> Records:
    """The samples of config.data, not yet decoded, sorted by name."""
    make = pick(DATASETS, data_config["name"], "config.data.name")
    root = (data_config["root"],) if "root" in inspect.signature(make).parameters else ()
    return make(*root, **_chosen(data_config))


def load(data_config, progress=None) -> Arrays:
    """The decoded samples of config.data, from the cache where they are there already.

    Args:
      data_config: name, root, size, fit, channels, cache ("" = the user's cache folder) and
        the options of the dataset; other keys are not read.
      progress: called with (samples done, samples in all) while decoding.
    """
    return open_cache(
        records_of(data_config), dataset=data_config["name"], options=_chosen(data_config),
        size=tuple(data_config["size"]), fit=data_config["fit"], channels=data_config["channels"],
        directory=data_config["cache"] or _user_cache(), progress=progress)


def split_of(data_config, arrays: Arrays) -> dict:
    """{"train", "val", "test"}: indices into `arrays`, by config.data.split and split_seed."""
    return split.split(arrays.groups, arrays.strata, fractions=data_config["split"],
                       seed=data_config["split_seed"])


def _chosen(data_config) -> dict:
    values = {key: data_config[key] for key in options(data_config["name"]) if key in data_config}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _user_cache() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "cellseg_jax"
