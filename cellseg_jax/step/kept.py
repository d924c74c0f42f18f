"""Compiled programs that are kept between processes: a second start traces and lowers nothing.

JAX's compile cache is asked once a program was traced and lowered, which takes most of the time
before the first step. A program that is kept is found before, by what it is made from: the sources
of this package, the files of the libraries that trace it, what it was asked for, the shapes of its
arguments, and what it is compiled with: flags of JAX and XLA, compiler, devices, processor and its
cores. Where that is new, it is found by its lowered text in place of the sources, so that a change
of the code that leaves a program as it is compiles nothing.

Commands keep programs for CPUs (`cli.prepare_jax` names the folder in the environment), unless
sources have changed since the start, or a config file has put a function of its own into this
package. Calls from Python do not.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from cellseg_jax import cli, files
from cellseg_jax.cli import machine
from cellseg_jax.models import onednn

KEY, PROGRAM, NUMBER = ".key", ".program", ".number"  # ends of the names of the files
MOST = 600  # files; those that were not used for the longest time are deleted
_WRAPPERS = (types.FunctionType, functools.partial, staticmethod, classmethod,
             type(jax.jit(lambda: 0)))
PACKAGE = pathlib.Path(__file__).resolve().parents[1]
TRACING, COMPILING = ("jax", "flax", "optax", "numpy"), ("jaxlib",)


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
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments))
        kept = self._is_kept() and not traced
        return (self.compiled(*arguments) if kept else self.function)(*arguments)

    def compiled(self, *arguments) -> jax.stages.Compiled:
        """The program for arguments, or shapes, like these."""
        if not self._is_kept():
            return self.function.lower(*arguments).compile()
        layout = _layout(arguments)
        if layout not in self._compiled:
            self._compiled[layout] = self._found(layout, arguments)
        return self._compiled[layout]

    def _is_kept(self) -> bool:
        on_cpu = all(device.platform == "cpu" for device in self.devices)  # elsewhere never tried
        return on_cpu and _folder() is not None and not onednn.is_disabled()

    def _found(self, layout, arguments) -> jax.stages.Compiled:
        tree = jax.tree.structure((arguments, {}))
        asked = repr((self.made_from, [(d.id, d.device_kind) for d in self.devices], layout))
        if " at 0x" in asked:  # the address of an object, which says nothing of what it is
            return self.function.lower(*arguments).compile()
        key = _file(KEY, _sources(), _compiler(), asked)
        program = _load(_read(key), tree, self.devices)
        if program is None:
            lowered = self.function.lower(*arguments)
            path = _file(PROGRAM, _compiler(), asked, repr(lowered.out_info), lowered.as_text())
            program = _load(path, tree, self.devices) or _compile(lowered, path)
            if path.exists():
                _write(key, path.name.encode())
        return program


def number(make: Callable[[], float], *made_from) -> float:
    """make(), kept likewise: a number that follows from the sources and what it is made from."""
    if _folder() is None or " at 0x" in repr(made_from):
        return make()
    path = _file(NUMBER, _sources(), repr(made_from))
    try:
        return float(_used(path).read_text())
    except (OSError, ValueError):
        made = make()
        _write(path, repr(float(made)).encode())
        return made


def _layout(arguments) -> tuple:
    leaves, tree = jax.tree.flatten(arguments)
    return tree, tuple(
        (np.shape(x), str(getattr(x, "dtype", type(x))), getattr(x, "weak_type", False),
         getattr(x, "committed", True), getattr(x, "sharding", None)) for x in leaves)


def _compile(lowered, path: pathlib.Path) -> jax.stages.Compiled:
    """The compiled program, kept at `path`.

    Not by JAX's compile cache: what XLA has read it cannot write again, the file would lack the
    program's functions.
    """
    enabled = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # else the change is not seen
        program = lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
    try:
        content, _, out_tree = serialize_executable.serialize(program)
        content = pickle.dumps((content, out_tree))
    except Exception:  # of many kinds: not every program can be written
        return program
    _write(path, content)
    return program


def _load(path: pathlib.Path | None, tree, devices) -> jax.stages.Compiled | None:
    """The program of a file; None where there is none, or one that cannot be read.

    Args:
      tree: of (arguments, {}).
    """
    try:
        content, out_tree = pickle.loads(_used(path).read_bytes())
        return serialize_executable.deserialize_and_load(
            content, tree, out_tree, devices[0].client, devices)
    except Exception:  # of many kinds, where a file is damaged: the program is compiled anew
        return None


def _read(key: pathlib.Path) -> pathlib.Path | None:
    """The file of the program that a key names."""
    try:
        return key.with_name(_used(key).read_text())
    except (OSError, ValueError):
        return None


def _used(path: pathlib.Path) -> pathlib.Path:
    """The path, now used last of all files."""
    with contextlib.suppress(OSError):  # of a folder that can be read alone
        os.utime(path)
    return path


def _write(path: pathlib.Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as part:
            part.write_bytes(content)
        kept = [file for file in path.parent.iterdir() if file.suffix in (KEY, PROGRAM, NUMBER)]
        newest = sorted(kept, key=lambda file: -file.stat().st_mtime)
        for old in newest[MOST:]:
            old.unlink(missing_ok=True)
    except OSError:  # a full disk, or another process that deletes: the next start takes longer
        pass


def _folder() -> pathlib.Path | None:
    """Where programs are kept; None where they are not."""
    folder = os.environ.get(cli.PROGRAMS_VARIABLE)
    off = folder in (None, "", "off") or jax.process_count() > 1
    return None if off or not _sources() or not _all_own() else pathlib.Path(folder)


def _file(end: str, *texts: str) -> pathlib.Path:
    digest = hashlib.blake2b("\n".join(texts).encode(), digest_size=16)
    return _folder() / f"{digest.hexdigest()}{end}"


# --- what a program is made from and compiled with ------------------------------------------------


@functools.cache
def _sources() -> str:
    """What programs are traced by; "" where it has changed since the start of this process."""
    own = sorted(PACKAGE.rglob("*.py"))
    installed = [sorted(_installed(library)) for library in TRACING]
    changed = [os.stat(path).st_ctime for path in own]
    changed += [file.changed for library in installed for file in library]
    if max(changed) >= cli.STARTED:
        return ""
    return repr(([hashlib.blake2b(path.read_bytes()).hexdigest() for path in own], installed))


@functools.cache
def _compiler() -> str:
    """What programs are compiled with and for."""
    flags = {k: v for k, v in os.environ.items()
             if k.startswith(("XLA_", "LIBTPU_", "TPU_")) or k == "NPROC"}
    with contextlib.suppress(OSError):  # the variable may name a file of flags
        flags["file"] = pathlib.Path(flags.get("XLA_FLAGS", "")).read_text()
    return repr((
        sorted(flags.items()), sorted((k, repr(v)) for k, v in jax.config.values.items()),
        [sorted(_installed(library)) for library in COMPILING], jax.__version__,
        jax.local_devices()[0].client.platform_version,
        machine.processor(), machine.cores(), onednn.status()))


class _File(NamedTuple):
    """A source or binary of a library."""

    path: str
    size: int
    modified: int
    changed: float


def _installed(library: str) -> Iterator[_File]:
    for folder in importlib.util.find_spec(library).submodule_search_locations:
        for above, _, names in os.walk(folder):
            for name in names:
                if name.endswith((".py", ".so", ".dylib", ".pyd")):
                    path = os.path.join(above, name)
                    status = os.stat(path)
                    yield _File(path, status.st_size, status.st_mtime_ns, status.st_ctime)


@functools.cache
def _all_own() -> bool:
    """Whether all functions in the modules of this package are its own or an installed one's.

    A config file is Python, and may put others into tables, classes and modules.
    """
    known = (str(PACKAGE), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), "<")
    modules = [vars(module) for name, module in list(sys.modules.items())
               if name.partition(".")[0] == PACKAGE.name]
    return all(function.__code__.co_filename.startswith(known)
               for function in _functions(modules, set()))


def _functions(value, seen: set) -> Iterator[types.FunctionType]:
    """All functions in a value: in dicts, tuples, classes of this package, and what is wrapped."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        yield value
    inside = [getattr(value, name) for name in ("__wrapped__", "__func__", "func")
              if isinstance(value, _WRAPPERS) and hasattr(value, name)]
    if isinstance(value, Mapping):
        inside += value.values()
    elif isinstance(value, (tuple, list)):
        inside += value
    elif isinstance(value, type) and value.__module__.startswith(PACKAGE.name):
        inside += vars(value).values()
    for one in inside:
        yield from _functions(one, seen)
