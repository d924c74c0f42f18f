"""Paired tests, noise floor, power and verdicts: equal to scipy, and right as often as they say."""

import math

import numpy as np
import pytest
from helpers_study import FRACTIONS, twin_tables
from scipy import stats as scipy_stats

from cellseg_jax.studies import stats

RNG = np.random.default_rng(0)
A, B = 0.8 + 0.01 * RNG.normal(size=(2, 7))


# --- two rows ------------------------------------------------------------------------------------


def test_paired_equals_scipy():
    ours, theirs = stats.paired(A, B), scipy_stats.ttest_rel(A, B)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-12)
    interval = theirs.confidence_interval(0.95)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert ours.difference == pytest.approx((A - B).mean(), rel=1e-12) and ours.n == 7


def test_corrected_test_equals_a_hand_value():
    d, ratio = A - B, 0.125
    t = d.mean() / math.sqrt(d.var(ddof=1) * (1 / 7 + ratio))
    ours = stats.paired(A, B, test_train_ratio=ratio)
    assert ours.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), 6), rel=1e-12)
    assert ours.p > stats.paired(A, B).p and "corrected" in ours.test
    # The interval holds 0 exactly if p says so, at every p.
    for shift in (0.0, 0.005, 0.01, 0.02, 0.05):
        one = stats.paired(A + shift, B, test_train_ratio=ratio)
        assert (one.interval[0] < 0 < one.interval[1]) == (one.p > 0.05)


def test_effect_size_is_unbiased():
    rng, true = np.random.default_rng(1), 0.8
    d = rng.normal(true, 1.0, (1000, 5))
    effects = [stats.paired(row, np.zeros(5)).effect_size for row in d]
    assert np.mean(effects) == pytest.approx(true, abs=4 * np.std(effects) / math.sqrt(1000))
    biased = np.mean(d.mean(1) / d.std(1, ddof=1))
    assert biased > true * 1.1  # what Hedges' correction takes away


def test_pairs_with_nan_are_left_out():
    hole = A.copy()
    hole[2] = np.nan
    assert stats.paired(hole, B) == stats.paired(np.delete(A, 2), np.delete(B, 2))


@pytest.mark.parametrize("a, b, p, word", [
    ([0.8, 0.7, 0.9], [0.8, 0.7, 0.9], 1.0, "not distinguishable"),  # nothing differs
    ([0.8, 0.7, 0.9], [0.7, 0.6, 0.8], math.nan, "too few repeats"),  # up to rounding, copies
    ([0.8, 0.8, 0.8], [0.7, 0.7, 0.7], math.nan, "too few repeats"),
    ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1.0, "not distinguishable"),
    ([], [], math.nan, "too few repeats"),
    ([0.8], [0.7], math.nan, "too few repeats"),
    ([np.nan] * 3, [0.1] * 3, math.nan, "too few repeats"),
])
def test_without_spread_nothing_crashes_and_nothing_wins(a, b, p, word):
    one = stats.paired(a, b)
    assert one.p == pytest.approx(p, nan_ok=True)
    assert stats.verdict(one, one.p) == word
    assert not min(stats.p_of_claim(one)) < stats.ALPHA


def test_paired_rejects_other_lengths():
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        stats.paired([1, 2, 3], [1])


def test_two_pairs_are_too_few_however_small_p_is():
    one = stats.paired([0.9, 0.9001], [0.1, 0.1002])
    assert one.p < 0.001 and stats.verdict(one, one.p) == "too few repeats"


# --- images --------------------------------------------------------------------------------------


def test_per_image_equals_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.82, 0.1, 60), rng.normal(0.8, 0.1, 60)
    ours = stats.per_image(a, b)
    assert ours.p == pytest.approx(scipy_stats.wilcoxon(a, b).pvalue, rel=1e-12)
    theirs = scipy_stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=4000,
                                   rng=np.random.default_rng(0)).confidence_interval
    assert ours.interval == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert ours.n == 60 and -1 <= ours.effect_size <= 1
    assert stats.per_image(a, a - 0.1).effect_size == pytest.approx(1)


def test_images_of_a_group_count_as_one():
    rng = np.random.default_rng(3)
    shift = rng.normal(0, 0.1, 12)  # of whole groups; images repeat it
    d, groups = np.repeat(shift, 20) + 0.001 * rng.normal(size=240), np.repeat(np.arange(12), 20)
    apart, together = (stats.per_image(d, np.zeros(240), g) for g in (None, groups))
    width = lambda c: c.interval[1] - c.interval[0]
    assert width(together) > 3.5 * width(apart)  # sqrt(20), a little less for few groups
    assert together.n == 12 and "groups" in together.test
    assert together.difference == pytest.approx(apart.difference)


@pytest.mark.parametrize("a, b, p", [
    ([0.5] * 9, [0.5] * 9, 1.0), ([], [], math.nan), ([0.5, np.nan], [0.5, 0.5], math.nan)])
def test_per_image_without_differences(a, b, p):
    assert stats.per_image(a, b).p == pytest.approx(p, nan_ok=True)


@pytest.mark.parametrize("factor", [1, 0.1, 1 / 3, 1e-4])
def test_differences_that_are_equal_but_for_rounding_share_a_rank(factor):
    whole = np.array([8, 7, 6, 5, 9, 3]), np.array([7, 8, 5, 6, 8, 1])  # five ties and a larger one
    exact = stats.per_image(*whole)
    assert exact.p == pytest.approx(scipy_stats.wilcoxon(whole[0] - whole[1]).pvalue)
    scaled = stats.per_image(*(values * factor for values in whole))
    assert (scaled.p, scaled.effect_size) == pytest.approx((exact.p, exact.effect_size))


# --- many rows, noise, power ---------------------------------------------------------------------


def test_holm_equals_hand_values():
    got = stats.holm([0.01, 0.04, np.nan, 0.03, 0.5])
    assert got == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.5], nan_ok=True)
    assert stats.holm([]).shape == (0,) and stats.holm([0.7, 0.9]).max() == 1.0


def test_noise_floor_equals_pooled_variance_and_covers():
    rows = [A, B[:3], [0.5], [np.nan, 0.7]]
    pooled = math.sqrt((6 * A.var(ddof=1) + 2 * B[:3].var(ddof=1)) / 8)
    noise = stats.noise_floor(rows)
    assert noise.sd == pytest.approx(pooled, rel=1e-12) and noise.n == 10
    assert math.isnan(stats.noise_floor([[0.5], []]).sd)
    assert stats.noise_floor([A, [0.3, 0.3, 0.3]]) == stats.noise_floor([A])  # nothing random there
    rng = np.random.default_rng(4)
    intervals = [stats.noise_floor(rng.normal(0, 1, (4, 3))).interval for _ in range(600)]
    covered = np.mean([low < 1 < high for low, high in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 600)


@pytest.mark.parametrize("n, difference, ratio, alpha", [
    (3, 0.03, 0.0, 0.05), (8, 0.01, 0.0, 0.05), (10, 0.012, 0.125, 0.05), (8, 0.01, 0.0, 0.05 / 7)])
def test_planted_effect_is_found_with_the_stated_power(n, difference, ratio, alpha):
    """Differences of equal correlation ratio / (1 + ratio), the model behind the correction."""
    rng, tables, sd = np.random.default_rng(5), 20000, 0.01
    common = rng.normal(0, sd * math.sqrt(ratio), (tables, 1))
    d = difference + common + rng.normal(0, sd, (tables, n))
    t = d.mean(1) / (d.std(1, ddof=1) * math.sqrt(1 / n + ratio))
    found = np.mean(2 * scipy_stats.t.sf(np.abs(t), n - 1) < alpha)
    stated = stats.power_of(n, sd, difference, alpha=alpha, test_train_ratio=ratio)
    assert abs(found - stated) < 4 * math.sqrt(stated * (1 - stated) / tables)
    assert stats.paired(d[0], np.zeros(n), test_train_ratio=ratio).p == pytest.approx(
        2 * scipy_stats.t.sf(abs(t[0]), n - 1))


def test_power_equals_scipy():
    """scipy's own power is a simulation: equal within its binomial error."""
    theirs = scipy_stats.power(
        scipy_stats.ttest_1samp, (lambda size: np.random.default_rng(6).normal(1.0, 1.0, size),),
        (8,), kwargs={"popmean": 0}, n_resamples=5000, significance=0.05)
    assert stats.power_of(8, 1.0, 1.0) == pytest.approx(float(theirs.power), abs=0.03)


def test_repeats_needed_is_the_smallest_number():
    for sd, difference, ratio in ((0.01, 0.01, 0), (0.01, 0.004, 0), (0.01, 0.02, 0.125)):
        n = stats.repeats_needed(sd, difference, test_train_ratio=ratio)
        powers = [stats.power_of(m, sd, difference, test_train_ratio=ratio) for m in (n - 1, n)]
        assert powers[0] < 0.8 <= powers[1]
    assert stats.repeats_needed(1.0, 0.5) == 34  # G*Power: paired t, d_z = 0.5, power 0.8
    assert stats.repeats_needed(0.001, 0.5) == stats.repeats_needed(0.0, 0.5) == 3
    assert stats.repeats_needed(0.006, 0.02, alpha=0.0125) == 5  # where scipy's nct has NaN
    assert stats.repeats_needed(0.01, 0.0) == math.inf
    assert math.isnan(stats.repeats_needed(math.nan, 0.1))


def test_overlapping_splits_of_few_images_cannot_find_small_differences():
    assert stats.repeats_needed(0.01, 0.005, test_train_ratio=0.125) == math.inf


# --- words ---------------------------------------------------------------------------------------


def test_verdict_has_the_sign_of_the_difference():
    up = stats.paired(B + 0.05, B + 0.001 * np.arange(7))
    assert stats.verdict(up, up.p) == "better" and stats.verdict(up, up.p, False) == "worse"
    down = stats.paired(B, B + 0.05 + 0.001 * np.arange(7))
    assert stats.verdict(down, down.p) == "worse" and stats.verdict(down, down.p, False) == "better"
    assert stats.verdict(up, 0.06) == "not distinguishable"
    assert stats.verdict(None, math.nan) == "too few repeats"


def test_p_of_a_claim_is_that_of_its_direction():
    word = lambda d, *options: next((
        word for word, p in zip(stats.JUDGEMENTS, stats.p_of_claim(
            stats.paired(d, np.zeros(len(d))), *options), strict=False) if p < stats.ALPHA),
        "undecided")
    spread = 0.002 * np.linspace(-1, 1, 6)
    assert word(0.03 + spread) == "supported" and word(spread - 0.03) == "contradicted"
    assert word(spread) == "undecided"
    assert word(spread - 0.03, 0.0, False) == "supported"
    assert word(spread, 0.01) == "supported"
    assert word(0.03 + spread, 0.01) == "contradicted"
    assert word(0.009 + spread, 0.01) == "undecided"
    assert word(np.zeros(4), 0.01) == "supported"
    assert word(np.full(4, 0.005), 0.01) == "undecided"  # copies of one run
    assert word(spread[:2], 0.01) == "undecided"
    assert np.isnan(stats.p_of_claim(None)).all()


def test_sd_of_a_comparison_is_that_of_its_differences():
    for ratio in (0.0, 0.125):
        one = stats.paired(A, B, test_train_ratio=ratio)
        assert stats.sd_of(one, ratio) == pytest.approx((A - B).std(ddof=1))
    assert math.isnan(stats.sd_of(stats.paired([0.8], [0.7])))


def test_equality_equals_two_one_sided_tests_of_scipy():
    d, within = A - B, 0.02
    low = scipy_stats.ttest_1samp(d, -within, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(d, within, alternative="less").pvalue
    assert stats.p_of_claim(stats.paired(A, B), within)[0] == pytest.approx(max(low, high),
                                                                            rel=1e-9)


# --- how often a table is wrong ------------------------------------------------------------------

def paired_p(scores, ratio):
    """(tables, rows - 1) p-values of each row against the first, all tables at once."""
    d = scores[:, 1:] - scores[:, :1]
    n = d.shape[-1]
    t = d.mean(-1) / (d.std(-1, ddof=1) * math.sqrt(1 / n + ratio))
    p = 2 * scipy_stats.t.sf(np.abs(t), n - 1)
    for table in range(3):  # the test is the one of stats
        for row in range(d.shape[1]):
            one = stats.paired(scores[table, row + 1], scores[table, 0], test_train_ratio=ratio)
            assert one.p == pytest.approx(p[table, row])
    return p


def false_winners(scores, ratio):
    """The share of tables with a verdict, each row compared with the first, adjusted by Holm."""
    return np.mean([np.nanmin(stats.holm(p)) < stats.ALPHA for p in paired_p(scores, ratio)])


SCENARIOS = {  # rows, repeats, run_sd, image_sd, resampled
    "a pair of seeds": (2, 3, 0.01, 0.0, False),
    "eight rows": (8, 3, 0.01, 0.0, False),
    "a pair, other splits": (2, 5, 0.005, 0.05, True),
    "eight rows, other splits": (8, 3, 0.005, 0.05, True),
    "all noise from the images": (4, 10, 0.0, 0.05, True),
    "little noise from the images": (4, 10, 0.02, 0.05, True),
}


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.weekly)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_twins_seldom_have_a_winner(name, tables):
    rows, repeats, run_sd, image_sd, resampled = SCENARIOS[name]
    rng, ratio = np.random.default_rng(7), FRACTIONS[1] / FRACTIONS[0] if resampled else 0.0
    shares = [false_winners(twin_tables(rng, 1000, rows, repeats, run_sd=run_sd, image_sd=image_sd,
                                        resampled=resampled), ratio)
              for _ in range(tables // 1000)]
    # 5 % is the rate of an exact test, so the count in 1,000 tables is above 50 half of the time:
    # allowed is what such a test stays below 999 times in 1,000 (7.3 %, of 20,000 tables 5.5 %).
    assert np.mean(shares) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables


@pytest.mark.parametrize("rows, repeats, share, limit", [
    (2, 3, 0.1, 0.05), (8, 3, 0.1, 0.05), (8, 5, 0.3, 0.05), (8, 3, 0.3, 0.12)])
def test_runs_that_collapse_seldom_make_a_winner(rows, repeats, share, limit):
    """The last one is the exception that the module names."""
    rng, shape = np.random.default_rng(9), (2000, rows, repeats)
    scores = rng.normal(0.8, 0.01, shape) - 0.5 * (rng.random(shape) < share)
    assert false_winners(scores, 0.0) <= limit


def test_overlapping_splits_need_the_correction():
    """Without it the same tables name false winners far too often."""
    scores = twin_tables(np.random.default_rng(8), 200, 2, 20, run_sd=0.0, image_sd=0.05,
                         resampled=True)
    naive = false_winners(scores, 0.0)
    assert naive > 0.2 > 0.14 > false_winners(scores, 0.125)
