"""All commands under one name.

    cellseg COMMAND [--flag=value ...]       also: python -m cellseg_jax COMMAND ...
    cellseg COMMAND --help                   what it does, its flags, and what it writes where
    cellseg --version
"""

import contextlib
import importlib
import sys

from cellseg_jax import cli, errors
from cellseg_jax.cli import stopping

COMMANDS = {  # as typed: (module, flags that are set, what it does)
    "train": ("main", (), "train a run and score it; everything lies in runs/NAME"),
    "eval": ("main", ("--mode=eval",), "score a trained run, or labels made elsewhere"),
    "describe": ("main", ("--mode=describe",), "print a network layer by layer"),
    "predict": ("predict", (), "segment images with a trained run"),
    "doctor": ("doctor", (), "check the data before training"),
    "plan": ("plan", (), "time and memory of a run before it is run"),
    "study": ("study", (), "a table of runs, with repeats, intervals and tests"),
    "analyze": ("analyze", (), "which layers matter, how far they moved, what they respond to"),
    "export": ("export", (), "a trained run as a file for other programs"),
    "synthetic": ("data.synthetic.__main__", (), "write drawn images in the layout of a dataset"),
}


def main(argv: list[str] | None = None) -> int:
    """The command that the first word names; returns its exit code."""
    program, *words = sys.argv if argv is None else argv
    if not words or words[0] in ("--help", "-h", "-help", "help"):
        width = max(map(len, COMMANDS))
        print(__doc__, *(f"    {name:{width}}  {what}" for name, (*_, what) in COMMANDS.items()),
              sep="\n")
        return 0
    name, *rest = words
    if name == "--version":
        return cli.print_version()
    try:
        module, given, _ = errors.pick(COMMANDS, name, "command")
    except errors.InputError as error:
        errors.print_error(error)
        return 2
    command = importlib.import_module(f"cellseg_jax.{module}")
    with stopping.until_exit() if argv is None else contextlib.nullcontext():
        return cli.run_command(command.main, command.define_flags, [program, *given, *rest])


if __name__ == "__main__":
    sys.exit(main())
