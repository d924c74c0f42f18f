"""What all commands share: flags, exit codes, and what must be set before JAX starts.

A command's module imports what needs JAX inside its functions, so that `--help` answers at once.
"""

import contextlib
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata

from absl import flags

from cellseg_jax import errors, files
from cellseg_jax.cli import huge_pages, stopping
from cellseg_jax.cli.stopping import CTRL_C, ending_in_time
from cellseg_jax.errors import InputError

STARTED = time.time()  # of this process: commands import this first
EXAMPLE_CONFIG = "configs/quickstart.py"
CHECKPOINTS = ("best", "last")  # that a run keeps
# The values of --device as names of JAX platforms; some work is always done on the CPU.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "cuda": "cuda,cpu", "tpu": "tpu,cpu"}
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"  # what XLA gives to that library on a CPU
PROGRAMS_VARIABLE = "CELLSEG_PROGRAMS"  # the folder of step.kept; "off" keeps none
BACKENDS = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "tpu": "tpu"}  # what JAX then starts


def parse(argv: list[str], define: Callable) -> tuple[flags.FlagValues, list[tuple[str, str]]]:
    """(flags, config overrides) of a command line; InputError for anything unknown, or a URL."""
    values = flags.FlagValues()
    string(values, "config", "a config file, FILE.py or FILE.py:ROW")
    define(values)
    rest, overrides, words = [argv[0]], [], iter(argv[1:])
    for word in words:
        key, given, text = word.lstrip("-").partition("=")
        if not word.startswith("-") or not key.removeprefix("no").startswith("config."):
            rest.append(word)
        elif key.startswith("noconfig."):
            if given:
                raise InputError(f"{word}: expected --{key}, or --{key[2:]}=True or False")
            overrides.append((key.removeprefix("noconfig."), "false"))
        else:
            text = text if given else next(words, "--")
            if text.startswith("--") and not given:
                raise InputError(f"--{key}: no value; expected --{key}=VALUE")
            overrides.append((key.removeprefix("config."), text))
    try:
        stray = values(rest)[1:]
    except flags.Error as error:
        raise InputError(_flag_error(error, values)) from error
    if stray:
        raise InputError(f"{stray[0]!r}: not a flag; flags start with --, as --config=FILE")
    for name in values:
        errors.refuse_urls(values[name].value, f"--{name}")
    return values, overrides


def _flag_error(error: flags.Error, values: flags.FlagValues) -> str:
    """What is wrong with a flag, and what was expected."""
    if isinstance(error, flags.UnrecognizedFlagError):
        name, own = error.flagname, [*values]
        hint = errors.nearest(name, own) or f"; --help lists {', '.join(own)}"
        return (f"--{name}: no such flag{hint}; keys of the config are set by --config.KEY=VALUE, "
                "as --config.train.epochs=50")
    found = re.fullmatch(r"flag --(\w+)=(.*?): .*", str(error), re.DOTALL)
    if not found or found[1] not in values:
        return str(error)
    flag = values[found[1]]
    expected = "true or false" if flag.boolean else flag.parser.syntactic_help
    return f"--{found[1]}: got {found[2]!r}; expected {expected}"


# --- flags ---------------------------------------------------------------------------------------


def string(values: flags.FlagValues, name: str, help_: str, default: str = "") -> None:
    """Define --NAME=TEXT."""
    flags.DEFINE_string(name, default, help_, flag_values=values)


def strings(values: flags.FlagValues, name: str, help_: str) -> None:
    """Define --NAME=TEXT, which may be given several times."""
    flags.DEFINE_multi_string(name, [], help_, flag_values=values)


def switch(values: flags.FlagValues, name: str, help_: str, default: bool = False) -> None:
    """Define --NAME and --noNAME."""
    flags.DEFINE_bool(name, default, help_, flag_values=values)


def integer(values: flags.FlagValues, name: str, help_: str, default: int = 0,
            lowest: int | None = None) -> None:
    """Define --NAME=INTEGER, at least `lowest`."""
    flags.DEFINE_integer(name, default, help_, lower_bound=lowest, flag_values=values)


def number(values: flags.FlagValues, name: str, help_: str, default: float = 0.0) -> None:
    """Define --NAME=NUMBER."""
    flags.DEFINE_float(name, default, help_, flag_values=values)


def define_device_flags(values: flags.FlagValues) -> None:
    """--device and --memory: what computes, and how much of a GPU is taken at the start."""
    string(values, "device", "cpu | gpu | cuda:1 (one of several) | tpu; default: the fastest "
           "there is")
    string(values, "memory", "of a GPU's memory, taken at the start: a share such as 0.5, or grow "
           "(none, more as needed); default: 0.75")


def require(args: flags.FlagValues, *names: str) -> None:
    """InputError for the first of the flags --NAME=DIR that is missing."""
    for name in names:
        if not getattr(args, name):
            raise InputError(f"--{name}: missing; pass --{name}=DIR")


def check_choice(args: flags.FlagValues, name: str, choices) -> None:
    """InputError if the flag has none of the values that it may have."""
    errors.check_choice(getattr(args, name), choices, f"--{name}")


def refuse_without(args: flags.FlagValues, needed: str, *names: str) -> None:
    """InputError for the first of some flags that was set, where nothing reads it without another.

    Args:
      needed: the flag with which it is read, such as "--mode=eval".
    """
    for name in names:
        if args[name].present:
            raise InputError(f"--{name}: nothing reads it without {needed}; pass both, or leave "
                             "it out")


def require_config(args: flags.FlagValues, otherwise: str = "") -> None:
    """InputError without --config; `otherwise` names what could be passed in its place."""
    if not args.config:
        raise InputError(f"--config: missing; expected a file such as {EXAMPLE_CONFIG}{otherwise}")


def refuse_config(args: flags.FlagValues, owner: str = "a trained run",
                  instead: str = "pass --workdir alone") -> None:
    """InputError if --config is passed to a command whose `owner` has a config of its own."""
    if args.config:
        raise InputError(f"--config: {owner} has its own config; {instead}")


@contextlib.contextmanager
def several_processes(distributed: bool) -> Iterator[None]:
    """With `distributed`, one of several processes of a run: only process 0 prints."""
    if not distributed:
        yield
        return
    import jax  # only now, with the environment set

    jax.distributed.initialize()
    with open(os.devnull, "w") as nowhere:
        quiet = contextlib.redirect_stdout(nowhere)
        with quiet if jax.process_index() else contextlib.nullcontext():
            yield


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("cellseg_jax")
    except metadata.PackageNotFoundError:
        return "not installed"


def print_version() -> int:
    """What --version prints; returns the exit code."""
    print(f"cellseg_jax {version()}")
    return 0


# --- running -------------------------------------------------------------------------------------


def run_command(main: Callable, define: Callable, argv: list[str] | None = None) -> int:
    """main(flags, overrides) with the exit codes of every command.

    Args:
      argv: None is sys.argv, of a process that ends with this command.
    """
    if argv is not None:
        return _exit_code(main, define, argv)
    with stopping.until_exit():
        return _exit_code(main, define, sys.argv)


def _exit_code(main: Callable, define: Callable, argv: list[str]) -> int:
    if "--version" in argv[1:]:
        return print_version()
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        values = flags.FlagValues()
        define(values)
        try:
            print(sys.modules[main.__module__].__doc__,
                  values.get_help(include_special_flags=False), sep="\n", flush=True)
        except BrokenPipeError:  # of `--help | head`; nothing may be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        args, overrides = parse(argv, define)
        huge_pages.restart()
        prepare_jax()
        _silence_libraries()
        _choose_device(args)
        with ending_in_time():
            return main(args, overrides)
    except InputError as error:
        errors.print_error(error)
        return 2
    except BrokenPipeError:  # of `COMMAND | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, say: nothing that the code could mend
        # Threads of orbax wait ten minutes for what failed, and would keep the process.
        stopping.end(1, errors.error_line(errors.os_error_line(error)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise  # JAX has no other error where what computes gets no memory
        reason = " ".join(str(error).split())[:200] or "no size is known"
        errors.print_error(f"out of memory ({reason}); smaller images or batches need less")
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return CTRL_C


def prepare_jax() -> None:
    """Before JAX starts: XLA's flags, the caches of programs, and grain's flags marked as read."""
    set_xla_flags()
    if huge_pages.is_command():
        os.environ.setdefault(PROGRAMS_VARIABLE, str(files.user_cache() / "programs"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(files.user_cache() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def set_xla_flags() -> None:
    """YNNPACK computes no convolutions on a CPU, if XLA_FLAGS says nothing of it.

    It computes some of them on one core (findings/xla_cpu_convolutions_on_one_core.sh).
    """
    add_xla_flag(YNNPACK, "-individual_convolution")


def add_xla_flag(name: str, value: str) -> None:
    """Add a flag to XLA_FLAGS, which come first, and may be the path of a file instead."""
    given = os.environ.get("XLA_FLAGS", "").strip()
    is_file = given and not given.startswith("-")
    if not is_file and name not in given:
        os.environ["XLA_FLAGS"] = f"{given} {name}={value}".strip()


def _silence_libraries() -> None:
    for library in ("absl", "tifffile"):  # orbax and damaged TIFFs: our messages are clearer
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if huge_pages.is_command():
        sys.unraisablehook = _report_unraisable


def _report_unraisable(found) -> None:
    """Print an error in a callback, but not those of tensorstore after a save that failed.

    Its other writes then find the event loop of the save closed; the save's own error is raised.
    """
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _choose_device(args) -> None:
    """Apply --device and --memory, which JAX reads once, at its start."""
    device, memory = (getattr(args, name, "") for name in ("device", "memory"))
    if memory == "grow":
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    elif memory:
        if not re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", memory):
            raise InputError(f"--memory: got {memory!r}; expected a share such as 0.5, or grow")
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = memory
    if device:
        _select_platform(device)


def _select_platform(device: str) -> None:
    platform, _, number = device.partition(":")
    if platform not in PLATFORMS or (number and not (platform == "cuda" and number.isdecimal())):
        raise InputError(f"--device: got {device!r}; expected cpu, gpu, tpu, or cuda:NUMBER")
    if number:
        _select_gpu(int(number))
    os.environ["JAX_PLATFORMS"] = PLATFORMS[platform]
    import jax  # only now, with the environment set

    jax.config.update("jax_platforms", PLATFORMS[platform])  # where JAX was imported before
    try:
        found, why = jax.default_backend(), "JAX finds no other device than the CPU"
    except RuntimeError as error:
        found, why = None, str(error).splitlines()[0][:200]
    if found != BACKENDS[platform]:  # without a driver JAX ignores cuda without a message
        raise InputError(f"--device: {device} is not here ({why}); leave it out, or install what "
                         'it needs (GPU: pip install -e ".[cuda]")')


def _select_gpu(number: int) -> None:
    """Make one of the visible GPUs the only one."""
    visible = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if visible is None:
        visible = [str(n) for n in range(number + 1)]
    if number >= len(visible):
        raise InputError(f"--device: got cuda:{number}; expected a number below {len(visible)}, "
                         "the number of GPUs that CUDA_VISIBLE_DEVICES="
                         f"{os.environ['CUDA_VISIBLE_DEVICES']!r} names")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number]


def visible_gpus(text: str | None) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names: numbers, GPU-UUIDs or names of MIG parts.

    As CUDA reads it, the first entry that names none ends the list: "0,-1,1" is GPU 0 alone, and
    "", "-1" and Slurm's "NoDevFiles" are no GPU. None where it is not set: all are visible.
    """
    if text is None:
        return None
    named = lambda entry: entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))
    return list(itertools.takewhile(named, (entry.strip() for entry in text.split(","))))
