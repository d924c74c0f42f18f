"""The config of a command that trains, scores or describes one run."""

from cellseg_jax import cli
from cellseg_jax import config as config_lib
from cellseg_jax.data.split import PARTS
from cellseg_jax.errors import InputError
from cellseg_jax.runs.folder import is_run
from cellseg_jax.runs.other_data import config_for


def check_flags(args) -> None:
    """InputError for a flag that the mode does not read, or a split that training cannot end with.

    Before anything is trained: scores come last.
    """
    if args.mode != "eval":
        cli.refuse_without(args, "--mode=eval", "out", "labels", "tune", "tuned")
    if args.mode == "describe":
        cli.refuse_without(args, "--mode=train or eval", "split")
    if args.out and args.labels:
        raise InputError("--out: expected no --labels with it, whose --workdir has scores alone")
    cli.check_choice(args, "split", (*PARTS, "all") if args.mode == "eval" else PARTS)


def run_config(args, overrides):
    """The complete config of a command of one run: from a file, or of the run in --workdir.

    With --labels its model is that folder of labels. Raises: InputError where it makes none.
    """
    if args.labels:
        overrides = [("model.name", "labels"), ("model.folder", args.labels), *overrides]
    begins = args.mode == "train" or (args.labels and not is_run(args.workdir))
    if not args.config and args.workdir and not begins:
        return config_for(args.workdir, overrides)
    cli.require_config(args, "" if begins else ", or a trained run: --workdir=runs/NAME")
    return config_lib.load(args.config, overrides)
