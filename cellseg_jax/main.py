"""Train, evaluate or describe one run.

    python -m cellseg_jax.main --config=configs/unetr_sgd.py [--workdir=runs/NAME]
        [--mode=train|eval|describe] [--config.data.root=DIR] [--config.optimizer.lr=1e-3 ...]

`train` trains, or continues what lies in the workdir, then scores the best checkpoint on the test
split and writes report.html. Exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM
after saving (start it again), 1 anything else.
"""

import contextlib
import os
import pathlib
import signal
import sys

from absl import flags

from cellseg_jax.commands import run_command
from cellseg_jax.errors import InputError, pick

INTERRUPTED = 75


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    flags.DEFINE_string("workdir", "", "the run's folder; default runs/<config name>",
                        flag_values=values)
    flags.DEFINE_string("mode", "train", "train | eval | describe", flag_values=values)
    flags.DEFINE_string("split", "test", "with --mode=eval: train | val | test",
                        flag_values=values)
    flags.DEFINE_bool("distributed", False, "one of several processes of one run: start "
                      "jax.distributed, which finds the others on Slurm and Cloud TPU",
                      flag_values=values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One run; returns the exit code."""
    run = pick(MODES, args.mode, "--mode")
    if args.distributed:
        import jax

        jax.distributed.initialize()
        if jax.process_index():
            sys.stdout = open(os.devnull, "w")  # one process speaks for all
    from cellseg_jax import config as config_lib

    if args.config:
        config = config_lib.load(args.config, overrides)
    elif args.workdir and args.mode in ("eval", "describe"):
        from cellseg_jax import rundir

        config = config_lib.override(rundir.read_config(args.workdir), overrides)
    else:
        raise InputError("--config: missing; expected a file such as configs/quickstart.py")
    name = pathlib.Path(args.config.partition(":")[0]).stem
    return run(config, args.workdir or f"runs/{name}", args)


def train(config, workdir, args) -> int:
    """Train or continue; then score the best checkpoint, unless that is done."""
    from cellseg_jax import derived
    from cellseg_jax import train as trainer
    from cellseg_jax.report import page, terminal

    result = trainer.train([config], [workdir])[0]
    if result.status == "interrupted":
        terminal.note(f"stopped after saving step {result.step}; the same command continues")
        return INTERRUPTED
    if result.status == "non-finite":
        return 1
    if not derived.is_classical(config):
        terminal.note(f"{workdir}: training is {result.status} at step {result.step}")
    # What is left can be done again from its start, so a scheduler may stop it at any time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    if not derived.has_part(config, "test"):
        terminal.note("no test split (config.data.split), so no scores")
        page.write_run_page(pathlib.Path(workdir))
        return 0
    return evaluate(config, workdir, args)


def evaluate(config, workdir, args) -> int:
    """Score a split of a trained run and write its report."""
    import jax

    from cellseg_jax import evaluate as evaluation
    from cellseg_jax import rundir
    from cellseg_jax.report import page, terminal

    pick(dict.fromkeys(("train", "val", "test")), args.split, "--split")
    rundir.check_same_config(workdir, config)
    writer = jax.process_index() == 0
    with rundir.lock(workdir) if writer else contextlib.nullcontext():
        scores = evaluation.read_scores(workdir, args.split, config)
        if scores is None:
            scores = evaluation.evaluate(config, workdir, split=args.split)
        else:
            terminal.note(f"{workdir}: scored before, from the same checkpoint, data and code")
        terminal.scores(scores)
        if writer:
            page.write_run_page(pathlib.Path(workdir))
            terminal.note(f"report: {pathlib.Path(workdir) / 'report.html'}")
    return 0


def describe(config, workdir, args) -> int:
    """Print the network layer by layer and what it costs; of a classical method, what it does."""
    import inspect

    from cellseg_jax import classical, derived, recipe
    from cellseg_jax.report import card, terminal

    recipe.check_model(config)
    if derived.is_classical(config):
        print(inspect.getdoc(classical.CLASSICAL[config.model.name]))
        print(recipe.classical_options(config))
        return 0
    print(card.table(config, width=140, colour=sys.stdout.isatty()))
    terminal.summary(card.rows(config))
    return 0


MODES = {"train": train, "eval": evaluate, "describe": describe}


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
