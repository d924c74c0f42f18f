"""What a study is: rows with their configs, published values, claims, and how it is run."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax import data, models
from cellseg_jax.config.derived import LABELS, UNTRAINED, model_options
from cellseg_jax.data.folds import VAL, Fold
from cellseg_jax.data.folds import check as check_fold
from cellseg_jax.errors import InputError, check_choice, nearest
from cellseg_jax.inference.tune import METRICS
from cellseg_jax.studies.grid import Grid


class Claim(NamedTuple):
    """An ordering that a report states: the mean of `better` is ahead of the mean of `worse`.

    Ahead is below where the metric is a loss, time or memory. A metric may be of one stratum or
    class, "dice_mean[stained]", or of the course of training (studies.course).
    """

    text: str  # in the report's words, short
    better: tuple[str, ...]  # row names
    worse: tuple[str, ...]
    metric: str = ""  # "" = the study's headline metric
    equal_within: float = 0.0  # > 0: the claim is "no difference larger than this"
    every: bool = False  # "best", "worst": each row of better is ahead of each row of worse
    matched: bool = False  # each row of better is ahead of the row of worse at its place
    worse_metric: str = ""  # of the rows of worse, where another one is meant

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of rows that have to hold each by itself; none where rows are averaged."""
        if self.matched:
            return list(zip(self.better, self.worse, strict=True))
        return list(itertools.product(self.better, self.worse)) if self.every else []


class Folds(NamedTuple):
    """Repeats that are the folds of a cross-validation; made by `folds`."""

    count: int
    groups: str  # value of data.split_by
    val: float
    test: float | str  # share of all images in no fold, or "official"
    nnunet: bool
    tune: str  # metric of inference.tune that decoding options are found for; "" = none

    def changes(self, repeat: int) -> dict:
        """{dotted key: value} of the run of a repeat."""
        fold = Fold(repeat, self.count, self.val, self.test, self.nnunet)
        return {"data.split": str(fold), "data.split_by": self.groups}


def folds(count: int = 5, *, groups: str = "group", val: float | None = None,
          test: float | str = 0.0, nnunet: bool = False, tune: str = "") -> Folds:
    """REPEATS of a study as the folds of a cross-validation: repeat r tests fold r.

    Every image is tested once. More repeats than folds are further assignments: of 10 repeats with
    5 folds, each image is tested twice.

    Args:
      groups: what stays together in one fold: "group" (cases, as the dataset has them) | "image".
      val: share of the images outside of a fold that validates; default 0.1, with nnunet 0.
      test: share of all images in no fold, or "official", the dataset's test part: the ensemble
        of the folds is scored on it.
      nnunet: the assignment that nnU-Net makes of the same names; groups has to be "image".
      tune: ap50 | pq | seg ...: find decoding options on predictions out of fold, see
        studies.out_of_fold.
    Raises: InputError for numbers that make no sense.
    """
    val = (0.0 if nnunet else VAL) if val is None else val
    check_fold(Fold(0, count, val, test, nnunet), "REPEATS")
    check_choice(groups, ("group", "image"), "REPEATS: groups")
    if nnunet and groups != "image":
        raise InputError("REPEATS: got nnunet with groups='group', but nnU-Net draws images; "
                         "expected folds(..., groups='image', nnunet=True), where cases may be "
                         "split")
    if tune:
        check_choice(tune, METRICS, "REPEATS: tune")
    return Folds(count, groups, val, test, nnunet, tune)


class Study(NamedTuple):
    """A study file that has been read and checked."""

    name: str  # of the file
    title: str
    base: ConfigDict  # complete
    rows: Mapping[str, dict]  # {row: {dotted key: value}}
    reference: dict  # {row: {metric: published value}}
    claims: tuple[Claim, ...]
    repeats: int
    varies: tuple[str, ...]
    metrics: tuple[str, ...]  # the first is the headline
    baseline: str
    smoke: dict
    path: str = ""  # of the file
    learning_curve: Mapping = {}  # metric and targets, or nothing
    folds: Folds | None = None  # what the repeats are, where they are folds
    margin: Mapping[str, float] = {}  # {metric: the largest difference that does not matter}
    search: tuple | None = None  # a search_space.Search


def metrics_of(study: Study, claim: Claim) -> tuple[str, str]:
    """The metrics of both sides of a claim."""
    metric = claim.metric or study.metrics[0]
    return metric, claim.worse_metric or metric


def metrics_named(study: Study) -> set[str]:
    """All metrics of columns and claims."""
    return {*study.metrics, *(one for claim in study.claims for one in metrics_of(study, claim))}


def claims_about(claims, rows) -> tuple[Claim, ...]:
    """Claims reduced to some rows, without those that have none of them on one side.

    For a study of a part of another one's rows.
    """
    kept = []
    for claim in claims:
        sides = claim.better, claim.worse
        if claim.matched:
            pairs = [pair for pair in claim.pairs if {*pair} <= {*rows}]
            sides = tuple(zip(*pairs, strict=True)) or ((), ())
        better, worse = (tuple(row for row in side if row in rows) for side in sides)
        if better and worse:
            kept.append(claim._replace(better=better, worse=worse))
    return tuple(kept)


def row_config(base: ConfigDict, table: Mapping, row: str) -> ConfigDict:
    """The complete config of a row before repeats.

    Of a Grid, keys that the row's model or dataset does not have are left out. {"labels": DIR} is
    a row of labels made elsewhere, see inference.label_folder.

    Raises: InputError that names the row.
    """
    try:
        changes = table[row]
    except KeyError:
        some = ", ".join(itertools.islice(table, 6)) + (", ..." if len(table) > 6 else "")
        raise InputError(f"there is no row {row!r}{nearest(row, table)}; the rows are {some}"
                         ) from None
    if not isinstance(changes, Mapping):
        raise InputError(f"ROWS[{row!r}]: got {changes!r}; expected {{dotted key: value}}")
    if "labels" in changes:  # a folder of labels made elsewhere
        changes = {"model.name": LABELS, "model.folder": str(changes["labels"]),
                   **{key: value for key, value in changes.items() if key != "labels"}}
    if isinstance(table, Grid):
        changes = applicable(changes, changes.get("model.name", base.model.name),
                             changes.get("data.name", base.data.name))
    return located(f"ROWS[{row!r}]", config_lib.changed, base, dict(changes))


def applicable(changes: Mapping, model: str, dataset: str) -> dict:
    """`changes` without keys that only other models or datasets have."""
    foreign = _options_of_others(model, dataset)
    return {key: value for key, value in changes.items() if key not in foreign}


@functools.cache
def _options_of_others(model, dataset) -> set:
    """Dotted options of other models and datasets."""
    names = {"model": (*models.MODELS, *UNTRAINED), "data": data.DATASETS}
    own = {"model": model_options(model), "data": data.options(dataset)}
    of = {"model": model_options, "data": data.options}
    others = {f"{section}.{key}" for section in own for name in names[section]
              for key in of[section](name) if key not in own[section]}
    return others - config_lib.flatten(config_lib.default()).keys()


def representatives(study: Study) -> dict[str, int]:
    """{row: how many rows share its program}, without building a grid's configs.

    Rows that differ in values (config.VALUE_KEYS) alone train in one program. Of a grid, one row
    of each combination of the other factors stands for all of them; of ROWS, each for itself.
    """
    if not isinstance(study.rows, Grid):
        return dict.fromkeys(study.rows, 1)
    kept = {}
    for title, choices in study.rows.factors.items():
        changes = set().union(*choices.values())
        free = changes <= {*config_lib.VALUE_KEYS, *config_lib.FREE_KEYS}
        kept[title] = list(choices)[:1] if free else choices
    names = list(map("-".join, itertools.product(*kept.values())))
    return dict.fromkeys(names, len(study.rows) // len(names))


def located(where: str, function: Callable, *arguments):
    """function(*arguments); `where` goes in front of the text of its InputError."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
