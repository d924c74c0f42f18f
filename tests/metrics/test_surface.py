"""Surface metrics: hand values, empty masks, a slow twin that measures every pair of pixels."""

import math

import helpers_shapes
import numpy as np
import pytest

from cellseg_jax.metrics import hausdorff95, surface_dice


def outline(mask):
    inside = lambda y, x: 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]
    return [(y, x) for y, x in np.argwhere(mask)
            if not all(inside(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))]


def brute_distances(mask, pred, spacing):
    a, b = outline(mask), outline(pred)
    far = lambda p, q: math.hypot((p[0] - q[0]) * spacing[0], (p[1] - q[1]) * spacing[1])
    return [[min(far(p, q) for q in there) for p in here] for here, there in ((a, b), (b, a))]


@pytest.mark.parametrize("seed", range(10))
def test_surface_metrics_match_brute_force(seed):
    rng = np.random.default_rng(seed)
    mask, pred = rng.random((2, 8, 7)) < rng.uniform(0.05, 0.98, (2, 1, 1))
    mask[3, 3] = pred[1, 5] = True
    for spacing in ((1.0, 1.0), (0.7, 2.0)):
        there, back = brute_distances(mask, pred, spacing)
        expected = max(np.percentile(there, 95), np.percentile(back, 95))
        assert hausdorff95(mask, pred, spacing=spacing) == pytest.approx(expected, rel=1e-12)
        right = np.mean([d <= 1.2 for d in there + back])
        assert surface_dice(mask, pred, 1.2, spacing=spacing) == pytest.approx(right)


def test_surface_metrics_equal_hand_value():
    mask, pred = np.zeros((2, 9, 12), bool)
    mask[2:7, 1:6], pred[2:7, 4:9] = True, True
    assert surface_dice(mask, mask, 0) == 1 and hausdorff95(mask, mask) == 0
    assert hausdorff95(mask, pred, spacing=0.5) == 1.5
    # Of 16 pixels each, the top and bottom rows share two columns.
    assert surface_dice(mask, pred, 0) == (4 + 4) / 32
    assert surface_dice(mask, pred, 3) == 1


def test_surface_metrics_state_their_empty_cases():
    empty, one = np.zeros((5, 5), bool), np.eye(5, dtype=bool)
    assert hausdorff95(empty, empty) == 0 and surface_dice(empty, empty, 1) == 1
    for pair in ((empty, one), (one, empty)):
        assert hausdorff95(*pair) == math.inf and surface_dice(*pair, 1) == 0
    full = np.ones((5, 5), int)
    assert hausdorff95(full, full) == 0 and surface_dice(full, full, 0) == 1


def test_surface_metrics_reject_bad_input():
    mask = np.ones((3, 4), bool)
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match="expected one shape"):
        hausdorff95(mask, mask.T)
    with pytest.raises(ValueError, match="tolerance -1"):
        surface_dice(mask, mask, -1)
