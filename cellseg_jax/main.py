"""Train, evaluate or describe one run.

    python -m cellseg_jax.main --config=configs/unetr_sgd.py [--workdir=runs/NAME]
        [--mode=train|eval|describe] [--config.data.root=DIR] [--config.optimizer.lr=1e-3 ...]
    python -m cellseg_jax.main --mode=eval --workdir=runs/NAME [--split=val] [--out=DIR]
    python -m cellseg_jax.main --mode=eval --workdir=runs/NAME --split=all
        --config.data.name=bbbc039 --config.data.root=DIR
    python -m cellseg_jax.main --mode=eval --labels=DIR --config=... --workdir=runs/NEW

`train` trains, or continues what lies in the workdir, then scores the best checkpoint on the test
split and writes report.html. `eval` scores a split of the run's own data or, with another
config.data.name, root or option of the dataset, of other data, whose files and page have names of
their own. With --labels it scores label images made by anything: for each image of the split NAME,
NAME_masks, NAME_cp_masks or NAME_label .tif, .png or .npy with instance ids. They become a run of
config.model.name=labels; a study lists one as ROWS = {"cellpose": {"labels": DIR}, ...}.

The workdir, runs/<config name> unless given, holds all that is written: config.json, checkpoints/,
metrics.jsonl, split.json, result.json, scores in eval/ and report.html. Decoded images lie in
config.data.cache. Exit codes: 0 done, 2 bad input or config, 75 stopped by SIGTERM after saving
(start it again), 1 anything else.
"""

import pathlib
import sys

from absl import flags

from cellseg_jax import cli
from cellseg_jax.cli.stopping import INTERRUPTED
from cellseg_jax.errors import pick


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command, beside --config and --config.*."""
    cli.string(values, "workdir", "the run's folder; default runs/<config name>")
    cli.string(values, "out", "with --mode=eval: a folder for a copy of the run, which is scored")
    cli.string(values, "mode", "train | eval | describe", "train")
    cli.string(values, "split", "whose images are scored: train | val | test; with --mode=eval on "
               "other data also all", "test")
    cli.string(values, "labels", "with --mode=eval: score a folder of label images made elsewhere")
    cli.switch(values, "tuned", "with --mode=eval: decode with the options of predict --tune")
    cli.string(values, "tune", "with --mode=eval: ap50 | pq | seg ...: find the decoding that "
               "scores best on the validation images, keep it in tuning.json and use it")
    cli.string(values, "track", "mlflow | wandb: send the run there")
    cli.define_device_flags(values)
    cli.switch(values, "distributed", "one of several processes of one run: start "
               "jax.distributed, which finds the others on Slurm and Cloud TPU")


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One run; returns the exit code."""
    from cellseg_jax.runs.command_config import check_flags, run_config
    from cellseg_jax.runs.track import tracking

    mode = pick(MODES, args.mode, "--mode")
    with cli.several_processes(args.distributed):
        name = pathlib.Path(args.config.partition(":")[0]).stem
        check_flags(args)
        workdir = args.workdir or f"runs/{name}"
        with tracking(args.track, "cellseg_jax", workdir, root=pathlib.Path(workdir).parent):
            return mode(run_config(args, overrides), workdir, args)


def train(config, workdir, args) -> int:
    """Train or continue; then score the best checkpoint, unless that is done."""
    from cellseg_jax.report import terminal
    from cellseg_jax.train.one_run import train_and_score

    result = train_and_score(config, workdir, args.split, tuned=args.tuned)
    if result.status == "interrupted":
        terminal.log(f"stopped after saving step {result.step}; the same command continues")
        return INTERRUPTED
    return 1 if result.status == "non-finite" else 0


def evaluate(config, workdir, args) -> int:
    """Score a split of a trained run, of its own or of other data."""
    from cellseg_jax.inference.score_run import score_run
    from cellseg_jax.runs.elsewhere import folder_of

    if args.labels:  # there is nothing to train: the run's folder is made at once
        return train(config, workdir, args)
    score_run(config, folder_of(workdir, args.out), args.split, tuned=args.tuned, metric=args.tune)
    return 0


def describe(config, workdir, args) -> int:
    """Print the network layer by layer and what it costs; of a classical method, what it does."""
    from cellseg_jax.planning.card import print_description

    print_description(config)
    return 0


MODES = {"train": train, "eval": evaluate, "describe": describe}


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
