"""What can be wrong in a study file: each is found before any run and reported in one line."""

import ast
import difflib
import math
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError, nearest, shortened
from cellseg_jax.inference.score_definitions import SCORES
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies.course import COURSE
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.row_families import FRACTION, families
from cellseg_jax.studies.smoke import smoke_config
from cellseg_jax.studies.study import Claim, Study, metrics_of, row_config

ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")  # a folder on every system
# Beside the rows: of the launchers, of --smoke, of folds, of --search.
RESERVED_FOLDERS = ("logs", "twins", "out_of_fold", "search")
MIN_FRACTIONS = 3  # of a learning curve: as many as its law has parameters


def check_names(found: Mapping, optional) -> None:
    """InputError if a study file lacks a name it needs or has a misspelled one.

    Args:
      found: {name: value} of the file.
      optional: the names that may be left out.
    """
    missing = [key for key in ("TITLE", "BASE", "get_config") if key not in found]
    if missing:
        raise InputError(f"{missing[0]} is missing; expected TITLE, BASE, ROWS or GRID, and last "
                         "get_config = rows(BASE, ROWS)")
    for key in found:
        close = difflib.get_close_matches(key, optional, 1, 0.8) if key.isupper() else ()
        if close and close[0] not in found:
            raise InputError(f"{key}: nothing reads it; did you mean {close[0]}?")
    if ("ROWS" in found) == ("GRID" in found):
        raise InputError("expected either ROWS or GRID; a table and a grid are two files")


# What the names of a file hold, and an example.
FORMS = {
    "BASE": (ConfigDict, 'config.load("configs/unet_adam.py")'),
    "REFERENCE": (Mapping, '{"row": {"dice_mean": 0.82}}'),
    "CLAIMS": ((tuple, list), '(Claim("text", better, worse),)'),
    "VARIES": ((tuple, list), '("seed", "data.split_seed")'),
    "METRICS": ((tuple, list), '("dice_mean",)'),
    "BASELINE": (str, '"unet_adam", the name of a row'),
    "SMOKE": (Mapping, '{"train.steps": 2}'),
}
CLAIM_FORMS = {  # likewise the fields of a Claim
    "text": (str, "a text"),
    "better": ((str, tuple, list), '"row" or ("row", "row")'),
    "worse": ((str, tuple, list), '"row" or ("row", "row")'),
    "metric": (str, '"dice_mean"'),
    "equal_within": ((int, float), "a number such as 0.01"),
    "every": (bool, "True or False"),
    "matched": (bool, "True or False"),
    "worse_metric": (str, '"dice_mean"'),
}


def check_forms(found: Mapping) -> None:
    """InputError for a value of another type than FORMS; ("a") is the text "a", not a tuple."""
    for key, (form, example) in FORMS.items():
        if key in found and (not isinstance(found[key], form) or isinstance(found[key], Claim)):
            raise InputError(f"{key}: got {shortened(found[key])}; expected {example}")


def check_literals(path) -> None:
    """InputError where a dict of the file has a key twice: Python keeps the last without a word."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        seen = set()
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant) and (type(key.value), key.value) in seen:
                raise InputError(f"line {key.lineno}: {key.value!r} is there twice in one "
                                 "{...}, and the first would be lost; rename or remove one")
            seen.add((type(key.value), key.value) if isinstance(key, ast.Constant) else key)


def checked_claims(claims) -> tuple[Claim, ...]:
    """The claims with tuples of rows, also where the file gives one name. Raises InputError."""
    as_rows = lambda rows: (rows,) if isinstance(rows, str) else tuple(rows)
    for i, claim in enumerate(claims):
        if not isinstance(claim, Claim):
            raise InputError(f"CLAIMS[{i}]: got {claim!r}; expected Claim('text', better, worse)")
        for field, value in claim._asdict().items():
            form, example = CLAIM_FORMS[field]
            if not isinstance(value, form) or (form is not bool and isinstance(value, bool)):
                raise InputError(f"CLAIMS[{i}]: got {field}={shortened(value)}; expected {example}")
    return tuple(claim._replace(better=as_rows(claim.better), worse=as_rows(claim.worse))
                 for claim in claims)


def check(study: Study) -> None:
    """InputError at the first row or setting that is wrong."""
    _check_rows(study)
    _check_repeats_and_metrics(study)
    _check_references(study)
    _check_claims(study)
    _check_margin(study)
    if study.learning_curve:
        _check_learning_curve(study)


def _check_rows(study) -> None:
    """Every row of a table; of a Grid every choice of a factor, beside the others' first."""
    table, lower_case = study.rows, {}
    for row in table.one_at_a_time() if isinstance(table, Grid) else table:
        changes = table[row]
        if not isinstance(changes, Mapping) or not all(isinstance(key, str) for key in changes):
            raise InputError(f"ROWS[{row!r}]: got {shortened(changes)}; expected "
                             "{dotted key: value}")
        if not isinstance(row, str) or not ROW_NAME.fullmatch(row) or row.endswith("."):
            raise InputError(f"ROWS[{row!r}]: a row names a folder; expected up to 120 letters, "
                             "digits, '.', '_', '+' and '-', the first a letter or digit")
        if row in RESERVED_FOLDERS:
            raise InputError(f"ROWS[{row!r}]: the study's folder holds another {row!r}; rename the "
                             "row")
        other = lower_case.setdefault(row.lower(), row)
        if other != row:
            raise InputError(f"ROWS[{row!r}]: differs from {other!r} in capitals alone, which is "
                             "one folder on some systems; rename one")
        config = smoke_config(row_config(study.base, table, row), study.smoke, row)
        if study.folds and study.folds.tune and not derived.has_cells(config):
            raise InputError(f"REPEATS: got tune={study.folds.tune!r}, but the labels of row {row} "
                             f"are {derived.label_kind(config)}, without instances to match; "
                             "leave it out")
        if first := derived.first_row(config):
            _check_first_row(study, row, first)


def _check_first_row(study, row, first) -> None:
    """InputError unless the row whose weights another one starts from starts from none itself."""
    where = f"ROWS[{row!r}]: train.weights"
    _check_row_exists(study, first, where)
    if derived.first_row(row_config(study.base, study.rows, first)):
        raise InputError(f"{where}: {first!r} starts from another row itself; expected a row that "
                         "does not")


def _check_repeats_and_metrics(study) -> None:
    if isinstance(study.repeats, bool) or not isinstance(study.repeats, int) or study.repeats < 1:
        raise InputError(f"REPEATS: got {study.repeats!r}; expected a number of runs, at least "
                         "1, or folds(5) of cellseg_jax.studies")
    if not study.metrics or not all(isinstance(m, str) for m in study.metrics):
        raise InputError(f"METRICS: got {study.metrics!r}; expected names such as ('dice_mean',)")
    for metric in study.metrics:
        _check_metric_known(metric, "METRICS")
    if twice := [m for m in study.metrics if study.metrics.count(m) > 1]:
        raise InputError(f"METRICS: {twice[0]!r} is there twice; expected each column once")
    flat = config_lib.flatten(study.base)
    if not study.varies and not study.folds:
        raise InputError("VARIES: got (), with which all repeats of a row are one and the same "
                         "run; expected ('seed',) or ('seed', 'data.split_seed')")
    for key in study.varies:
        if type(flat.get(key)) is not int:
            raise InputError(f"VARIES: got {key!r}; expected keys of whole numbers, such as "
                             "('seed', 'data.split_seed')")
    if study.folds:
        _check_folds(study)


def _check_folds(study) -> None:
    """The repeats of all rows are folds of one assignment: nothing else decides the split."""
    if "data.split_seed" in study.varies:
        raise InputError("VARIES: got data.split_seed with REPEATS = folds(...), whose images "
                         "would not be tested exactly once; expected VARIES = ('seed',)")
    table = study.rows
    for row in table.one_at_a_time() if isinstance(table, Grid) else table:
        for key in ("data.split", "data.split_by", "data.split_seed"):
            if key in table[row]:
                raise InputError(f"ROWS[{row!r}]: sets {key}, which REPEATS = folds(...) decides; "
                                 "expected it in BASE alone, or a number of REPEATS")


def _check_margin(study) -> None:
    """{metric of METRICS: a number above 0}."""
    got, where = study.margin, f"MARGIN: got {study.margin!r}"
    if not isinstance(got, Mapping):
        raise InputError(f"{where}; expected {{'dice_mean': 0.01}}")
    for metric, size in got.items():
        _check_metric_exists(study, metric, "MARGIN")
        if type(size) not in (int, float) or not 0 < size < math.inf:
            raise InputError(f"{where}; expected the largest difference in {metric} that does not "
                             "matter, a number above 0 such as 0.01")


def _check_row_exists(study, row, where) -> None:
    if row not in study.rows:
        raise InputError(f"{where}: there is no row {row!r}{nearest(row, study.rows)}")


def _check_metric_exists(study, metric, where) -> None:
    columns = (*study.metrics, *RESOURCES)
    if metric not in columns:
        raise InputError(f"{where}: metric {metric!r} is no column{nearest(metric, columns)}; add "
                         "it to METRICS")


def _check_references(study) -> None:
    """The baseline and the published values."""
    _check_row_exists(study, study.baseline, "BASELINE")
    for row, values in study.reference.items():
        _check_row_exists(study, row, "REFERENCE")
        if not isinstance(values, Mapping):
            raise InputError(f"REFERENCE[{row!r}]: got {values!r}; expected {{metric: number}}")
        for metric, value in values.items():
            _check_metric_exists(study, metric, f"REFERENCE[{row!r}]")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"REFERENCE[{row!r}]: {metric} is {value!r}; expected a number")


def _check_claims(study) -> None:
    for i, claim in enumerate(study.claims):
        where = f"CLAIMS[{i}]"
        for row in (*claim.better, *claim.worse):
            _check_row_exists(study, row, where)
        for metric in metrics_of(study, claim):
            _check_metric_known(metric, where, study.metrics)
        if not claim.better or not claim.worse or claim.equal_within < 0:
            raise InputError(f"{where}: expected rows on both sides and equal_within of at least 0")
        if claim.every and claim.matched:
            raise InputError(f"{where}: every compares all pairs of rows, matched those at the "
                             "same place; expected one of the two")
        if claim.matched and len(claim.better) != len(claim.worse):
            raise InputError(f"{where}: matched compares rows at the same place, but there are "
                             f"{len(claim.better)} and {len(claim.worse)}")
        same = (any(better == worse for better, worse in claim.pairs) if claim.pairs
                else {*claim.better} == {*claim.worse})
        if same and len({*metrics_of(study, claim)}) == 1:
            raise InputError(f"{where}: compares a row with itself; expected other rows in worse "
                             "than in better")


def _check_metric_known(metric, where, columns=()) -> None:
    """A column, a score, a cost, or one of the course of training; of one stratum too."""
    known = (*columns, *RESOURCES, *COURSE, *SCORES)
    score = re.fullmatch(r"([^][]+)(\[[^][]+\])?", metric)
    if not score or score[1] not in {name.partition("[")[0] for name in known}:
        raise InputError(f"{where}: there is no metric {metric!r}{nearest(metric, known)}")


def _check_learning_curve(study) -> None:
    """A score to fit, the scores that are wanted, and rows to fit it to."""
    got = study.learning_curve
    where = f"LEARNING_CURVE: got {got!r}"
    if not isinstance(got, Mapping) or set(got) != {"metric", "targets"}:
        raise InputError(f"{where}; expected {{'metric': 'dice_mean', 'targets': (0.9,)}}")
    if got["metric"] not in study.metrics or got["metric"] in RESOURCES:
        raise InputError(f"LEARNING_CURVE: metric {got['metric']!r} is no score of METRICS"
                         f"{nearest(got['metric'], study.metrics)}")
    if not isinstance(got["targets"], (tuple, list)) or not got["targets"] or not all(
            type(target) in (int, float) and math.isfinite(target) for target in got["targets"]):
        raise InputError(f"{where}; expected targets as numbers, such as (0.85, 0.9)")
    if _most_fractions(study) < MIN_FRACTIONS:
        raise InputError("LEARNING_CURVE: no rows differ in data.train_fraction alone at three "
                         "values or more; ROWS = fractions({'unet': {}}, (1/4, 1/2, 1)) makes such")


def _most_fractions(study) -> int:
    """How many values of data.train_fraction the largest family of rows has."""
    if isinstance(study.rows, Grid):
        return max((len({changes.get(FRACTION) for changes in choices.values()})
                    for choices in study.rows.factors.values()), default=0)
    share = lambda row: study.rows[row].get(FRACTION, study.base.data.train_fraction)
    return max((len(set(map(share, rows))) for rows in families(study, study.rows).values()),
               default=0)
