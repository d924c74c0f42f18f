"""Whether a row is equal to the baseline, or no worse, within a margin that the study file states.

A difference that is not shown is no equality. With MARGIN = {"dice_mean": 0.01} two questions are
asked of each row: is it worse by less than the margin ("no worse"), and does it differ by less than
it, either way ("equal")? Both are one-sided t-tests at 5 %, with the error, the pairs and the
correction for overlapping splits of `stats.paired`, so that they agree with the 90 % interval of
the difference: equal where that lies within the margin. Each question is adjusted over the rows by
itself, after Holm. A row that is "better" is no worse by any margin, whatever became of the others.

Beside it stands a Bayesian reading of the same differences, the probability that the row is worse,
equal or better by more than the margin. It is not adjusted for the number of rows.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

from cellseg_jax.studies import stats

WORDS = ("equal", "no worse", "not shown")
STEPS = 400  # of the numerical integral in power_to_equal


class Posterior(NamedTuple):
    """Probabilities that sum to 1; NaN where nothing is known."""

    worse: float  # by more than the margin
    equal: float
    better: float


class Within(NamedTuple):
    """A row against the baseline, within a margin."""

    margin: float
    p_no_worse: float  # one-sided, adjusted over the rows
    p_equal: float
    posterior: Posterior
    word: str  # of WORDS


def one_sided(comparison: stats.Comparison, margin: float,
              larger_is_better: bool = True) -> tuple[float, float]:
    """(p that the first is worse by the margin or more, p that it differs by it or more).

    Two one-sided t-tests; the first p is of one of them, the second the larger of both. NaN with
    fewer than three pairs, or where these are copies.

    Source: Schuirmann 1987; non-inferiority as one of both tests.
    """
    if comparison.n < stats.MIN_PAIRS or math.isnan(comparison.p):
        return math.nan, math.nan
    gain = comparison.difference if larger_is_better else -comparison.difference
    error = stats.standard_error(comparison)
    p = lambda room: float(scipy_stats.t.sf(room / error if error else math.inf, comparison.n - 1))
    return p(margin + gain), max(p(margin + gain), p(margin - gain))


def posterior(comparison: stats.Comparison, margin: float,
              larger_is_better: bool = True) -> Posterior:
    """The Bayesian correlated t-test with the margin as region of practical equivalence.

    With the usual flat prior the mean difference is Student's t around what was seen, with the
    error of `stats.paired` and n - 1 degrees of freedom.

    Source: Corani and Benavoli 2015; Benavoli, Corani, Demsar and Zaffalon 2017, Time for a change,
      whose correlation rho of repeats is test / (test + training images).
    """
    if comparison.n < stats.MIN_PAIRS or math.isnan(comparison.p):
        return Posterior(math.nan, math.nan, math.nan)
    error = stats.standard_error(comparison)
    if not error:  # no difference in any repeat
        return Posterior(0.0, 1.0, 0.0)
    below, above = (float(scipy_stats.t.sf((margin + way * comparison.difference) / error,
                                           comparison.n - 1)) for way in (1, -1))
    worse, better = (below, above) if larger_is_better else (above, below)
    return Posterior(worse, 1 - below - above, better)


def within(compared, gaps, margin: float, larger_is_better: bool) -> list[Within]:
    """The readings of rows in one metric; their p adjusted for the number of rows.

    A row of which a repeat diverged or is missing is not shown to be no worse, and equal to none;
    nor is any row equal to a baseline that lacks one.

    Args:
      compared: stats.Comparison of each row with the baseline.
      gaps: (of the row, of the baseline) of each comparison, by gaps.own_gaps.
    """
    p = [one_sided(one, margin, larger_is_better) for one in compared]
    no_worse, equal = (stats.holm([pair[k] for pair in p]).tolist() for k in (0, 1))
    two_sided = stats.holm([one.p for one in compared])
    found = []
    for one, (gap, base_gap), a, b, p in zip(compared, gaps, no_worse, equal, two_sided,
                                             strict=True):
        better = stats.verdict(one, p, larger_is_better) == "better"
        shown = ("equal" if b < stats.ALPHA and not base_gap else
                 "no worse" if a < stats.ALPHA or better else "not shown")
        chances = posterior(one, margin, larger_is_better)
        if gap or base_gap:
            chances = Posterior(math.nan, math.nan, math.nan)
        found.append(Within(margin, a, b, chances, "not shown" if gap else shown))
    return found


@functools.cache
def repeats_to_equal(
    sd: float, margin: float, difference: float = 0.0, *, power: float = 0.8,
    alpha: float = stats.ALPHA, test_train_ratio: float = 0.0,
) -> float:
    """Repeats with which two rows are shown to be equal within the margin; inf: none do.

    Args:
      sd: of the paired differences.
      difference: the true one, whose size is below the margin.
      alpha: of each of the two one-sided tests, divided by the number of rows.
    """
    if math.isnan(sd):
        return math.nan
    if sd <= 0:
        return stats.MIN_PAIRS
    enough = lambda n: power_to_equal(n, sd, margin, difference, alpha=alpha,
                                      test_train_ratio=test_train_ratio) >= power
    return stats.smallest(enough)


def power_to_equal(n: int, sd: float, margin: float, difference: float = 0.0, *,
                   alpha: float = stats.ALPHA, test_train_ratio: float = 0.0) -> float:
    """The chance that two rows of that true difference are shown to be equal within the margin.

    The mean difference is normal, its spread a chi-square; both tests pass where
    |mean| < margin - t s sqrt(1/n + ratio), integrated over quantiles of the spread. Differences
    are correlated as the corrected test assumes, with a common part of variance ratio times sd^2.
    """
    scale = math.sqrt(1 / n + test_train_ratio)
    limit = float(scipy_stats.t.ppf(1 - alpha, n - 1))
    quantiles = (np.arange(STEPS) + 0.5) / STEPS
    spread = np.sqrt(scipy_stats.chi2.ppf(quantiles, n - 1) / (n - 1))
    room = np.maximum(margin / sd - limit * spread * scale, 0)
    below = lambda mean: scipy_stats.norm.cdf((mean - difference / sd) / scale)
    return float((below(room) - below(-room)).mean())
