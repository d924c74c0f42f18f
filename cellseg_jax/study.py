"""Run a study: every row of a table, each several times, and the table with its uncertainty.

    python -m cellseg_jax.study --study=configs/studies/nuclei.py --workdir=runs/nuclei
        [--rows=a,b] [--repeats=3] [--task=i/n] [--collect] [--dry_run] [--smoke]
        [--config.data.root=DIR ...]

Runs lie in WORKDIR/<row>/<repeat>, each an ordinary run. Those that differ in values only train
in one program. Started again it goes on with what is not done. --task=i/n takes the i-th of n
shares, i from 0, for job arrays; --collect builds table.csv, table.md, table.tex and report.html
from what there is and names what is missing; with LEARNING_CURVE in the study learning_curve.csv,
too. --dry_run says what is ahead and how long it takes.
--smoke makes every run tiny, on synthetic twins of the data.

Exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM after saving, or another process
has a run (start it again), 1 anything else.
"""

import fnmatch
import os
import pathlib
import re
import sys

from absl import flags

from cellseg_jax.cli import define_device_flags, run_command
from cellseg_jax.errors import InputError, nearest
from cellseg_jax.studies.launch import run

SMOKE_REPEATS = 2


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config.*."""
    text = lambda name, help_: flags.DEFINE_string(name, "", help_, flag_values=values)
    switch = lambda name, help_: flags.DEFINE_bool(name, False, help_, flag_values=values)
    text("study", "the study file")
    text("workdir", "the study's folder; default runs/<study name>")
    text("rows", "only these rows, by name or pattern: 'unet_*,unetr_sgd'")
    flags.DEFINE_integer("repeats", 0, "runs of each row; 0 = what the study says",
                         flag_values=values)
    text("task", "i/n: only the i-th of n shares of the runs, i from 0")
    switch("collect", "only build the tables from the runs that there are")
    switch("dry_run", "only say what would be run, and how long it would take")
    switch("smoke", "tiny runs on synthetic data, to see that every row works")
    text("backend", "how runs that share a program are computed: loop | unroll | vmap; "
         "default by measurement")
    flags.DEFINE_integer("slots", 0, "runs under way at once in a program; 0 = by measurement",
                         flag_values=values)
    flags.DEFINE_float("measure", 5.0, "with --dry_run: seconds of measuring steps",
                       flag_values=values)
    define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One study; returns the exit code."""
    if not args.study:
        raise InputError("--study: missing; expected a file such as configs/studies/nuclei.py")
    if args.config:
        raise InputError("--config: a study brings its own; pass --study=FILE, and "
                         "--config.KEY=VALUE to change its base")
    task = _task(args.task)
    for name in ("repeats", "slots"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name}: got {getattr(args, name)}; expected 0 or more")
    if args.smoke:  # two steps run no faster for being optimised, and compile in half the time
        os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                                   + " --xla_backend_optimization_level=0")
    from cellseg_jax import studies
    from cellseg_jax.studies.smoke import prepare_smoke

    study = studies.load(args.study, overrides)
    workdir = pathlib.Path(args.workdir or f"runs/{study.name}{'_smoke' * args.smoke}")
    repeats = args.repeats or (SMOKE_REPEATS if args.smoke else study.repeats)
    rows = _chosen(args.rows, study.rows) if args.rows else None
    if args.smoke:
        study = prepare_smoke(study, workdir / "twins")
    if args.dry_run:
        return dry_run(study, args, rows, repeats, task)
    if args.collect:
        return collect(study, args, workdir, rows, repeats)
    code = run(study, args, workdir, rows, repeats, task)
    if code == 0 and not args.task:
        return collect(study, args, workdir, rows, repeats)
    if code == 0:
        from cellseg_jax.report import terminal

        terminal.log(f"task {args.task} is done; after the last one: --collect, for the tables")
    return code


def dry_run(study, args, rows, repeats, task) -> int:
    """Print what is ahead."""
    from cellseg_jax.studies.cost import estimate, print_estimate

    print_estimate(study, estimate(
        study, rows=rows, repeats=repeats, smoke=args.smoke, measure_seconds=args.measure), task)
    return 0


def collect(study, args, workdir, rows, repeats) -> int:
    """Write and print the tables of what has been run."""
    from cellseg_jax.files import write_atomic
    from cellseg_jax.report import terminal
    from cellseg_jax.studies import render
    from cellseg_jax.studies import table as collection
    from cellseg_jax.studies.page import write_study_page

    if not workdir.is_dir():
        raise InputError(f"--workdir: no folder {workdir}; run the study first")
    table = collection.collect(study, workdir, rows=rows, repeats=repeats, smoke=args.smoke)
    for suffix, text in (("md", render.markdown), ("tex", render.latex), ("csv", render.csv_text)):
        write_atomic(workdir / f"table.{suffix}", text(table))
    if table.curves:
        write_atomic(workdir / "learning_curve.csv", render.curves_csv(table))
    render.show(table)
    write_study_page(table, workdir / "report.html")
    curves = f"; learning curves: {workdir}/learning_curve.csv" if table.curves else ""
    terminal.log(f"tables: {workdir}/table.md, .tex, .csv; page: {workdir}/report.html{curves}")
    return 0


def _task(text: str) -> tuple[int, int]:
    """(i, n) of --task=i/n; (0, 1) of an empty text."""
    found = re.fullmatch(r"(\d+)/(\d+)", text or "0/1")
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(f"--task: got {text!r}; expected i/n with i from 0 to n - 1, as 0/4")
    return int(found[1]), int(found[2])


def _chosen(text: str, rows) -> list[str]:
    """The rows that --rows names, in their order in the study."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    found = set()
    for pattern in wanted:
        matches = [pattern] if pattern in rows else fnmatch.filter(rows, pattern)
        if not matches:
            raise InputError(f"--rows: no row {pattern!r}{nearest(pattern, rows)}")
        found.update(matches)
    return [row for row in rows if row in found]


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
