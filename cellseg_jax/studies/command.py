"""What the study command does, by its flags, once the study is read."""

import fnmatch
import pathlib
import re
import sys

from cellseg_jax.cli.stopping import stopping_at_sigterm
from cellseg_jax.errors import InputError, nearest
from cellseg_jax.studies.cost import estimate, print_estimate


def run(study, workdir: pathlib.Path, args, repeats: int) -> int:
    """Estimate, train or collect the runs of a study; the exit code.

    Args:
      args: the flags of cellseg_jax.study.
      repeats: runs of each row.
    Raises: InputError for flags that make no sense, and as launch.run.
    """
    task = task_of(args.task)
    rows = chosen_rows(args.rows, study.rows) if args.rows else None
    if args.dry_run:
        print_estimate(study, estimate(study, rows=rows, repeats=repeats, smoke=args.smoke,
                                       measure_seconds=args.measure), task or (0, 1))
        return 0
    from cellseg_jax.studies import launch, work_queue  # an estimate does without their imports

    if not args.collect:
        options = dict(smoke=args.smoke, backend=args.backend, slots=args.slots)
        with stopping_at_sigterm():  # while no training, which handles it itself, is under way
            if not task:
                return work_queue.run(study, workdir, rows, repeats, **options)
            code = launch.run(study, workdir, rows, repeats, task, **options)
        if code:
            return code
        if args.task:
            print(f"task {args.task} is done; after the last one: --collect, for the tables",
                  file=sys.stderr)
            return 0
    return launch.collect(study, workdir, rows, repeats, smoke=args.smoke)


def chosen_rows(text: str, rows) -> list[str]:
    """The rows that --rows names, in their order in the study. Raises InputError."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise InputError(f"--rows: got {text!r}; expected names of rows, with commas between")
    found = set()
    for pattern in wanted:
        matches = [pattern] if pattern in rows else fnmatch.filter(rows, pattern)
        if not matches:
            raise InputError(f"--rows: no row {pattern!r}{nearest(pattern, rows)}")
        found.update(matches)
    return [row for row in rows if row in found]


def task_of(text: str) -> tuple[int, int] | None:
    """(i, n) of --task=i/n; (0, 1) of an empty text; None of "any", see work_queue."""
    if text == "any":
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(f"--task: got {text!r}; expected i/n with i from 0 to n - 1, as 0/4, or "
                         "any")
    return int(found[1]), int(found[2])
