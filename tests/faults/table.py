"""The campaign of faults: what is done to a run, in which phase, and how that has to end.

A case is a function (place, number) that does the fault numbered so in the empty folder `place` and
asserts how it ends; what it draws at random, it draws from that number.
"""

from collections.abc import Callable
from typing import NamedTuple


class Fault(NamedTuple):
    """A kind of fault."""

    fault: str
    phase: str
    ending: str  # what is expected
    case: Callable
    count: int  # cases in the weekly tier
    fast: int = 0  # of these in every run of the tests
    whole: bool = False  # the long form of another row, for --part=all alone


def faults() -> list[Fault]:
    """All rows of the table."""
    from faults import checkpoints, disks, folders, images, leaks, locks, signals, weights

    return [*checkpoints.FAULTS, *leaks.FAULTS, *locks.FAULTS, *signals.FAULTS,
            *disks.FAULTS, *images.FAULTS, *folders.FAULTS, *weights.FAULTS]
