"""Instance metrics: hand values, empty images, slow twins that try every matching."""

import functools
import itertools
import math

import helpers_shapes
import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from cellseg_jax.metrics import (
    THRESHOLDS,
    ErrorKinds,
    InstanceCounts,
    aji,
    aji_plus,
    average_precision,
    det,
    error_kinds,
    image_objects,
    instance,
    instance_counts,
    instance_scores,
    match,
    seg,
)


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
        values = [pair_iou(t, found[j]) for t, j in zip(true, choice, strict=True) if j is not None]
        values = [v for v in values if v >= iou]
        best = max(best, (len(values), sum(values)))
    return best


def brute_seg(label, pred):
    scores = []
    for t in objects(label):
        cover = [p for p in objects(pred) if (t & p).sum() > 0.5 * t.sum()]
        scores.append(pair_iou(t, cover[0]) if cover else 0.0)
    return sum(scores) / len(scores) if scores else math.nan


def brute_det(label, pred):
    true, found = objects(label), objects(pred)
    finds = [sum((t & p).sum() > 0.5 * t.sum() for t in true) for p in found]
    cost = 10 * (len(true) - sum(finds)) + sum(1 for m in finds if m == 0)
    cost += 5 * sum(m - 1 for m in finds if m > 1)
    return 1 - min(cost, 10 * len(true)) / (10 * len(true)) if true else math.nan


def brute_aji(label, pred):
    true, found = objects(label), objects(pred)
    intersection, union, used = 0, 0, set()
    for t in true:
        ious = [pair_iou(t, p) for p in found]
        if not ious or max(ious) == 0:
            union += t.sum()
            continue
        j = ious.index(max(ious))
        used.add(j)
        intersection, union = intersection + (t & found[j]).sum(), union + (t | found[j]).sum()
    union += sum(p.sum() for j, p in enumerate(found) if j not in used)
    return intersection / union if union else 1.0


def brute_aji_plus(label, pred):
    true, found = objects(label), objects(pred)
    best, scores = -1, []
    for choice in set(itertools.permutations([*range(len(found)), *[None] * len(true)], len(true))):
        pairs = [(t, found[j]) for t, j in zip(true, choice, strict=True) if j is not None]
        pairs = [(t, p) for t, p in pairs if (t & p).any()]
        total = sum(pair_iou(t, p) for t, p in pairs)
        both = sum((t & p).sum() for t, p in pairs)
        areas = sum(o.sum() for o in true + found)
        score = both / (areas - both) if areas else 1.0
        if total > best + 1e-12:
            best, scores = total, [score]
        elif total > best - 1e-12:
            scores.append(score)
    return scores  # of all best matchings


def test_match_equals_hand_value():
    # One object exact, one shifted by a column (IoU 12/20), one missed, one spurious.
    label = squares((0, 0, 3, 3), (0, 6, 4, 4), (8, 0, 2, 2))
    pred = squares((0, 0, 3, 3), (0, 7, 4, 4), (8, 8, 2, 2))
    assert match(label, pred) == (2, 1, 1, 0.5, 2 / 3, 1.6 / 3)
    assert match(label, pred, iou=0.7) == (1, 2, 2, 0.2, 1 / 3, 1 / 3)
    assert seg(label, pred) == pytest.approx(1.6 / 3)


def test_instance_scores_state_their_empty_cases():
    empty, one = squares(), squares((1, 1, 3, 3))
    assert match(empty, empty) == (0, 0, 0, 1, 1, 1)
    assert match(empty, one) == (0, 1, 0, 0, 0, 0)
    assert match(one, empty) == (0, 0, 1, 0, 0, 0)
    assert match(one, one, iou=1.0) == (1, 0, 0, 1, 1, 1)
    assert math.isnan(seg(empty, one)) and seg(one, empty) == 0 and seg(one, one) == 1
    assert math.isnan(det(empty, one)) and det(one, empty) == 0 and det(one, one) == 1
    for index in (aji, aji_plus, lambda *pair: average_precision(*pair).mean()):
        values = [index(empty, empty), index(empty, one), index(one, empty), index(one, one)]
        assert values == [1, 0, 0, 1]
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
def test_instance_scores_match_brute_force(seed):
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
    np.testing.assert_allclose(det(label, pred), brute_det(label, pred))
    np.testing.assert_allclose(aji(label, pred), brute_aji(label, pred))
    assert any(abs(aji_plus(label, pred) - s) < 1e-9 for s in brute_aji_plus(label, pred))


def test_average_precision_is_match_at_each_threshold():
    label = squares((0, 0, 3, 3), (0, 6, 4, 4), (8, 0, 2, 2))
    pred = squares((0, 0, 3, 3), (0, 7, 4, 4), (8, 8, 2, 2))
    values = average_precision(label, pred)
    assert values.tolist() == [match(label, pred, iou=t).ap for t in THRESHOLDS]
    # The shifted object has IoU 0.6 exactly, which the third threshold must let pass.
    assert values.tolist() == [0.5] * 3 + [0.2] * 7
    assert average_precision(label, pred, thresholds=(0.7,)).tolist() == [0.2]


def test_det_equals_hand_value():
    # One found, two found by one prediction (a split), one missed, one spurious: 5 + 10 + 1.
    label = squares((0, 0, 3, 3), (0, 6, 2, 2), (0, 8, 2, 2), (8, 0, 2, 2))
    pred = squares((0, 0, 3, 3), (0, 6, 2, 4), (8, 8, 2, 2))
    assert det(label, pred) == pytest.approx(1 - 16 / 40)
    crowd = squares(*[(y, x, 1, 1) for y in range(0, 12, 2) for x in range(0, 12, 2)])
    assert det(squares((1, 1, 1, 1)), crowd) == 0  # not below, however many are spurious


def test_aji_equals_hand_value():
    # One prediction over two objects of 4 pixels: it counts with each, but once in AJI+.
    label = squares((0, 0, 2, 2), (0, 2, 2, 2), (6, 6, 1, 1))
    pred = squares((0, 0, 2, 4), (9, 9, 1, 2))
    assert aji(label, pred) == (4 + 4) / (8 + 8 + 1 + 2)
    assert aji_plus(label, pred) == 4 / (8 + 4 + 1 + 2)


def test_instance_scores_of_summed_counts_are_scores_of_images_side_by_side():
    rng = np.random.default_rng(0)
    boxes = lambda: np.c_[rng.integers(0, 6, (4, 2)), rng.integers(1, 5, (4, 2))]
    pairs = [(squares(*boxes()), squares(*boxes())) for _ in range(6)] + [(squares(), squares())]
    total = InstanceCounts(*map(sum, zip(*(instance_counts(*p) for p in pairs), strict=True)))
    beside = [np.hstack([x + (x > 0) * 10 * i for i, x in enumerate(side)])
              for side in zip(*pairs, strict=True)]
    assert instance_scores(total) == pytest.approx(instance_scores(instance_counts(*beside)))
    for label, pred in pairs:
        scores, at_half = instance_scores(instance_counts(label, pred)), match(label, pred)
        ap = average_precision(label, pred)
        expected = {
            "ap": ap.mean(), "ap50": at_half.ap, "ap75": ap[5], "f1": at_half.f1, "pq": at_half.pq,
            "seg": seg(label, pred), "det": det(label, pred), "aji": aji(label, pred)}
        assert scores == pytest.approx(expected, nan_ok=True) and list(scores) == list(expected)


def test_match_invariant_to_names_of_objects_and_dtype():
    label = squares((0, 0, 3, 3), (0, 6, 4, 4))
    pred = squares((0, 1, 3, 3), (0, 6, 4, 4))
    names = np.array([0, 2**31 - 1, 7])
    assert match(names[label], pred.astype(np.uint16)) == match(label, pred)
    assert seg(label, names[pred]) == seg(label, pred)
    names = np.array([0, 2**32 - 1, 2**31], np.uint32)  # hashes and colours as ids
    assert match(names[label], names[pred]) == match(label, pred)
    assert aji(names[label], pred) == aji(label, pred)
    assert seg(names[label].astype(np.uint64), pred) == seg(label, pred)


def test_match_rejects_what_is_not_a_label_image():
    label = squares((0, 0, 3, 3))
    with pytest.raises(TypeCheckError, match="parameter 'pred'"):
        match(label, label[:-1])
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match="expected one shape"):
        match(label, label[:-1])
    with pytest.raises(ValueError, match="expected instance ids"):
        match(label, label.astype(float))
    with pytest.raises(ValueError, match="expected instance ids"):
        seg(-2 * label, label)
    with pytest.raises(ValueError, match="expected instance ids"):
        seg(label, -label)
    large = label.astype(np.int64) * 2**32
    for wrong in (lambda: match(label, large), lambda: seg(large, label)):
        with pytest.raises(ValueError, match="expected instance ids, integers from .* to 2"):
            wrong()
    with pytest.raises(ValueError, match="threshold"):
        match(label, label, iou=0)
    with pytest.raises(ValueError, match="threshold"):
        average_precision(label, label, thresholds=(0.5, 1.5))


def brute_kinds(label, pred):
    """The definition of error_kinds, object by object."""
    true, found = objects(label), objects(pred)
    holds = lambda p, t: (p & t).sum() > 0.5 * t.sum()
    part = lambda p, t: (p & t).sum() > 0.5 * p.sum()
    kinds = dict.fromkeys(ErrorKinds._fields, 0)
    for t in true:  # above IoU 1/2 a match is unique, so no assignment is needed
        holders = [p for p in found if holds(p, t)]
        if any(pair_iou(t, p) > 0.5 for p in found):
            kinds["correct"] += 1
        elif any(holds(p, other) for p in holders for other in true if other is not t):
            kinds["merged"] += 1
        elif sum(part(p, t) for p in found) > 1:
            kinds["split"] += 1
        else:
            near = holders or [p for p in found if part(p, t)]
            kinds["inexact" if near else "missed"] += 1
    kinds["spurious"] = sum(not any(holds(p, t) or part(p, t) for t in true) for p in found)
    used = [p for p in found if any(holds(p, t) or pair_iou(t, p) >= 0.5 for t in true)]
    kinds["fragments"] = len(found) - len(used) - kinds["spurious"]
    return ErrorKinds(**kinds)


def test_pieces_beside_a_match_are_fragments():
    """Five objects found, and seven predictions: nothing that is wrong goes uncounted."""
    label = squares(*((6 * n, 0, 5, 8) for n in range(5)), size=30)
    pred = label.copy()
    pred[:2, :2], pred[6:8, :2] = 6, 7
    assert error_kinds(label, pred)._asdict() == dict(
        correct=5, merged=0, split=0, inexact=0, missed=0, spurious=0, fragments=2)


def test_error_kinds_by_hand():
    label = squares((0, 0, 4, 4), (0, 6, 4, 6), (5, 0, 3, 4), (5, 4, 3, 4), (9, 0, 3, 3))
    pred = squares((0, 0, 4, 4), (0, 6, 4, 3), (0, 9, 4, 3), (5, 0, 3, 8), (10, 10, 2, 2))
    pred[9:12, 9] = 0
    assert error_kinds(label, label) == (5, 0, 0, 0, 0, 0, 0)
    # halves of IoU 1/2 are matched: the second object is correct, not split
    assert error_kinds(label, pred)[:1] == (3,)
    pred[0, 6:12] = 0  # now both halves are too small
    assert error_kinds(label, pred)._asdict() == dict(
        correct=2, merged=1, split=1, inexact=0, missed=1, spurious=1, fragments=2)
    assert error_kinds(label * 0, label) == (0, 0, 0, 0, 0, 5, 0)
    assert error_kinds(label, label * 0) == (0, 0, 0, 0, 5, 0, 0)
    assert error_kinds(label * 0, label * 0) == (0,) * 7


@pytest.mark.parametrize("seed", (0, 1, 2, 3, 5, 6, 7, 8, 9))
def test_error_kinds_equal_their_definition(seed):
    rng = np.random.default_rng(seed)
    boxes = lambda n: [(*rng.integers(0, 9, 2), *rng.integers(2, 6, 2)) for _ in range(n)]
    label, pred = squares(*boxes(6), size=15), squares(*boxes(7), size=15)
    ious = [pair_iou(t, p) for t in objects(label) for p in objects(pred)]
    assert 0.5 not in ious  # where matches may compete
    kinds = error_kinds(label, pred)
    assert kinds == brute_kinds(label, pred)
    assert sum(kinds[:5]) == len(objects(label)) and kinds.correct == match(label, pred).tp
    assert tuple(instance_counts(label, pred).kinds) == kinds


def test_pixels_that_are_not_annotated_belong_to_no_object():
    label, pred = np.zeros((2, 12, 12), int)
    label[:, 6:] = -1
    label[1:5, 1:5] = 7
    pred[1:5, 1:5] = 1
    pred[7:11, 4:9] = 2  # 12 of 20 pixels inside: left out
    pred[10:12, 3:8] = 3  # 4 of 10: what lies outside of it counts
    table = instance.overlap(label, pred)
    assert table.area_true.tolist() == [16] and table.area_pred.tolist() == [16, 2 * 3]
    assert match(label, pred)[:3] == (1, 1, 0)
    label[1:5, 4] = -1  # an object loses the pixels that the truth loses
    assert seg(label, pred) == 1


def test_a_prediction_half_inside_what_is_not_annotated_stays():
    label, pred = np.zeros((2, 4, 8), int)
    label[:, 4:] = -1
    pred[1, 3:5] = 5
    assert match(label, pred).fp == 1
    pred[1, 5] = 5
    assert match(label, pred).fp == 0


@pytest.mark.parametrize("ids", [8, 2**32 - 2])
def test_large_images_are_counted_in_bands(monkeypatch, ids):
    rng = np.random.default_rng(ids)
    choices = np.unique(rng.integers(1, ids, 6))
    label = rng.choice([-1, -1, -1, 0, *choices], (37, 23)).repeat(2, 0)
    pred, probs = rng.choice([0, *choices], label.shape), rng.random(label.shape)
    pred[label < 0] = choices[0]  # which lies there for the most
    whole = instance.overlap(label, pred), image_objects(label, pred, probs)
    monkeypatch.setattr(instance, "BAND_PIXELS", 100)
    assert len(instance.bands(label.shape)) == 19
    bands = instance.overlap(label, pred), image_objects(label, pred, probs)
    for a, b in zip(whole, bands, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), a, b)
    known = np.where(label < 0, 0, label)
    kept = np.where((label < 0) | (pred == choices[0]), 0, pred)
    assert (whole[0].pixels == instance.overlap(known, kept).pixels).all()
