"""Fits of the inverse power law against scipy, hand values, and how often intervals are right."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from cellseg_jax.errors import InputError
from cellseg_jax.studies import learning_curve

SIZES = np.array([28.0, 56, 113, 226, 451])


def law(n, a=0.92, b=0.6, c=0.5):
    return a - b * n**-c


def noisy(repeats, seed=0, sd=0.01, curve=law):
    rng = np.random.default_rng(seed)
    return curve(SIZES) + rng.normal(0, sd, (repeats, 1)) + rng.normal(0, sd, (repeats, len(SIZES)))


@pytest.mark.parametrize("abc", [(0.92, 0.6, 0.5), (0.8, 3.0, 1.2), (1.0, 0.5, 0.1)])
def test_exact_curves_are_recovered(abc):
    fitted = learning_curve.fit(SIZES, law(SIZES, *abc)[None], best=1.0)
    np.testing.assert_allclose(fitted.parameters, abc, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_fit_matches_scipy(seed):
    scores = noisy(3, seed)
    fitted = learning_curve.fit(SIZES, scores, best=1.0, draws=10)
    loss = lambda p: ((law(SIZES, *p) - scores.mean(0)) ** 2).sum()
    best = min((optimize.least_squares(
        lambda p: law(SIZES, *p) - scores.mean(0), start, xtol=1e-15, ftol=1e-15, gtol=1e-15,
        bounds=([-np.inf, 0, 0.01], [1.0, np.inf, 2.0])).x
        for start in ((0.9, 0.5, 0.5), (0.99, 0.3, 0.1), (0.85, 5.0, 1.5))), key=loss)
    assert loss(fitted.parameters) <= loss(best) + 1e-9
    n = np.array([40, 451, 2000])
    np.testing.assert_allclose(learning_curve.predict(fitted, n)[0], law(n, *best), atol=1e-4)


def test_images_needed_equals_hand_value():
    fitted = learning_curve.fit(SIZES, law(SIZES)[None].repeat(3, 0), best=1.0)
    images, (low, high) = learning_curve.images_needed(fitted, 0.90)
    assert images == pytest.approx(900, rel=1e-3)  # (0.6 / 0.02)^2
    assert low == pytest.approx(images) and high == pytest.approx(images)  # repeats agree


def test_what_lies_above_the_asymptote_is_not_reachable():
    fitted = learning_curve.fit(SIZES, noisy(3, sd=1e-5), best=1.0)
    images, (low, high) = learning_curve.images_needed(fitted, 0.95)
    assert math.isinf(images) and math.isinf(low) and math.isinf(high)
    limit, (low, high) = learning_curve.asymptote(fitted)
    assert low < limit < high and limit == pytest.approx(0.92, abs=1e-3)


def test_an_interval_may_have_one_end_at_infinity():
    fitted = learning_curve.fit(SIZES, noisy(3, seed=3), best=1.0)
    images, (low, high) = learning_curve.images_needed(fitted, 0.88)
    assert low < images < math.inf and math.isinf(high)


def test_lower_is_better_is_the_mirror_image():
    up = learning_curve.fit(SIZES, noisy(3), best=1.0)
    down = learning_curve.fit(SIZES, 1 - noisy(3), larger_is_better=False, best=0.0)
    np.testing.assert_allclose(down.parameters[0], 1 - up.parameters[0], atol=1e-9)
    assert learning_curve.images_needed(down, 0.12)[0] == pytest.approx(
        learning_curve.images_needed(up, 0.88)[0])
    score, low, high = learning_curve.predict(down, SIZES)
    assert (np.diff(score) < 0).all() and (low < score).all() and (score < high).all()


@pytest.mark.parametrize("scores", [np.full(5, 0.8), np.linspace(0.84, 0.76, 5)])
def test_flat_and_falling_scores_give_a_flat_curve(scores):
    fitted = learning_curve.fit(SIZES, scores[None], best=1.0)
    np.testing.assert_allclose(learning_curve.predict(fitted, SIZES)[0], 0.8)
    assert learning_curve.images_needed(fitted, 0.79)[0] == 1
    assert learning_curve.images_needed(fitted, 0.81)[0] == math.inf


def test_the_asymptote_is_no_better_than_the_best_score():
    straight = 0.5 + 0.1 * np.log2(SIZES / SIZES[0])  # passes 1 with 900 images
    free = learning_curve.fit(SIZES, straight[None])
    bound = learning_curve.fit(SIZES, straight[None], best=1.0)
    assert free.parameters[0] > 1 and bound.parameters[0] == pytest.approx(1.0)


def test_missing_runs_count_for_nothing():
    scores = noisy(4)
    holes = scores.copy()
    holes[1, 2] = np.nan
    holes = np.insert(holes, 2, np.nan, axis=1)  # a size without any score
    fitted = learning_curve.fit(np.insert(SIZES, 2, 80), holes, best=1.0)
    assert fitted.sizes.tolist() == SIZES.tolist()
    assert fitted.means[2] == pytest.approx(scores[[0, 2, 3], 2].mean())


def test_order_of_sizes_does_not_matter():
    swapped = learning_curve.fit(SIZES[::-1], noisy(3)[:, ::-1], best=1.0, draws=50)
    plain = learning_curve.fit(SIZES, noisy(3), best=1.0, draws=50)
    np.testing.assert_allclose(swapped.draws, plain.draws)


def test_two_sizes_are_too_few():
    with pytest.raises(InputError, match="3 numbers of training images or more; there are 2"):
        learning_curve.fit([10, 20, 20], np.full((3, 3), 0.5))
    with pytest.raises(ValueError, match="expected"):
        learning_curve.fit([10, 20], np.full((3, 3), 0.5))


def test_two_repeats_have_no_interval():
    fitted = learning_curve.fit(SIZES, noisy(2), best=1.0)
    assert np.isfinite(fitted.parameters).all()
    assert all(map(math.isnan, learning_curve.images_needed(fitted, 0.8)[1]))
    assert np.isnan(learning_curve.predict(fitted, SIZES)[1]).all()


def test_the_interval_of_a_mean_is_student_s(ratio=0.125):
    scores = law(SIZES[::2]) + np.random.default_rng(1).normal(0, 0.001, (4, 3))
    fitted = learning_curve.fit(SIZES[::2], scores, test_train_ratio=ratio, draws=4000)
    _, low, high = learning_curve.predict(fitted, SIZES[::2])  # three sizes: through the means
    half = stats.t.ppf(0.975, 3) * scores.std(0, ddof=1) * math.sqrt(1 / 4 + ratio)
    np.testing.assert_allclose((high - low) / 2, half, rtol=0.15)  # of the draws, and curvature


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [3, 5])
def test_intervals_hold_the_truth_19_times_in_20(repeats):
    held = []
    for seed in range(300):
        fitted = learning_curve.fit(SIZES, noisy(repeats, seed), best=1.0, draws=300, seed=seed)
        parts = (learning_curve.asymptote(fitted)[1], learning_curve.images_needed(fitted, 0.9)[1],
                 np.concatenate(learning_curve.predict(fitted, [1000])[1:]))
        held.append([low <= true <= high
                     for (low, high), true in zip(parts, (0.92, 900, law(1000)), strict=True)])
    assert (np.mean(held, 0) > 0.90).all(), np.mean(held, 0)  # 4 standard errors below 0.95
