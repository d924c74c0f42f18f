"""Equal, or no worse, within a margin: equal to scipy, as often right as it claims."""

import math

import numpy as np
import pytest
from helpers_study import FRACTIONS, twin_tables
from scipy import integrate
from scipy import stats as scipy_stats

from cellseg_jax.studies import equivalence, stats
from cellseg_jax.studies.equivalence import one_sided, posterior, within
from cellseg_jax.studies.gaps import Gaps

RNG = np.random.default_rng(0)
A, B = 0.8 + 0.004 * RNG.normal(size=(2, 6))
WHOLE = Gaps(6)


def test_one_sided_tests_equal_those_of_scipy():
    d = A - B
    low = scipy_stats.ttest_1samp(d, -0.005, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(d, 0.005, alternative="less").pvalue
    one = stats.paired(A, B)
    assert one_sided(one, 0.005) == pytest.approx((low, max(low, high)), rel=1e-9)
    assert one_sided(one, 0.005, False) == pytest.approx((high, max(low, high)), rel=1e-9)
    # The same as a claim of equality, which is judged elsewhere.
    assert one_sided(one, 0.005)[1] == pytest.approx(stats.p_of_claim(one, 0.005)[0])


@pytest.mark.parametrize("ratio", [0.0, 0.125])
def test_equal_is_what_the_90_percent_interval_says(ratio):
    """Of scipy, widened by the correction: no word differs from the interval's, on a fine grid."""
    error = (A - B).std(ddof=1) * math.sqrt(1 / 6 + ratio)
    reach = scipy_stats.t.ppf(0.95, 5) * error
    for shift in np.linspace(-0.02, 0.02, 81):
        one = stats.paired(A + shift, B, test_train_ratio=ratio)
        found = within([one], [(WHOLE, WHOLE)], 0.01, True)[0].word
        low, high = one.difference - reach, one.difference + reach
        expected = ("equal" if -0.01 < low and high < 0.01 else
                    "no worse" if low > -0.01 else "not shown")
        assert found == expected


def test_better_is_no_worse_by_any_margin():
    one = stats.paired(A + 0.01, B)
    assert stats.verdict(one, one.p) == "better"
    assert within([one], [(WHOLE, WHOLE)], 1e-9, True)[0].word == "no worse"
    assert within([one], [(WHOLE, WHOLE)], 1e-9, False)[0].word == "not shown"


def test_better_is_no_worse_also_beside_rows_that_are_worse():
    """Those are the first in Holm's order of differences, and the last in that of no worse."""
    rng, base = np.random.default_rng(1), np.array([0.80, 0.81, 0.79, 0.80, 0.80])
    rows = [stats.paired(base - 0.1 + rng.normal(0, 0.002, 5), base) for _ in range(6)]
    rows.append(stats.paired(base + [0.011, 0.005, 0.019, 0.002, 0.013], base))
    assert stats.verdict(rows[-1], stats.holm([one.p for one in rows])[-1]) == "better"
    found = within(rows, [(WHOLE, WHOLE)] * 7, 0.001, True)
    assert [one.word for one in found] == ["not shown"] * 6 + ["no worse"]


def test_equal_implies_no_worse_also_after_adjustment():
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = [stats.paired(0.8 + rng.normal(0, 0.004, 5), 0.8 + rng.normal(0, 0.004, 5))
                for _ in range(4)]
        for one in within(rows, [(WHOLE, WHOLE)] * 4, 0.008, True):
            assert one.p_no_worse <= one.p_equal + 1e-12


@pytest.mark.parametrize("row, base, word", [
    (Gaps(6), Gaps(6), "equal"), (Gaps(6, 1), Gaps(6), "not shown"),
    (Gaps(6, 0, 1), Gaps(6), "not shown"), (Gaps(6), Gaps(6, 1), "no worse")])
def test_a_row_that_lacks_a_repeat_is_not_shown(row, base, word):
    found = within([stats.paired(A, B)], [(row, base)], 0.05, True)[0]
    assert found.word == word and math.isnan(found.posterior.equal) == bool(row or base)


@pytest.mark.parametrize("a, b, word", [
    ([0.8] * 4, [0.8] * 4, "equal"),  # no difference at all
    ([0.8] * 4, [0.79] * 4, "not shown"),  # copies of one run
    ([0.8, 0.81], [0.8, 0.81], "not shown"), ([], [], "not shown")])
def test_without_spread_or_repeats(a, b, word):
    found = within([stats.paired(a, b)], [(WHOLE, WHOLE)], 0.05, True)[0]
    assert found.word == word
    assert found.posterior.equal == 1 if word == "equal" else math.isnan(found.posterior.equal)


# --- the Bayesian reading -------------------------------------------------------------------------


def test_posterior_equals_the_published_one():
    """AODE and naive Bayes on UCI anneal, ten runs of ten folds, of the tutorial of Benavoli et al.

    Of the 100 differences only mean and standard deviation matter; they come from the published
    accuracies, which have three decimals.
    """
    n, mean, sd = 100, -0.0193882, 0.015827027
    d = np.tile([-1.0, 1.0], n // 2)
    d = mean + sd * d / d.std(ddof=1)
    found = posterior(stats.paired(d, np.zeros(n), test_train_ratio=1 / 9), 0.01)
    assert found == pytest.approx((0.9542966, 0.0457031, 3.0353910e-07), abs=2e-5)
    assert found.better == pytest.approx(3.035e-07, rel=0.01)


def test_posterior_equals_an_integral_over_the_likelihood():
    """Correlated normal differences, flat priors of mean and log sd, integrated on a grid."""
    d, ratio, margin = A - B, 0.2, 0.002
    n, rho = len(d), ratio / (1 + ratio)
    inverse = np.linalg.inv((1 - rho) * np.eye(n) + rho)
    weight = inverse.sum()
    centre = (inverse @ d).sum() / weight
    rest = (d - centre) @ inverse @ (d - centre)
    mean = np.linspace(centre - 0.08, centre + 0.08, 4001)
    log_sd = np.linspace(math.log(1e-4), math.log(2), 401)
    quadratic = rest + weight * (mean[:, None] - centre) ** 2
    density = np.exp(-n * log_sd - 0.5 * quadratic * np.exp(-2 * log_sd)
                     + n * math.log(d.std()))
    density = integrate.trapezoid(density, log_sd, axis=1)
    share = integrate.cumulative_trapezoid(density, mean, initial=0)
    below, up_to = np.interp([-margin, margin], mean, share / share[-1])
    found = posterior(stats.paired(A, B, test_train_ratio=ratio), margin)
    assert (found.equal, found.better) == pytest.approx((up_to - below, 1 - up_to), abs=1e-4)
    assert sum(found) == pytest.approx(1)


def test_posterior_turns_with_the_metric():
    one = stats.paired(A + 0.003, B)
    up, down = posterior(one, 0.002), posterior(one, 0.002, larger_is_better=False)
    assert (up.worse, up.equal, up.better) == (down.better, down.equal, down.worse)
    assert up.better > 0.5


# --- how often it is wrong ------------------------------------------------------------------------


def words(d, margin, ratio):
    """(tables, rows) of bool: "no worse" and "equal" after Holm, all tables at once.

    Args:
      d: (tables, rows, repeats) differences to the baseline.
    """
    n = d.shape[-1]
    mean, error = d.mean(-1), d.std(-1, ddof=1) * math.sqrt(1 / n + ratio)
    p = [scipy_stats.t.sf((margin + way * mean) / error, n - 1) for way in (1, -1)]
    below = lambda p: np.apply_along_axis(stats.holm, -1, p) < stats.ALPHA
    no_worse, equal = below(p[0]), below(np.maximum(*p))
    for table in range(5):  # the words are those of the package
        rows = [stats.paired(row, np.zeros(n), test_train_ratio=ratio) for row in d[table]]
        found = within(rows, [(Gaps(n), Gaps(n))] * len(rows), margin, True)
        assert [one.word != "not shown" for one in found] == no_worse[table].tolist()
        assert [one.word == "equal" for one in found] == equal[table].tolist()
    return no_worse, equal


def differences(rng, tables, rows, repeats, *, sd, ratio):
    """Without a true difference; rows share the baseline's luck, repeats a part by ratio."""
    base = rng.normal(0, sd, (tables, 1, repeats)) + rng.normal(
        0, sd * math.sqrt(ratio), (tables, 1, 1))
    mine = rng.normal(0, sd, (tables, rows, repeats)) + rng.normal(
        0, sd * math.sqrt(ratio), (tables, rows, 1))
    return mine - base


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows, repeats, ratio", [(1, 5, 0.0), (6, 5, 0.0), (6, 10, 0.125)])
@pytest.mark.parametrize("side", [-1, 1])
def test_rows_at_the_margin_are_seldom_shown(rows, repeats, ratio, side, tables):
    """The boundary: each row truly differs by the margin, where a false word is most likely."""
    rng, margin = np.random.default_rng(30), 0.02
    d = differences(rng, tables, rows, repeats, sd=0.003, ratio=ratio) + side * margin
    no_worse, equal = words(d, margin, ratio)
    limit = scipy_stats.binom.ppf(0.999, tables, stats.ALPHA) / tables
    assert equal.any(-1).mean() <= limit
    assert side > 0 or no_worse.any(-1).mean() <= limit
    if rows == 1 and side < 0:  # an exact test
        assert no_worse.mean() >= scipy_stats.binom.ppf(0.001, tables, stats.ALPHA) / tables


@pytest.mark.parametrize("tables", [500, pytest.param(20000, marks=pytest.mark.slow)])
def test_rows_at_the_margin_are_seldom_shown_on_other_splits(tables):
    """Every repeat tests another tenth of a pool of images on which rows differ by chance."""
    rng, margin, ratio = np.random.default_rng(32), 0.03, FRACTIONS[1] / FRACTIONS[0]
    shown = []
    for _ in range(tables // 500):
        scores = twin_tables(rng, 500, 5, 6, run_sd=0.005, image_sd=0.05, resampled=True)
        shown.append(words(scores[:, 1:] - scores[:, :1] - margin, margin, ratio)[0].any(-1))
    assert np.mean(shown) <= scipy_stats.binom.ppf(0.999, tables, stats.ALPHA) / tables


@pytest.mark.parametrize("difference", [0.0, 0.004, -0.012])
@pytest.mark.parametrize("n, ratio, alpha", [(5, 0.0, 0.05), (8, 0.0, 0.0125), (20, 0.125, 0.05)])
def test_rows_are_shown_to_be_equal_with_the_stated_power(n, ratio, alpha, difference):
    rng, sd, margin, tables = np.random.default_rng(31), 0.01, 0.016, 20000
    d = rng.normal(0, sd * math.sqrt(ratio), (tables, 1)) + rng.normal(difference, sd, (tables, n))
    error = d.std(1, ddof=1) * math.sqrt(1 / n + ratio)
    shown = np.mean(margin - np.abs(d.mean(1)) > scipy_stats.t.ppf(1 - alpha, n - 1) * error)
    stated = equivalence.power_to_equal(n, sd, margin, difference, alpha=alpha,
                                        test_train_ratio=ratio)
    assert abs(shown - stated) < 4 * math.sqrt(stated * (1 - stated) / tables) + 1e-3


def test_repeats_to_equal_is_the_smallest_number():
    n = equivalence.repeats_to_equal(0.01, 0.008)
    powers = [equivalence.power_to_equal(m, 0.01, 0.008) for m in (n - 1, n)]
    assert powers[0] < 0.8 <= powers[1]
    assert equivalence.repeats_to_equal(0.0, 0.01) == 3
    assert math.isnan(equivalence.repeats_to_equal(math.nan, 0.01))
    assert math.isinf(equivalence.repeats_to_equal(0.01, 0.004, test_train_ratio=0.125))
