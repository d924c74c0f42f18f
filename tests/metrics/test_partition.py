"""Rand and information scores: hand values, empty truth, slow twins over all pairs of pixels."""

import itertools
import math

import numpy as np
import pytest

from cellseg_jax.metrics import (
    information_error,
    rand_error,
    thin_borders,
    variation_of_information,
)


def segments(label, pred, foreground_only, background_alone):
    """[(true segment, predicted segment)] of each pixel that counts."""
    pixels = []
    ids = zip(label.ravel().tolist(), pred.ravel().tolist(), strict=True)
    for i, (t, p) in enumerate(ids):
        if t or not foreground_only:
            pixels.append((t, ("alone", i) if p == 0 and background_alone else p))
    return pixels


def brute_rand_error(*args):
    pairs = list(itertools.combinations(segments(*args), 2))
    together = sum(a == b for a, b in pairs)
    apart = sum((a[0] == b[0]) + (a[1] == b[1]) for a, b in pairs)
    return 1 - 2 * together / apart if apart else 0.0


def entropy(ids):
    ids = list(ids)
    return -sum(n / len(ids) * math.log2(n / len(ids)) for n in map(ids.count, set(ids)))


OPTIONS = list(itertools.product([True, False], repeat=2))


@pytest.mark.parametrize("foreground_only, background_alone", OPTIONS)
def test_partition_scores_match_brute_force(foreground_only, background_alone):
    rng = np.random.default_rng(0)
    options = dict(foreground_only=foreground_only, background_alone=background_alone)
    for _ in range(8):
        label, pred = rng.integers(0, 4, (2, 5, 4))
        args = (label, pred, foreground_only, background_alone)
        pixels = segments(*args)
        assert rand_error(label, pred, **options) == pytest.approx(brute_rand_error(*args))
        h_true, h_pred = (entropy(p[i] for p in pixels) for i in (0, 1))
        h_both = entropy(pixels)
        np.testing.assert_allclose(
            variation_of_information(label, pred, **options), (h_both - h_true, h_both - h_pred))
        information = 2 * (h_true + h_pred - h_both) / (h_true + h_pred)
        assert information_error(label, pred, **options) == pytest.approx(1 - information)


def test_partition_scores_equal_hand_value():
    label, merged = np.array([[1, 1, 0, 2, 2]]), np.array([[1, 1, 1, 1, 1]])
    # 2 pairs of the truth, 6 of the prediction, 2 of both.
    assert rand_error(label, merged) == pytest.approx(1 - 4 / 8)
    assert variation_of_information(label, merged) == (0, 1)  # which of two: one bit lost
    assert variation_of_information(merged, label) == pytest.approx((math.log2(5) - 0.8, 0))
    assert information_error(label, merged) == 1
    assert rand_error(label, label) == information_error(label, label) == 0


def test_partition_scores_state_their_empty_cases():
    empty, one, each = np.zeros((2, 3), int), np.ones((2, 3), int), np.arange(1, 7).reshape(2, 3)
    for pred in (empty, one):
        assert math.isnan(rand_error(empty, pred)) and math.isnan(information_error(empty, pred))
        assert all(map(math.isnan, variation_of_information(empty, pred)))
    assert rand_error(one, empty) == information_error(one, empty) == 1
    assert variation_of_information(one, empty) == pytest.approx((math.log2(6), 0))
    assert rand_error(one, one) == information_error(one, one) == 0
    assert rand_error(each, empty) == 0 and rand_error(each, each) == 0  # no pairs at all
    assert rand_error(empty, empty, foreground_only=False, background_alone=False) == 0


def test_partition_scores_invariant_to_names_and_small_dtypes():
    rng = np.random.default_rng(1)
    label, pred = rng.integers(0, 3, (2, 6, 5))
    names = np.array([0, 255, 7], np.uint8)
    for foreground_only, background_alone in OPTIONS:
        options = dict(foreground_only=foreground_only, background_alone=background_alone)
        assert rand_error(names[label], names[pred], **options) == pytest.approx(
            rand_error(label, pred, **options))
    with pytest.raises(ValueError, match="expected instance ids"):
        rand_error(label.astype(float), pred)


def test_thin_borders_makes_a_line_in_the_middle():
    label = np.zeros((6, 11), np.int32)
    label[:, :2], label[:, 9:] = 4, 2
    thin = thin_borders(label)
    np.testing.assert_array_equal(thin, np.repeat([[4] * 5 + [0] + [2] * 5], 6, 0))
    assert thin_borders(np.zeros((3, 4), int)).sum() == 0
    np.testing.assert_array_equal(thin_borders(np.full((3, 4), 5)), np.full((3, 4), 5))


def test_thin_borders_frees_scores_from_the_width_of_membranes():
    truth = np.zeros((12, 13), np.int32)
    truth[:, :6], truth[:, 7:] = 1, 2
    wide = truth.copy()
    wide[:, 3:10] = 0
    assert rand_error(truth, wide) > 0.2 and rand_error(truth, thin_borders(wide)) == 0
    assert variation_of_information(truth, thin_borders(wide)) == (0, 0)
    assert information_error(truth, thin_borders(wide)) == pytest.approx(0, abs=1e-12)


def test_partitions_leave_out_what_is_not_annotated():
    rng = np.random.default_rng(3)
    label, pred = rng.integers(0, 3, (2, 9, 8))
    hidden = np.where(np.arange(8) < 5, label, -1)
    for score in (rand_error, information_error, variation_of_information):
        for foreground_only in (True, False):
            np.testing.assert_allclose(
                score(hidden, pred, foreground_only=foreground_only),
                score(label[:, :5], pred[:, :5], foreground_only=foreground_only), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int32])
def test_partition_scores_take_ids_of_any_integer_type_and_refuse_others(dtype):
    rng = np.random.default_rng(1)
    label, pred = rng.integers(0, 3, (2, 6, 7))
    whole = dict(foreground_only=False, background_alone=False)
    assert rand_error(label.astype(dtype), pred.astype(dtype), **whole) == pytest.approx(
        rand_error(label, pred, **whole))
    for wrong in (pred - 1, pred / 2):
        with pytest.raises(ValueError, match="pred: expected instance ids"):
            rand_error(label, wrong, **whole)
