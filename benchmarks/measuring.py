"""What benchmarks share: measurements in turns, tables, and the record of a result.

A benchmark is a module with a docstring, a dictionary OPTIONS {name: (default, help)}, and
`measure(options) -> Result`; run.py is the front of all. A default that is a type marks an option
that must be given; a list takes values with commas between them.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import psutil

from cellseg_jax.runs.provenance import commit

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "monai")


class Sample(NamedTuple):
    """Seconds of one call."""

    wall: float
    cpu: float  # of all threads of the process


class Table(NamedTuple):
    """Rows of texts, numbers, and None where nothing was measured."""

    head: list[str]
    rows: list[list]
    title: str = ""


class Result(NamedTuple):
    """What a benchmark found."""

    tables: list[Table]
    notes: list[str] = []  # lines above the tables
    data: dict[str, Any] = {}  # what the tables were made of, for JSON


def timed(call: Callable) -> Sample:
    """Seconds of a call, which has to wait for its own result."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(ways: dict, rounds: int, *, warm: int = 2, clock: Callable = timed) -> dict:
    """{way: [Sample, ...]}: one way after the other, so that other load meets all alike.

    Every second round goes backwards, so that no way always follows the same one.

    Args:
      ways: {name: call}.
      warm: rounds that compile and allocate, and are not kept.
      clock: call -> Sample.
    """
    found = {name: [] for name in ways}
    for number in range(-warm, rounds):
        for name in sorted(ways, key=list(ways).index, reverse=number % 2 == 1):
            sample = clock(ways[name])
            if number >= 0:
                found[name].append(sample)
    return found


def median(samples: list[Sample], field: str = "wall") -> float:
    """The median of the seconds."""
    return statistics.median(getattr(sample, field) for sample in samples)


def times_faster(ours: list[Sample], theirs: list[Sample], field: str = "wall") -> float:
    """The median of the ratios of neighbours in time; above 1 where ours are faster."""
    return statistics.median(getattr(b, field) / getattr(a, field)
                             for a, b in zip(ours, theirs, strict=True))


class Side:
    """A process that makes a step when it is its turn: one that calls `serve`."""

    def __init__(self, command: list[str], environment: dict):
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment)

    def ask(self, question: str = "step"):
        """Its answer, of JSON. Raises: RuntimeError if the process has ended."""
        try:
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{' '.join(self._process.args[2:])} ended, code "
                               f"{self._process.wait()}")
        return json.loads(line)

    def step(self) -> Sample:
        """Seconds of one step."""
        return Sample(*self.ask())

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # of one that has ended, with a question unread
            self._process.stdin.close()
        self._process.wait()


def serve(step: Callable, **others: Callable) -> None:
    """Answer the questions of a Side: step() -> Sample, and others by name."""
    answers = {"step": step, **others}
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


# --- options, records and Markdown ----------------------------------------------------------------


def parser_of(options: dict) -> argparse.ArgumentParser:
    """The parser of a benchmark's OPTIONS."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, (default, help_) in options.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true", help=help_)
        elif isinstance(default, type):
            parser.add_argument(f"--{name}", type=default, required=True, help=help_)
        elif isinstance(default, list):
            kind = type(default[0]) if default else str
            parser.add_argument(f"--{name}", default=default, help=help_, type=lambda text, k=kind:
                                [k(part) for part in text.split(",") if part])
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=help_)
    return parser


def machine() -> dict:
    """What a number depends on beside the code."""
    import jax  # after a benchmark has chosen its flags

    found = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processor": _processor(), "cores": len(psutil.Process().cpu_affinity()),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "python": platform.python_version(), "packages": found}


def record(name: str, command: str, options: dict, run: Callable) -> dict:
    """run() as JSON: a Result with what it was measured by, where, of which commit, and when."""
    began, load = time.monotonic(), os.getloadavg()[0]
    result = run()
    return {"benchmark": name, "command": command, "commit": commit(),
            "date": datetime.date.today().isoformat(), "machine": machine(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "minutes": round((time.monotonic() - began) / 60, 2), "options": options,
            "notes": result.notes, "tables": [table._asdict() for table in result.tables],
            "data": result.data}


def markdown(found: dict) -> str:
    """A record as Markdown: how it was measured, and its tables."""
    at, (before, after) = found["machine"], found["load"]
    packages = ", ".join(f"{name} {version}" for name, version in at["packages"].items())
    lines = [f"`{found['command']}`, commit {found['commit'][:7] or 'unknown'}, {found['date']}: "
             f"{at['device']}, {at['cores']} cores of {at['processor']}, {at['memory_gib']} GiB, "
             f"{packages}; load {before} at first and {after} at last.", *found["notes"]]
    for table in found["tables"]:
        lines += ["", *([table["title"], ""] if table["title"] else []),
                  _row(table["head"]), "|---" * len(table["head"]) + "|",
                  *(_row(row) for row in table["rows"])]
    return "\n".join(lines) + "\n"


def _row(cells) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value) -> str:
    """Text as it is; of floats three digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _installed(name: str) -> bool:
    return bool(list(metadata.distributions(name=name)))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
