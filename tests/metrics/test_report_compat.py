"""Report 2's evaluation mistakes come out as its tables show them."""

import helpers_shapes
import numpy as np
import pytest
from scipy.special import logit

from cellseg_jax.metrics import Counts
from cellseg_jax.metrics.report_compat import REPORT2_DEFINITIONS, dithered, report2_scores, swapped


def gland(seed, size=96, part=0.629):
    """A mask like those of EBHI-Seg: one large piece, as dense as the report's mean."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + rng.normal(0, 3, (2, 1, 1))
    far = np.hypot(y - size / 2, x - size / 2)
    return far <= np.quantile(far, part)


def test_dithering_keeps_the_density_but_is_no_threshold():
    """Erratum 4: uniform p = .45 gives 44.7 % ones, a threshold none."""
    mask = dithered(np.full((300, 300), 0.45))
    assert mask.dtype == bool and mask.mean() == pytest.approx(0.447, abs=5e-4)
    assert not dithered(np.zeros((9, 9))).any() and dithered(np.ones((9, 9))).all()


def test_perfect_bce_model_looks_like_chance():
    """Erratum 2: the report has accuracy .5000, "precision" .4995, "recall" .6290."""
    rng = np.random.default_rng(0)
    scores = []
    for seed in range(6):
        mask = gland(seed)
        logits = np.where(mask, 1, -1) * rng.uniform(4, 12, mask.shape)
        right = report2_scores(mask, logits, "dice")  # the same network with its sigmoid
        assert right["report2_accuracy"] > 0.99
        scores.append(list(report2_scores(mask, logits, "bce").values())[:3])
    np.testing.assert_allclose(np.mean(scores, 0), [0.5, 0.4995, 0.629], atol=0.01)


def test_precision_and_recall_are_swapped():
    """Erratum 1: the all-foreground predictor of row unet_0_3, precision 1, recall .6289."""
    mask = gland(0, part=0.6289)
    scores = report2_scores(mask, np.full(mask.shape, 40.0), "dice")
    assert scores["report2_precision"] == 1
    assert scores["report2_recall"] == scores["report2_accuracy"] == mask.mean()
    assert swapped(Counts(1, 2, 3, 4)) == Counts(1, 3, 2, 4)


def test_report2_scores_equal_hand_value_and_say_what_they_are():
    mask = np.zeros((4, 5))
    mask[:2] = 1
    logits = logit(np.clip(np.zeros((4, 5)), 1e-9, 1))
    logits[0] = 40.0  # 5 of 10 found, none false
    scores = report2_scores(mask, logits, "jaccard")
    np.testing.assert_allclose(list(scores.values()), [0.75, 0.5, 1, 2 / 3, 0.5])
    assert list(scores) == list(REPORT2_DEFINITIONS)
    nothing = report2_scores(0 * mask, 0 * mask - 40, "dice")
    assert list(nothing.values()) == [1, 0, 0, 0, 0]
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match="expected one"):
        report2_scores(mask, logits[0], "dice")
