"""A study file: how it is read, and the config of each of its runs.

A study file is a Python file with these names:

    TITLE      what the table is about
    BASE       the config that all rows start from
    ROWS       {row: {dotted key: value}}; or in its place
    GRID       {key: choices}, a full factorial, see `Grid`
    REFERENCE  {row: {metric: published value}}
    CLAIMS     a tuple of `Claim`
    REPEATS    runs of each row, default 3; or folds(5), a cross-validation, see `study.folds`
    VARIES     keys that repeat number r of a run adds r to; default ("seed",)
    METRICS    columns of the table, the headline first
    BASELINE   the row that the others are compared with; default the first
    MARGIN     {metric: the largest difference that does not matter}, such as {"dice_mean": 0.01}:
               which rows are equal to the baseline, or no worse, within it
    SMOKE      {dotted key: value}: overrides that make every run tiny, see `config_of`
    LEARNING_CURVE  {"metric": name, "targets": (wanted score, ...)}: how many training images a
               score takes, from rows that differ in data.train_fraction alone, see `fractions`
    SEARCH     {"space": {key: range}, ...}: what --search varies, see `search_space`
    get_config = rows(BASE, ROWS)

so that `--config=FILE.py:ROW` is a run of one row as well.
"""

import pathlib
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError, nearest
from cellseg_jax.studies.check import (
    check,
    check_forms,
    check_literals,
    check_names,
    checked_claims,
)
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.search.space import searched
from cellseg_jax.studies.smoke import smoke_config
from cellseg_jax.studies.study import Folds, Study, located, row_config

OPTIONAL = dict(REFERENCE={}, CLAIMS=(), REPEATS=3, VARIES=("seed",),
                METRICS=("dice_mean", "iou_mean"), BASELINE="", SMOKE={}, LEARNING_CURVE={},
                MARGIN={}, SEARCH={})


def load(path, overrides=()) -> Study:
    """The study of a file. [(dotted key, text), ...] override BASE; the values of a row stay.

    Raises: InputError in one line for whatever is wrong in the file. Every row of ROWS is built
      once to find that; of a GRID every choice of every factor, beside the first of the others.
    """
    path = pathlib.Path(path)
    if not path.is_file() or path.suffix != ".py":
        known = sorted(str(p) for p in pathlib.Path("configs/studies").glob("*.py"))
        raise InputError(f"--study: no file '{path}' in {pathlib.Path.cwd()}"
                         f"{nearest(str(path), known)}; expected a Python file (.py)")
    with config_lib.blame(str(path)):
        check_literals(path)
        study = _study(path.stem, vars(config_lib.run_file(str(path))), overrides)
        check(study)
    return study._replace(path=str(path))


def rows(base: ConfigDict, rows: Mapping[str, dict]) -> Callable[..., ConfigDict]:
    """The get_config that ends a study file: get_config("unet_13_1") is that row's config."""
    def get_config(row: str = "") -> ConfigDict:
        return row_config(base, rows, row) if row else config_lib.complete(base)
    return get_config


def config_of(study: Study, row: str, repeat: int, *, smoke: bool = False) -> ConfigDict:
    """The complete config of a run of a study.

    With `smoke` the overrides of SMOKE come last. There, a function gets the row's own value, as
    in {"train.batch_size": lambda n: min(n, 4)}; and a key of `data` or `model` that the row's
    dataset or model does not have is left out, so that one SMOKE serves several networks. The
    latter holds for a GRID too. After `prepare_smoke`, data.root and data.mix point to twins.

    Raises: InputError that names the row.
    """
    config = row_config(study.base, study.rows, row)
    if smoke:
        config = smoke_config(config, study.smoke, row)
    changes = repeat_changes(study, config_lib.flatten(config), repeat)
    return config_lib.changed(config, changes) if changes else config


def repeat_changes(study: Study, flat: Mapping, repeat: int) -> dict:
    """{dotted key: value} of repeat number `repeat`, where a row's config is {dotted key: value}.

    With folds for each repeat, else not for the first.
    """
    changes = study.folds.changes(repeat) if study.folds else {}
    return changes | ({key: flat[key] + repeat for key in study.varies} if repeat else {})


def run_configs(study: Study, row: str, repeats: int, *, smoke: bool = False) -> list[ConfigDict]:
    """`config_of` of repeats 0, 1, ...; the row itself is completed and checked once."""
    first = config_of(study, row, 0, smoke=smoke)
    flat = config_lib.flatten(first)
    return [first, *(config_lib.changed(first, repeat_changes(study, flat, repeat))
                     for repeat in range(1, repeats))]


def _study(name, found, overrides) -> Study:
    """The study of {name: value} of a file; its rows and settings are not yet checked."""
    check_names(found, OPTIONAL)
    check_forms(found)
    settings = {key: found.get(key, standard) for key, standard in OPTIONAL.items()}
    table = found["ROWS"] if "ROWS" in found else Grid(found["GRID"])
    if not isinstance(table, Mapping) or not len(table):
        raise InputError("ROWS: expected {row: {dotted key: value}} with at least one row")
    base = located("BASE", config_lib.complete, found["BASE"])
    base, repeats = config_lib.override(base, overrides), settings["REPEATS"]
    folds = repeats if isinstance(repeats, Folds) else None
    return Study(
        name=name, title=str(found["TITLE"]), base=base,
        rows=table, reference=dict(settings["REFERENCE"]),
        claims=checked_claims(settings["CLAIMS"]),
        repeats=folds.count if folds else repeats,
        varies=tuple(settings["VARIES"]), metrics=tuple(settings["METRICS"]),
        baseline=settings["BASELINE"] or next(iter(table)), smoke=dict(settings["SMOKE"]),
        learning_curve=settings["LEARNING_CURVE"], folds=folds, margin=settings["MARGIN"],
        search=searched(settings["SEARCH"], base))
