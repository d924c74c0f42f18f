"""Run a study: every row of a table, each several times, and the table with its uncertainty.

    python -m cellseg_jax.study --study=configs/studies/nuclei.py --workdir=runs/nuclei
        [--rows=a,b] [--repeats=3] [--task=any|i/n] [--collect] [--dry_run] [--smoke]
        [--search=halving|hyperband|random] [--config.data.root=DIR ...]
    python -m cellseg_jax.study --status --workdir=runs/nuclei

Runs lie in WORKDIR/<row>/<repeat>, each an ordinary run. Those that differ in values only train
in one program. Started again it continues with the runs that are not done. --task=any: one of any
number of processes, each takes the next run that nobody has; --task=i/n: the i-th of n shares, i
from 0. --status prints how far all runs are. --collect writes table.csv, .md, .tex and report.html
from the finished runs and names the missing ones, learning_curve.csv if the study has
LEARNING_CURVE, and predictions out of fold and ensembles if its REPEATS are folds. --dry_run prints
what would be run and how long it would take. --smoke makes every run tiny, on synthetic twins.
--search looks for a config by SEARCH of the file, see studies/search.

Exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM after saving, or another process
has a run (start it again), 1 anything else.
"""

import pathlib
import sys

from absl import flags

from cellseg_jax import cli
from cellseg_jax.errors import InputError

SMOKE_REPEATS = 2
UNOPTIMISED = "--xla_backend_optimization_level", "0"


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config.*."""
    cli.string(values, "study", "the study file")
    cli.string(values, "workdir", "the study's folder; default runs/<study name>")
    cli.string(values, "rows", "only these rows, by name or pattern: 'unet_*,unetr_sgd'")
    cli.string(values, "search", "halving | hyperband | random: look for a config, by SEARCH")
    cli.integer(values, "repeats", "runs of each row; 0 = the number in the study file")
    cli.string(values, "task", "any: share the runs with other processes; i/n: only the i-th of n "
               "shares, i from 0")
    cli.switch(values, "status", "only print how far the runs are, and when they will be done")
    cli.switch(values, "collect", "only write the tables of the finished runs")
    cli.switch(values, "dry_run", "only print what would be run, and how long it would take")
    cli.switch(values, "smoke", "tiny runs on synthetic data, to see that every row works")
    cli.string(values, "backend", "loop | unroll | vmap: how runs share a program")
    cli.integer(values, "slots", "runs under way at once in a program; 0 = by measurement")
    cli.number(values, "measure", "with --dry_run: seconds of measuring steps, else by FLOPs")
    cli.string(values, "track", "mlflow | wandb: send the runs there; with --collect all again")
    cli.define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One study; returns the exit code."""
    if args.status:  # without JAX, whose import takes seconds
        from cellseg_jax.runs import status

        return status.show(args.workdir or f"runs/{pathlib.Path(args.study).stem}")
    if not args.study:
        raise InputError("--study: missing; expected a file such as configs/studies/nuclei.py")
    cli.refuse_config(args, "a study", "pass --study=FILE, --config.KEY=VALUE changes its base")
    for name in ("repeats", "slots", "measure"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name}: got {getattr(args, name)}; expected 0 or more")
    if not args.dry_run:
        cli.refuse_without(args, "--dry_run", "measure")
    if args.smoke:  # two steps are no faster when optimised, and compile in half the time
        cli.add_xla_flag(*UNOPTIMISED)
    from cellseg_jax import studies
    from cellseg_jax.runs.track import tracking
    from cellseg_jax.studies.smoke import prepare_smoke
    from cellseg_jax.train.execution import BACKENDS

    if args.backend:
        cli.check_choice(args, "backend", BACKENDS)
    study = studies.load(args.study, overrides)
    workdir = pathlib.Path(args.workdir or f"runs/{study.name}{'_smoke' * args.smoke}")
    if workdir.is_file():
        raise InputError(f"--workdir: {workdir} is a file; expected a folder")
    repeats = args.repeats or (SMOKE_REPEATS if args.smoke else study.repeats)
    if args.smoke:
        study = prepare_smoke(study, workdir / "twins")
    if args.search:
        from cellseg_jax.studies.search.trials import command as function
    else:
        from cellseg_jax.studies.command import run as function
    with tracking(args.track, study.name, workdir, again=args.collect):
        return function(study, workdir, args, repeats)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
