"""What a study file says: a table of runs, what is published about it, and how to make it tiny.

A study file is a Python file with these names:

    TITLE      what the table is about
    BASE       the config that all rows start from
    ROWS       {row: {dotted key: value}}; or in its place
    GRID       {key: choices}, a full factorial, see `Grid`
    REFERENCE  {row: {metric: published value}}
    CLAIMS     a tuple of `Claim`
    REPEATS    runs of each row, 3 unless told otherwise
    VARIES     keys that repeat number r of a run adds r to: ("seed",) unless told otherwise
    METRICS    columns of the table, the headline first
    BASELINE   the row that the others are compared with, the first unless told otherwise
    SMOKE      {dotted key: value}: overrides that make every run tiny, see `config_of`
    LEARNING_CURVE  {"metric": name, "targets": (wanted score, ...)}: how many training images a
               score takes, from rows that differ in data.train_fraction alone, see `fractions`
    get_config = rows(BASE, ROWS)

so that `--config=FILE.py:ROW` is a run of one row as well.
"""

import difflib
import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from cellseg_jax import classical, data, models
from cellseg_jax import config as config_lib
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError, nearest

OPTIONAL = dict(REFERENCE={}, CLAIMS=(), REPEATS=3, VARIES=("seed",),
                METRICS=("dice_mean", "iou_mean"), BASELINE="", SMOKE={}, LEARNING_CURVE={})
COSTS = ("train_seconds", "cpu_seconds", "peak_memory_gib")  # metrics beside those of METRICS
ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")  # a folder on every system
RESERVED = ("logs", "twins")  # folders beside the rows: of the launchers, of --smoke
LABEL = re.compile(r"[A-Za-z0-9._+]+")
FRACTION = "data.train_fraction"
# Images of a twin for SMOKE: 12, and of these per class and per movie.
TWIN_IMAGES = {"ebhi_seg": 6, "ctc": 4}
TWIN_FOLDERS = {"ctc": "ctc/Fluo-N2DL-HeLa"}  # of the twin's datasets, where it has several


class Claim(NamedTuple):
    """An ordering that a report states: the mean of `better` is ahead of the mean of `worse`.

    Ahead is below where the metric is a loss, time or memory.
    """

    text: str  # as the report says it, short
    better: tuple[str, ...]  # row names
    worse: tuple[str, ...]
    metric: str = ""  # "" = the study's headline metric
    equal_within: float = 0.0  # > 0: the claim is "no difference larger than this"


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


class Grid(Mapping):
    """A full factorial as rows {name: {dotted key: value}}, each made when it is asked for.

    A row is named by a label for each factor, joined by "-": adam-lr0.001-dropout0.3.

    Args:
      choices: {key: (value, ...)} where the label is the value, with the last word of the key
        before a number; or {key: {label: value}}; or, where one choice sets several keys,
        {title: {label: {dotted key: value}}}. Later factors win.
    """

    def __init__(self, choices: Mapping):
        self.factors = {key: _labelled(key, values) for key, values in choices.items()}

    def __getitem__(self, name: str) -> dict:
        labels = name.split("-") if isinstance(name, str) else ()
        if len(labels) != len(self.factors):
            raise KeyError(name)
        changes = {}
        for label, choices in zip(labels, self.factors.values(), strict=True):
            changes |= choices[label]
        return changes

    def __iter__(self) -> Iterator[str]:
        return map("-".join, itertools.product(*self.factors.values()))

    def __len__(self) -> int:
        return math.prod(map(len, self.factors.values()))


def load(path, overrides=()) -> Study:
    """The study of a file. [(dotted key, text), ...] override BASE; what a row says stays.

    Raises: InputError in one line for whatever is wrong in the file. Every row of ROWS is built
      once to see that; of a GRID every choice of every factor, beside the first of the others.
    """
    path = pathlib.Path(path)
    if not path.is_file() or path.suffix != ".py":
        known = sorted(str(p) for p in pathlib.Path("configs/studies").glob("*.py"))
        raise InputError(f"--study: no file '{path}' in {pathlib.Path.cwd()}"
                         f"{nearest(str(path), known)}; expected a Python file (.py)")
    with config_lib.blame(str(path)):
        study = _study(path.stem, vars(config_lib.run_file(str(path))), overrides)
    return study._replace(path=str(path))


def rows(base: ConfigDict, rows: Mapping[str, dict]) -> Callable[..., ConfigDict]:
    """The get_config that ends a study file: get_config("unet_13_1") is that row's config."""
    def get_config(row: str = "") -> ConfigDict:
        return _config_of(base, rows, row) if row else config_lib.complete(base)
    return get_config


def fractions(rows: Mapping[str, dict], shares) -> dict[str, dict]:
    """Each row at each share of its training images: {"unet": {}} -> {"unet_0.5": ..., "unet_1"}.

    Args:
      shares: values of data.train_fraction, such as (1/4, 1/2, 1).
    """
    return {f"{row}_{share:g}": {**changes, FRACTION: float(share)}
            for row, changes in rows.items() for share in shares}


def families(study: Study, names) -> dict[str, list[str]]:
    """{name: rows} of those rows that differ in data.train_fraction alone, two fractions or more.

    A family is called what its rows' names share, in whole words: "unet" of "unet_0.25", "unet_1".
    """
    alike = {}
    for row in names:
        changes = dict(study.rows[row])
        share = changes.pop(FRACTION, study.base.data.train_fraction)
        alike.setdefault(repr(sorted(changes.items())), {}).setdefault(share, []).append(row)
    groups = [[row for rows in shares.values() for row in rows]
              for shares in alike.values() if len(shares) > 1]
    shared = [_shared_name(rows) or study.name for rows in groups]
    return {name if shared.count(name) == 1 else rows[0]: rows
            for name, rows in zip(shared, groups, strict=True)}


def config_of(study: Study, row: str, repeat: int, *, smoke: bool = False) -> ConfigDict:
    """The complete config of a run of a study.

    With `smoke` the overrides of SMOKE come last. There, a function gets the row's own value, as
    in {"train.batch_size": lambda n: min(n, 4)}; and a key of `data` or `model` that the row's
    dataset or model does not have is left out, so that one SMOKE serves several networks. The
    latter holds for a GRID too. After `prepare_smoke`, data.root and data.mix point to twins.

    Raises: InputError that names the row.
    """
    config = _config_of(study.base, study.rows, row)
    if smoke:
        config = _smoked(config, study.smoke, row)
    if not repeat:
        return config
    flat = config_lib.flatten(config)
    return config_lib.changed(config, {key: flat[key] + repeat for key in study.varies})


def prepare_smoke(study: Study, folder) -> Study:
    """The study with SMOKE's runs reading synthetic twins, which are written once into `folder`.

    There is a twin for each dataset that a row names in data.name or data.mix. It has a few images
    a little larger than data.size. Processes may prepare the same folder at once.
    """
    folder = pathlib.Path(folder)
    study = study._replace(smoke={**study.smoke, "data.root": str(folder)})
    sizes = {}
    for row in representatives(study):
        config = config_of(study, row, 0, smoke=True)
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


def _shared_name(names) -> str:
    """What names begin and end with, in whole words between '-' or '_'."""
    words = [re.split(r"([-_])", name) for name in names]
    alike = lambda lists: [column[0] for column in itertools.takewhile(
        lambda column: len(set(column)) == 1, zip(*lists, strict=False))]
    first = alike(words)
    last = alike([one[len(first) :][::-1] for one in words])[::-1]
    return re.sub("[-_]+([-_])", r"\1", "".join([*first, *last])).strip("-_")


def _labelled(key, values) -> dict:
    """{label: {dotted key: value}} of one factor of a grid."""
    if not isinstance(values, Mapping):
        if len(set(map(str, values))) != len(values):
            raise InputError(f"GRID[{key!r}]: a choice is there twice; expected distinct values")
        values = {_label(key, value): value for value in values}
    for label in values:
        if not LABEL.fullmatch(str(label)):
            raise InputError(f"GRID[{key!r}]: label {label!r} cannot be part of a folder's name; "
                             "expected letters, digits, '.', '_' and '+', as in {'label': value}")
    if not values:
        raise InputError(f"GRID[{key!r}]: has no choices")
    return {label: dict(value) if isinstance(value, Mapping) else {key: value}
            for label, value in values.items()}


def _label(key, value) -> str:
    leaf = key.rpartition(".")[2]
    if isinstance(value, bool):
        return leaf if value else f"no_{leaf}"
    if isinstance(value, (int, float)):  # without an exponent, whose minus would part labels
        text = f"{value:.12f}".rstrip("0").rstrip(".")
        return f"{leaf}{text}"
    return str(value)


def _study(name, found, overrides) -> Study:
    """Checks what a study file holds."""
    missing = [key for key in ("TITLE", "BASE", "get_config") if key not in found]
    if missing:
        raise InputError(f"{missing[0]} is missing; expected TITLE, BASE, ROWS or GRID, and last "
                         "get_config = rows(BASE, ROWS)")
    for key in found:
        close = difflib.get_close_matches(key, OPTIONAL, 1, 0.8) if key.isupper() else ()
        if close and close[0] not in found:
            raise InputError(f"{key}: nothing reads it; did you mean {close[0]}?")
    if ("ROWS" in found) == ("GRID" in found):
        raise InputError("expected either ROWS or GRID; a table and a grid are two files")
    settings = {key: found.get(key, standard) for key, standard in OPTIONAL.items()}
    table = found["ROWS"] if "ROWS" in found else Grid(found["GRID"])
    if not isinstance(table, Mapping) or not len(table):
        raise InputError("ROWS: expected {row: {dotted key: value}} with at least one row")
    base = config_lib.override(_named("BASE", config_lib.complete, found["BASE"]), overrides)
    first = next(iter(table))
    study = Study(
        name, str(found["TITLE"]), base, table, dict(settings["REFERENCE"]),
        tuple(map(_claim, settings["CLAIMS"])), settings["REPEATS"], tuple(settings["VARIES"]),
        tuple(settings["METRICS"]), settings["BASELINE"] or first, dict(settings["SMOKE"]),
        learning_curve=settings["LEARNING_CURVE"])
    _check_rows(study)
    _check_settings(study)
    return study


def _check_rows(study) -> None:
    """InputError at the first row whose name or config is wrong."""
    table, folded = study.rows, {}
    if isinstance(table, Grid):
        first = [next(iter(choices)) for choices in table.factors.values()]
        names = dict.fromkeys(
            "-".join([*first[:i], label, *first[i + 1 :]])
            for i, choices in enumerate(table.factors.values()) for label in choices)
    else:
        names = table
    for row in names:
        if not isinstance(row, str) or not ROW_NAME.fullmatch(row) or row.endswith("."):
            raise InputError(f"ROWS[{row!r}]: a row names a folder; expected up to 120 letters, "
                             "digits, '.', '_', '+' and '-', the first a letter or digit")
        if row in RESERVED:
            raise InputError(f"ROWS[{row!r}]: the study's folder holds another {row!r}; rename the "
                             "row")
        other = folded.setdefault(row.lower(), row)
        if other != row:
            raise InputError(f"ROWS[{row!r}]: differs from {other!r} in capitals alone, which is "
                             "one folder on some systems; rename one")
        _smoked(_config_of(study.base, table, row), study.smoke, row)


def _check_settings(study) -> None:
    """InputError for a setting that names what is not there."""
    def known_row(row, where):
        if row not in study.rows:
            raise InputError(f"{where}: there is no row {row!r}{nearest(row, study.rows)}")

    def known_metric(metric, where):
        if metric not in (*study.metrics, *COSTS):
            raise InputError(f"{where}: metric {metric!r} is no column"
                             f"{nearest(metric, (*study.metrics, *COSTS))}; add it to METRICS")

    if isinstance(study.repeats, bool) or not isinstance(study.repeats, int) or study.repeats < 1:
        raise InputError(f"REPEATS: got {study.repeats!r}; expected a number of runs, at least 1")
    if not study.metrics or not all(isinstance(m, str) for m in study.metrics):
        raise InputError(f"METRICS: got {study.metrics!r}; expected names such as ('dice_mean',)")
    flat = config_lib.flatten(study.base)
    for key in study.varies:
        if type(flat.get(key)) is not int:
            raise InputError(f"VARIES: got {key!r}; expected keys of whole numbers, such as "
                             "('seed', 'data.split_seed')")
    known_row(study.baseline, "BASELINE")
    for row, values in study.reference.items():
        known_row(row, "REFERENCE")
        for metric, value in values.items():
            known_metric(metric, f"REFERENCE[{row!r}]")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"REFERENCE[{row!r}]: {metric} is {value!r}; expected a number")
    for i, claim in enumerate(study.claims):
        for row in (*claim.better, *claim.worse):
            known_row(row, f"CLAIMS[{i}]")
        known_metric(claim.metric or study.metrics[0], f"CLAIMS[{i}]")
        if not claim.better or not claim.worse or claim.equal_within < 0:
            raise InputError(f"CLAIMS[{i}]: expected rows on both sides and equal_within of at "
                             "least 0")
    if study.learning_curve:
        _check_learning_curve(study)


def _check_learning_curve(study) -> None:
    """InputError unless there is a score to fit, what is wanted of it, and rows to fit it to."""
    got = study.learning_curve
    where = f"LEARNING_CURVE: got {got!r}"
    if not isinstance(got, Mapping) or set(got) != {"metric", "targets"}:
        raise InputError(f"{where}; expected {{'metric': 'dice_mean', 'targets': (0.9,)}}")
    if got["metric"] not in study.metrics or got["metric"] in COSTS:
        raise InputError(f"LEARNING_CURVE: metric {got['metric']!r} is no score of METRICS"
                         f"{nearest(got['metric'], study.metrics)}")
    if not isinstance(got["targets"], (tuple, list)) or not got["targets"] or not all(
            type(target) in (int, float) and math.isfinite(target) for target in got["targets"]):
        raise InputError(f"{where}; expected targets as numbers, such as (0.85, 0.9)")
    if isinstance(study.rows, Grid):
        most = max((len({changes.get(FRACTION) for changes in choices.values()})
                    for choices in study.rows.factors.values()), default=0)
    else:
        share = lambda row: study.rows[row].get(FRACTION, study.base.data.train_fraction)
        most = max((len(set(map(share, rows)))
                    for rows in families(study, study.rows).values()), default=0)
    if most < 3:
        raise InputError("LEARNING_CURVE: no rows differ in data.train_fraction alone at three "
                         "values or more; ROWS = fractions({'unet': {}}, (1/4, 1/2, 1)) makes such")


def _claim(claim) -> Claim:
    """A claim with tuples of rows, also where the file gives one name."""
    if not isinstance(claim, Claim):
        raise InputError(f"CLAIMS: got {claim!r}; expected Claim('text', better, worse)")
    as_rows = lambda rows: (rows,) if isinstance(rows, str) else tuple(rows)
    return claim._replace(better=as_rows(claim.better), worse=as_rows(claim.worse))


def _config_of(base, table, row) -> ConfigDict:
    """The config of a row before repeats."""
    try:
        changes = table[row]
    except KeyError:
        some = ", ".join(itertools.islice(table, 6)) + (", ..." if len(table) > 6 else "")
        raise InputError(f"there is no row {row!r}{nearest(row, table)}; the rows are {some}"
                         ) from None
    if not isinstance(changes, Mapping):
        raise InputError(f"ROWS[{row!r}]: got {changes!r}; expected {{dotted key: value}}")
    if isinstance(table, Grid):
        changes = _applicable(changes, changes.get("model.name", base.model.name),
                              changes.get("data.name", base.data.name))
    return _named(f"ROWS[{row!r}]", config_lib.changed, base, dict(changes))


def _smoked(config, smoke, row) -> ConfigDict:
    """A row's config with the overrides of SMOKE."""
    model = smoke.get("model.name", config.model.name)
    dataset = smoke.get("data.name", config.data.name)
    flat, changes = config_lib.flatten(config), {}
    for key, value in _applicable(smoke, model, dataset).items():
        changes[key] = value(flat[key]) if callable(value) and key in flat else value
    if "data.root" in changes:  # the folder of the twins
        twin = lambda name: pathlib.Path(smoke["data.root"], TWIN_FOLDERS.get(name, name))
        changes["data.root"] = "" if dataset == "synthetic" else str(twin(dataset))
        mixed = (text.partition(":")[0] for text in changes.get("data.mix", config.data.mix))
        changes["data.mix"] = tuple(f"{name}:{twin(name)}" for name in mixed)
    return _named(f"SMOKE of row {row!r}", config_lib.changed, config, changes)


def _applicable(changes, model, dataset) -> dict:
    """`changes` without keys that only other models or datasets have."""
    others = _of_others(model, dataset)
    return {key: value for key, value in changes.items() if key not in others}


@functools.cache
def _of_others(model, dataset) -> set:
    """Dotted options of other models and datasets."""
    names = {"model": (*models.MODELS, *classical.CLASSICAL), "data": data.DATASETS}
    own = {"model": models.options(model), "data": data.options(dataset)}
    of = {"model": models.options, "data": data.options}
    others = {f"{section}.{key}" for section in own for name in names[section]
              for key in of[section](name) if key not in own[section]}
    return others - config_lib.flatten(config_lib.default()).keys()


def _named(where, function, *arguments):
    """function(*arguments), whose InputError says `where`."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
