"""How a group of runs is computed: back-end, slots and mesh."""

from typing import NamedTuple

import jax

BACKENDS = ("loop", "unroll", "vmap")
SLOTS = (2, 4, 8, 16)  # what is tried


class Program(NamedTuple):
    """How a group of runs is computed. Kept with each run, so that it resumes in the same."""

    backend: str  # of BACKENDS
    slots: int  # runs under way at once
    mesh: tuple[int, int]  # devices along "member" and "data"
    inactive: tuple[str, ...]  # step.Spec.inactive

    @property
    def width(self) -> int:
        """Slots that one call computes."""
        return self.mesh[0] if self.backend == "loop" else self.slots

    def __str__(self):
        return (f"{self.backend}, {self.slots} slot{'s' * (self.slots > 1)}, "
                f"{self.mesh[0]}x{self.mesh[1]} devices (member x data)")


def candidates(first: Program, num_runs: int) -> list[Program]:
    """Programs worth measuring beside `first`, the one without risk, for num_runs runs.

    Those with more slots come last: they are not tried once fewer slots brought nothing.
    """
    batched = "unroll" if jax.default_backend() == "cpu" else "vmap"
    member, data = first.mesh
    found = [first._replace(backend=batched, slots=n) for n in SLOTS
             if n <= num_runs and n % member == 0]
    if data > 1 and num_runs >= member * data:  # a run per device needs no word between devices
        alone = first._replace(mesh=(member * data, 1))
        found.insert(0, alone._replace(slots=member * data))
        found += [alone._replace(backend=batched, slots=n * member * data) for n in SLOTS[:2]
                  if n * member * data <= num_runs]
    return found
