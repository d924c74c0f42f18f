"""TPU slices that are only described: sizes, memory and speed, for a compiler without a TPU."""

import importlib.util
import math
from typing import NamedTuple

import jax

from cellseg_jax.errors import InputError, pick
from cellseg_jax.step.memory import GIB


class Generation(NamedTuple):
    """One device of a TPU generation as libtpu describes it."""

    memory_gib: float
    bf16_teraflops: float  # per second
    link_gigabytes: float  # per second to other chips
    devices_per_chip: int
    dimensions: int  # of a slice


# The runtime of a real v4 may show one device per chip.
# Source: cloud.google.com/tpu/docs/system-architecture-tpu-vm. launch/tpu_vm.sh reaches up to v6e:
# the Cloud TPU API is in maintenance and does not support tpu7x and later.
GENERATIONS = {
    "v2": Generation(8, 22.5, 124, 2, 2),
    "v3": Generation(16, 61.5, 164, 2, 2),
    "v4": Generation(16, 137.5, 150, 2, 3),
    "v5e": Generation(16, 197, 200, 1, 2),
    "v5p": Generation(95, 459, 600, 1, 3),
    "v6e": Generation(32, 918, 448, 1, 2),
    "tpu7x": Generation(96, 1153, 600, 2, 3),
}
SLICE_SIZES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
RUNTIME_GIB = 0.25  # of a device, kept by the runtime: the compiler reports 15.75 of 16 on a v5e
EXAMPLES = 6  # sizes that the message on a wrong one names


def generation_of(topology: str) -> Generation:
    """The generation of a slice such as "v5e:2x4". Raises InputError."""
    return pick(GENERATIONS, topology.partition(":")[0], "--topology")


def tpu_devices(topology: str) -> list:
    """The described devices of a TPU slice.

    Raises: InputError without libtpu, or for a slice that it does not have.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('--topology: a TPU slice needs libtpu; pip install -e ".[plan]"')
    generation = generation_of(topology)
    from jax.experimental import topologies  # slow to import, and only a slice needs it

    # Its entries cannot be read again without a TPU.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        name = topology.partition(":")[0]
        sizes = ", ".join(f"{name}:{size}" for size in
                          SLICE_SIZES[generation.dimensions][:EXAMPLES])
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--topology: got {topology!r}; expected a slice such as {sizes} "
                         f"(libtpu: {why})") from error


def memory_of(topology: str) -> tuple[float, str]:
    """(bytes of a device of a slice, where the number comes from)."""
    memory = generation_of(topology).memory_gib
    return ((memory - RUNTIME_GIB) * GIB, f"{topology.partition(':')[0]}: {memory} GiB less "
                                          f"{RUNTIME_GIB} of the runtime")


def larger_slices(topology: str, batch_size: int, num_devices: int) -> list[str]:
    """Slices of the same generation with more devices, over which the batch divides evenly."""
    generation, found = generation_of(topology), []
    for size in SLICE_SIZES[generation.dimensions]:
        devices = generation.devices_per_chip * math.prod(map(int, size.split("x")))
        if devices > num_devices and batch_size % devices == 0:
            found.append(f"{topology.partition(':')[0]}:{size}")
    return found
