"""What is a difference and what is noise: paired tests, noise floor, power, verdicts.

The unit of every claim on a method is the run. Repeat r of two rows shares seed and split, so
rows are compared by the differences of their repeats. Images of one run are not independent
evidence for a method: two seeds of one config differ significantly over many images. Tests over
images are therefore secondary.

Limits of the t-tests: heavy tails and occasional runs that collapse make them conservative. Where
nearly every third run collapses, the baseline may do so in all of three repeats; a table of eight
equal rows then has a family-wise type I error of 9 % instead of 5 %. With five repeats it is at
most 5 %. Repeats that became non-finite have no score: see gaps.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from cellseg_jax.inference.score_definitions import SCORES, UNBOUNDED
from cellseg_jax.metrics import bootstrap

ALPHA = 0.05
MIN_PAIRS = 3  # two differences give no usable spread: significance would need |t| > 12.7
# Smaller spreads than this share of the values are rounding: nothing varied.
ROUNDING = 1e-9
LOWER_IS_BETTER = frozenset({
    "loss", "ece", "train_seconds", "cpu_seconds", "peak_memory_gib", "hausdorff95",
    "count_error", "count_error_relative", "merge_rate", "split_rate",
    "rand_error", "variation_of_information", "information_error", "ms_per_image",
    "epochs_to_95", "train_loss", "val_loss", "val_loss_rise", "val_loss_spread", "loss_gap"})
VERDICTS = ("better", "worse", "not distinguishable", "too few repeats",
            "diverged", "incomplete")  # the last two by gaps.limited alone
JUDGEMENTS = ("supported", "contradicted", "undecided")


class Comparison(NamedTuple):
    """Two rows, or two methods on the same images; NaN is what is not known.

    difference: mean of first minus second. interval: (low, high), 95 %, of the difference.
    p: two-sided, not adjusted. effect_size: see the function that made it.
    n: pairs. test: its name in words.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    effect_size: float
    n: int
    test: str


class Noise(NamedTuple):
    """Spread of runs of the same config: sd, its 95 % interval (low, high), and n runs."""

    sd: float
    interval: tuple[float, float]
    n: int


def paired(a, b, *, test_train_ratio: float = 0.0) -> Comparison:
    """First minus second over repeats that share seed and split: a two-sided paired t-test.

    t = mean(d) / (sd(d) sqrt(1/n + test_train_ratio)) with n - 1 degrees of freedom. Random splits
    of one pool of images overlap, so that repeats are correlated; the ratio of test to training
    images corrects for it. 0 is the plain test, for repeats that vary in the seed alone: the
    result then holds for this test set.

    Where all differences are equal and not 0, their spread is not known, and they may be no
    repeats at all (a method without randomness, a seed that nothing reads): p is NaN, and the
    verdict is "too few repeats". Differences that are all 0 have p = 1.

    Args:
      a, b: (R,) scores of the repeats in the same order; a pair with a NaN is left out.
      test_train_ratio: test images / training images, where every repeat draws its own split.
    Returns: effect_size is Cohen's d_z = mean(d) / sd(d) times Hedges' small-sample correction.
    Raises: ValueError if shapes differ.
    Source: Nadeau and Bengio 2003, Inference for the generalization error, equation 8.
    """
    d, scale = _differences(a, b)
    n = len(d)
    test = "corrected resampled t-test" if test_train_ratio else "paired t-test"
    mean = float(d.mean()) if n else math.nan
    unknown = (math.nan, math.nan)
    if n < 2:
        return Comparison(mean, unknown, math.nan, math.nan, n, f"{test}: {n} repeats")
    sd = float(d.std(ddof=1))
    if sd <= ROUNDING * scale:
        if abs(mean) <= ROUNDING * scale:
            return Comparison(0.0, (0.0, 0.0), 1.0, 0.0, n, f"{test}: equal in all repeats")
        return Comparison(mean, unknown, math.nan, math.nan, n,
                          f"{test}: the same difference in all repeats, whose spread is not known")
    error = sd * math.sqrt(1 / n + test_train_ratio)
    half = error * float(stats.t.ppf(1 - ALPHA / 2, n - 1))
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Comparison(mean, (mean - half, mean + half), p, mean / sd * _hedges(n - 1), n, test)


def per_image(a, b, groups=None, *, draws: int = 2000, seed: int = 0) -> Comparison:
    """First minus second on the same images: secondary, because it leaves out the seed's noise.

    The interval is the percentile bootstrap of the mean over images, which draws whole groups
    (cases, plates), because images of a group resemble one another. p is Wilcoxon's signed-rank
    test of the groups' mean differences (scipy: without the zeros, exact for few groups).

    Args:
      a, b: (n,) scores of the images; a pair with a NaN is left out.
      groups: (n,) names of what was drawn independently; None: each image by itself.
      draws, seed: of the bootstrap.
    Returns: n counts the groups; effect_size is the matched-pairs rank-biserial correlation in
      [-1, 1], the rank sum of gains minus that of losses, as a share of their sum.
    """
    a, b = _same_shape(a, b)
    kept = np.isfinite(a) & np.isfinite(b)
    d = (a - b)[kept]
    names = np.arange(len(d)) if groups is None else np.asarray(groups)[kept]
    _, group = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(group, d), np.bincount(group)
    n = len(sums)
    test = f"Wilcoxon signed-rank test over {n} {'images' if n == len(d) else 'groups of images'}"
    if n < MIN_PAIRS:
        mean = float(d.mean()) if n else math.nan
        return Comparison(mean, (math.nan, math.nan), math.nan, math.nan, n, test)
    drawn = bootstrap.group_counts(n, draws, seed)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = (float(q) for q in np.quantile(means, (ALPHA / 2, 1 - ALPHA / 2)))
    # Differences that are equal but for rounding share a rank: 0.3 - 0.1 and 0.2.
    grain = ROUNDING * max(np.abs(a[kept]).max(), np.abs(b[kept]).max()) or 1.0
    by_group = np.round(sums / counts / grain)
    if not by_group.any():
        return Comparison(0.0, (low, high), 1.0, 0.0, n, test)
    ranks = stats.rankdata(np.abs(by_group[by_group != 0]))
    effect = float(ranks @ np.sign(by_group[by_group != 0]) / ranks.sum())
    p = float(stats.wilcoxon(by_group).pvalue)
    return Comparison(float(d.mean()), (low, high), p, effect, n, test)


def holm(p) -> np.ndarray:
    """p-values adjusted for their number: (m,) -> (m,); NaN stays NaN and is not counted.

    The k-th smallest of m is multiplied by m - k + 1, at most 1, never below the one before. If
    rows below 0.05 are called different, all such calls of a table are right 95 times in 100.

    Source: Holm 1979.
    """
    p = np.asarray(p, np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return out


def noise_floor(values) -> Noise:
    """The spread of runs of one config, pooled over rows, with its chi-square interval.

    Args:
      values: an array per row, the scores of its repeats; NaN is left out. A row adds one degree
        of freedom less than it has runs. A row without any spread is left out: nothing in it is
        random, and it would reduce the pooled spread.
    Returns: n counts the runs that were used; sd is NaN where there are none.
    """
    rows = [row[np.isfinite(row)] for row in (np.asarray(v, np.float64) for v in values)]
    rows = [row for row in rows if len(row) > 1 and np.ptp(row) > ROUNDING * np.abs(row).max()]
    n, df = sum(map(len, rows)), sum(len(row) - 1 for row in rows)
    if not df:
        return Noise(math.nan, (math.nan, math.nan), n)
    squares = float(sum(((row - row.mean()) ** 2).sum() for row in rows))
    low, high = (math.sqrt(squares / float(stats.chi2.ppf(q, df)))
                 for q in (1 - ALPHA / 2, ALPHA / 2))
    return Noise(math.sqrt(squares / df), (low, high), n)


def power_of(n: int, sd: float, difference: float, *, alpha: float = ALPHA,
          test_train_ratio: float = 0.0) -> float:
    """The chance that `paired` finds a true difference with n repeats, by the noncentral t.

    Args:
      n: at least 2.
      sd: > 0, of the paired differences, as their repeats show it.
      alpha: divided by the number of rows compared, the first step of `holm`.
    """
    centre = difference**2 / (sd**2 * (1 / n + test_train_ratio))
    limit = float(stats.t.ppf(1 - alpha / 2, n - 1)) ** 2
    return float(stats.ncf.sf(limit, 1, n - 1, centre))  # t squared: nct has NaN in its tails


@functools.cache
def repeats_needed(sd: float, difference: float, *, power: float = 0.8, alpha: float = ALPHA,
                   test_train_ratio: float = 0.0) -> float:
    """The smallest number of repeats, at least 3, with which a true difference is found.

    Args:
      sd: of the paired differences.
      power: the wanted chance of a verdict.
      alpha, test_train_ratio: as in `power_of`.
    Returns: math.inf where no number up to a million is enough, as for overlapping splits of few
      images: more images are needed then. NaN where sd or difference is not known.
    """
    if math.isnan(sd) or math.isnan(difference):
        return math.nan
    if sd <= 0 or difference == 0:
        return math.inf if difference == 0 else MIN_PAIRS
    return smallest(lambda n: power_of(n, sd, difference, alpha=alpha,
                                       test_train_ratio=test_train_ratio) >= power)


def smallest(enough) -> float:
    """The smallest number of repeats, at least 3, for which `enough(n)`; inf beyond a million."""
    few, many = MIN_PAIRS - 1, MIN_PAIRS
    while not enough(many):
        few, many = many, 2 * many
        if many > 1e6:
            return math.inf
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def verdict(comparison: Comparison | None, adjusted_p: float,
            larger_is_better: bool = True) -> str:
    """One of VERDICTS on the first of two, from the repeats that both have.

    "too few repeats": fewer than three pairs, or pairs of one difference (p is NaN).
    "better", "worse": adjusted_p < 0.05. Else "not distinguishable", which is no proof of
    equality: see `judge` with equal_within.
    """
    if comparison is None or comparison.n < MIN_PAIRS or math.isnan(adjusted_p):
        return "too few repeats"
    if adjusted_p >= ALPHA:
        return "not distinguishable"
    return "better" if (comparison.difference > 0) == larger_is_better else "worse"


def verdict_of(a, b, metric: str, test_train_ratio: float = 0.0) -> str:
    """The verdict on the first of two rows by itself, without adjustment for other rows.

    Args:
      a, b, test_train_ratio: as in `paired`.
    """
    one = paired(a, b, test_train_ratio=test_train_ratio)
    return verdict(one, one.p, larger_is_better(metric))


def p_of_claim(comparison: Comparison | None, equal_within: float = 0.0,
               larger_is_better: bool = True) -> tuple[float, float]:
    """(p that the first is better, p that it is worse); NaN where neither can be judged.

    Both are two-sided p-values, and the one of the direction that was not seen is 1. With
    equal_within they are (p that the true difference is no larger, p that it is): two one-sided
    tests and their opposite. Only one of the two null hypotheses can be false, so that alpha is
    kept by judging with the smaller.

    Source: Schuirmann 1987, two one-sided tests.
    """
    if comparison is None or comparison.n < MIN_PAIRS or math.isnan(comparison.p):
        return math.nan, math.nan
    if equal_within:
        return _equality(comparison, equal_within)
    better = (comparison.difference > 0) == larger_is_better
    return (comparison.p, 1.0) if better else (1.0, comparison.p)


def larger_is_better(metric: str) -> bool:
    """Of a metric, also of one class or stratum, "dice_mean[stained]"."""
    return metric.partition("[")[0] not in LOWER_IS_BETTER


def bounds(metric: str) -> tuple[float, float]:
    """What a metric can be: (0, 1) of most scores, else without limits."""
    name = metric.partition("[")[0]
    return (0.0, 1.0) if name in SCORES and name not in UNBOUNDED else (-math.inf, math.inf)


def cut(metric: str, interval: tuple[float, float], *, difference: bool = False):
    """An interval to be shown, without what the metric, or a difference of two, cannot be.

    Intervals of the t-test are symmetric, and with few repeats they go beyond it. NaN stays.
    """
    low, high = bounds(metric)
    low = low - high if difference else low
    return tuple(min(max(end, low), high) if end == end else end for end in interval)


def margin(comparison: Comparison, equal_within: float = 0.0,
           larger_is_better: bool = True) -> float:
    """How far the mean difference lies on the claimed side; below 0 on the other one."""
    if equal_within:
        return equal_within - abs(comparison.difference)
    return comparison.difference if larger_is_better else -comparison.difference


def standard_error(comparison: Comparison) -> float:
    """Of the mean difference of a `paired` comparison; NaN with fewer than two pairs."""
    if comparison.n < 2:
        return math.nan
    half = comparison.interval[1] - comparison.difference
    return half / float(stats.t.ppf(1 - ALPHA / 2, comparison.n - 1))


def sd_of(comparison: Comparison, test_train_ratio: float = 0.0) -> float:
    """The standard deviation of the differences of a `paired` comparison."""
    if comparison.n < 2:
        return math.nan
    return standard_error(comparison) / math.sqrt(1 / comparison.n + test_train_ratio)


def _equality(comparison, within) -> tuple[float, float]:
    """p of |difference| >= within (small: equal), p of |difference| <= within (small: not)."""
    df, size = comparison.n - 1, abs(comparison.difference)
    error = standard_error(comparison)
    t = (within - size) / error if error else math.inf  # all differences are 0
    return float(stats.t.sf(t, df)), min(1.0, 2 * float(stats.t.sf(-t, df)))


def _differences(a, b) -> tuple[np.ndarray, float]:
    """The finite differences, and the largest value they are made of."""
    a, b = _same_shape(a, b)
    kept = np.isfinite(a) & np.isfinite(b)
    return (a - b)[kept], float(np.abs([a[kept], b[kept]]).max(initial=0.0))


def _same_shape(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"scores {a.shape} and {b.shape}: expected two of one length")
    return a, b


def _hedges(df: int) -> float:
    """Hedges' exact factor that takes the bias out of Cohen's d; NaN below two."""
    if df < 2:
        return math.nan
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
