"""How far the runs of a folder are, from their files alone: for `study --status`, without JAX."""

import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from cellseg_jax.errors import InputError
from cellseg_jax.files import append_line, read_json, read_jsonl, write_atomic
from cellseg_jax.report import terminal
from cellseg_jax.runs.lock import HEARTBEAT_LOST, holder
from cellseg_jax.runs.names import (
    CONFIG_FILE,
    METRICS_LOG,
    RESULT_FILE,
    TIMING_LOG,
    is_run,
    scores_file,
)

PLAN_FILE = "study.json"  # in the folder of a study: the runs that its commands were asked for
FAILURES_LOG = "failed.jsonl"  # and why some of them could not begin
DEPTH = 4  # folders below a study's in which runs lie; those of a search are in the fourth
RECENT = 5  # logged lines that the speed of a run is taken from
# What becomes of a run, in the order of the summary; those of SHOWN get a line each.
STATES = ("done", "running", "silent", "stopped", "trained", "waiting", "diverged", "failed",
          "damaged")
SHOWN = STATES[1:5] + STATES[6:]
MEANING = {
    "silent": "its process gave no sign of life; the next process takes it over if that is lost",
    "stopped": "begun, and no process has it; it goes on from its last checkpoint",
    "trained": "not scored yet",
    "diverged": "its loss became non-finite",
    "failed": "could not begin when it was last tried",
}


class Seen(NamedTuple):
    """One run as its files show it."""

    name: str  # its folder from the study's
    state: str  # one of STATES
    step: int = 0
    num_steps: int = 0  # 0 = not known
    step_seconds: float = 0.0  # of late, of all runs that train beside it; 0 = not known
    age: float = 0.0  # seconds since its last line
    note: str = ""  # who has it, or why it failed

    @property
    def seconds_left(self) -> float:
        """Until its last step, as far as it is known."""
        return max(self.num_steps - self.step, 0) * self.step_seconds


# --- what the study command writes down -----------------------------------------------------------


def write_plan(workdir, title: str, names, rows) -> None:
    """Keep what a study consists of, by ROW/REPEAT, beside what its other commands were asked for.

    Args:
      rows: all rows that the study has now; runs of others are forgotten.
    """
    file = pathlib.Path(workdir) / PLAN_FILE
    before = [name for name in read_json(file, {}).get("runs", [])
              if name.rpartition("/")[0] in rows]
    plan = {"title": title, "runs": list(dict.fromkeys([*before, *names]))}
    if read_json(file, {}) != plan:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(plan))


def write_failure(folder: pathlib.Path, why: str) -> None:
    """Keep why the run of STUDY/ROW/REPEAT could not begin."""
    line = {"step": 0, "run": f"{folder.parent.name}/{folder.name}", "why": why}
    append_line(folder.parent.parent / FAILURES_LOG, json.dumps(line))


# --- what is there --------------------------------------------------------------------------------


def seen_in(workdir) -> list[Seen]:
    """Every run of a study's folder, begun or planned. Raises: InputError without a folder."""
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"--workdir: no folder {workdir}; expected that of a study, as "
                         "--workdir=runs/nuclei")
    planned = read_json(workdir / PLAN_FILE, {}).get("runs", [])
    found = (str(folder.relative_to(workdir)) for folder in run_folders(workdir))
    failures = {line["run"]: line["why"] for line in read_jsonl(workdir / FAILURES_LOG, [])}
    return [_seen(workdir / name, name, failures.get(name, ""))
            for name in dict.fromkeys([*planned, *sorted(found)])]


def run_folders(folder, depth: int = DEPTH) -> Iterator[pathlib.Path]:
    """The folders of runs below a folder."""
    with os.scandir(folder) as entries:
        below = [pathlib.Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for path in below:
        if is_run(path):
            yield path
        elif depth > 1:
            yield from run_folders(path, depth - 1)


def _seen(folder, name, failure) -> Seen:
    """One run; damaged files make it "damaged"."""
    try:
        config = read_json(folder / CONFIG_FILE, {})
        result = read_json(folder / RESULT_FILE, {})
        seen = _progress(folder, name, config) if config else Seen(name, "waiting")
        who, silent_s = holder(folder)
        if result.get("status") == "non-finite":
            return seen._replace(state="diverged")
        split = config.get("data", {}).get("split", "")
        if result and (isinstance(split, str) or split[2] > 0) and not scores_file(folder).exists():
            return seen._replace(state="trained", note=who)
        if result:
            return seen._replace(state="done")
        if who:
            lost = silent_s > HEARTBEAT_LOST
            return seen._replace(state="silent" if lost else "running", note=who)
        if failure:
            return seen._replace(state="failed", note=failure)
        return seen._replace(state="stopped" if config else "waiting")
    except (InputError, TypeError, KeyError, IndexError) as error:
        return Seen(name, "damaged", note=str(error))


def _progress(folder, name, config) -> Seen:
    """Step and speed of a run from its logs."""
    lines, times = read_jsonl(folder / METRICS_LOG, []), read_jsonl(folder / TIMING_LOG, [])
    if not lines:
        return Seen(name, "")
    step, train = lines[-1]["step"], config["train"]
    known = next((s for s in lines[::-1] if s.get("epoch")), None)
    num_steps = train["steps"] or round(
        train["epochs"] * known["step"] / known["epoch"] if known else 0)
    recent = times[-RECENT - 1 :]
    steps = recent[-1]["step"] - (recent[0]["step"] if len(recent) > 1 else 0) if recent else 0
    seconds = sum(s["seconds"] for s in recent[1:] or recent)
    age = time.time() - (folder / METRICS_LOG).stat().st_mtime
    return Seen(name, "", step, num_steps, seconds / steps if steps > 0 else 0.0, age)


# --- what is said about it ------------------------------------------------------------------------


def seconds_left(runs: list[Seen]) -> float | None:
    """Until all runs are trained, if as many go on at once as now; None where nothing is known.

    A run that waits is taken to last as those of its row, or else as all that are known do.
    """
    lasts = {one.name: one.num_steps * one.step_seconds for one in runs if one.step_seconds}
    running = [one for one in runs if one.state == "running"]
    if not lasts or not running:
        return None
    mean = lambda values: sum(values) / len(values)

    def left(one):
        if one.step_seconds:
            return one.seconds_left
        row = one.name.rpartition("/")[0]
        of_row = [s for name, s in lasts.items() if name.rpartition("/")[0] == row]
        return mean(of_row or list(lasts.values()))

    work = [left(one) for one in runs if one.state in ("running", "silent", "stopped", "waiting")]
    return max(sum(work) / len(running), max(left(one) for one in running))


def show(workdir) -> int:
    """Print how far a study is: a line of counts, one for each run that is not simply done or
    waiting, and what their states mean; the exit code.
    """
    runs = seen_in(workdir)
    title = read_json(pathlib.Path(workdir) / PLAN_FILE, {}).get("title", str(workdir))
    number = {state: sum(one.state == state for one in runs) for state in STATES}
    counts = ", ".join(f"{n} {state}" for state, n in number.items() if n and state != "done")
    left = seconds_left(runs)
    print(f"{title}: {number['done']} of {len(runs)} runs done{', ' * bool(counts)}{counts}"
          + (f"; about {terminal.clock(left)} of training left" if left is not None else ""))
    shown = [one for one in sorted(runs, key=lambda one: STATES.index(one.state))
             if one.state in SHOWN]
    if shown:
        terminal.print_table("", ("run", "state", "step", "last line", "by, or why"), [
            (one.name, one.state, f"{one.step} of {one.num_steps or '?'}" if one.step else "",
             f"{terminal.clock(one.age)} ago" if one.step else "", one.note) for one in shown])
    for state, meaning in MEANING.items():
        if number[state]:
            print(f"{state}: {meaning}")
    return 0
