"""Instance metrics: hand values, empty images, slow twins that try every matching."""

import itertools
import math

import numpy as np
import pytest

from cellseg_jax.metrics import match, seg


def squares(*boxes, size=12):
    """Label image with object k+1 in box k = (y, x, height, width)."""
    label = np.zeros((size, size), np.int32)
    for i, (y, x, h, w) in enumerate(boxes, 1):
        label[y : y + h, x : x + w] = i
    return label


def pair_iou(a, b):
    return (a & b).sum() / (a | b).sum()


def objects(label):
    return [label == i for i in np.unique(label) if i > 0]


def brute_match(label, pred, iou):
    """Number of pairs and their IoU sum, best over all one-to-one matchings."""
    true, found = objects(label), objects(pred)
    best = (0, 0.0)
    padded = list(range(len(found))) + [None] * len(true)
    for choice in set(itertools.permutations(padded, len(true))):
        values = [pair_iou(t, found[j]) for t, j in zip(true, choice) if j is not None]
        values = [v for v in values if v >= iou]
        best = max(best, (len(values), sum(values)))
    return best


def brute_seg(label, pred):
    scores = []
    for t in objects(label):
        cover = [p for p in objects(pred) if (t & p).sum() > 0.5 * t.sum()]
        scores.append(pair_iou(t, cover[0]) if cover else 0.0)
    return sum(scores) / len(scores) if scores else math.nan


def test_match_equals_hand_value():
    # One object exact, one shifted by a column (IoU 12/20), one missed, one invented.
    label = squares((0, 0, 3, 3), (0, 6, 4, 4), (8, 0, 2, 2))
    pred = squares((0, 0, 3, 3), (0, 7, 4, 4), (8, 8, 2, 2))
    assert match(label, pred) == (2, 1, 1, 0.5, 2 / 3, 1.6 / 3)
    assert match(label, pred, iou=0.7) == (1, 2, 2, 0.2, 1 / 3, 1 / 3)
    assert seg(label, pred) == pytest.approx(1.6 / 3)


def test_match_and_seg_state_their_empty_cases():
    empty, one = squares(), squares((1, 1, 3, 3))
    assert match(empty, empty) == (0, 0, 0, 1, 1, 1)
    assert match(empty, one) == (0, 1, 0, 0, 0, 0)
    assert match(one, empty) == (0, 0, 1, 0, 0, 0)
    assert match(one, one, iou=1.0) == (1, 0, 0, 1, 1, 1)
    assert math.isnan(seg(empty, one)) and seg(one, empty) == 0 and seg(one, one) == 1
    full = np.ones((4, 4), np.int32)  # no background at all
    assert match(full, full) == (1, 0, 0, 1, 1, 1) and seg(full, full) == 1


def test_match_takes_most_pairs_not_the_best_one():
    """Greedy by IoU would pair the first two and leave one pair; two pairs are possible."""
    label = np.array([[1, 1, 1, 1, 2, 2, 2, 2]])
    pred = np.array([[1, 1, 2, 2, 2, 2, 0, 0]])
    assert match(label, pred, iou=1 / 3).tp == 2


def test_seg_needs_more_than_half():
    label = np.array([[1, 1, 1, 1]])
    assert seg(label, np.array([[1, 1, 2, 2]])) == 0
    assert seg(label, np.array([[1, 1, 1, 2]])) == 0.75


@pytest.mark.parametrize("seed", range(40))
def test_match_and_seg_match_brute_force(seed):
    rng = np.random.default_rng(seed)
    # Overwriting boxes leaves fragments of all sizes, and few enough objects to try them all.
    boxes = lambda: np.c_[rng.integers(0, 4, (4, 2)), rng.integers(1, 5, (4, 2))]
    label, pred = squares(*boxes(), size=8), squares(*boxes(), size=8)
    for iou in (0.05, 0.2, 0.5, 0.8):
        result = match(label, pred, iou=iou)
        pairs, total = brute_match(label, pred, iou)
        assert (result.tp, result.tp + result.fn) == (pairs, len(objects(label)))
        assert result.tp + result.fp == len(objects(pred))
        assert result.pq == pytest.approx(total / (result.tp + (result.fp + result.fn) / 2))
    np.testing.assert_allclose(seg(label, pred), brute_seg(label, pred))


def test_match_invariant_to_names_of_objects_and_dtype():
    label = squares((0, 0, 3, 3), (0, 6, 4, 4))
    pred = squares((0, 1, 3, 3), (0, 6, 4, 4))
    names = np.array([0, 2**31 - 1, 7])
    assert match(names[label], pred.astype(np.uint16)) == match(label, pred)
    assert seg(label, names[pred]) == seg(label, pred)


def test_match_rejects_what_is_not_a_label_image():
    label = squares((0, 0, 3, 3))
    with pytest.raises(ValueError, match="expected one shape"):
        match(label, label[None])
    with pytest.raises(ValueError, match="expected instance ids"):
        match(label, label.astype(float))
    with pytest.raises(ValueError, match="expected instance ids"):
        seg(-label, label)
    with pytest.raises(ValueError, match="threshold"):
        match(label, label, iou=0)
