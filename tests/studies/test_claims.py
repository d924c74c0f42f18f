"""Claims of several pairs of rows, and how often a table of equal rows supports one."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cellseg_jax.studies import Claim, claims_about, equivalence, stats
from cellseg_jax.studies.claims import judge_claims
from cellseg_jax.studies.course import course
from cellseg_jax.studies.runs import Found, Run
from cellseg_jax.studies.study import Study


def judged(scores, *claims, ratio=0.0):
    """The JudgedClaims of {row: {metric: (R,)}} or {row: (R,) of "dice_mean"}."""
    found = {}
    for row, values in scores.items():
        columns = values if isinstance(values, dict) else {"dice_mean": values}
        repeats = [{name: float(x[r]) for name, x in columns.items()}
                   for r in range(len(next(iter(columns.values()))))]
        found[row] = [Found(Run(row, r, "", "done", one, 1, *[math.nan] * 4, "", "", ""))
                      for r, one in enumerate(repeats)]
    study = Study("", "", None, {}, {}, claims, 3, (), ("dice_mean",), "", {})
    return judge_claims(study, found, ratio)


SPREAD = 0.002 * np.array([-1.0, 0.3, 0.5, 1.0, -0.8])
OTHER = 0.002 * np.array([0.2, -0.9, 1.0, -0.4, 0.1])
ROWS = {"best": 0.9 + SPREAD, "second": 0.88 + OTHER, "last": 0.5 + OTHER[::-1]}


def test_best_is_ahead_of_each_other_row_and_not_of_their_mean():
    best = lambda row, **options: judged(ROWS, Claim(
        f"{row} is best", (row,), tuple(r for r in ROWS if r != row), **options))[0]
    assert best("second").judgement == "supported"  # above the average of 0.9 and 0.5
    assert best("second", every=True).judgement == "contradicted"
    assert best("best", every=True).judgement == "supported"
    assert best("last", every=True).judgement == "contradicted"
    assert best("best", every=True).pair == ("best", "second")  # the smallest difference


def test_intersection_union_has_the_largest_p_and_bonferroni_the_smallest():
    rows = {"a": 0.8 + 5 * SPREAD, "b": 0.796 + 5 * OTHER, "c": 0.79 + 5 * OTHER[::-1]}
    one = judged(rows, Claim("", ("a",), ("b", "c"), every=True))[0]
    p = [scipy_stats.ttest_rel(rows["a"], rows[other]).pvalue for other in "bc"]
    assert one.comparison.p == pytest.approx(max(p)) and one.judgement == "undecided"
    behind = judged(rows, Claim("", ("c",), ("a", "b"), every=True))[0]
    p = [scipy_stats.ttest_rel(rows["c"], rows[other]).pvalue for other in "ab"]
    assert behind.comparison.p == pytest.approx(min(p))
    assert (behind.judgement == "contradicted") == (2 * min(p) < stats.ALPHA)


def test_matched_rows_are_compared_at_the_same_place_only():
    rows = {"a": 0.9 + SPREAD, "b": 0.5 + SPREAD, "a2": 0.89 + OTHER, "b2": 0.49 + OTHER}
    claim = Claim("", ("a", "b"), ("a2", "b2"), matched=True)
    assert judged(rows, claim)[0].judgement == "supported"
    assert judged(rows, claim._replace(matched=False, every=True))[0].judgement == "contradicted"
    equal = claim._replace(equal_within=0.03)
    assert judged(rows, equal)[0].judgement == "supported"
    assert judged(rows, equal._replace(equal_within=0.001))[0].judgement == "contradicted"
    # Opposite effects of two pairs, which their average would hide:
    rows = {"a": 0.9 + SPREAD, "b": 0.5 + SPREAD, "a2": 0.8 + OTHER, "b2": 0.6 + OTHER}
    averaged = equal._replace(matched=False)
    assert judged(rows, averaged)[0].judgement == "supported"
    assert judged(rows, equal)[0].judgement == "contradicted"


def test_a_claim_compares_two_scores_of_the_same_runs():
    rows = {"a": {"dice_mean[light]": 0.9 + SPREAD, "dice_mean[dark]": 0.7 + OTHER}}
    claim = Claim("dark images fail", ("a",), ("a",), "dice_mean[light]",
                  worse_metric="dice_mean[dark]")
    assert judged(rows, claim)[0].judgement == "supported"
    swapped = claim._replace(metric="dice_mean[dark]", worse_metric="dice_mean[light]")
    assert judged(rows, swapped)[0].judgement == "contradicted"


def test_less_is_better_of_course_and_cost():
    rows = {"quick": {"epochs_to_95": 3 + SPREAD}, "slow": {"epochs_to_95": 9 + OTHER}}
    claim = Claim("", ("quick",), ("slow",), "epochs_to_95")
    assert judged(rows, claim)[0].judgement == "supported"


def test_claims_are_corrected_for_their_number_and_absent_rows_do_not_count():
    rows = {"a": 0.8 + SPREAD, "b": 0.7965 + OTHER}
    p = scipy_stats.ttest_rel(rows["a"], rows["b"]).pvalue
    assert 0.01 < p < 0.05
    claim, absent = Claim("", ("a",), ("b",)), Claim("", ("a",), ("c",))
    assert judged(rows, claim)[0].judgement == "supported"
    assert [one.judgement for one in judged(rows, claim, absent)] == ["supported", "undecided"]
    assert [one.judgement for one in judged(rows, *[claim] * 5)] == ["undecided"] * 5
    assert judged(rows, claim, absent)[1].comparison is None


def test_repeats_that_decide_are_those_of_the_power_of_the_test():
    noisy = {"a": 0.8 + 10 * SPREAD, "b": 0.795 + 10 * OTHER}
    one = judged(noisy, Claim("", ("a",), ("b",)))[0]
    d = noisy["a"] - noisy["b"]
    assert one.judgement == "undecided"
    assert one.needed == stats.repeats_needed(d.std(ddof=1), d.mean())
    three = judged(noisy, *[Claim("", ("a",), ("b",))] * 3)[0]
    assert three.needed == stats.repeats_needed(d.std(ddof=1), d.mean(), alpha=0.05 / 3)
    assert math.isnan(judged(ROWS, Claim("", ("best",), ("last",)))[0].needed)  # it is decided
    # Every pair is to hold, so that the one that takes most repeats counts.
    noisy["c"] = 0.799 + 10 * OTHER
    assert judged(noisy, Claim("", ("a",), ("b", "c"), every=True))[0].needed > one.needed
    assert math.isinf(judged({"a": SPREAD, "b": SPREAD[::-1]}, Claim("", ("a",), ("b",)))[0].needed)
    equal = judged(noisy, Claim("", ("a",), ("b",), equal_within=0.01))[0]
    assert equal.judgement == "undecided" and equal.needed == equivalence.repeats_to_equal(
        d.std(ddof=1), 0.01, abs(d.mean()))


def test_claims_about_some_rows_are_those_that_still_compare_something():
    claims = (Claim("mean", ("a", "b"), ("c", "x")), Claim("gone", ("a",), ("x",)),
              Claim("best", ("a",), ("b", "x", "c"), every=True),
              Claim("pairs", ("a", "x", "b"), ("b", "c", "c"), matched=True),
              Claim("no pair", ("a", "x"), ("x", "b"), matched=True))
    assert claims_about(claims, ("a", "b", "c")) == (
        claims[0]._replace(worse=("c",)), claims[2]._replace(worse=("b", "c")),
        claims[3]._replace(better=("a", "b"), worse=("b", "c")))


# --- how often a claim on equal rows is judged ----------------------------------------------------


def iu_p(scores):
    """(tables,) p of "the first row is best" before Holm: (tables, rows, repeats) -> smaller of
    support and contradiction, in numpy alone."""
    d = scores[:, :1] - scores[:, 1:]
    n = d.shape[-1]
    t = d.mean(-1) / (d.std(-1, ddof=1) / math.sqrt(n))
    p = 2 * scipy_stats.t.sf(np.abs(t), n - 1)
    holds, fails = np.where(t > 0, p, 1.0), np.where(t < 0, p, 1.0)
    return np.minimum(holds.max(1), np.minimum(1, d.shape[1] * fails.min(1)))


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.weekly)])
@pytest.mark.parametrize(("rows", "repeats"), [(2, 3), (6, 3), (6, 5), (20, 5)])
def test_equal_rows_seldom_have_a_best_or_are_contradicted(rows, repeats, tables):
    rng = np.random.default_rng(11)
    shares = []
    for _ in range(tables // 1000):
        scores = rng.normal(0.8, 0.01, (1000, rows, repeats))
        p = iu_p(scores)
        for table in range(3):  # the test is the one of claims
            named = {f"r{k}": row for k, row in enumerate(scores[table])}
            one = judged(named, Claim("", ("r0",), tuple(named)[1:], every=True))[0]
            assert (one.judgement != "undecided") == (p[table] < stats.ALPHA)
        shares.append(np.mean(p < stats.ALPHA))
    assert np.mean(shares) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.weekly)])
def test_a_best_row_is_rarely_denied_and_a_tie_rarely_called_best(tables):
    """The boundary of the claim: two rows are best together, all others far behind."""
    rng = np.random.default_rng(12)
    scores = rng.normal(0.8, 0.01, (tables, 6, 5)) - np.array([0, 0, 1, 1, 1, 1])[:, None]
    d = scores[:, :1] - scores[:, 1:]
    assert np.mean(iu_p(scores) < stats.ALPHA) <= scipy_stats.binom.ppf(
        0.999, tables, 0.05) / tables
    assert (d.mean(-1)[:, 1:] > 0).all()


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.weekly)])
@pytest.mark.parametrize("metric", ["epochs_to_95", "val_loss_rise", "val_loss_spread"])
def test_equal_courses_seldom_have_a_winner(metric, tables):
    """Metrics of the course are skewed, ties included; the t-test keeps its level with them."""
    rng, rows, repeats, epochs = np.random.default_rng(13), 4, 5, 20
    pool = 4000  # courses of one method; tables draw from them
    values = np.array([course(lines, {})[metric] for lines in _courses(rng, pool, epochs)])
    scores = rng.choice(values, (tables, rows, repeats))
    d = scores[:, 1:] - scores[:, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = d.mean(-1) / (d.std(-1, ddof=1) / math.sqrt(repeats))
    p = np.where(d.std(-1) == 0, np.where(d.mean(-1) == 0, 1.0, np.nan),
                 2 * scipy_stats.t.sf(np.abs(t), repeats - 1))
    smallest = np.nanmin(p, 1, initial=1.0) * (rows - 1)  # Holm's first step
    assert np.mean(smallest < stats.ALPHA) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables


def _courses(rng, count, epochs):
    """metrics.jsonl of runs that learn at rates of their own and overfit a little."""
    for _ in range(count):
        rate, noise = rng.lognormal(-1, 0.4), rng.lognormal(-4, 0.5)
        epoch = np.arange(1, epochs + 1)
        loss = np.exp(-rate * epoch) + 0.01 * rng.random() * epoch + noise * rng.normal(size=epochs)
        yield [{"epoch": float(e), "step": int(e), "val_loss": float(x), "val_dice_mean": 1 - x}
               for e, x in zip(epoch, loss, strict=True)]


def test_pairs_are_all_or_matched():
    rows = {name: 0.1 * k + SPREAD * (1 + k) for k, name in enumerate("abcd")}
    claim = Claim("", ("d", "c"), ("a", "b"), every=True)
    seen = {judged(rows, claim._replace(better=(x,), worse=(y,)))[0].pair
            for x, y in itertools.product(claim.better, claim.worse)}
    assert judged(rows, claim)[0].pair in seen
