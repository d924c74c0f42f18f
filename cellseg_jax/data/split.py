"""Which sample belongs to training, validation and test."""

import numpy as np

from cellseg_jax.errors import InputError

PARTS = ("train", "val", "test")
STREAM = 2**40  # Philox keys (seed, epoch) belong to the shuffles; no epoch is that late


def split(groups, strata, *, fractions, seed) -> dict[str, np.ndarray]:
    """{"train", "val", "test"}: ascending int32 indices into `groups`.

    Samples of one group stay together. Groups come in seeded random order, large ones first;
    each goes where its strata lack most, as long as it fits there as a whole; what fits nowhere
    goes where most is missing in total. With groups of one sample, the share of every stratum
    in every part is exact up to rounding. A rest that the fractions leave stays unused.

    Args:
      groups: one name per sample; a sample of its own has its own name.
      strata: one name per sample.
      fractions: of the samples for train, val and test, each in [0, 1], sum at most 1.
      seed: of the random order; equal seeds give equal splits on all machines.
    """
    fractions = _check(fractions)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    kinds, stratum = np.unique(np.asarray(strata), return_inverse=True)
    counts = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(counts, (group, stratum), 1)
    sizes = counts.sum(1)

    # Raw Philox words are the one numpy stream that is promised never to change.
    words = np.random.Philox(key=[seed % 2**64, STREAM]).random_raw(len(names))
    waiting = np.lexsort((words, -sizes)).tolist()
    part = np.zeros(len(names), np.int64)
    lacks = fractions[:, None] * counts.sum(0)  # (parts, strata), what is still to be filled
    empty = {p for p in range(len(PARTS)) if fractions[p] > 0}
    deferred, left = [], len(waiting)
    for last_round in (False, True):
        for g in deferred if last_round else waiting:
            lack = np.round(lacks @ counts[g] / sizes[g], 9)  # rounded: sums like 0.1 + 0.2
            if left <= len(empty):  # the last groups go where there is none yet
                choice = max(empty, key=lambda p: lack[p])
            elif last_round:
                total = np.round(lacks.sum(1), 9)
                choice = max(range(len(lack)), key=lambda p: (lack[p] > 0, total[p], lack[p]))
            else:
                choice = int(np.argmax(lack))
                if lack[choice] < sizes[g]:
                    deferred.append(g)
                    continue
            part[g] = choice
            lacks[choice] -= counts[g]
            empty.discard(choice)
            left -= 1
    if empty:
        missing = ", ".join(PARTS[p] for p in sorted(empty))
        raise InputError(f"config.data.split: {missing} would be empty with {len(groups)} images "
                         f"in {len(names)} groups; add images or set that fraction to 0")
    return {
        name: np.flatnonzero(part[group] == p).astype(np.int32) for p, name in enumerate(PARTS)
    }


def _check(fractions) -> np.ndarray:
    """(4,) float64: train, val, test and the unused rest."""
    got = f"config.data.split: got {tuple(fractions)}"
    if len(fractions) != len(PARTS):
        raise InputError(f"{got}; expected three fractions for train, val and test")
    if min(fractions) < 0:
        raise InputError(f"{got}; expected no negative fraction")
    rest = round(1 - sum(fractions), 9)
    if rest < 0:
        raise InputError(f"{got} with sum {sum(fractions):g}; expected a sum of at most 1")
    return np.array([*fractions, rest], np.float64)
