"""Pruning over all repeats of rows: mean and spread at each level, and which row loses more.

Read from what `analyze --analysis=pruning` left in every run. The unit is the run, as in `stats`:
repeat r of two rows shares seed and split.
"""

import csv
import os
import pathlib
from typing import NamedTuple

import numpy as np

from cellseg_jax.files import read_json, write_csv
from cellseg_jax.report import figures
from cellseg_jax.runs.folder import ANALYSIS, CONFIG_FILE, SPLIT_FILE, is_run, read_config
from cellseg_jax.studies import stats
from cellseg_jax.studies.runs import split_ratio

SCORES_FILE = f"{ANALYSIS}/pruning/pruning.csv"
EVERYTHING = "all"  # the class of all images
JUDGED = {"better": "supported", "worse": "contradicted"}  # of stats.VERDICTS: it loses more


class Curves(NamedTuple):
    """One experiment on the repeats of a row."""

    sparsity: np.ndarray  # (levels,), the mean over repeats
    dice: dict[str, np.ndarray]  # {class: (repeats, levels)}; NaN where a repeat has no image of it

    def lost(self, name: str) -> np.ndarray:
        """(repeats, levels) Dice lost by a class against the network without pruning."""
        return self.dice[name][:, :1] - self.dice[name]


def runs_of(folder) -> list[pathlib.Path]:
    """The runs of a row's folder by repeat; of a run's folder itself, that run."""
    folder = pathlib.Path(folder)
    if is_run(folder) or not folder.is_dir():
        return [folder]
    return sorted((run for run in folder.iterdir()
                   if run.name.isdigit() and is_run(run)),
                  key=lambda run: int(run.name)) or [folder]


def rows_of(folders) -> dict[str, list[pathlib.Path]]:
    """{row: its runs} of the folders of rows, or of runs; one that is given twice counts once.

    A row is named by its folder, and by those around it where several have the same name.

    Raises: InputError for the first folder that is neither, before another one is analysed.
    """
    folders = {pathlib.Path(os.path.abspath(folder)): folder for folder in folders}
    depth = 1
    while len({path.parts[-depth:] for path in folders}) < len(folders):
        depth += 1
    rows = {"/".join(path.parts[-depth:]): runs_of(folder) for path, folder in folders.items()}
    for run in sum(rows.values(), []):
        if not is_run(run):
            read_config(run)  # which says so
    return rows


def write(rows: dict[str, list[pathlib.Path]], folder) -> list[str]:
    """Write pruning_rows.csv, _compared.csv, _classes.csv and .png; sentences on them.

    Args:
      rows: {row: its analysed runs by repeat}; the others are compared with the first.
    """
    folder = pathlib.Path(folder)
    curves = {row: read(runs) for row, runs in rows.items()}
    write_csv(folder / "pruning_rows.csv", _levels(curves))
    figures.save(_figure(curves), folder / "pruning_rows.png")
    first, *others = rows
    compared = []
    for other in others:
        mine, base = _same_repeats(rows[other], rows[first])
        if mine:
            compared += compare(read(mine), read(base), _test_train_ratio(base), other, first)
    if compared:
        write_csv(folder / "pruning_rows_compared.csv", compared)
    classes = [line for row, found in curves.items()
               for line in compare_classes(found, _test_train_ratio(rows[row]), row)]
    if classes:
        write_csv(folder / "pruning_rows_classes.csv", classes)
    return [*(_sentence(line) for line in compared if line["class"] == EVERYTHING),
            *_left_out(rows, curves)]


def _left_out(rows, curves) -> list[str]:
    """What no comparison is made of: repeats of one of two rows, experiments of some repeats."""
    first, *others = rows
    names = lambda row: {run.name for run in rows[row]}
    out = [f"{other} and {first} are compared without repeats that only one of them has: "
           f"{', '.join(sorted(alone, key=int))}."
           for other in others if (alone := names(other) ^ names(first))
           and all(map(str.isdigit, alone))]
    for row, runs in rows.items():
        some = {name for run in runs for name in _one_run(run)} - curves[row].keys()
        out += [f"{row} is shown without experiments that not all of its repeats have: "
                f"{', '.join(sorted(some))}."] if some else []
    return out


def read(runs) -> dict[str, Curves]:
    """{experiment: Curves} of the runs of a row; masks, and layers one by one, are averaged."""
    tables = [_one_run(run) for run in runs]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    found = {}
    for experiment in shared:
        of_runs = [table[experiment] for table in tables]
        levels = len(of_runs[0][EVERYTHING])
        names = dict.fromkeys(name for one in of_runs for name in one if name != "sparsity")
        found[experiment] = Curves(
            np.mean([one["sparsity"] for one in of_runs], 0),
            {name: np.array([one.get(name, np.full(levels, np.nan)) for one in of_runs])
             for name in names})
    return found


def compare(curves, base, ratio, row, base_row) -> list[dict]:
    """A row per experiment and class: the Dice that a row loses more than the base, over levels.

    p is adjusted by Holm's method over all of them.

    Args:
      curves, base: {experiment: Curves} of both rows, with repeats in the same order.
      ratio: see stats.paired.
    """
    lines, tests = [], []
    for experiment in (name for name in curves if name in base):
        for name in (c for c in curves[experiment].dice if c in base[experiment].dice):
            a, b = (x[experiment].lost(name)[:, 1:].mean(1) for x in (curves, base))
            tests.append(stats.paired(a, b, test_train_ratio=ratio))
            lines.append({"row": row, "base": base_row, "experiment": experiment, "class": name})
    return _judged(lines, tests)


def compare_classes(curves, ratio, row) -> list[dict]:
    """A row per experiment and class: the Dice that it loses more than the other classes, first.

    That is at the first level, over the repeats of one row; p is adjusted over all of them.
    """
    lines, tests = [], []
    for experiment, one in curves.items():
        first = {name: one.lost(name)[:, 1] for name in one.dice if name != EVERYTHING}
        for name, mine in first.items() if len(first) > 1 else ():
            others = np.array([lost for other, lost in first.items() if other != name])
            known = np.isfinite(others)
            mean = np.where(known, others, 0).sum(0) / np.maximum(known.sum(0), 1)
            tests.append(stats.paired(mine, np.where(known.any(0), mean, np.nan),
                                      test_train_ratio=ratio))
            lines.append({"row": row, "experiment": experiment, "class": name})
    return _judged(lines, tests)


def _judged(lines, tests) -> list[dict]:
    """The lines with their comparisons, judged with Holm's correction over all of them."""
    adjusted = stats.holm([test.p for test in tests])
    return [{**line, "repeats": test.n, "lost_more": test.difference, "low": test.interval[0],
             "high": test.interval[1], "p": test.p, "p_adjusted": float(p),
             "judged": JUDGED.get(stats.verdict(test, float(p)), "undecided")}
            for line, test, p in zip(lines, tests, adjusted, strict=True)]


def _same_repeats(a, b) -> tuple[list, list]:
    """The runs of both rows whose repeats both have."""
    both = {run.name for run in a} & {run.name for run in b}
    return tuple([run for run in runs if run.name in both] for runs in (a, b))


def _one_run(run) -> dict[str, dict[str, np.ndarray]]:
    """{experiment: {"sparsity" or class: (levels,)}} of one run."""
    sums = {}
    with open(run / SCORES_FILE, newline="") as file:
        for line in csv.DictReader(file):
            of_class = sums.setdefault(line["experiment"], {}).setdefault(line["class"], {})
            of_class.setdefault(int(line["level"]), []).append(
                (float(line["dice"]), float(line["sparsity"])))
    found = {}
    for experiment, classes in sums.items():
        means = {name: np.array([np.mean(levels[k], 0) for k in sorted(levels)])
                 for name, levels in classes.items()}
        found[experiment] = {"sparsity": means[EVERYTHING][:, 1],
                             **{name: mean[:, 0] for name, mean in means.items()}}
    return found


def _levels(curves) -> list[dict]:
    """A line per row, experiment, class and level."""
    lines = []
    for row, experiments in curves.items():
        for experiment, one in experiments.items():
            for name, dice in one.dice.items():
                known = np.isfinite(dice[:, 0])
                lines += [{
                    "row": row, "experiment": experiment, "class": name, "level": level,
                    "sparsity": f"{share:.4f}", "repeats": int(known.sum()),
                    **_mean_sd("dice", dice[known, level]),
                    **_mean_sd("lost", one.lost(name)[known, level])}
                    for level, share in enumerate(one.sparsity)]
    return lines


def _mean_sd(name, values) -> dict:
    sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_sd": sd}


def _figure(curves):
    """A panel per experiment, a line per row: mean Dice of all images, a band of one sd."""
    experiments = list(dict.fromkeys(name for one in curves.values() for name in one))
    columns = min(2, len(experiments))
    lines = -(-len(experiments) // columns)
    fig, axes = figures.figure(5.2 * columns, 1 + 3.4 * lines, lines, columns, squeeze=False)
    for ax, experiment in zip(axes.flat, experiments, strict=False):
        for number, (row, found) in enumerate(curves.items()):
            if experiment not in found:
                continue
            one, style = found[experiment], figures.line_style(number)
            dice = one.dice[EVERYTHING]
            mean, sd = dice.mean(0), dice.std(0, ddof=1) if len(dice) > 1 else 0 * dice[0]
            ax.plot(one.sparsity, mean, label=f"{row} (n = {len(dice)})", **style)
            ax.fill_between(one.sparsity, mean - sd, mean + sd, color=style["color"], alpha=0.15)
        ax.set(xlabel="sparsity", ylabel="Dice", title=experiment)
        ax.grid(color="0.9")
        figures.label_lines(ax)
    for ax in axes.flat[len(experiments):]:
        ax.set_axis_off()
    return fig


def _test_train_ratio(runs) -> float:
    """Of stats.paired: 0 where the runs share a split."""
    fractions = [read_json(run / CONFIG_FILE, {}).get("data", {}).get("train_fraction", 1.0)
                 for run in runs]
    return split_ratio([read_json(run / SPLIT_FILE, {}) for run in runs], fractions)


def _sentence(line) -> str:
    low, high = line["low"], line["high"]
    interval = f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else ""
    return (f"{line['row']} loses {line['lost_more']:+.3f}{interval} more Dice than "
            f"{line['base']} with {line['experiment']}, the mean over levels, repeats: "
            f"{line['repeats']}; that it suffers more is {line['judged']}.")
