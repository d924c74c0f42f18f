"""GPUs that are only described: facts of their data sheets, for a compiler without a GPU."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax

from cellseg_jax.errors import InputError
from cellseg_jax.step.memory import GIB


class Gpu(NamedTuple):
    """One GPU; throughputs are dense ones, per second."""

    name: str
    capability: tuple[int, int]  # of CUDA
    multiprocessors: int
    clock_ghz: float  # boost
    memory_gib: float  # as nvidia-smi shows it
    memory_gigabytes: float  # per second
    l2_mib: int
    shared_kib: int  # memory that the blocks of a multiprocessor share
    threads: int  # of a multiprocessor
    tf32_teraflops: float
    bf16_teraflops: float  # added up in float32
    link_gigabytes: float  # per second to other GPUs, in one direction


# Source: NVIDIA's data sheets of the H100, H200 (SXM), A100 (SXM, 80 GB), L4 and RTX 4090, the
# white papers of the architectures Hopper, Ampere and Ada, and the table of technical
# specifications by compute capability in the CUDA programming guide.
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 79.6, 3350, 50, 228, 2048, 494.7, 989.4,
                450),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 1.98, 140.4, 4800, 50, 228, 2048, 494.7, 989.4, 450),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 80.0, 2039, 40, 164, 2048, 156, 312,
                300),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 22.5, 300, 48, 100, 1536, 60.5, 121, 32),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 24.0, 1008, 72, 100, 1536, 82.6,
                   165.2, 32),
}
MAX_GPUS = 8  # of one host
FRACTION_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75  # of its memory that JAX takes where the variable is not set
WORKSPACE_LIMIT = 4 * GIB  # XLA takes no algorithm of cuDNN that needs more
# Fields of stream_executor.GpuTargetConfigProto. Common to all of these GPUs: 32 threads of a warp,
# 1,024 of a block, 65,536 registers, 48 KiB of shared memory without a request, 128 units. The
# versions of cuDNN and CUDA are about those of the extra.
DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.multiprocessors}
  fpus_per_core: {units}
  clock_rate_ghz: {gpu.clock_ghz}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {gpu.threads}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin}
  shared_memory_per_core: {shared}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: {l2}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def parse(topology: str) -> tuple[str, int] | None:
    """(a key of GPUS, how many) of a topology such as "h100" or "h100x8"; None if it is none."""
    found = re.fullmatch(rf"({'|'.join(GPUS)})(?:x(\d+))?", topology)
    return found and (found[1], int(found[2] or 1))


def gpu_of(topology: str) -> Gpu:
    """One of the GPUs of a topology of `parse`."""
    return GPUS[parse(topology)[0]]


def gpu_devices(topology: str) -> list:
    """The described devices of a topology of `parse`, all of one host.

    Raises: InputError for more than a host has, or without the extra cuda.
    """
    _, count = parse(topology)
    if not 1 <= count <= MAX_GPUS:
        raise InputError(f"--topology: got {topology!r}; expected 1 to {MAX_GPUS} GPUs, those of "
                         "one host")
    if importlib.util.find_spec("jax_plugins") is None:
        raise InputError('--topology: a GPU needs the CUDA compiler; pip install -e ".[cuda]"')
    from jax.experimental import topologies  # slow to import, and only this needs it

    # Its entries would be read by the same version with a GPU, whose autotuner they lack.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return topologies.get_topology_desc(
            "any", "cuda", target_config=description(gpu_of(topology)),
            topology=f"1x1x{count}").devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f'--topology: {topology}: no CUDA compiler (pip install -e ".[cuda]", and '
                         f"without a GPU JAX_PLATFORMS=cpu in the environment): {why}") from error


def description(gpu: Gpu) -> str:
    """The text by which XLA compiles for a GPU that is not here."""
    major, minor = gpu.capability
    return DESCRIPTION.format(
        gpu=gpu, major=major, minor=minor, units=64 if gpu.capability == (8, 0) else 128,
        optin=(gpu.shared_kib - 1) * 1024, shared=gpu.shared_kib * 1024, l2=gpu.l2_mib * 2**20,
        bandwidth=round(gpu.memory_gigabytes * 1e9), memory=round(gpu.memory_gib * GIB))


def memory_of(topology: str) -> tuple[float, str]:
    """(bytes that JAX takes of a GPU, where the number comes from)."""
    gpu = gpu_of(topology)
    fraction = float(os.environ.get(FRACTION_VARIABLE) or DEFAULT_FRACTION)
    return (fraction * gpu.memory_gib * GIB,
            f"{fraction:.0%} of {gpu.memory_gib} GiB, see --memory")


def larger_hosts(topology: str, batch_size: int) -> list[str]:
    """More of the same GPUs, over which the batch divides evenly."""
    name, count = parse(topology)
    return [f"{name}x{n}" for n in (2, 4, MAX_GPUS) if n > count and batch_size % n == 0]


def workspace(program: str) -> int:
    """Bytes that convolutions of cuDNN may need beside what the text of the program counts.

    Which algorithms run is measured on the GPU, so that without one the program counts none. This
    margin is the largest sum of a convolution's operands and result, for algorithms that bring
    them into another layout, but at most what XLA allows.
    """
    sizes = {name: _bytes(kind, dims) for name, kind, dims in re.findall(
        r"%([\w.-]+) = \(?(\w+)\[([\d,]*)\]", program)}
    calls = re.findall(r'%([\w.-]+) = .*custom-call\(([^)]*)\).*custom_call_target="__cudnn\$conv',
                       program)
    return min(WORKSPACE_LIMIT, max(
        (sum(sizes.get(name, 0) for name in (result, *re.findall(r"%([\w.-]+)", operands)))
         for result, operands in calls), default=0))


def _bytes(kind: str, dims: str) -> int:
    """Of an array in the text of a program."""
    bits = int(re.sub(r"\D", "", kind) or 8)
    return bits // 8 * math.prod(int(n) for n in dims.split(",") if n)
