"""Run a study: train and score the runs that are not done, and write its tables."""

import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax import train
from cellseg_jax.cli.stopping import INTERRUPTED
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError, print_error
from cellseg_jax.files import read_json, remove_leftovers, strangers, write_atomic
from cellseg_jax.inference import evaluate, label_folder
from cellseg_jax.report import terminal
from cellseg_jax.runs import page, status
from cellseg_jax.runs.folder import (
    ENVIRONMENT_FILE,
    RESULT_FILE,
    check_continues,
    page_file,
    scores_file,
)
from cellseg_jax.runs.lock import InUse, Lock
from cellseg_jax.studies import out_of_fold
from cellseg_jax.studies import table as tables
from cellseg_jax.studies.file import run_configs
from cellseg_jax.studies.live_page import LivePage
from cellseg_jax.studies.output import render, table_csv
from cellseg_jax.studies.output.methods import methods
from cellseg_jax.studies.output.page import write_study_page
from cellseg_jax.studies.runs import other_scoring
from cellseg_jax.studies.study import located


class PlannedRun(NamedTuple):
    """One run of a study, done or not."""

    config: ConfigDict
    folder: pathlib.Path  # STUDY/<row>/<repeat>

    @property
    def name(self) -> str:
        """ROW/REPEAT."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def collect(study, workdir: pathlib.Path, rows, repeats: int, *, smoke: bool, notes=()) -> int:
    """Write and print the tables of the finished runs; the exit code. See `run`.

    Args:
      notes: sentences that a reader needs, beside those of the table.
    Raises: InputError without a study folder.
    """
    strangers.check(workdir)
    if not workdir.is_dir():
        raise InputError(f"--workdir: no folder {workdir}; run the study first")
    remove_leftovers([workdir])
    table = tables.collect(study, workdir, rows=rows, repeats=repeats, smoke=smoke)
    if study.folds:
        notes = [*notes, *_combine_folds(study, workdir, rows, smoke)]
    table = table._replace(notes=[*notes, *table.notes])
    for suffix, text in (("md", render.markdown), ("tex", render.latex),
                         ("csv", table_csv.csv_text)):
        write_atomic(workdir / f"table.{suffix}", text(table))
    if table.curves:
        write_atomic(workdir / "learning_curve.csv", table_csv.curves_csv(table))
    render.show(table)
    write_study_page(table, workdir / "report.html")
    write_atomic(workdir / "methods.txt", methods(table) + "\n")
    curves = f"; learning curves: {workdir}/learning_curve.csv" if table.curves else ""
    terminal.log(f"tables: {workdir}/table.md, .tex, .csv; page: {workdir}/report.html; "
                 f"for a paper: {workdir}/methods.txt{curves}")
    return 0


def _combine_folds(study, workdir, rows, smoke: bool) -> list[str]:
    """Predict, tune and join the folds of those rows that have all of them; sentences on them."""
    combined, waiting = {}, []
    for row in study.rows if rows is None else rows:
        runs = [PlannedRun(config, workdir / row / str(repeat)) for repeat, config in enumerate(
            run_configs(study, row, study.folds.count, smoke=smoke))]
        if not all(is_done(*one) and _has_ended_well(one.folder) for one in runs):
            waiting.append(row)
        elif found := out_of_fold.combine(study, workdir, row, runs):
            combined[row] = found
    notes = [f"{', '.join(waiting)}: not all folds have ended well, so nothing is predicted out of "
             "fold"] if waiting else []
    return notes + (out_of_fold.write_table(study, workdir, combined) if combined else [])


def _has_ended_well(folder) -> bool:
    return read_json(folder / RESULT_FILE, {}).get("status") in ("done", "stopped early")


def run(study, workdir: pathlib.Path, rows, repeats: int, task: tuple[int, int], *,
        smoke: bool = False, backend: str = "", slots: int = 0) -> int:
    """Train and score all runs of a task that are not done; the exit code.

    Args:
      rows: names of rows, or None for all.
      task: (i, n), the i-th of n shares of the runs.
      smoke: with the study's SMOKE.
      backend, slots: see train.train.
    Raises: InputError if a folder holds a run with another config.
    """
    strangers.check(workdir)
    every = planned(study, workdir, rows, repeats, smoke)
    programs, count = _not_done(every, task)
    left = sum(map(len, programs))
    share = f"task {task[0]}/{task[1]}: " if task[1] > 1 else ""
    terminal.log(f"{study.title}: {share}{left} of {count} runs to do, in {len(programs)} "
                 f"program{'s' * (len(programs) != 1)}")
    live = LivePage(study, workdir, rows, repeats, smoke=smoke)
    failed, in_use = {}, False
    for number, program in enumerate(programs, 1):
        terminal.log(f"--- program {number} of {len(programs)}: {len(program)} runs, "
                     f"{rows_of(program)}")
        ended = train_program(program, failed, backend, slots)
        if "interrupted" in ended:
            return INTERRUPTED
        in_use |= "in use" in ended
        if number < len(programs):
            live.update()
    if failed:
        terminal.log(f"not run, {len(failed)} of {left}: {', '.join(failed)}")
        return 2
    if in_use:
        terminal.log("other processes have some runs; start again when they have ended")
    return INTERRUPTED if in_use else 0


def train_and_score(runs: list[PlannedRun], backend: str = "", slots: int = 0) -> set[str]:
    """Train and score runs of one program: their result.Result.status, "in use" among them.

    After an interruption nothing is scored, so that the process ends soon; runs that ended are
    scored when the study goes on.

    Raises: InputError if one of them cannot be trained.
    """
    configs, folders = zip(*runs, strict=True)
    results = train.train(list(configs), list(folders), backend=backend, slots=slots)
    found = {result.status for result in results}
    if "interrupted" in found:
        return found
    for (config, folder), result in zip(runs, results, strict=True):
        if result.status in ("done", "stopped early") and derived.has_part(config, "test"):
            try:
                with Lock(folder):
                    if evaluate.read_scores(folder, "test", config) is None:
                        evaluate.evaluate(config, folder)
                    page.write_run_page(folder)
            except InUse:
                found.add("in use")
    return found


def is_done(config: ConfigDict, folder: pathlib.Path) -> bool:
    """Whether the run has ended and, if it has something to be scored on, was scored."""
    scores, scored = scores_file(folder), derived.has_part(config, "test")
    if scored and scores.exists():
        test, made_with = read_json(scores), config_lib.identity(config)
        if test.get("config_hash") == made_with and not other_scoring(
                test, made_with, config_lib.flatten(config)):
            return True
    result = read_json(folder / RESULT_FILE, {})
    return bool(result) and (not scored or result.get("status") == "non-finite")


def is_whole(config: ConfigDict, folder: pathlib.Path) -> bool:
    """Whether the run is done and has its page, which is written last: a kill may come before."""
    return is_done(config, folder) and (page_file(folder).exists()
                                        or not scores_file(folder).exists())


def planned(study, workdir, rows, repeats: int, smoke: bool) -> list[list[PlannedRun]]:
    """All runs, those that train in one program together; last those that start from a row's.

    They are written down for --status.

    Raises: InputError if a folder holds a run with another config, or a row's folder of labels is
      not there.
    """
    groups = {}
    for row in study.rows if rows is None else rows:
        for repeat, config in enumerate(run_configs(study, row, repeats, smoke=smoke)):
            folder = workdir / row / str(repeat)
            if (folder / ENVIRONMENT_FILE).exists():
                try:
                    check_continues(folder, config)
                except InputError as error:
                    raise InputError(f"row {row}, repeat {repeat}: {error}") from error
            if derived.is_labels(config) and not is_done(config, folder):
                located(f"ROWS[{row!r}]", label_folder.folder_of, config)
            key = bool(derived.first_row(config)), config_lib.program_key(config)
            groups.setdefault(key, []).append(PlannedRun(config, folder))
    status.write_plan(workdir, study.title, [one.name for group in groups.values()
                                             for one in group], study.rows)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def rows_of(program: list[PlannedRun]) -> str:
    """The rows of a program's runs, with commas between."""
    return ", ".join(sorted({one.folder.parent.name for one in program}))


def _not_done(programs, task) -> tuple[list[list[PlannedRun]], int]:
    """(the programs with those runs of a task that are not done, how many runs the task has)."""
    runs = [one for program in programs for one in program]
    start, stop = (len(runs) * i // task[1] for i in (task[0], task[0] + 1))
    mine = {one.folder for one in runs[start:stop]}
    left = [[one for one in program if one.folder in mine and not is_whole(*one)]
            for program in programs]
    return [program for program in left if program], stop - start


def train_program(program: list[PlannedRun], failed: dict[str, str], backend: str, slots: int,
                  ) -> set[str]:
    """`train_and_score` of a program's runs; if one has bad input, of each run by itself.

    Ends at an interruption.

    Args:
      failed: {name of a run: error}, to which the runs with bad input are added.
    """
    parts, found = [program], set()
    while parts and "interrupted" not in found:
        part = parts.pop(0)
        try:
            found |= train_and_score(part, backend, slots)
        except InputError as error:
            if len(part) > 1:
                parts = [[one] for one in part]
            elif isinstance(error, InUse):
                terminal.log(str(error))
                found.add("in use")
            else:
                if str(error) not in failed.values():
                    terminal.log(f"{part[0].folder}: not run")
                    print_error(error)
                failed[part[0].name] = str(error)
                status.write_failure(part[0].folder, str(error))
    if "interrupted" in found:
        terminal.log("stopped after saving; the same command continues")
    return found
