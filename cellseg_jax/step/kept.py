"""Compiled programs that are kept between processes: a second start traces and lowers nothing.

JAX's compile cache is asked once a program was traced and lowered, which takes most of the time
before the first step. A program that is kept is found before, by what it is made from: the sources
of this package, the files of the libraries that trace it, what it was asked for, the shapes of its
arguments, and what it is compiled with: flags of JAX and XLA, compiler, devices, processor and its
cores. Where that is new, it is found by its lowered text in place of the sources, so that a change
of the code that leaves a program as it is compiles nothing.

Commands keep programs (`cli.prepare_jax` names the folder in the environment). Calls from Python do
not, since functions of this package may have been replaced there.
"""

import functools
import hashlib
import importlib.util
import os
import pathlib
import pickle
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.experimental import serialize_executable

from cellseg_jax import augment, files, losses, models, optim, targets
from cellseg_jax.cli import PROGRAMS_VARIABLE, machine
from cellseg_jax.models import onednn

MOST = 400  # files; those that were not used for the longest time are deleted
PACKAGE = pathlib.Path(__file__).resolve().parents[1]
TRACING, COMPILING = ("jax", "flax", "optax", "numpy"), ("jaxlib",)
REGISTRIES = (augment.AUGMENTATIONS, losses.LOSSES, losses.REGRESSION, models.MODELS,
              optim.SCHEDULES, targets.TARGETS)


class Program:
    """A compiled function, kept on disk where a command runs it.

    Args:
      function: of jax.jit with keep_unused, since the lowered text does not tell which of the
        arguments were left out.
      devices: that it computes on.
      made_from: all that decides what it computes and how it is compiled, beside its arguments;
        their repr tells one program from another.
    """

    def __init__(self, function: Callable, devices: Sequence[jax.Device], *made_from):
        self.function, self.devices, self.made_from = function, tuple(devices), made_from
        self._compiled = {}  # by the layout of the arguments

    def __call__(self, *arguments):
        """What the function returns."""
        return (self.compiled(*arguments) if self._is_kept() else self.function)(*arguments)

    def compiled(self, *arguments) -> jax.stages.Compiled:
        """The program for arguments, or shapes, like these."""
        if not self._is_kept():
            return self.function.lower(*arguments).compile()
        layout = _layout(arguments)
        if layout not in self._compiled:
            self._compiled[layout] = self._found(layout, arguments)
        return self._compiled[layout]

    def _is_kept(self) -> bool:
        return _folder() is not None and not onednn.is_disabled()

    def _found(self, layout, arguments) -> jax.stages.Compiled:
        tree = jax.tree.structure((arguments, {}))
        asked = repr((self.made_from, [(d.id, d.device_kind) for d in self.devices], layout))
        if " at 0x" in asked:  # the address of an object, which says nothing of what it is
            return self.function.lower(*arguments).compile()
        key = _folder() / _digest(_sources(), _compiler(), asked)
        program = _load(_read(key), tree, self.devices)
        if program is None:
            lowered = self.function.lower(*arguments)
            path = _folder() / _digest(_compiler(), asked, repr(lowered.out_info),
                                       lowered.as_text())
            program = _load(path, tree, self.devices) or _compile(lowered, path)
            if path.exists():
                _write(key, path.name.encode())
        return program


def number(make: Callable[[], float], *made_from) -> float:
    """make(), kept likewise: a number that follows from the sources and what it is made from."""
    if _folder() is None or " at 0x" in repr(made_from):
        return make()
    path = _folder() / _digest(_sources(), repr(made_from))
    try:
        os.utime(path)
        return float(path.read_text())
    except (OSError, ValueError):
        made = make()
        _write(path, repr(float(made)).encode())
        return made


def _layout(arguments) -> tuple:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple(
        (x.shape, str(x.dtype), getattr(x, "weak_type", False), getattr(x, "committed", True),
         getattr(x, "sharding", None)) for x in leaves)


def _compile(lowered, path: pathlib.Path) -> jax.stages.Compiled:
    """The compiled program, kept at `path`.

    Unless JAX's compile cache has it: what XLA has read it cannot write again, the file would lack
    the program's functions.
    """
    found = _found_in_compile_cache()
    program = lowered.compile()
    if _found_in_compile_cache() == found:
        try:
            content, _, out_tree = serialize_executable.serialize(program)
            _write(path, pickle.dumps((content, out_tree)))
        except Exception:  # of many kinds: not every device's programs can be written
            pass
    return program


def _load(path: pathlib.Path | None, tree, devices) -> jax.stages.Compiled | None:
    """The program of a file; None where there is none, or one that cannot be read.

    Args:
      tree: of (arguments, {}).
    """
    try:
        content, out_tree = pickle.loads(path.read_bytes())
        os.utime(path)
        return serialize_executable.deserialize_and_load(
            content, tree, out_tree, devices[0].client, devices)
    except Exception:  # of many kinds, where a file is damaged: the program is compiled anew
        return None


def _read(key: pathlib.Path) -> pathlib.Path | None:
    """The file of the program that a key names."""
    try:
        os.utime(key)
        return key.with_name(key.read_text())
    except (OSError, ValueError):
        return None


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as part:
            part.write_bytes(content)
        newest = sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime)
        for old in newest[MOST:]:
            old.unlink(missing_ok=True)
    except OSError:  # a full disk, or another process that deletes: the next start takes longer
        pass


def _folder() -> pathlib.Path | None:
    """Where programs are kept; None where they are not."""
    folder = os.environ.get(PROGRAMS_VARIABLE, "off")
    if folder == "off" or jax.process_count() > 1 or not _all_own():
        return None
    return pathlib.Path(folder)


# --- what a program is made from and compiled with ------------------------------------------------


@functools.cache
def _all_own() -> bool:
    """Whether all functions that a config can name are this package's: no config file adds one."""
    functions = [f for registry in REGISTRIES for f in registry.values()]
    return all(getattr(getattr(f, "encode", f), "__module__", "").startswith(f"{PACKAGE.name}.")
               for f in functions)


@functools.cache
def _sources() -> str:
    return _digest(repr((
        [path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))],
        [sorted(_installed(library)) for library in TRACING])))


@functools.cache
def _compiler() -> str:
    flags = {k: v for k, v in os.environ.items() if k.startswith(("XLA_", "LIBTPU_", "TPU_"))}
    return repr((
        sorted(flags.items()), sorted((k, repr(v)) for k, v in jax.config.values.items()),
        [sorted(_installed(library)) for library in COMPILING], jax.__version__,
        jax.local_devices()[0].client.platform_version,
        machine.processor(), machine.cores(), onednn.status()))


def _installed(library: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change) of each source and binary of a library."""
    for folder in importlib.util.find_spec(library).submodule_search_locations:
        for above, _, names in os.walk(folder):
            for name in names:
                if name.endswith((".py", ".so", ".dylib", ".pyd")):
                    path = os.path.join(above, name)
                    status = os.stat(path)
                    yield path, status.st_size, status.st_mtime_ns


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


def _found_in_compile_cache() -> int:
    """Programs that JAX's compile cache had, since this was asked first."""
    return _hits()[0]


@functools.cache
def _hits() -> list[int]:
    hits = [0]

    def count(event, **_):
        hits[0] += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(count)
    return hits
