"""Progress and results on the terminal: bars where a line can be redrawn, else plain lines.

Log files and pipes get no control codes and, on long runs, a line every ten seconds.
"""

import collections
import contextlib
import os
import sys
import time

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

INTERVAL_S = 10.0  # least time between plain lines
WINDOW_S = 20.0  # over which images/s is averaged


def log(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr, flush=True)


def progress_line(text: str) -> None:
    """One line to stdout that names the work in progress."""
    print(f"{text} ...", flush=True)


def findings(found) -> None:
    """The warnings on the data, a line each; notes are counted only."""
    for finding in found:
        if finding.level != "note":
            log(f"{finding.level}: {finding.where}: {finding.what}")
    notes = sum(finding.level == "note" for finding in found)
    if notes:
        log(f"{notes} note{'s' * (notes > 1)} on the data: python -m cellseg_jax.doctor shows "
            "them")


def reading():
    """Yields progress(done, total) for the decoding of a dataset; shows nothing if unused."""
    return counting("reading images")


@contextlib.contextmanager
def counting(what: str):
    """Yields progress(done, total) for work named `what`; shows nothing if unused."""
    with contextlib.ExitStack() as stack:
        state = {}

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if _live() and not state:
                state["bar"] = stack.enter_context(_bar())
                state["task"] = state["bar"].add_task(what, total=total, text="")
            if _live():
                state["bar"].update(state["task"], completed=done, total=total)
            elif done == total or now - state.setdefault("printed", now) >= INTERVAL_S:
                state["printed"] = now
                print(f"{what}: {done} of {total}", flush=True)

        yield progress


def summary(rows) -> None:
    """The first lines of a run: an aligned block of (name, text) rows."""
    width = max((len(name) for name, _ in rows), default=0)
    console = _console()
    for name, text in rows:
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", str(text)), soft_wrap=True)


class Training:
    """Progress of runs that share a program; a context manager.

    Args:
      num_runs: that will train, now or when others have ended.
      batch_size: images per step and run.
    """

    def __init__(self, num_runs: int, batch_size: int):
        self.num_runs, self.batch_size = num_runs, batch_size
        self.names, self.num_steps, self.steps = {}, {}, {}  # of the runs that have begun
        self.images = 0
        self.images_per_second = 0.0
        self._window = collections.deque()  # (time, images)
        self._last_line = {}  # run -> time of its last plain line
        self._bar = None

    def __enter__(self):
        self._window.append((time.monotonic(), 0))
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def begin(self, run: int, name: str, num_steps: int, step: int) -> None:
        """Run `run` begins, or goes on, at `step`."""
        self.names[run], self.num_steps[run], self.steps[run] = name, num_steps, step
        if _live() and self._bar is None:
            self._bar = _bar()
            self._bar.start()
            title = name if self.num_runs == 1 else f"{self.num_runs} runs"
            self._task = self._bar.add_task(title, total=1, text="")

    def advance(self, moved: dict[int, tuple[int, float]]) -> None:
        """After a call: {run: (its step, its loss)}."""
        for run, (step, _) in moved.items():
            self.images += self.batch_size * (step - self.steps[run])
            self.steps[run] = step
        now, window = time.monotonic(), self._window
        window.append((now, self.images))
        while len(window) > 2 and now - window[0][0] > WINDOW_S:
            window.popleft()
        seconds = max(now - window[0][0], 1e-9)
        self.images_per_second = (self.images - window[0][1]) / seconds
        if self._bar:
            done, known = sum(self.steps.values()), sum(self.num_steps.values())
            total = round(known * self.num_runs / len(self.num_steps))  # those to come: as these
            left = (total - done) * self.batch_size / max(self.images_per_second, 1e-9)
            loss = sum(loss for _, loss in moved.values()) / len(moved)
            text = f"{self.images_per_second:.4g} images/s  {_clock(left)} left  loss {loss:.4f}"
            self._bar.update(self._task, completed=done, total=total, text=text)

    def logged(self, run: int, line: dict) -> None:
        """One line for a logged epoch of a run; on long runs without a terminal, for some."""
        now, step = time.monotonic(), line["step"]
        # Each of n runs prints n times less often, but always its first and last line.
        wait = INTERVAL_S * len(self.names)
        last = self._last_line.get(run, -float("inf"))
        if not self._bar and step < self.num_steps[run] and now - last < wait:
            return
        self._last_line[run] = now
        shown = [f"epoch {line['epoch']:g}", f"step {step}/{self.num_steps[run]}"]
        for key, name, form in (("lr", "lr", ".3g"), ("train_loss", "train loss", ".4f"),
                                ("val_loss", "val loss", ".4f"),
                                ("val_dice_mean", "val Dice", ".4f")):
            if line.get(key) is not None:
                shown.append(f"{name} {line[key]:{form}}")
        shown.append(f"{self.images_per_second:.4g} images/s")
        shown = ([self.names[run]] if self.num_runs > 1 else []) + shown
        (self._bar.console if self._bar else _console()).print("  ".join(shown), soft_wrap=True)


def scores(test: dict) -> None:
    """Tables of eval/test.json: every score at both sizes, and Dice by stratum."""
    small = test["metrics"] | test.get("report2", {})
    original = test.get("metrics_original_size", {})
    title = f"{test['split']} split, {test['n_images']} images"
    rows = [(name, _number(small.get(name)), _number(original.get(name)))
            for name in {**small, **original}]
    print_table(title, ("score", "at data.size", "original size"), rows)
    rows = [(name, str(value["n"]), _number(value["dice_mean"]), _number(value["iou_mean"]))
            for name, value in test.get("per_stratum", {}).items()]
    if len(rows) > 1:
        columns = ("stratum", "images", "dice_mean", "iou_mean")
        print_table("by stratum, at data.size", columns, rows)


def print_table(title: str, columns, rows) -> None:
    """Rows of strings under their columns; all but the first are aligned at the right."""
    table = Table(title=title, title_justify="left", title_style="bold",
                  box=box.SIMPLE_HEAD if _live() else None)
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _number(value) -> str:
    return "-" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    """1:02:03 or 2:03; days are hours."""
    minutes, seconds = divmod(int(min(seconds, 1e7)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _live() -> bool:
    """Whether stdout can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _console() -> Console:
    """stdout as it is now; names are never read as markup, and tables are never cut in a log."""
    live = _live()
    return Console(force_terminal=live, no_color=not live, width=None if live else 160,
                   markup=False, highlight=False, emoji=False)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
               MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
    return Progress(*columns, console=_console(), refresh_per_second=4, expand=True)
