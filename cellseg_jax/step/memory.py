"""What a run needs of its devices, known from its compiled programs before a step is done.

The programs are those that training runs, compiled for shapes instead of arrays, on devices that
are here or on a TPU slice that is only described. XLA says what they hold; nothing is guessed.
"""

import contextlib
import math
import os
import pathlib
import re
import resource
import sys
from typing import NamedTuple

import jax
import numpy as np

from cellseg_jax.errors import InputError


def peak_memory() -> int:
    """Bytes in use at most so far, on the fullest device; on a CPU, by this process."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "peak_bytes_in_use" in s for s in stats):
        return max(s["peak_bytes_in_use"] for s in stats)
    return peak_rss()


def peak_rss() -> int:
    """Bytes of memory that this process has held at most, memory maps included."""
    unit = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_memory() -> int:
    """Bytes of the smallest device; on a CPU, of the host shared by its devices."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] for s in stats)
    return _host_memory() // len(stats)


def _host_memory() -> int:
    """Bytes that this process may use: of the machine, its limits and its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft = resource.getrlimit(kind)[0]
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such cgroup, or "max"
            limits.append(int(pathlib.Path(file).read_text()))
    return min(limits)


GIB = 2**30
RESIDENT_SHARE = 0.3  # of a device that feed.resident_source fills with images
HEAP = 1.15  # what a CPU's heap holds for each byte asked for: fitted to the runs of test_plan.py
CHANGES = ("a smaller config.train.batch_size, config.train.remat=True, "
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
        return sum(self)

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer + self.averaged + self.batch_stats


class DoesNotFit(InputError):
    """A program cannot get the memory that it needs."""


class _OutOfMemory(Exception):
    """The compiler found no room for a program that needs so many bytes."""


def refusal(needs: float, has: float) -> str:
    """The line that says that a run does not fit."""
    return f"does not fit: needs {needs / GIB:.2f} GiB per device, has {has / GIB:.2f} GiB"


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
    held = _held(given)
    outside = (memory.argument_size_in_bytes + memory.output_size_in_bytes
               - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes)
    other = max(outside - sum(held.values()), 0)
    held["images"] += extra_images
    return Footprint(**held, temporaries=memory.temp_size_in_bytes, other=other)


def _held(given) -> dict:
    """Bytes on each device of the arguments of a train step."""
    state, *batch = given
    return {name: sum(_shard_bytes(x) for x in jax.tree.leaves(tree)) for name, tree in (
        ("parameters", state.params), ("optimizer", state.opt_state), ("averaged", state.ema),
        ("batch_stats", state.batch_stats), ("images", batch))}


def _shard_bytes(x) -> int:
    return _bytes(x.sharding.shard_shape(x.shape), x.dtype)


def _bytes(shape, dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def flops(compiled, accumulate: int = 1) -> float:
    """Of one call on one device, as XLA counts them: the body of the loop over micro-batches, in
    which nearly all of them are, once.
    """
    return (compiled.cost_analysis() or {}).get("flops", 0.0) * accumulate


def all_reduced(compiled, accumulate: int = 1) -> int:
    """Bytes that all-reduces of one call give on one device, by the program's text.

    Those in a loop, that over micro-batches, count `accumulate` times.
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


def available_memory(num_devices: int = 1) -> tuple[float, str]:
    """(bytes that one local device can still give or, of a GPU, gives at most; who says so).

    Devices of a CPU share the memory that is free now.
    """
    stats = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] for s in stats), "the device's memory_stats"
    free = _meminfo("MemAvailable") + _meminfo("SwapFree")
    choices = [(free or math.inf, "/proc/meminfo")]
    own, status = process_memory(), _status("VmData")
    choices += [(limit - status, "ulimit -d") for limit in [resource.getrlimit(
        resource.RLIMIT_DATA)[0]] if limit != resource.RLIM_INFINITY]
    for limit, used, key in (("memory.max", "memory.stat", "anon"),
                             ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss")):
        root = pathlib.Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError, IndexError):  # no such cgroup, or "max"
            allowed = int((root / limit).read_text())
            held = re.findall(rf"^{key} (\d+)", (root / used).read_text(), re.MULTILINE)
            choices.append((allowed - max(int(held[0]), own), "the cgroup's limit"))
    free, source = min(choices)
    return max(free, 0) / num_devices, source


def process_memory() -> int:
    """Bytes that this process holds by itself: no files, no shared memory."""
    return _status("RssAnon")


def _status(key: str) -> int:
    return _kib("/proc/self/status", key)


def _meminfo(key: str) -> int:
    return _kib("/proc/meminfo", key)


def _kib(file: str, key: str) -> int:
    if not os.path.exists(file):  # no Linux
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", pathlib.Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
