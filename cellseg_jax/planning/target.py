"""The devices of a plan: how many, how much memory they have, and what compiles for them."""

import jax

from cellseg_jax import config as config_lib
from cellseg_jax.planning import shapes
from cellseg_jax.planning.tpu import RUNTIME_GIB, generation_of, tpu_devices
from cellseg_jax.report import terminal
from cellseg_jax.step.memory import GIB, available_memory
from cellseg_jax.step.mesh import default_mesh

LOCAL = "local"
# The quickest compile level reports at most so many times the memory of the default level.
QUICK_MEMORY_RATIO = 1.3


class Target:
    """The devices of this machine, or of a TPU slice that is only described.

    Args:
      topology: "local" or a TPU slice such as "v5e:2x4".
      given_limit: bytes of a device, instead of what it has.
    Raises: InputError for a slice that does not exist.
    """

    def __init__(self, topology: str, given_limit: float | None):
        self.topology, self.given_limit = topology, given_limit
        self.is_local = topology == LOCAL
        self.devices = jax.devices() if self.is_local else tpu_devices(topology)

    def mesh(self, config):
        """The mesh that a run with this config has by default."""
        return default_mesh(1, config.train.batch_size, config.optimizer.accumulate, self.devices)

    def limit(self, num_devices: int) -> tuple[float, str]:
        """(bytes per device, where the number comes from) if so many devices are used."""
        if self.given_limit is not None:
            return self.given_limit, "as given"
        if self.is_local:
            return available_memory(num_devices if jax.default_backend() == "cpu" else 1)
        memory = generation_of(self.topology).memory_gib
        return ((memory - RUNTIME_GIB) * GIB, f"{self.topology.partition(':')[0]}: {memory} GiB "
                                              f"less {RUNTIME_GIB} of the runtime")

    def compiled(self, config, images, resident: bool, *, exact: bool, **parts) -> shapes.Programs:
        """The programs of a run; on a TPU compiled quickly first, and again if they may yet fit.

        Args:
          exact: compile at the default level even where the quick one is far from fitting.
          parts: training or validation = False, of shapes.compiled_programs.
        """
        mesh = self.mesh(config)
        limit = self.limit(mesh.size)[0]
        for quick in ((False,) if self.is_local else (True, False)):
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
