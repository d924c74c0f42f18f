"""Bootstrap intervals: a loop that draws groups one by one, coverage, and too few groups."""

import numpy as np

from cellseg_jax.metrics import interval, resampled
from cellseg_jax.metrics.bootstrap import MIN_GROUPS


def test_sums_are_those_of_drawn_groups():
    rng = np.random.default_rng(0)
    values, groups = rng.random((9, 2)), list("aabbbcdda")
    sums = resampled({"x": values, "n": np.ones(9)}, groups, draws=300)
    chosen = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), 300)
    for b in range(0, 300, 50):
        times = [chosen[b]["abcd".index(g)] for g in groups]
        np.testing.assert_allclose(sums["x"][b], np.repeat(values, times, 0).sum(0))
        assert sums["n"][b] == sum(times)


def test_interval_covers_the_mean_of_many_images_and_widens_with_groups():
    rng = np.random.default_rng(1)
    hits, alone, grouped = 0, 0.0, 0.0
    for _ in range(60):
        centre = np.repeat(rng.normal(0, 1, 30), 4)  # images of a case resemble one another
        values = centre + rng.normal(0, 0.3, 120)
        columns = {"x": values, "n": np.ones(120)}
        mean = lambda groups, columns=columns: (lambda s: interval(s["x"] / s["n"]))(
            resampled(columns, groups, draws=400))
        low, high = mean(np.repeat(np.arange(30), 4))
        hits += low < 0 < high
        grouped += high - low
        low, high = mean(np.arange(120))
        alone += high - low
    assert hits >= 50 and grouped > 1.5 * alone


def test_few_groups_and_nothing_finite_have_no_interval():
    assert resampled({"x": np.ones(8)}, [0, 1] * 4) is None and MIN_GROUPS == 3
    assert interval([np.nan, np.inf]) is None
    assert interval(np.r_[np.arange(1001.0), np.nan]) == (25.0, 975.0)
