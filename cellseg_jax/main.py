"""Train, evaluate or describe one run.

    python -m cellseg_jax.main --config=configs/unetr_sgd.py [--workdir=runs/NAME]
        [--mode=train|eval|describe] [--config.data.root=DIR] [--config.optimizer.lr=1e-3 ...]
    python -m cellseg_jax.main --mode=eval --workdir=runs/NAME [--split=val]
    python -m cellseg_jax.main --mode=eval --workdir=runs/NAME --split=all
        --config.data.name=bbbc039 --config.data.root=DIR

`train` trains, or continues what lies in the workdir, then scores the best checkpoint on the test
split and writes report.html. `eval` scores a split of the run's own data or, with another
config.data.name, root or option of the dataset, of other data, which have files and a page of
their own. Exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM after saving (start it
again), 1 anything else.
"""

import contextlib
import os
import pathlib
import signal
import sys

from absl import flags

from cellseg_jax.cli import INTERRUPTED, define_device_flags, run_command
from cellseg_jax.errors import InputError, pick


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    flags.DEFINE_string("workdir", "", "the run's folder; default runs/<config name>",
                        flag_values=values)
    flags.DEFINE_string("mode", "train", "train | eval | describe", flag_values=values)
    flags.DEFINE_string("split", "test", "with --mode=eval: train | val | test; of other "
                        "data than trained on also all", flag_values=values)
    flags.DEFINE_bool("tuned", False, "with --mode=eval: decode as predict --tune has found on the "
                      "validation images", flag_values=values)
    define_device_flags(values)
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
        from cellseg_jax.runs.folder import read_config

        if "data.name" in dict(overrides):  # what was mixed in belongs to the old dataset
            overrides = [("data.mix", "()"), *overrides]
        config = config_lib.override(read_config(args.workdir), overrides)
    else:
        or_run = "" if args.mode == "train" else ", or a trained run: --workdir=runs/NAME"
        raise InputError("--config: missing; expected a file such as configs/quickstart.py"
                         + or_run)
    name = pathlib.Path(args.config.partition(":")[0]).stem
    return run(config, args.workdir or f"runs/{name}", args)


def train(config, workdir, args) -> int:
    """Train or continue; then score the best checkpoint, unless that is done."""
    from cellseg_jax import train as trainer
    from cellseg_jax.config import derived
    from cellseg_jax.report import terminal
    from cellseg_jax.runs import page

    result = trainer.train([config], [workdir])[0]
    if result.status == "interrupted":
        terminal.log(f"stopped after saving step {result.step}; the same command continues")
        return INTERRUPTED
    if result.status == "non-finite":
        return 1
    if not derived.is_classical(config):
        terminal.log(f"{workdir}: training is {result.status} at step {result.step}")
    # What is left can be done again from its start, so a scheduler may stop it at any time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    if not derived.has_part(config, "test"):
        terminal.log("no test split (config.data.split), so no scores")
        page.write_run_page(pathlib.Path(workdir))
        return 0
    return evaluate(config, workdir, args)


def evaluate(config, workdir, args) -> int:
    """Score a split of a trained run, of its own or of other data, and write the report."""
    import jax

    from cellseg_jax.inference.evaluate import evaluate as evaluate_
    from cellseg_jax.inference.evaluate import read_scores
    from cellseg_jax.report import terminal
    from cellseg_jax.runs import page
    from cellseg_jax.runs.folder import CHECKPOINTS, read_config
    from cellseg_jax.runs.lock import Lock
    from cellseg_jax.runs.score_table import print_scores

    pick(dict.fromkeys(("train", "val", "test", "all")), args.split, "--split")
    writer = jax.process_index() == 0
    own = read_config(workdir)  # before the lock makes a folder of a misspelt name
    if args.tuned:
        from cellseg_jax.inference import tune
        from cellseg_jax.runs import checkpoint

        saved = checkpoint.saved_steps(pathlib.Path(workdir) / CHECKPOINTS)
        tuning = tune.read(workdir, own, saved.get("best", 0))
        terminal.log(tune.sentence(tuning))
        config = tune.apply(config, tuning)
    with Lock(workdir) if writer else contextlib.nullcontext():
        scores = read_scores(workdir, args.split, config)
        if scores is None:
            scores = evaluate_(config, workdir, split=args.split)
        else:
            terminal.log(f"{workdir}: scored before, from the same checkpoint, data and code")
        if scores["name"] != args.split:
            known = scores["names_of_training_images"]
            terminal.log(f"{config.data.name}: other data than the run was trained on"
                          + (f"; WARNING: {known} of {scores['n_images']} images have the names of "
                             "training images: such scores say nothing on new images" if known
                             else ""))
        print_scores(scores)
        if writer:
            terminal.log(f"report: {page.write_run_page(workdir, scores['name'])}")
    return 0


def describe(config, workdir, args) -> int:
    """Print the network layer by layer and what it costs; of a classical method, what it does."""
    import inspect

    from cellseg_jax import classical
    from cellseg_jax.config import derived
    from cellseg_jax.planning import card
    from cellseg_jax.report import terminal
    from cellseg_jax.step.state import check_model

    check_model(config)
    if derived.is_classical(config):
        print(inspect.getdoc(classical.CLASSICAL[config.model.name]))
        print(derived.classical_options(config))
        return 0
    print(card.table(config, width=140, colour=sys.stdout.isatty()))
    terminal.summary(card.rows(config))
    return 0


MODES = {"train": train, "eval": evaluate, "describe": describe}


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
