"""Soft overlaps and calibration: hand values, a slow twin."""

import helpers_shapes
import jax
import numpy as np
import pytest

from cellseg_jax import losses, metrics


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, (3, 5, 7, 2)).astype(np.float32)
    return target, rng.random(target.shape).astype(np.float32)


def test_soft_overlaps_equal_hand_value():
    target = np.array([1.0, 1.0, 0.0]).reshape(1, 1, 3, 1)
    probs = np.array([0.5, 1.0, 0.5]).reshape(1, 1, 3, 1)
    assert metrics.soft_dice(target, probs) == pytest.approx((3 + 1) / (2 + 2 + 1))
    assert metrics.soft_jaccard(target, probs) == pytest.approx((1.5 + 1) / (4 - 1.5 + 1))
    nothing = 0 * target
    assert metrics.soft_dice(nothing, nothing) == metrics.soft_jaccard(nothing, nothing) == 1
    assert metrics.soft_dice(target, nothing) == metrics.soft_jaccard(target, nothing) == 1 / 3


def test_soft_overlaps_are_what_the_losses_leave():
    target, probs = random_case()
    logits = np.log(probs / (1 - probs))
    for score, loss in (("soft_dice", "dice"), ("soft_jaccard", "jaccard")):
        left = 1 - losses.LOSSES[loss](logits, target, smooth=1.0)
        np.testing.assert_allclose(getattr(metrics, score)(target, probs).mean(-1), left, 1e-5)


def test_calibration_counts_match_brute_force():
    target, probs = random_case()
    probs.flat[:6] = [0, 0.25, 0.5, 0.75, 1, 1]  # bins are closed below, the last one above too
    counts = jax.jit(lambda t, p: metrics.calibration_counts(t, p, bins=4))(target, probs)
    expected = np.zeros((3, 3, 2, 4))
    for n, y, x, k in np.ndindex(probs.shape):
        p, t = probs[n, y, x, k], target[n, y, x, k]
        expected[:, n, k, min(int(p * 4), 3)] += (1, p, t)
    np.testing.assert_allclose(counts, expected, rtol=1e-6)
    errors = metrics.expected_calibration_error(counts)
    gaps = [sum(abs(expected[1, n, k] - expected[2, n, k])) / 35 for n, k in np.ndindex(3, 2)]
    np.testing.assert_allclose(errors, np.reshape(gaps, (3, 2)), rtol=1e-5)


def test_shares_are_calibrated_where_they_are_predicted():
    shares = np.linspace(0, 1, 60).reshape(1, 10, 6, 1)
    counts = metrics.calibration_counts(shares, shares)
    np.testing.assert_allclose(metrics.expected_calibration_error(counts), 0, atol=1e-7)


def test_expected_calibration_error_equals_hand_value():
    # Of 10 pixels at 0.8, 6 are true; 10 pixels at 0.1, none is: (2 + 1) / 20.
    probs = np.repeat([0.8, 0.1], 10).reshape(1, 4, 5, 1)
    target = (np.arange(20) < 6).reshape(probs.shape).astype(float)
    counts = metrics.calibration_counts(target, probs)
    assert metrics.expected_calibration_error(counts) == pytest.approx(3 / 20, rel=1e-5)
    assert metrics.expected_calibration_error(
        metrics.calibration_counts(target, target)) == 0  # certain and right
    nothing = metrics.CalibrationCounts(*np.zeros((3, 15)))
    assert np.isnan(metrics.expected_calibration_error(nothing))


def test_probability_scores_reject_shapes_that_would_broadcast():
    target, probs = random_case()
    for score in (metrics.soft_dice, metrics.soft_jaccard, metrics.calibration_counts):
        with helpers_shapes.unchecked(), pytest.raises(ValueError, match="expected one shape"):
            score(target, probs[..., :1])


def test_calibration_counts_of_known_pixels_are_those_of_an_image_without_the_others():
    rng = np.random.default_rng(3)
    target, probs = rng.integers(0, 2, (2, 6, 8, 3)), rng.random((2, 6, 8, 3), np.float32)
    known = np.broadcast_to(np.arange(8) < 5, (2, 6, 8))
    for got, want in zip(metrics.calibration_counts(target, probs, known=known),
                         metrics.calibration_counts(target[:, :, :5], probs[:, :, :5]),
                         strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # sums in another order
