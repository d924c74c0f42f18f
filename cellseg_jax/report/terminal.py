"""Lines, tables and progress on the terminal: bars where a line can be redrawn, else plain lines.

Log files and pipes get no control codes and, on long runs, a line every ten seconds.
"""

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


def log(text: str) -> None:
    """One line to stderr."""
    print(text, file=sys.stderr, flush=True)


def progress_line(text: str) -> None:
    """One line to stdout that names the work in progress."""
    print(f"{text} ...", flush=True)


@contextlib.contextmanager
def counting(what: str):
    """Yields progress(done, total) for work named `what`; shows nothing if unused."""
    with contextlib.ExitStack() as stack:
        state = {}

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if can_redraw() and not state:
                state["bar"] = stack.enter_context(bar())
                state["task"] = state["bar"].add_task(what, total=total, text="")
            if can_redraw():
                state["bar"].update(state["task"], completed=done, total=total)
            elif done == total or now - state.setdefault("printed", now) >= INTERVAL_S:
                state["printed"] = now
                print(f"{what}: {done} of {total}", flush=True)

        yield progress


def summary(rows) -> None:
    """The first lines of a run: an aligned block of (name, text) rows."""
    width = max((len(name) for name, _ in rows), default=0)
    out = console()
    for name, text in rows:
        out.print(Text.assemble((name.ljust(width), "bold"), "  ", str(text)), soft_wrap=True)


def print_table(title: str, columns, rows) -> None:
    """Rows of strings under their columns; all but the first are aligned at the right."""
    table = Table(title=title, title_justify="left", title_style="bold",
                  box=box.SIMPLE_HEAD if can_redraw() else None)
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03; days are hours."""
    minutes, seconds = divmod(int(min(max(seconds, 0), 1e7)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def can_redraw() -> bool:
    """Whether stdout can redraw a line."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def console() -> Console:
    """stdout as it is now; names are never read as markup, and tables are never cut in a log."""
    live = can_redraw()
    return Console(force_terminal=live, no_color=not live, width=None if live else 160,
                   markup=False, highlight=False, emoji=False)


def bar() -> Progress:
    """A progress bar; its tasks take `text` for the end of the line."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
               MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
    return Progress(*columns, console=console(), refresh_per_second=4, expand=True)
