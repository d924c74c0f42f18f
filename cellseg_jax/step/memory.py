"""Memory: what a compiled program needs, by XLA's analysis, and what devices and host have."""

import contextlib
import math
import pathlib
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
import psutil

from cellseg_jax.errors import InputError
from cellseg_jax.models import kernel_gradient, onednn

GIB = 2**30
RESIDENT_SHARE = 0.3  # of a device's memory that resident images may take
HEAP_OVERHEAD = 1.15  # bytes that a CPU's allocator takes per byte; fitted to runs of test_plan.py
REMEDIES = ("a smaller config.train.batch_size, config.train.remat=True, "
            "config.train.precision='bfloat16', a larger config.optimizer.accumulate, "
            "or more devices")


class Footprint(NamedTuple):
    """Bytes on each device while it trains."""

    parameters: int
    optimizer: int
    averaged: int
    batch_stats: int
    images: int  # all of them where they are resident, else the batch
    temporaries: int  # activations, gradients and what XLA works with
    other: int  # scalars, layout padding, outputs that take no argument's place, the program

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer + self.averaged + self.batch_stats


class DoesNotFit(InputError):
    """A program needs more memory than there is."""


class CompilerOutOfMemory(Exception):
    """The compiler found no room for a program that needs so many bytes."""


def refusal(needs: float, has: float) -> str:
    """The message that a run does not fit."""
    return f"does not fit: needs {needs / GIB:.2f} GiB per device, has {has / GIB:.2f} GiB"


def check_fits(tree, what: str) -> None:
    """DoesNotFit if a device has no room for arrays of these shapes, before one of them is made.

    Args:
      tree: of arrays or jax.ShapeDtypeStruct.
      what: begins the message.
    """
    needs = sum(array_bytes(x.shape, x.dtype) for x in jax.tree.leaves(tree))
    has, _ = available_memory()
    if needs > has:
        raise DoesNotFit(f"{what} {refusal(needs, has)}")


def exhausted(text: str) -> tuple[int, int] | None:
    """(needed, available) bytes that a compiler's RESOURCE_EXHAUSTED names, else None."""
    number = r"([\d.]+)([KMGT]?)"
    for words in (rf"\({number}\) exceeds available HBM \({number}\)",
                  rf"Used {number} of {number} hbm"):
        found = re.search(words, text, re.IGNORECASE)
        if found and "RESOURCE_EXHAUSTED" in text:
            size, unit, limit, limit_unit = found.groups()
            scale = lambda x, u: round(float(x) * 1024 ** " KMGT".index(u.upper() or " "))
            return scale(size, unit), scale(limit, limit_unit)
    return None


# --- what a compiled program holds ----------------------------------------------------------------


def footprint(compiled, given, extra_images: int = 0) -> Footprint:
    """Where the bytes of a compiled train step go, on each device.

    Args:
      given: its (state, source, index), arrays or shapes with shardings.
      extra_images: bytes of images on each device that training does not read.
    """
    memory = compiled.memory_analysis()
    held = held_bytes(given)
    outside = (memory.argument_size_in_bytes + memory.output_size_in_bytes
               - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes)
    other = max(outside - sum(held.values()), 0)
    held["images"] += extra_images
    return Footprint(**held, temporaries=memory.temp_size_in_bytes, other=other)


def held_bytes(given) -> dict:
    """Bytes on each device of the arguments of a train step."""
    state, *batch = given
    return {name: sum(shard_bytes(x) for x in jax.tree.leaves(tree)) for name, tree in (
        ("parameters", state.params), ("optimizer", state.opt_state), ("averaged", state.ema),
        ("batch_stats", state.batch_stats), ("images", batch))}


def shard_bytes(x) -> int:
    """Bytes on each device of an array, or a shape, with a sharding."""
    return array_bytes(x.sharding.shard_shape(x.shape), x.dtype)


def array_bytes(shape, dtype) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def flops(compiled, accumulate: int = 1) -> float:
    """Floating-point operations of one call on one device.

    XLA counts the body of the loop over micro-batches, which has nearly all of them, once, that of
    the loops over blocks too, and nothing of oneDNN's convolutions.
    """
    counted = (compiled.cost_analysis() or {}).get("flops", 0.0)
    if jax.default_backend() == "cpu":  # the text of a large program takes a while to write
        text = compiled.as_text()
        counted += onednn.flops(text) + kernel_gradient.flops(text)
    return counted * accumulate


def all_reduced(compiled, accumulate: int = 1) -> int:
    """Bytes that the all-reduces of one call produce on one device, by the program's text.

    Those in the loop over micro-batches count `accumulate` times.
    """
    text = re.sub(r"/\*.*?\*/", "", compiled.as_text())  # long tuples number their entries
    parts = {name: body for name, body in re.findall(
        r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)}
    looped, new = set(), set(re.findall(r"body=%?([\w.-]+)", text))
    while new:
        looped |= new
        called = {name for part in new for name in re.findall(r"%([\w.-]+)", parts.get(part, ""))}
        new = (called & parts.keys()) - looped
    sizes = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s8": 1,
             "u8": 1, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
    return sum((accumulate if name in looped else 1)
               * sizes[kind] * math.prod(int(n) for n in shape.split(",") if n)
               for name, body in parts.items()
               for found in re.findall(r"= (\([^=]*?\)|\S+) all-reduce(?:-start)?\(", body)
               for kind, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", found) if kind in sizes)


# --- what there is --------------------------------------------------------------------------------


def peak_memory() -> int:
    """Bytes in use at most so far, on the fullest device; on a CPU, by this process."""
    peaks = _device_stats("peak_bytes_in_use")
    return max(peaks) if peaks else peak_rss()


def peak_rss() -> int:
    """Bytes of memory that this process has held at most, memory maps included."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    unit = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_memory() -> int:
    """Bytes that this process holds by itself: no files, no shared memory."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def device_memory() -> int:
    """Bytes of the smallest device; on a CPU, of the host shared by its devices."""
    limits = _device_stats("bytes_limit")
    if limits:
        return min(limits)
    host = [psutil.virtual_memory().total, *_process_limits().values()]
    host += [limit for limit, _ in _cgroup_limits()]
    return min(host) // len(jax.local_devices())


def available_memory(num_devices: int = 1) -> tuple[float, str]:
    """(bytes that one local device can still give or, of a GPU, gives at most; their source).

    Devices of a CPU share the memory that is free now.
    """
    limits = _device_stats("bytes_limit")
    if limits:
        return min(limits), "the device's memory_stats"
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    choices = [(free, "free memory of the machine")]
    process = psutil.Process().memory_info()
    if "RLIMIT_DATA" in _process_limits():
        choices.append((_process_limits()["RLIMIT_DATA"] - process.data, "ulimit -d"))
    choices += [(limit - max(held, process_memory()), "the cgroup's limit")
                for limit, held in _cgroup_limits() if held is not None]
    free, source = min(choices)
    return max(free, 0) / num_devices, source


def _device_stats(key: str) -> list[int]:
    """A number of each local device's memory; empty where devices do not count, as CPUs."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    return [s[key] for s in stats] if all(s and key in s for s in stats) else []


def _process_limits() -> dict[str, int]:
    """Limits of `ulimit` on this process's memory, where there are any; they are Linux's."""
    if sys.platform != "linux":
        return {}
    soft = {name: psutil.Process().rlimit(getattr(psutil, name))[0]
            for name in ("RLIMIT_DATA", "RLIMIT_AS")}
    return {name: limit for name, limit in soft.items() if limit != psutil.RLIM_INFINITY}


def _cgroup_limits() -> list[tuple[int, int | None]]:
    """[(limit, bytes held or None)] of the container, of either version of cgroups."""
    found = []
    for limit, used, key in (("memory.max", "memory.stat", "anon"),
                             ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss")):
        root = pathlib.Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            allowed, held = int((root / limit).read_text()), None
            with contextlib.suppress(OSError):
                held = re.search(rf"^{key} (\d+)", (root / used).read_text(), re.MULTILINE)
            found.append((allowed, held and int(held[1])))
    return found
