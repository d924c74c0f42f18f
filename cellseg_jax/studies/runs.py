"""The run folders of a study: what each holds, which of them count, and why the others do not.

A run counts if its folder holds the config that the row has now, it ended, and its scores belong
to it. What does not count, and what counts but was made by other code, is named in the notes.
"""

import collections
import functools
import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.config.derived import UNTRAINED, output_names
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_jsonl
from cellseg_jax.runs import provenance
from cellseg_jax.runs.folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_LOG,
    RESULT_FILE,
    SPLIT_FILE,
    changes,
    scores_file,
)
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies.course import COURSE, course
from cellseg_jax.studies.file import config_of, repeat_changes
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.study import metrics_named

# Keys of eval that change scores.
SCORING = ("threshold", "decode", "watershed_h", "min_size", "overlap")
# Keys that decide which images there are, beside the options of the dataset.
DATA_KEYS = ("data.name", "data.only_size", "data.mix", "data.blank_images")
UNKNOWN = math.nan
SHOWN = 6  # runs that a note names, SHOWN_CHANGES of a config
SHOWN_CHANGES = 3


class Run(NamedTuple):
    """One run folder, STUDY/<row>/<repeat>."""

    row: str
    repeat: int
    workdir: str
    status: str  # "done" | "stopped early" | "non-finite" | "unfinished" | "missing"
    scores: dict[str, float]  # {metric: value}, empty if not evaluated; NaN = undefined
    step: int  # last step that is known
    train_seconds: float  # this run's share; NaN = not known
    cpu_seconds: float
    peak_memory_gib: float
    ms_per_image: float
    code: str  # hash of the modules that decide numbers
    commit: str
    fingerprint: str  # of the data
    mark: str = ""  # "" | "other code" | "other config" | "other data" | "damaged"
    outputs: tuple[str, ...] = ()  # what the classes "0", "1", ... of its scores are

    @property
    def counts(self) -> bool:
        """Whether its scores are in the table's values; those of other code are, and are named."""
        return self.status in ("done", "stopped early") and self.mark in ("", "other code")


class Found(NamedTuple):
    """A run and what its files hold; empty where there is no file."""

    run: Run
    config: dict = {}  # {dotted key: value} of its row now
    environment: dict = {}
    test: dict = {}  # eval/test.json
    split: dict = {}


def read(study, workdir, names, *, repeats, smoke) -> tuple[dict, list[str], list[str]]:
    """The runs of some rows of a Study, and what is missing or does not compare.

    Returns: {row: [Found per repeat]}, of a Grid only the rows with a folder or a published value
      and the baseline; lines on what is missing, of all rows; notes, a sentence each, that a
      reader needs beside the numbers.
    """
    workdir = pathlib.Path(workdir)
    there = {p.name for p in workdir.iterdir() if p.is_dir()} if workdir.is_dir() else set()
    notes, left_out, found = [], collections.defaultdict(list), {}
    for name in names:
        if name in there:
            found[name] = _read_row(study, name, repeats, workdir, smoke, left_out)
            _note_further_repeats(workdir / name, repeats, notes)
        else:
            found[name] = [Found(_no_run(name, r, workdir)) for r in range(repeats)]
    notes += [f"{_names(runs)} left out: {why}" for why, runs in left_out.items()]
    found = _mark_data(_mark_code(found, notes), study, notes)
    found = _one_meaning(found, study, notes)
    missing = [line for name in names for line in _missing(name, found[name])]
    if isinstance(study.rows, Grid):
        found = {name: runs for name, runs in found.items()
                 if name in there or study.reference.get(name) or name == study.baseline}
    _note_machines(found, notes)
    _note_unknown_metrics(study, found, notes)
    _note_equal_repeats(study, found, notes)
    _note_other_images(study, found, notes)
    return found, missing, notes


def values_of(runs, metric) -> np.ndarray:
    """(R,) of a metric or resource of a row's Found, NaN where a run does not count."""
    known = lambda run: run.scores | {k: getattr(run, k) for k in RESOURCES} if run.counts else {}
    return np.array([known(one.run).get(metric, UNKNOWN) for one in runs], np.float64)


def split_ratio(splits, fractions) -> float:
    """Test / training images, the largest of a row's repeats, where they draw other splits; else 0.

    With a train_fraction the whole training part counts: it is what test images are drawn against.

    Args:
      splits: split.json of each repeat; those without training images do not count.
      fractions: data.train_fraction of each.
    """
    known = [(one.get("test", ()), one["train"], fraction)
             for one, fraction in zip(splits, fractions, strict=True) if one.get("train")]
    if len({tuple(sorted(test)) for test, _, _ in known}) < 2:
        return 0.0
    return max(fraction * len(test) / len(train) for test, train, fraction in known)


# --- one run -------------------------------------------------------------------------------------


def _no_run(name, repeat, workdir) -> Run:
    folder = str(workdir / name / str(repeat))
    return Run(name, repeat, folder, "missing", {}, 0, *[UNKNOWN] * len(RESOURCES), "", "", "")


def _read_row(study, name, repeats, workdir, smoke, left_out) -> list[Found]:
    """The runs of a row; why one does not count is added to left_out, {reason: runs}."""
    first = config_lib.flatten(config_of(study, name, 0, smoke=smoke))
    found = []
    with_course = any(metric.partition("[")[0] in COURSE for metric in metrics_named(study))
    for repeat in range(repeats):  # building each config would take most of a large table's time
        expected = first | repeat_changes(study, first, repeat)
        full = functools.partial(config_of, study, name, repeat, smoke=smoke)
        found.append(_read(_no_run(name, repeat, workdir), expected, full, left_out, with_course))
    return found


def _read(run, expected, full_config, left_out, with_course) -> Found:
    """What one run folder holds, against its row's {dotted key: value} and ConfigDict of now."""
    folder = pathlib.Path(run.workdir)
    if not (folder / CONFIG_FILE).is_file():
        return Found(run)
    try:
        stored, environment, result, test, split = (_json(file) for file in (
            folder / CONFIG_FILE, folder / ENVIRONMENT_FILE, folder / RESULT_FILE,
            scores_file(folder), folder / SPLIT_FILE))
    except InputError as error:
        left_out[str(error)].append(run)
        return Found(run._replace(status="unfinished", mark="damaged"))
    changed, made_with = "", config_lib.identity(stored)
    if made_with != config_lib.identity(expected):
        changed = _other_config(folder, full_config())
    stale = "" if changed or not test else _other_scoring(test, made_with, expected)
    if changed or stale:
        left_out[changed or stale].append(run)
        test = {}
    status = result.get("status", "unfinished")
    if test and not result and expected["model.name"] in UNTRAINED:
        status = "done"  # there was nothing to train
    if status in ("done", "stopped early") and not test:
        status = "unfinished"
    used = {**result, "ms_per_image": test.get("ms_per_image")}
    number = lambda key: UNKNOWN if used.get(key) is None else float(used[key])
    outputs = output_names({key.removeprefix("data."): value for key, value in expected.items()
                            if key.startswith("data.")})
    scores = _scores(test, outputs)
    if scores and with_course:
        scores |= course(read_jsonl(folder / METRICS_LOG, []), test)
    run = run._replace(
        status=status, scores=scores, step=result.get("step") or _last_step(folder),
        mark="other config" if changed else "",
        code=environment.get("code", ""), commit=environment.get("commit", ""),
        fingerprint=environment.get("data_fingerprint", ""), outputs=outputs,
        **{k: number(k) for k in RESOURCES})
    return Found(run, expected, environment, test, split)


def _scores(test, outputs) -> dict[str, float]:
    """{metric: value} of eval/test.json.

    "dice_mean[stained]" is of one stratum, [0] of a class by its number, [nucleus] by its name.
    """
    found = {k: v for part in ("report2", "metrics_original_size", "metrics")
             for k, v in test.get(part, {}).items()}
    classes = test.get("per_class", {})
    named = dict(zip(outputs, classes.values(), strict=False))
    for parts in (named, classes, test.get("per_stratum", {})):
        for name, scores in parts.items():
            found |= {f"{k}[{name}]": v for k, v in scores.items()
                      if v is None or type(v) in (int, float)}
    return {k: UNKNOWN if v is None else float(v) for k, v in found.items()}


def _json(path) -> dict:
    """The object in a file, empty where there is none; InputError in one line if damaged."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError):
        pass
    raise InputError(f"{path} is damaged; restore it, or delete the folder {path.parent} and run "
                     "the study again")


def _other_config(folder, config) -> str:
    """How the config of a folder differs from the row's of now, or ""."""
    try:
        changed = changes(folder, config)  # a key that came later has its default
    except InputError as error:
        return f"their config is of other code ({error})"
    if not changed:
        return ""
    shown = "; ".join(f"{k} was {a!r}, is {b!r}"
                      for k, (a, b) in list(changed.items())[:SHOWN_CHANGES])
    hidden = len(changed) - SHOWN_CHANGES
    more = f"; and {hidden} more" if hidden > 0 else ""
    return f"made with another config than the study has now: {shown}{more}"


def _other_scoring(test, made_with, expected) -> str:
    """How the scores were taken with another config or other eval options than now, or ""."""
    if test.get("config_hash", "") not in ("", made_with):
        return "scored with another config; run the study again"
    options = test.get("eval_options", {})
    for k in SCORING:
        now = expected[f"eval.{k}"]
        if options.get(k, now) != now:
            return (f"scored with eval.{k} {options[k]!r}, the study has {now!r}; run the study "
                    "again")
    return ""


def _last_step(folder) -> int:
    lines = read_jsonl(folder / METRICS_LOG, [])
    return lines[-1].get("step", 0) if lines else 0


# --- what belongs together -----------------------------------------------------------------------


def _each(found):
    return [one for runs in found.values() for one in runs]


def _mark(found, wrong, mark) -> dict:
    """`found` with a mark on the counted runs for which `wrong(one)` holds."""
    marked = lambda one: (one._replace(run=one.run._replace(mark=mark))
                          if one.run.counts and wrong(one) else one)
    return {name: [marked(one) for one in runs] for name, runs in found.items()}


def _names(runs) -> str:
    """The first SHOWN names of runs, as 'a/0, a/1, b/0 and 12 more'."""
    names = [f"{run.row}/{run.repeat}" for run in runs]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _mark_code(found, notes) -> dict:
    """Runs of other code than this, or than most, are marked and named; they count."""
    made_by = lambda one: {one.run.code, one.test.get("code_hash", one.run.code)}
    codes = collections.Counter(c for one in _each(found) if one.run.counts for c in made_by(one))
    if not codes:
        return found
    this = provenance.code_hash()
    usual = this if this in codes else codes.most_common(1)[0][0]
    if this not in codes:
        notes.append(f"no run was made by this code ({this[:8]}), but by {usual[:8]}; run the "
                     "study again into another --workdir for results of this code")
    found = _mark(found, lambda one: made_by(one) != {usual}, "other code")
    marked = [one.run for one in _each(found) if one.run.mark == "other code"]
    if marked:
        notes.append(f"{_names(marked)} made by other code than "
                     f"{'this' if usual == this else 'most'} ({usual[:8]}): counted, but a "
                     "difference may come from the code")
    return found


def _mark_data(found, study, notes) -> dict:
    """Runs that should share data with others and do not are marked and named; no longer count."""
    shared = config_lib.default().data
    def source(one):
        return repr([(k, v) for k, v in one.config.items() if k in DATA_KEYS or (
            k.startswith("data.") and k.removeprefix("data.") not in shared)])
    prints = collections.defaultdict(collections.Counter)
    baseline_first = sorted(found, key=lambda name: name != study.baseline)  # it wins a tie
    for one in (one for name in baseline_first for one in found[name] if one.run.counts):
        prints[source(one)][one.run.fingerprint] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in prints.items()}
    found = _mark(found, lambda one: one.run.fingerprint != usual[source(one)], "other data")
    marked = [one.run for one in _each(found) if one.run.mark == "other data"]
    if marked:
        notes.append(f"{_names(marked)} left out: made with other data (by fingerprint) than most "
                     "runs of the same dataset")
    return found


def _one_meaning(found, study, notes) -> dict:
    """Without scores of a class by its number where it is another thing than in the baseline.

    Class 0 is the cell in a run of foreground and the background in one of contours.
    """
    known = [one.run for one in _each(found) if one.run.counts]
    for metric in sorted(metrics_named(study)):
        number = metric.partition("[")[2].rstrip("]")
        meaning = lambda run, n=number: run.outputs[int(n)] if int(n) < len(run.outputs) else "none"
        if not number.isdecimal() or any(number in one.test.get("per_stratum", {})
                                         for one in _each(found)):
            continue
        base = next((meaning(run) for run in known if run.row == study.baseline), None)
        others = [run for run in known if base and meaning(run) != base]
        for run in others:
            run.scores.pop(metric, None)
        if others:
            name = metric.partition("[")[0]
            notes.append(f"{metric} is of {base!r} in {study.baseline} and of "
                         f"{meaning(others[0])!r} in {_names(others)}, left out there; name what "
                         f"you mean: {name}[{base}]")
    return found


def _missing(name, runs) -> list[str]:
    """Lines for the runs of a row that do not count because they have not ended well."""
    if all(one.run.status == "missing" for one in runs):
        return [f"{name}: no run"]
    words = {"missing": lambda run: "no run",
             "unfinished": lambda run: f"unfinished, step {run.step}",
             "non-finite": lambda run: f"loss or gradient not finite after step {run.step}"}
    return [f"{name}/{one.run.repeat}: {words[one.run.status](one.run)}" for one in runs
            if one.run.status in words and one.run.mark in ("", "other code")]


def _note_further_repeats(folder, repeats, notes) -> None:
    further = [p.name for p in folder.iterdir() if p.name.isdigit() and int(p.name) >= repeats]
    if further:
        notes.append(f"{folder.name} has {len(further)} more repeats than the {repeats} shown; "
                     f"--repeats={max(map(int, further)) + 1} includes them")


def _note_machines(found, notes) -> None:
    """Runs on different devices or in programs of different size: their seconds do not compare."""
    runs = [one for one in _each(found) if one.run.counts and one.environment]
    devices = {", ".join(sorted(set(one.environment.get("devices", ())))) for one in runs}
    together = {one.environment.get("program", {}).get("members", 1) for one in runs
                if one.run.step}
    if len(devices) > 1:
        notes.append(f"runs were made on different devices ({'; '.join(sorted(devices))}): their "
                     "times do not compare")
    if len(together) > 1:
        notes.append(f"{min(together)} to {max(together)} runs trained together in one program: "
                     "seconds are shares and compare roughly")


def _note_unknown_metrics(study, found, notes) -> None:
    known = {k for one in _each(found) for k in one.run.scores}
    unknown = [m for m in study.metrics if known and m not in known and m not in RESOURCES]
    if unknown:
        shown = sorted(k for k in known if "[" not in k)
        notes.append(f"no run has {', '.join(unknown)}; there are {', '.join(shown)}, and of "
                     "strata such as 'dice_mean[NAME]'")


def _note_equal_repeats(study, found, notes) -> None:
    """Repeats that agree to the last digit although a network drew random numbers."""
    headline = study.metrics[0]
    for name, runs in found.items():
        scores = values_of(runs, headline)
        scores = scores[np.isfinite(scores)]
        learned = any(one.config and one.config["model.name"] not in UNTRAINED
                      for one in runs)
        if len(scores) > 1 and learned and np.ptp(scores) == 0:
            notes.append(f"all repeats of {name} have the same {headline}, {scores[0]:.4f}: it "
                         "collapsed, or what a repeat varies has no effect")


def _note_other_images(study, found, notes) -> None:
    """A repeat of two rows should be tested on the same images."""
    images = lambda one: one.run.counts and frozenset(one.split.get("test", ()))
    base = [images(one) for one in found[study.baseline]]
    other = [one.run for runs in found.values() for one, b in zip(runs, base, strict=True)
             if images(one) and b and images(one) != b]
    if other:
        notes.append(f"{_names(other)} tested on other images than the same repeat of "
                     f"{study.baseline}: their differences are of images too")
