"""Repeats without a score: how many diverged, are missing or undefined, and what follows in words.

The mean of a row is of the repeats that ended. Where a repeat diverged, these are a selection: the
luckier ones. So a side that lacks a repeat, for whatever reason, wins no comparison: it may be
worse, else the word is "diverged" or "incomplete". Beside it stands a reading by rank, in which a
repeat that diverged comes after all others, and which may be decided either way.

A repeat in which the score is undefined in both rows, as where its split has no image of a stratum,
selects neither and is left out of the comparison alone.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from cellseg_jax.studies import stats
from cellseg_jax.studies.runs import values_of

DIVERGED, INCOMPLETE = "diverged", "incomplete"  # of stats.VERDICTS
EXACT = 8  # repeats up to which every permutation is tried, else a fixed random 9,999


class Gaps(NamedTuple):
    """Of the repeats of a row, in one metric. True where there is a gap."""

    repeats: int = 0
    diverged: int = 0  # loss or gradient became non-finite
    missing: int = 0  # no run, unfinished, or left out
    undefined: int = 0  # ended, without a value of this metric: no run can change that

    def __bool__(self):
        return any(self[1:])

    def __str__(self):
        """'2 of 5 diverged'; "" without a gap."""
        words = zip(self[1:], (DIVERGED, "missing", "undefined"), strict=True)
        there = [(n, word) for n, word in words if n]
        if len(there) == 1:
            return f"{there[0][0]} of {self.repeats} {there[0][1]}"
        return f"{', '.join(f'{n} {word}' for n, word in there)} of {self.repeats}" if there else ""


def diverged(runs) -> np.ndarray:
    """(R,) bool, which of a row's Found became non-finite in training; of its config of now."""
    return np.array([one.run.status == "non-finite" and not one.run.mark for one in runs], bool)


def gaps_of(runs, metric) -> Gaps:
    """Of a row's Found of each repeat."""
    bad, ended = diverged(runs), np.array([one.run.counts for one in runs], bool)
    lacking = ~bad & ~np.isfinite(values_of(runs, metric))
    return Gaps(len(runs), *(int(x.sum()) for x in (bad, lacking & ~ended, lacking & ended)))


def undefined(values, runs) -> np.ndarray:
    """(R,) bool, which of a row's Run ended without a value."""
    return ~np.isfinite(values) & np.array([run.counts for run in runs], bool)


def own_gaps(rows, metric) -> list[Gaps]:
    """Gaps of table.Rows, but for repeats in which the score is undefined in all of them."""
    shared = np.all([undefined(row.values[metric], row.runs) for row in rows], axis=0).sum()
    return [row.gaps[metric]._replace(undefined=row.gaps[metric].undefined - int(shared))
            for row in rows]


def limited(word: str, first: Gaps, second: Gaps) -> str:
    """A verdict on the first of two rows, or the gap that keeps it from being given.

    Args:
      word: one of stats.VERDICTS, from the repeats that both have.
    """
    if word in ("better", "worse") and not (first if word == "better" else second):
        return word
    if first.diverged or second.diverged:
        return DIVERGED
    if word == "too few repeats" or not (first or second):
        return word
    return INCOMPLETE


def with_last(values, diverged, larger_is_better: bool) -> np.ndarray:
    """(R,) scores of which a larger one is better; -inf where a repeat diverged."""
    return np.where(diverged, -np.inf, values if larger_is_better else -np.asarray(values))


def by_rank(a, b, test_train_ratio: float = 0.0) -> stats.Comparison:
    """First against second by the ranks of all their repeats: a two-sided rank-sum test.

    Its p is exact for repeats that are independent, and too large for pairs that resemble one
    another. Where repeats draw overlapping splits, p is the larger one of this test and of the
    corrected t-test of `stats.paired` on the ranks.

    Args:
      a, b: (R,) of `with_last`; a pair with a NaN is left out, -inf is the worst.
      test_train_ratio: as in stats.paired.
    Returns: difference is of the mean ranks, without an interval; effect_size is the rank-biserial
      correlation, the share of pairs of runs in which the first is ahead minus that of the others.
    Source: Mann and Whitney 1947, with the permutation distribution, so that ties are exact.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    kept = ~(np.isnan(a) | np.isnan(b))
    ranks = scipy_stats.rankdata(np.concatenate([a[kept], b[kept]]))
    n, unknown = int(kept.sum()), (math.nan, math.nan)
    if n < stats.MIN_PAIRS:
        return stats.Comparison(math.nan, unknown, math.nan, math.nan, n, "rank-sum test")
    x, y = ranks[:n], ranks[n:]
    difference = float(x.mean() - y.mean())
    p = _permuted_p(ranks, n)
    if test_train_ratio:
        corrected = stats.paired(x, y, test_train_ratio=test_train_ratio).p
        if math.isnan(corrected):  # all differences of ranks are equal: runs apart, or copies
            corrected = 1.0 if np.ptp(x) == np.ptp(y) == 0 else 0.0
        p = max(p, corrected)
    return stats.Comparison(difference, unknown, p, difference / n, n, "rank-sum test")


def _permuted_p(ranks, n) -> float:
    """The share of permutations whose first n ranks have a sum at least as far from its mean."""
    if n > EXACT:
        method = scipy_stats.PermutationMethod(rng=0)
        return min(1.0, float(scipy_stats.mannwhitneyu(ranks[:n], ranks[n:],
                                                       method=method).pvalue))
    centre = ranks.sum() / 2
    far = np.abs(ranks[_choices(n)].sum(1) - centre)
    return float(np.mean(far >= abs(ranks[:n].sum() - centre) - 1e-9))


@functools.cache
def _choices(n) -> np.ndarray:
    """(C, n) every choice of n of 2 n."""
    return np.array(list(itertools.combinations(range(2 * n), n)))


def word_between(first, second, metric: str, test_train_ratio: float) -> str:
    """The verdict on the first of two table.Rows, not adjusted; by rank where the second diverged.

    Only that way a row can be better than one of which no two repeats have a score.
    """
    (mine, other), up = own_gaps((first, second), metric), stats.larger_is_better(metric)
    if not other.diverged:
        return limited(stats.verdict_of(first.values[metric], second.values[metric], metric,
                                        test_train_ratio), mine, other)
    one = by_rank(*(with_last(row.values[metric], row.diverged, up) for row in (first, second)),
                  test_train_ratio)
    word = stats.verdict(one, one.p)
    return word if word == "better" and not mine else DIVERGED
