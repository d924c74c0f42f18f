"""Pixel metrics: hand values, empty images, a slow twin."""

import helpers_shapes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from cellseg_jax import metrics
from cellseg_jax.metrics import PIXEL_SCORES, Counts, pixel_counts


def random_masks(k=3, n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, 5, 7, k)), rng.integers(0, 2, (n, 5, 7, k))


def scores(tp, fp, fn, tn):
    counts = Counts(*(np.float64(c) for c in (tp, fp, fn, tn)))
    return [float(score(counts)) for score in PIXEL_SCORES.values()]


def test_pixel_scores_equal_hand_value():
    #                    dice   iou  prec  recall  acc  conformity
    np.testing.assert_allclose(scores(6, 2, 1, 1), [0.8, 6 / 9, 0.75, 6 / 7, 0.7, 0.5])


def test_pixel_scores_state_their_empty_cases():
    inf = np.inf
    assert scores(0, 0, 0, 9) == [1, 1, 1, 1, 1, 1]  # both empty
    assert scores(0, 3, 0, 6) == [0, 0, 0, 0, 6 / 9, -inf]  # nothing true
    assert scores(0, 0, 3, 6) == [0, 0, 0, 0, 6 / 9, -inf]  # nothing predicted
    assert scores(9, 0, 0, 0) == [1, 1, 1, 1, 1, 1]  # perfect, full


def test_precision_and_recall_are_not_swapped():
    """An all-foreground predictor has recall 1: truth comes first."""
    mask, pred = np.zeros((1, 2, 5, 1)), np.ones((1, 2, 5, 1))
    mask[:, 0] = 1
    counts = pixel_counts(mask, pred)
    assert metrics.recall(counts) == 1 and metrics.precision(counts) == 0.5


@pytest.mark.parametrize("k", [1, 3])
def test_pixel_counts_match_brute_force(k):
    mask, pred = random_masks(k)
    counts = pixel_counts(mask, pred)
    expected = np.zeros((4, *counts.tp.shape))
    kinds = {(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}
    for i, y, x, c in np.ndindex(mask.shape):
        expected[kinds[mask[i, y, x, c], pred[i, y, x, c]], i, c] += 1
    np.testing.assert_array_equal(counts, expected)
    assert all(c.dtype == jnp.float32 and c.shape == (4, k) for c in counts)


def test_pixel_scores_same_under_jit_and_in_numpy():
    mask, pred = random_masks()
    mask[0], pred[1], mask[2], pred[2] = 0, 0, 0, 0
    counts = pixel_counts(mask, pred)
    hosted = Counts(*(np.asarray(c, np.float64) for c in counts))
    for name, score in PIXEL_SCORES.items():
        jitted = jax.jit(lambda *masks, score=score: score(pixel_counts(*masks)))(mask, pred)
        assert jitted.shape == (4, 3) and jitted.dtype == jnp.float32
        value = score(hosted)
        assert isinstance(value, np.ndarray) and value.dtype == np.float64
        np.testing.assert_allclose(jitted, value, rtol=1e-6, err_msg=name)


def test_conformity_is_its_formula_in_dice():
    mask, pred = random_masks()
    counts = pixel_counts(mask, pred)
    dice = metrics.dice(counts)
    np.testing.assert_allclose(metrics.conformity(counts), (3 * dice - 2) / dice, rtol=1e-5)


def test_pixel_counts_rejects_shapes_that_would_broadcast():
    mask, pred = random_masks(k=1, n=1)
    with pytest.raises(TypeCheckError, match="parameter 'pred'"):
        pixel_counts(mask, pred[..., 0])
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match="expected one shape"):
        pixel_counts(mask, pred[..., 0])


def test_pixel_counts_of_known_pixels_are_those_of_an_image_without_the_others():
    rng = np.random.default_rng(3)
    mask, pred = rng.integers(0, 2, (2, 2, 6, 8, 3))
    known = np.broadcast_to(np.arange(8) < 5, (2, 6, 8))
    for got, want in zip(pixel_counts(mask, pred, known),
                         pixel_counts(mask[:, :, :5], pred[:, :, :5]), strict=True):
        np.testing.assert_array_equal(got, want)
