"""What all commands share: their flags, their exit codes, and what must be set before JAX starts."""

import logging
import os
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from cellseg_jax.errors import InputError, tell


def parse(argv: list[str], define: Callable) -> tuple[flags.FlagValues, list[tuple[str, str]]]:
    """(flags, config overrides) of a command line; InputError for anything unknown."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "a config file, FILE.py or FILE.py:ROW", flag_values=values)
    define(values)
    rest, overrides, words = [argv[0]], [], iter(argv[1:])
    for word in words:
        key, given, text = word.lstrip("-").partition("=")
        if not word.startswith("-") or not key.removeprefix("no").startswith("config."):
            rest.append(word)
        elif key.startswith("noconfig."):
            overrides.append((key.removeprefix("noconfig."), "false"))
        else:
            text = text if given else next(words, "")
            overrides.append((key.removeprefix("config."), text))
    try:
        stray = values(rest)[1:]
    except flags.Error as error:
        raise InputError(str(error).replace("FATAL Flags parsing error: ", "")) from error
    if stray:
        raise InputError(f"{stray[0]!r}: not a flag; flags start with --, as --config=FILE")
    return values, overrides


def run_command(main: Callable, define: Callable, argv: list[str] | None = None) -> int:
    """main(flags, overrides) with the exit codes of every command."""
    argv = sys.argv if argv is None else argv
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        values = flags.FlagValues()
        define(values)
        print(sys.modules[main.__module__].__doc__, values.get_help(), sep="\n")
        return 0
    try:
        args, overrides = parse(argv, define)
        _prepare_jax()
        return main(args, overrides)
    except InputError as error:
        tell(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _prepare_jax() -> None:
    """Before JAX starts: the compile cache, and grain's flags marked as read."""
    cache = os.environ.get("XDG_CACHE_HOME", "") or pathlib.Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(cache, "cellseg_jax/xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax says, the run says better
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
