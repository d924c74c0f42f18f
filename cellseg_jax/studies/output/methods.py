"""The methods of a study as a paragraph for a paper: data, splits, seeds, tests, versions.

All of it is read from the study and from the folder of the first run of the baseline.
"""

import pathlib

from cellseg_jax import config as config_lib
from cellseg_jax.config.defaults import LOSSES
from cellseg_jax.config.derived import LABELS, UNTRAINED
from cellseg_jax.files import read_json
from cellseg_jax.runs.folder import CONFIG_FILE, ENVIRONMENT_FILE, SPLIT_FILE
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import stats
from cellseg_jax.studies.course import COURSE, LOSS_METRICS
from cellseg_jax.studies.output.sentences import plural
from cellseg_jax.studies.output.summary import counted, headline, is_baseline

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def methods(table) -> str:
    """The paragraph of a table.Table."""
    runs = [run for row in sorted(table.rows, key=lambda row: not is_baseline(table, row))
            for run in counted(row)]
    if not runs:
        return "No run has ended: there is nothing to report yet."
    # Also one that diverged: another row's run would be described as the baseline.
    first = next((run for row in table.rows if is_baseline(table, row) for run in row.runs
                  if run.status != "missing" and run.mark in ("", "other code")), None)
    if first is None:
        return (f"The baseline {table.study.baseline} has no run with the config that it has now: "
                "there is nothing to report yet.")
    folder = pathlib.Path(first.workdir)
    config, environment, split = (read_json(folder / file, {}) for file in (
        CONFIG_FILE, ENVIRONMENT_FILE, SPLIT_FILE))
    parts = [_data(table, config, split, first.repeat), _training(table, config, first.repeat),
             _scores(table),
             _tests(table), _software(runs, environment)]
    return " ".join(filter(None, parts))


def _data(table, config, split, repeat) -> str:
    data, study = config["data"], table.study
    sizes = ", ".join(f"{len(split.get(part, ()))} for {word}" for part, word in (
        ("train", "training"), ("val", "validation"), ("test", "testing")) if split.get(part))
    by = "cases" if data.get("split_by", "group") == "group" else "images"
    if study.folds:
        how = f"each repeat tests one of {study.folds.count} folds, which keep {by} together"
    elif table.test_train_ratio:
        how = f"each repeat draws its own random split of {by}"
    elif isinstance(data.get("split"), str):
        how = f"one split for all runs ({data['split']})"
    else:
        how = f"one random split of {by} for all runs (seed {data.get('split_seed', 0)})"
    where = f"repeat {repeat}" if repeat else "the first repeat"
    return (f"Images are of {data['name']}, {sizes} in {where}; {how}. They are brought "
            f"to {'x'.join(map(str, data['size']))} pixels by {data['fit']} and normalised by "
            f"{data['normalize']}.")


def _training(table, config, repeat) -> str:
    study, name, count = table.study, config["model"]["name"], len(table.rows[0].runs)
    flat = config_lib.flatten(config)
    seeds = ", ".join(f"{key} from {flat[key] - repeat} to {flat[key] - repeat + count - 1}"
                      for key in study.varies if key in flat) or "the same seeds"
    others, times = len(table.rows) - 1, plural(count, "time")
    verb = "differs" if others == 1 else "differ"
    done = "run" if name in UNTRAINED else "trained"
    return (f"The baseline {study.baseline} is {_method(config)}; {plural(others, 'other setting')}"
            f" {verb} from it as listed in the table. Every setting was to be {done} {times}, with "
            f"{seeds}.")


def _method(config) -> str:
    """What the baseline is, and how it is trained."""
    name, optimizer, train = config["model"]["name"], config["optimizer"], config["train"]
    if name in UNTRAINED:
        return "labels made elsewhere" if name == LABELS else f"{name}, which is not trained"
    losses = ", ".join(f"{weight:g} {loss}" for loss, weight in sorted(config["loss"].items())
                       if loss in LOSSES and weight)
    length = f"{train['steps']} steps" if train["steps"] else f"{train['epochs']} epochs"
    length = f"at most {length} with early stopping" if train["early_stopping"] else length
    return (f"{name}, trained for {length} in batches of {train['batch_size']} with "
            f"{optimizer['name']} at a learning rate of {optimizer['lr']:g} "
            f"({optimizer['schedule']} schedule) and the loss {losses}")


def _scores(table) -> str:
    scores = [m for m in table.study.metrics
              if m.partition("[")[0] not in {*COURSE, *LOSS_METRICS, *RESOURCES}]
    shown = [f"{metric} ({table.definitions[metric]})" if metric in table.definitions else metric
             for metric in scores]
    return f"Scores of the test images: {'; '.join(shown)}."


def _tests(table) -> str:
    metric = headline(table)
    test = ("the corrected resampled t-test (Nadeau and Bengio 2003, test / training images "
            f"{table.test_train_ratio:.3f})" if table.test_train_ratio else "a paired t-test")
    text = (f"Settings were compared with the baseline repeat by repeat by {test}, two-sided, with "
            f"Holm's correction over settings at {stats.ALPHA:g}; at least {stats.MIN_PAIRS} pairs "
            "were needed. A setting of which a repeat diverged or is missing was not called better "
            "or best.")
    diverged = sum(row.gaps[metric].diverged for row in table.rows)
    missing = sum(sum(row.gaps[metric][2:]) for row in table.rows)
    if diverged or missing:
        text += f" {plural(diverged, 'run')} diverged, and {plural(missing, 'run')} had no score."
    apart = [row.name for row in table.rows
             if not is_baseline(table, row) and row.compared[metric] is None]
    if apart:
        text += (f" Not compared in {metric}, which is of other pixels, classes or another loss "
                 f"there: {', '.join(apart)}.")
    if any(row.by_rank for row in table.rows):
        text += (" Beside it, all repeats were compared by a rank-sum test with those that "
                 "diverged last.")
    if table.study.margin:
        margins = ", ".join(f"{size:g} in {m}" for m, size in table.study.margin.items())
        text += (f" Equality and non-inferiority within {margins} were tested by two one-sided "
                 "tests (Schuirmann 1987) with the same correction, beside the Bayesian correlated "
                 "t-test (Benavoli et al. 2017).")
    return text


def _software(runs, environment) -> str:
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)
    commits = sorted({run.commit for run in runs if run.commit})
    devices = ", ".join(sorted(set(environment.get("devices", ())))) or "unknown devices"
    code = (f"cellseg_jax at commit {commits[0]}" if len(commits) == 1 else
            f"cellseg_jax at {plural(len(commits), 'commit')}" if commits else "cellseg_jax")
    return (f"Software: {code}, Python {environment.get('python', 'unknown')}"
            f"{', ' + versions if versions else ''}, on {devices}.")
