"""What a run says while it works: bars in a terminal, plain lines anywhere else.

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


def note(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr, flush=True)


def findings(found) -> None:
    """The warnings on the data, a line each; notes are counted only."""
    for finding in found:
        if finding.level != "note":
            note(f"{finding.level}: {finding.where}: {finding.what}")
    notes = sum(finding.level == "note" for finding in found)
    if notes:
        note(f"{notes} note{'s' * (notes > 1)} on the data: python -m cellseg_jax.doctor shows them")


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
            elif done == total or now - state.setdefault("said", now) >= INTERVAL_S:
                state["said"] = now
                print(f"{what}: {done} of {total}", flush=True)

        yield progress


def summary(rows) -> None:
    """The first lines of a run: an aligned block of (name, text) rows."""
    width = max((len(name) for name, _ in rows), default=0)
    console = _console()
    for name, text in rows:
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", str(text)), soft_wrap=True)


class Training:
    """Progress of runs that train together; a context manager.

    Args:
      names: of the runs, for the lines of `logged`.
      num_steps: of each run, in all.
      start: step at which each run starts now.
      batch_size: images per step and run.
    """

    def __init__(self, names, num_steps, start, batch_size: int):
        self.names, self.num_steps, self.batch_size = list(names), list(num_steps), batch_size
        self.steps = list(start)
        self.images = 0
        self.images_per_second = 0.0
        self._rounds = 0
        self._window = collections.deque()  # (time, rounds, images)
        self._said = {}  # member -> time of its last plain line
        self._bar = None

    def __enter__(self):
        self._window.append((time.monotonic(), 0, 0))
        if _live():
            self._bar = _bar()
            self._bar.start()
            title = self.names[0] if len(self.names) == 1 else f"{len(self.names)} runs"
            self._task = self._bar.add_task(
                title, total=sum(self.num_steps), completed=sum(self.steps), text="")
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def advance(self, steps, losses) -> None:
        """After a step: where every run is now, and its loss."""
        moved = [k for k, (a, b) in enumerate(zip(steps, self.steps, strict=True)) if a > b]
        self.images += self.batch_size * (sum(steps) - sum(self.steps))
        self.steps = list(steps)
        self._rounds += bool(moved)
        now, window = time.monotonic(), self._window
        window.append((now, self._rounds, self.images))
        while len(window) > 2 and now - window[0][0] > WINDOW_S:
            window.popleft()
        seconds = max(now - window[0][0], 1e-9)
        self.images_per_second = (self.images - window[0][2]) / seconds
        if self._bar:
            # Runs advance together, so the time left is that of the longest one.
            left = max((self.num_steps[k] - steps[k] for k in moved), default=0)
            rounds_per_second = (self._rounds - window[0][1]) / seconds
            loss = sum(losses[k] for k in moved) / len(moved) if moved else float("nan")
            text = (f"{self.images_per_second:.4g} images/s  "
                    f"{_clock(left / max(rounds_per_second, 1e-9))} left  loss {loss:.4f}")
            self._bar.update(self._task, completed=sum(steps), text=text)

    def logged(self, k: int, line: dict) -> None:
        """One line for a logged epoch of run k; on long runs without a terminal, for some."""
        now, step = time.monotonic(), line["step"]
        # With n runs each speaks n times less often; a run's first and last line always come.
        wait = INTERVAL_S * len(self.names)
        said = self._said.get(k, -float("inf"))
        if not self._bar and step < self.num_steps[k] and now - said < wait:
            return
        self._said[k] = now
        shown = [f"epoch {line['epoch']:g}", f"step {step}/{self.num_steps[k]}"]
        for key, name, form in (("lr", "lr", ".3g"), ("train_loss", "train loss", ".4f"),
                                ("val_loss", "val loss", ".4f"),
                                ("val_dice_mean", "val Dice", ".4f")):
            if line.get(key) is not None:
                shown.append(f"{name} {line[key]:{form}}")
        shown.append(f"{self.images_per_second:.4g} images/s")
        shown = ([self.names[k]] if len(self.names) > 1 else []) + shown
        (self._bar.console if self._bar else _console()).print("  ".join(shown), soft_wrap=True)


def scores(test: dict) -> None:
    """Tables of eval/test.json: every score at both sizes, and Dice by stratum."""
    small = test["metrics"] | test.get("report2", {})
    original = test.get("metrics_original_size", {})
    title = f"{test['split']} split, {test['n_images']} images"
    rows = [(name, _number(small.get(name)), _number(original.get(name)))
            for name in {**small, **original}]
    _print_table(title, ("score", "at data.size", "original size"), rows)
    rows = [(name, str(value["n"]), _number(value["dice_mean"]), _number(value["iou_mean"]))
            for name, value in test.get("per_stratum", {}).items()]
    if len(rows) > 1:
        columns = ("stratum", "images", "dice_mean", "iou_mean")
        _print_table("by stratum, at data.size", columns, rows)


def _print_table(title, columns, rows):
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
