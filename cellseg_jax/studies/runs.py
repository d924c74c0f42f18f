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
from cellseg_jax.config.derived import LABELS, UNTRAINED, output_names
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_jsonl
from cellseg_jax.runs.folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_LOG,
    RESULT_FILE,
    SPLIT_FILE,
    changes,
    is_run,
    scores_file,
)
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import comparable
from cellseg_jax.studies.course import COURSE, course
from cellseg_jax.studies.file import config_of, repeat_changes
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.study import metrics_named

# Keys of eval that change scores.
SCORING = ("threshold", "decode", "watershed_h", "min_size", "overlap", "nms", "star_grid",
           "flow_error", "smooth", "seed_depth", "surface", "report_compat")
UNKNOWN = math.nan
SHOWN_CHANGES = 3  # of a config, that a note names


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
    notes += [f"{comparable.names_of(runs)} left out: {why}" for why, runs in left_out.items()]
    found = comparable.mark_data(comparable.mark_code(found, notes), study, notes)
    found = comparable.one_meaning(found, study, notes)
    missing = [line for name in names for line in _missing(name, found[name])]
    if isinstance(study.rows, Grid):
        found = {name: runs for name, runs in found.items()
                 if name in there or study.reference.get(name) or name == study.baseline}
    return found, missing, notes + comparable.notes(study, found)


def values_of(runs, metric) -> np.ndarray:
    """(R,) of a metric or resource of a row's Found, NaN where a run does not count."""
    known = lambda run: run.scores | {k: getattr(run, k) for k in RESOURCES} if run.counts else {}
    return np.array([known(one.run).get(metric, UNKNOWN) for one in runs], np.float64)


def split_ratio(splits, fractions) -> float:
    """Test / training images, the largest of a row's repeats, where they draw other splits; else 0.

    With a train_fraction the whole training part counts: it is what test images are drawn against.
    Images that are mixed in from elsewhere do not: no repeat tests them.

    Args:
      splits: split.json of each repeat; those without training images do not count.
      fractions: data.train_fraction of each.
    """
    known = [(one.get("test", ()), one["train"], fraction)
             for one, fraction in zip(splits, fractions, strict=True) if one.get("train")]
    if len({tuple(sorted(test)) for test, _, _ in known}) < 2:
        return 0.0
    drawn = lambda train: sum(not name.startswith(MIXED) for name in train) or len(train)
    return max(fraction * len(test) / drawn(train) for test, train, fraction in known)


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
    if not is_run(folder):
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
    stale = "" if changed or not test else other_scoring(test, made_with, expected)
    if changed or stale:
        left_out[changed or stale].append(run)
        test = {}
    status = result.get("status", "unfinished")
    if test and not result and expected["model.name"] in UNTRAINED:
        status = "done"  # there was nothing to train
    if status in ("done", "stopped early") and not test:
        status = "unfinished"
    # What labels of another tool took is not known.
    used = {**({} if expected["model.name"] == LABELS else result),
            "ms_per_image": test.get("ms_per_image")}
    number = lambda key: UNKNOWN if used.get(key) is None else float(used[key])
    outputs = output_names({key.removeprefix("data."): value for key, value in expected.items()
                            if key.startswith("data.")})
    scores = _scores(test, outputs)
    if scores and with_course:
        scores |= course(read_jsonl(folder / METRICS_LOG, []), test)
    run = run._replace(
        status=status, scores=scores, step=result.get("step") or _last_step(folder),
        mark="other config" if changed else "",
        code="+".join((*environment.get("earlier_code", ()), environment.get("code", ""))),
        commit=environment.get("commit", ""),
        fingerprint=environment.get("data_fingerprint", ""), outputs=outputs,
        **{k: number(k) for k in RESOURCES})
    return Found(run, expected, environment, test, split)


def _scores(test, outputs) -> dict[str, float]:
    """{metric: value} of eval/test.json.

    "dice_mean[stained]" is of one stratum, [0] of a class by its number, [nucleus] by its name,
    [original size] of what has that name at data.size too.
    """
    found = {k: v for part in ("report2", "metrics_original_size", "metrics")
             for k, v in test.get(part, {}).items()}
    seen = test.get("metrics", ())
    found |= {f"{k}[{comparable.ORIGINAL}]": v
              for k, v in test.get("metrics_original_size", {}).items() if k in seen}
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


def other_scoring(test: dict, made_with: str, expected: dict) -> str:
    """How scores were taken with another config or other eval options than now, or "".

    Args:
      test: eval/test.json.
      made_with: the hash of the run's config.
      expected: {dotted key: value} of the config now.
    """
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
