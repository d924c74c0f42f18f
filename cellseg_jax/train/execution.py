"""How runs that share a compiled program are computed: back-end, slots and mesh."""

import pathlib
from typing import NamedTuple

import jax

from cellseg_jax.crops import round_up
from cellseg_jax.files import interpreting, read_json
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import ENVIRONMENT_FILE

BACKENDS = ("loop", "unroll", "vmap")
SLOTS_MEASURED = (2, 4, 8, 16)


class Execution(NamedTuple):
    """How runs are computed. Kept in each run's environment.json, so that it resumes the same."""

    backend: str  # of BACKENDS
    slots: int  # runs under way at once; 0: to be chosen by measurement
    mesh: tuple[int, int]  # devices along "member" and "data"
    zeros: tuple[str, ...]  # Spec.inactive

    @property
    def width(self) -> int:
        """Slots that one call computes."""
        return self.mesh[0] if self.backend == "loop" else self.slots

    def __str__(self):
        return (f"{self.backend}, {self.slots} slot{'s' * (self.slots > 1)}, "
                f"{self.mesh[0]}x{self.mesh[1]} devices (member x data)")


def requested(backend: str, slots: int, mesh, num_runs: int, zeros) -> Execution:
    """What the flags --backend and --slots ask for; of 0 slots where they leave the choice open.

    Slots are rounded up to a multiple of the devices along "member".
    """
    shape = (mesh.shape["member"], mesh.shape["data"])
    if backend or slots:
        slots = slots or min(num_runs, 8)
        slots = shape[0] if backend == "loop" else round_up(slots, shape[0])
        backend = backend or ("loop" if slots == shape[0] else _batched())
    return Execution(backend or "loop", slots, shape, zeros)


def candidates(first: Execution, num_runs: int) -> list[Execution]:
    """Executions worth measuring beside `first`, the one without risk, for num_runs runs.

    Those with more slots come last: they are not tried once fewer slots brought nothing.
    """
    member, data = first.mesh
    found = [first._replace(backend=_batched(), slots=n) for n in SLOTS_MEASURED
             if n <= num_runs and n % member == 0]
    if data > 1 and num_runs >= member * data:  # a run per device: no communication between them
        alone = first._replace(mesh=(member * data, 1))
        found.insert(0, alone._replace(slots=member * data))
        found += [alone._replace(backend=_batched(), slots=n * member * data)
                  for n in SLOTS_MEASURED[:2] if n * member * data <= num_runs]
    return found


def stored(workdir: pathlib.Path) -> Execution | None:
    """The execution that a run was begun in, if there are as many devices as then."""
    with interpreting(workdir / ENVIRONMENT_FILE):
        environment = read_json(workdir / ENVIRONMENT_FILE, {})
        record = environment.get("program", {})
        if not record.keys() >= set(Execution._fields):
            return None
        found = Execution(record["backend"], record["slots"], tuple(record["mesh"]),
                          tuple(record["zeros"]))
        before = len(environment.get("devices", ())), environment.get("processes", 1)
    now = jax.device_count(), jax.process_count()
    if before == now:
        return found
    terminal.log("{}: started on {} device(s) of {} process(es), resumed on {} of {}; results "
                 "agree to rounding".format(workdir, *before, *now))
    return None


def _batched() -> str:
    """The back-end of several slots in one call that suits the devices."""
    return "unroll" if jax.default_backend() == "cpu" else "vmap"
