"""The config of a trained run for other data than it was trained on."""

import pathlib

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config.defaults import default
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import ENVIRONMENT_FILE, read_config

# Which images of the training data are used, and what is added to them: not of other images.
OF_TRAINING = ("only_size", "strata", "mix", "blank_images")


def config_for(workdir, overrides):
    """The run's config after [(dotted key, text), ...]; without what belongs to its training data.

    Where data.name or data.root make the data other than those of the run, OF_TRAINING, a split
    by a file, and a data.group that does not match the names of the images become the default,
    unless they are among the overrides; one line says which.

    Raises: InputError as config.override.
    """
    run, given = read_config(workdir), dict(overrides)
    renamed = given.get("data.name", run.data.name) != run.data.name
    if renamed:  # what is mixed in must have labels of the same kind
        overrides = [("data.mix", "()"), *overrides]
    config = config_lib.override(run, overrides)
    if not renamed and not _is_other(workdir, run, config):
        return config
    changes = {f"data.{key}": default().data[key] for key in OF_TRAINING}
    if isinstance(config.data.split, str) and (config.data.split != "official" or renamed):
        changes["data.split"] = default().data.split
    before = config_lib.flatten(config)
    changes = {key: value for key, value in changes.items()
               if key not in given and before[key] != value}
    config = config_lib.changed(config, changes)
    if "data.group" not in given and not _groups(config.data):
        changes["data.group"] = ""
        config = config_lib.changed(config, {"data.group": ""})
    dropped = [f"{key}={config_lib.flatten(run)[key]!r}" for key in changes]
    if renamed and run.data.mix and "data.mix" not in given:
        dropped.append(f"data.mix={run.data.mix!r}")
    if dropped:
        terminal.log(f"{config.data.root or config.data.name}: other data than the run was trained "
                     f"on; left out: {', '.join(dropped)}; set what should count here by "
                     "--config.KEY=VALUE")
    return config


def _is_other(workdir, run, config) -> bool:
    """Whether the images of a config are not those of the run, wherever they lie."""
    if config.data.root == run.data.root:
        return False
    before = read_json(pathlib.Path(workdir) / ENVIRONMENT_FILE, {}).get("data_fingerprint")
    try:
        return data.fingerprint_of(config.data) != before
    except InputError:
        return True


def _groups(data_config) -> bool:
    """Whether data.group, where there is such a key, finds a case in the name of every image."""
    if not data_config.get("group"):
        return True
    try:
        data.records_of(data_config)
    except InputError as error:
        return "config.data.group" not in str(error)
    return True
