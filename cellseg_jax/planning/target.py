"""The devices of a plan: how many, how much memory they have, and what compiles for them."""

import jax

from cellseg_jax import config as config_lib
from cellseg_jax.errors import pick
from cellseg_jax.planning import gpu, shapes, tpu
from cellseg_jax.report import terminal
from cellseg_jax.step.memory import available_memory
from cellseg_jax.step.mesh import default_mesh

LOCAL = "local"
# The quickest compile level reports at most so many times the memory of the default level.
QUICK_MEMORY_RATIO = 1.3


class Target:
    """The devices of this machine, or GPUs or a TPU slice that are only described.

    Args:
      topology: "local", GPUs such as "h100x8", or a TPU slice such as "v5e:2x4".
      given_limit: bytes of a device, instead of what it has.
    Raises: InputError for a topology that does not exist, or whose compiler is not installed.
    """

    def __init__(self, topology: str, given_limit: float | None):
        self.topology, self.given_limit = topology, given_limit
        self.is_local, self.is_gpu = topology == LOCAL, gpu.parse(topology) is not None
        if self.is_local:
            self.devices = jax.devices()
        elif self.is_gpu:
            self.devices = gpu.gpu_devices(topology)
        else:
            pick(tpu.GENERATIONS | gpu.GPUS, topology.partition(":")[0], "--topology")
            self.devices = tpu.tpu_devices(topology)

    def mesh(self, config):
        """The mesh that a run with this config has by default."""
        return default_mesh(1, config.train.batch_size, config.optimizer.accumulate, self.devices)

    def limit(self, num_devices: int) -> tuple[float, str]:
        """(bytes per device, where the number comes from) if so many devices are used."""
        if self.given_limit is not None:
            return self.given_limit, "as given"
        if self.is_local:
            return available_memory(num_devices if jax.default_backend() == "cpu" else 1)
        return (gpu if self.is_gpu else tpu).memory_of(self.topology)

    def throughput(self, precision: str) -> tuple[float, float]:
        """(TFLOP/s at its peak, GB/s to other devices) of a described device."""
        if not self.is_gpu:
            generation = tpu.generation_of(self.topology)
            return generation.bf16_teraflops, generation.link_gigabytes
        one = gpu.gpu_of(self.topology)
        return (one.bf16_teraflops if precision == "bfloat16" else one.tf32_teraflops,
                one.link_gigabytes)

    def larger(self, batch_size: int) -> list[str]:
        """Topologies of more such devices, over which the batch divides evenly."""
        if self.is_local:
            return []
        if self.is_gpu:
            return gpu.larger_hosts(self.topology, batch_size)
        return tpu.larger_slices(self.topology, batch_size, len(self.devices))

    def compiled(self, config, images, resident: bool, *, exact: bool, **parts) -> shapes.Programs:
        """The programs of a run; on a TPU compiled quickly first, and again if they may yet fit.

        Args:
          exact: compile at the default level even where the quick one is far from fitting.
          parts: training or validation = False, of shapes.compiled_programs.
        """
        mesh = self.mesh(config)
        limit = self.limit(mesh.size)[0]
        for quick in ((False,) if self.is_local or self.is_gpu else (True, False)):
            programs = shapes.compiled_programs(
                config, mesh, images, resident=resident, quick=quick, **parts)
            if programs.needs <= limit or not (
                    exact or programs.needs <= QUICK_MEMORY_RATIO * limit):
                break
        return programs

    def needs_of(self, config, images, resident: bool, changes: dict, **parts) -> int:
        """Bytes per device that a run needs after changes of config keys."""
        terminal.progress_line("compiling with " + (", ".join(
            f"config.{key}={value}" for key, value in changes.items()) or self.topology))
        changed = config_lib.changed(config, changes)
        return self.compiled(changed, images, resident, exact=False, **parts).needs
