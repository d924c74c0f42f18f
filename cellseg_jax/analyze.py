"""Analyse trained runs: which layers matter, how far they moved, what they respond to.

    python -m cellseg_jax.analyze --workdir=runs/NAME --analysis=pruning,weights,gradients,filters
        [--split=test] [--config.data.root=DIR] [--out=DIR]
        [--prune=l1_layers:all,random_layers:each,random_layers:top1 ...] [--kinds=conv]
        [--amount=0.25] [--iterations=10] [--masks=3] [--finetune_epochs=0] [--images=2]

  pruning    scores against sparsity, of all layers together and of each by itself: which layers
             matter, and which classes lose most
  weights    distance of each layer's weights from their initial values
  gradients  mean absolute gradient of each layer, at the end and, with train.log_gradients,
             over training
  filters    filters, activation maps, and where a transformer attends

Tables and pictures lie in analysis/ of the run, or of its copy in --out; analysis.html has all.
--workdir takes a row's folder too, for all its repeats, and several with commas between: pruning
then also leaves pruning_rows.csv and .png beside the rows, with mean and spread over the repeats,
which row loses more than the first, and which class first. Exit codes: 0 done, 75 stopped by
SIGTERM while fine-tuning, after saving (start it again), 2 bad input, 1 a full disk and the like.
"""

import sys

from absl import flags

from cellseg_jax import cli
from cellseg_jax.errors import InputError, check_choice

OPTIONS = {  # the flags that each analysis reads
    "pruning": ("split", "prune", "kinds", "amount", "iterations", "masks", "finetune_epochs"),
    "weights": (), "gradients": (), "filters": ("split", "images")}


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    cli.string(values, "workdir", "the folder of a trained run, or of a row of a study; several "
               "with commas between")
    cli.string(values, "out", "a folder for a copy of the run, which is analysed in place of it")
    cli.string(values, "analysis", f"{', '.join(OPTIONS)}; several with commas between")
    cli.string(values, "split", "whose images pruning and filters use: train | val | test", "test")
    cli.string(values, "prune", "experiments HOW:LAYERS, with commas between. HOW: l1 or random, "
               "then _layers (each by itself), _grouped (all jointly) or _filters (whole ones). "
               "LAYERS: all, each (one by one), top1 or top2 (which moved most), or a name; "
               "default report 2's")
    cli.string(values, "kinds", "of the layers that are pruned: conv, transposed, dense", "conv")
    cli.number(values, "amount", "share of what remains that is pruned at a time", 0.25)
    cli.integer(values, "iterations", "times that it is pruned", 10, lowest=1)
    cli.integer(values, "masks", "draws of a random pruning", 3, lowest=1)
    cli.integer(values, "finetune_epochs", "also train so many epochs after pruning all layers",
                0, lowest=0)
    cli.integer(values, "images", "whose activations are drawn", 2, lowest=1)
    cli.define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """The analyses of some runs; returns the exit code."""
    names = _names(args)
    from cellseg_jax import analysis
    from cellseg_jax.data.split import PARTS
    from cellseg_jax.report import terminal
    from cellseg_jax.runs.elsewhere import folders_of
    from cellseg_jax.studies import pruned_rows

    cli.check_choice(args, "split", PARTS)
    options = {name: {o: args[o].value for o in OPTIONS[name] if args[o].value != ""}
               for name in names}
    folders = folders_of(args.workdir, args.out)
    rows = pruned_rows.rows_of(folders)
    for run in (runs := sum(rows.values(), [])):
        if not analysis.run(run, overrides, options):
            return cli.stopping.INTERRUPTED
    if "pruning" in names and len(runs) > 1:
        beside = folders[0].resolve().parent
        for sentence in pruned_rows.write(rows, beside):
            terminal.log(sentence)
        terminal.log(f"rows: {beside / 'pruning_rows.csv'}")
    return 0


def _names(args) -> list[str]:
    """The analyses that are asked for; InputError where a flag is read by none of them."""
    names = [name for name in args.analysis.split(",") if name]
    if not names:
        raise InputError(f"--analysis: missing; expected some of {', '.join(OPTIONS)}")
    for name in names:
        check_choice(name, OPTIONS, "--analysis")
    if not args.workdir:
        raise InputError("--workdir: missing; pass the folder of a trained run")
    cli.refuse_config(args)
    for option in {option for options in OPTIONS.values() for option in options}:
        readers = [name for name, options in OPTIONS.items() if option in options]
        if args[option].present and not set(readers) & set(names):
            raise InputError(f"--{option}: --analysis={args.analysis} does not read it; expected "
                             f"it with {' or '.join(readers)}")
    return names


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
