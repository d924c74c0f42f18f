"""Tiny runs of a study on synthetic data: does every row work?"""

import pathlib

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError
from cellseg_jax.report import terminal
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.study import (
    Study,
    applicable,
    claims_about,
    located,
    representatives,
    row_config,
)

# Images of a twin for SMOKE: 12, and of these per class and per movie.
TWIN_IMAGES = {"ebhi_seg": 6, "ctc": 4}
TWIN_FOLDERS = {"ctc": "ctc/Fluo-N2DL-HeLa"}  # of the twin's datasets, where it has several


def smoke_config(config: ConfigDict, smoke: dict, row: str) -> ConfigDict:
    """A row's config with the overrides of SMOKE; see `file.config_of`.

    Raises: InputError that names the row.
    """
    model = smoke.get("model.name", config.model.name)
    dataset = smoke.get("data.name", config.data.name)
    flat, changes = config_lib.flatten(config), {}
    for key, value in applicable(smoke, model, dataset).items():
        changes[key] = value(flat[key]) if callable(value) and key in flat else value
    if "data.root" in changes:  # the folder of the twins
        twin = lambda name: pathlib.Path(smoke["data.root"], TWIN_FOLDERS.get(name, name))
        changes["data.root"] = "" if dataset == "synthetic" else str(twin(dataset))
        mixed = (text.partition(":")[0] for text in changes.get("data.mix", config.data.mix))
        changes["data.mix"] = tuple(f"{name}:{twin(name)}" for name in mixed)
    return located(f"SMOKE of row {row!r}", config_lib.changed, config, changes)


def prepare_smoke(study: Study, folder) -> Study:
    """The study with SMOKE's runs reading synthetic twins, which are written once into `folder`.

    There is a twin for each dataset that a row names in data.name or data.mix. It has a few images
    a little larger than data.size. Several processes may prepare the same folder at once. Rows of
    labels made elsewhere are left out, and named: nobody has labels of a twin.

    Raises: InputError without SMOKE, since all would be trained in full, and for a dataset that
      has no twin.
    """
    if not study.smoke:
        raise InputError(f"--smoke: {study.path or study.name} has no SMOKE; expected overrides "
                         'that make its runs tiny, such as SMOKE = {"train.steps": 2}')
    folder = pathlib.Path(folder)
    study = _without_labels(study)._replace(smoke={**study.smoke, "data.root": str(folder)})
    sizes = {}
    for row in representatives(study):
        config = smoke_config(row_config(study.base, study.rows, row), study.smoke, row)
        for name in (config.data.name, *(text.partition(":")[0] for text in config.data.mix)):
            sizes[name] = tuple(map(max, sizes.get(name, (0, 0)), config.data.size))
    for name, (height, width) in sizes.items():
        out = folder / name
        if name == "synthetic" or out.is_dir():
            continue
        try:
            twins.write(name, out, count=TWIN_IMAGES.get(name, 12),
                        size=tuple(max(twins.MIN_SIDE, side + 8) for side in (height, width)))
        except InputError:
            if not out.is_dir():  # else another process was faster
                raise
    return study


def _without_labels(study):
    """The study without rows of labels made elsewhere, and a line on those."""
    if isinstance(study.rows, Grid):
        return study
    rows = {name: changes for name, changes in study.rows.items() if "labels" not in changes}
    if left_out := [name for name in study.rows if name not in rows]:
        terminal.log(f"--smoke leaves out rows of labels made elsewhere: {', '.join(left_out)}")
    baseline = study.baseline if study.baseline in rows else next(iter(rows), "")
    return study._replace(rows=rows, baseline=baseline, claims=claims_about(study.claims, rows))
