"""The config of a command that trains, scores or describes one run."""

from cellseg_jax import cli
from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.runs.other_data import config_for


def run_config(args, overrides):
    """The complete config of a command of one run: from a file, or of the run in --workdir.

    With --labels its model is that folder of labels. Raises: InputError where it makes none.
    """
    if args.labels and args.mode != "eval":
        raise InputError("--labels: expected --mode=eval with it")
    if args.labels:
        overrides = [("model.name", "labels"), ("model.folder", args.labels), *overrides]
    if not args.config and args.workdir and args.mode != "train":
        return config_for(args.workdir, overrides)
    cli.require_config(args, "" if args.mode == "train" else ", or a trained run: "
                       "--workdir=runs/NAME")
    return config_lib.load(args.config, overrides)
