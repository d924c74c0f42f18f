"""Check the data of a config before a GPU hour is spent.

    python -m cellseg_jax.doctor --config=FILE [--out=doctor.html] [--config.data.root=DIR ...]
    python -m cellseg_jax.doctor --workdir=runs/NAME       the data of a run, by its own config

Reads every image and mask once, prints what there is and every problem with its file and its
fix, and writes the same with pictures to --out. An error stops training; a warning is for you to
judge; a note is information. Exit codes: 0 no error, 2 errors, or bad input or config.
"""

import pathlib
import sys

from absl import flags

from cellseg_jax import cli
from cellseg_jax.errors import InputError

MAX_LINES = 20  # of each level on the terminal; the page has all


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    cli.string(values, "workdir", "the folder of a run, in place of --config")
    cli.string(values, "out", "the page to write", "doctor.html")


def main(args, overrides: list[tuple[str, str]]) -> int:
    """Examine the data of one config; returns the exit code."""
    if args.workdir:
        cli.refuse_config(args, "a run")
    else:
        cli.require_config(args, ", or a run: --workdir=runs/NAME")
    from cellseg_jax import config as config_lib
    from cellseg_jax.config import derived
    from cellseg_jax.data.quality import page
    from cellseg_jax.data.quality.report import facts
    from cellseg_jax.planning import data_check
    from cellseg_jax.report import terminal
    from cellseg_jax.runs.folder import read_config
    from cellseg_jax.step import preview

    config = (config_lib.override(read_config(args.workdir), overrides) if args.workdir
              else config_lib.load(args.config, overrides))
    out = pathlib.Path(args.out)
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out: cannot write to '{out}'; expected a file such as doctor.html in "
                         "a folder that exists")
    with terminal.counting("reading images") as progress:
        report = data_check.check(config, progress)
    terminal.summary(facts(report))
    for level in ("error", "warning", "note"):
        lines = [line for line in report.lines if line.level == level]
        terminal.summary([(level, line) for line in lines[:MAX_LINES]])
        if len(lines) > MAX_LINES:
            terminal.summary([(level, f"... {len(lines) - MAX_LINES} more, see {out}")])
    trains = not (report.count("error") or derived.is_classical(config))
    try:
        page.write(out, report, facts(report), preview.preview(config) if trains else None)
    except OSError as error:
        raise InputError(f"--out: cannot write '{out}' ({error.strerror})") from error
    terminal.summary([("found", report.verdict), ("page", out)])
    return 2 if report.count("error") else 0


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
