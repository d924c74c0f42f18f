"""Look inside a trained run: what its layers need, learned, and see.

    python -m cellseg_jax.analyze --workdir=runs/NAME --analysis=pruning,weights,gradients,filters
        [--split=test] [--config.data.root=DIR]
        [--prune=l1_layers:all,random_layers:each,random_layers:top1 ...] [--kinds=conv]
        [--amount=0.25] [--iterations=10] [--masks=3] [--finetune_epochs=0] [--images=2]

  pruning    scores against sparsity, of all layers together and of each by itself: which layers
             matter, and which classes suffer first
  weights    how far each layer has moved from where it began
  gradients  mean absolute gradient of each layer, at the end and, with train.log_gradients,
             over training
  filters    filters, activation maps, and where a transformer attends

Tables and pictures lie in analysis/ of the run; analysis.html shows them all. Exit codes: 0 done,
75 stopped by SIGTERM while fine-tuning, after saving (start it again), 2 bad input.
"""

import pathlib
import sys

from absl import flags

from cellseg_jax.cli import INTERRUPTED, define_device_flags, run_command
from cellseg_jax.errors import InputError, pick

OPTIONS = {  # the flags that each analysis reads
    "pruning": ("split", "prune", "kinds", "amount", "iterations", "masks", "finetune_epochs"),
    "weights": (), "gradients": (), "filters": ("split", "images")}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    text = lambda name, default, help_: flags.DEFINE_string(name, default, help_,
                                                            flag_values=values)
    number = lambda name, default, low, help_: flags.DEFINE_integer(
        name, default, help_, lower_bound=low, flag_values=values)
    text("workdir", "", "the folder of a trained run")
    text("analysis", "", f"{', '.join(OPTIONS)}; several with commas between")
    text("split", "test", "whose images pruning and filters look at: train | val | test")
    text("prune", "", "experiments HOW:LAYERS, with commas between. HOW: l1 or random, then "
         "_layers (each by itself), _grouped (all jointly) or _filters (whole ones). LAYERS: all, "
         "each (one by one), top1 or top2 (which moved most), or a name; default report 2's")
    text("kinds", "conv", "of the layers that are pruned: conv, transposed, dense")
    flags.DEFINE_float("amount", 0.25, "share of what remains that is pruned at a time",
                       flag_values=values)
    number("iterations", 10, 1, "times that it is pruned")
    number("masks", 3, 1, "draws of a random pruning")
    number("finetune_epochs", 0, 0, "also train so many epochs after pruning all layers")
    number("images", 2, 1, "whose activations are drawn")
    define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """The analyses of one run; returns the exit code."""
    names = [name for name in args.analysis.split(",") if name]
    if not names:
        raise InputError(f"--analysis: missing; expected some of {', '.join(OPTIONS)}")
    for name in names:
        pick(OPTIONS, name, "--analysis")
    if not args.workdir:
        raise InputError("--workdir: missing; pass the folder of a trained run")
    if args.config:
        raise InputError("--config: a trained run brings its own; pass --workdir alone")
    pick(dict.fromkeys(("train", "val", "test")), args.split, "--split")
    for option in {option for options in OPTIONS.values() for option in options}:
        readers = [name for name, options in OPTIONS.items() if option in options]
        if args[option].present and not set(readers) & set(names):
            raise InputError(f"--{option}: --analysis={args.analysis} does not read it; expected "
                             f"it with {' or '.join(readers)}")
    from cellseg_jax import analysis
    from cellseg_jax import config as config_lib
    from cellseg_jax.analysis.page import replacing, write, write_page
    from cellseg_jax.config import derived
    from cellseg_jax.report import terminal
    from cellseg_jax.runs.folder import check_same_config, read_config
    from cellseg_jax.runs.lock import Lock

    workdir = pathlib.Path(args.workdir)
    config = config_lib.override(read_config(workdir), overrides)
    check_same_config(workdir, config)
    if derived.is_classical(config):
        raise InputError(f"--workdir: {workdir} is a run of {config.model.name}, which has no "
                         "layers to look at; expected a trained network")
    with Lock(workdir):
        for name in names:
            options = {option: args[option].value for option in OPTIONS[name]}
            with replacing(workdir, name) as folder:
                findings = analysis.ANALYSES[name](workdir, config, folder, **{
                    option: value for option, value in options.items() if value != ""})
                if findings is None:
                    terminal.log("stopped after saving; the same command goes on")
                    return INTERRUPTED
                write(folder, findings)
            terminal.log(f"{name}: {findings.text[0]}")
        terminal.log(f"page: {write_page(workdir)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
