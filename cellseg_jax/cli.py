"""What all commands share: flags, exit codes, and what must be set before JAX starts."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable

from absl import flags

from cellseg_jax.errors import InputError, print_error

INTERRUPTED = 75  # exit code: stopped by SIGTERM after saving; the same command continues
# What --device says, as JAX says it; some work is always done on the CPU.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "cuda": "cuda,cpu", "tpu": "tpu,cpu"}
BACKENDS = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "tpu": "tpu"}  # what JAX then starts


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


def define_device_flags(values: flags.FlagValues) -> None:
    """--device and --memory: what computes, and how much of a GPU is taken at the start."""
    flags.DEFINE_string("device", "", "cpu | gpu | cuda:1 (one of several) | tpu; default: the "
                        "fastest there is", flag_values=values)
    flags.DEFINE_string("memory", "", "of a GPU's memory, taken at the start: a share such as 0.5, "
                        "or grow (none, more as needed); default: 0.75", flag_values=values)


def run_command(main: Callable, define: Callable, argv: list[str] | None = None) -> int:
    """main(flags, overrides) with the exit codes of every command."""
    argv = sys.argv if argv is None else argv
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        values = flags.FlagValues()
        define(values)
        try:
            print(sys.modules[main.__module__].__doc__, values.get_help(), sep="\n", flush=True)
        except BrokenPipeError:  # | head has seen enough; nothing may be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        args, overrides = parse(argv, define)
        _prepare_jax()
        _choose_device(args)
        return main(args, overrides)
    except InputError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _prepare_jax() -> None:
    """Before JAX starts: the compile cache, and grain's flags marked as read."""
    cache = os.environ.get("XDG_CACHE_HOME", "") or pathlib.Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(cache, "cellseg_jax/xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    for library in ("absl", "tifffile"):  # what orbax or a damaged TIFF says, we say better
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _choose_device(args) -> None:
    """What --device and --memory ask of JAX, which reads it once, at its start."""
    device, memory = (getattr(args, name, "") for name in ("device", "memory"))
    if memory == "grow":
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    elif memory:
        if not re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", memory):
            raise InputError(f"--memory: got {memory!r}; expected a share such as 0.5, or grow")
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = memory
    if not device:
        return
    platform, _, number = device.partition(":")
    if platform not in PLATFORMS or (number and not (platform == "cuda" and number.isdecimal())):
        raise InputError(f"--device: got {device!r}; expected cpu, gpu, tpu, or cuda:NUMBER")
    if number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        visible = visible.split(",") if visible else [str(n) for n in range(int(number) + 1)]
        if int(number) >= len(visible):
            raise InputError(f"--device: got {device}; expected a number below {len(visible)}, "
                             "the length of CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)]
    os.environ["JAX_PLATFORMS"] = PLATFORMS[platform]
    import jax

    jax.config.update("jax_platforms", PLATFORMS[platform])  # where JAX was imported before
    try:
        found, why = jax.default_backend(), "JAX finds the CPU alone"
    except RuntimeError as error:
        found, why = None, str(error).splitlines()[0][:200]
    if found != BACKENDS[platform]:  # without a driver JAX passes over cuda in silence
        raise InputError(f"--device: {device} is not here ({why}); leave it out, or install what "
                         'it needs (GPU: pip install -e ".[cuda]")')
