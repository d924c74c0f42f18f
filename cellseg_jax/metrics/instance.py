"""Instance metrics: which predicted objects are which true objects. Host side, numpy.

Where a true label is -1 an image is not annotated: such pixels belong to no object, and predictions
that lie there with more than half of their pixels are left out.

All come from one sparse table of overlaps. `instance_counts` takes from it what adds up over
images, `instance_scores` turns counts into scores: of one image, or of all from summed counts.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy  # whose modules are imported where they are first used
from jaxtyping import ArrayLike, Bool, Float64, Integer, Shaped

from cellseg_jax.metrics.pixel import ratio

BAND_PIXELS = 2**22  # whose overlaps are sorted at once
MAX_ID = 2**32 - 1  # two ids are one number of 64 bits
Ids = Shaped[ArrayLike, "h w"]  # integers; `overlap` refuses others
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class Overlap(NamedTuple):
    """The I true and J predicted objects of one image, and the M pairs of them that touch."""

    true: Integer[np.ndarray, " m"]  # rows in 0..I-1
    pred: Integer[np.ndarray, " m"]  # columns in 0..J-1
    pixels: Integer[np.ndarray, " m"]  # size of the intersection
    area_true: Integer[np.ndarray, " i"]  # pixels
    area_pred: Integer[np.ndarray, " j"]  # pixels

    @property
    def union(self) -> Integer[np.ndarray, " m"]:
        """Pixels in either object of a pair."""
        return self.area_true[self.true] + self.area_pred[self.pred] - self.pixels

    @property
    def iou(self) -> Float64[np.ndarray, " m"]:
        """Intersection over union of each pair."""
        return self.pixels / self.union

    @property
    def covered(self) -> Bool[np.ndarray, " m"]:
        """Pairs in which the prediction has more than half of the true object.

        A true object is in one such pair at most, a prediction may be in several.
        """
        return 2 * self.pixels > self.area_true[self.true]


def overlap(label: Ids, pred: Ids) -> Overlap:
    """Which objects share pixels, as a sparse table: cells touch few others, so M is about I.

    Args:
      label: true instance ids, 0 background, -1 not annotated; ids below 2^32, gaps allowed.
      pred: predicted instance ids.
    Returns: Overlap, objects in the order of their ids.
    Raises: ValueError if shapes differ, an array is not of integers, an id is negative but for
      the -1 of label, or 2^32 or more.
    """
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape != pred.shape or label.ndim != 2:
        raise ValueError(f"label {label.shape} and pred {pred.shape}: expected one shape (H, W)")
    for name, ids, least in (("label", label, -1), ("pred", pred, 0)):
        if not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < least or (
                ids.max(initial=0) > MAX_ID):
            raise ValueError(f"{name}: expected instance ids, integers from {least} to 2^32 - 1; "
                             f"got {ids.dtype}")
    if label.min(initial=0) < 0:
        label, pred = annotated(label, pred)
    pairs, pixels = _counted(label[rows].astype(np.uint64) << 32 | pred[rows].astype(np.uint64)
                             for rows in bands(label.shape))
    ids_true, true = np.unique(pairs >> 32, return_inverse=True)
    ids_pred, pred = np.unique(pairs & 0xFFFFFFFF, return_inverse=True)
    area_true = np.bincount(true, pixels, len(ids_true)).astype(np.int64)
    area_pred = np.bincount(pred, pixels, len(ids_pred)).astype(np.int64)
    # Background, where there is any, is the first id of each.
    i, j = int(ids_true[:1].sum() == 0), int(ids_pred[:1].sum() == 0)
    both = (true >= i) & (pred >= j)
    return Overlap(true[both] - i, pred[both] - j, pixels[both], area_true[i:], area_pred[j:])


def annotated(label, pred):
    """Both as background where label is -1, without predictions that lie there for the most."""
    unknown, rows = label < 0, bands(label.shape)
    ids, pixels = _counted(pred[part] for part in rows)
    hidden, inside = _counted(pred[part][unknown[part]] for part in rows)
    lost = hidden[2 * inside > pixels[np.searchsorted(ids, hidden)]]
    return np.where(unknown, 0, label), np.where(unknown | np.isin(pred, lost), 0, pred)


def bands(shape) -> list[slice]:
    """Rows of an image, one slice at least, by which what is made of it needs little memory."""
    step = max(BAND_PIXELS // max(shape[1], 1), 1)
    return [slice(row, row + step) for row in range(0, max(shape[0], 1), step)]


def _counted(parts) -> tuple[np.ndarray, Integer[np.ndarray, " n"]]:
    """(values in order, how often each occurs) in arrays of integers, one at a time."""
    values, counts = zip(*(np.unique(part, return_counts=True) for part in parts), strict=True)
    values, place = np.unique(np.concatenate(values), return_inverse=True)
    return values, np.bincount(place, np.concatenate(counts), len(values)).astype(np.int64)


def _assigned(true, pred, gain) -> np.ndarray:
    """Of the M candidate pairs, indices of the one-to-one matching with the largest gain."""
    _, rows, shared_rows = np.unique(true, return_inverse=True, return_counts=True)
    _, cols, shared_cols = np.unique(pred, return_inverse=True, return_counts=True)
    alone = (shared_rows[rows] == 1) & (shared_cols[cols] == 1)
    # Above IoU 1/2 every pair is alone; below, the few that compete are assigned together.
    compete = np.flatnonzero(~alone)
    _, rows = np.unique(rows[compete], return_inverse=True)
    _, cols = np.unique(cols[compete], return_inverse=True)
    gains = np.zeros((rows.max(initial=-1) + 1, cols.max(initial=-1) + 1))
    index = np.full(gains.shape, -1)
    gains[rows, cols] = gain[compete]
    index[rows, cols] = compete
    chosen = index[scipy.optimize.linear_sum_assignment(gains, maximize=True)]
    return np.concatenate([np.flatnonzero(alone), chosen[chosen >= 0]])


def matching(table: Overlap, iou: float) -> np.ndarray:
    """Indices of the matched pairs: most pairs that reach `iou`, and of those the largest sum."""
    if not 0 < iou <= 1:
        raise ValueError(f"iou: got {iou}; expected a threshold in (0, 1]")
    good = np.flatnonzero(table.iou >= iou)
    gain = 1 + table.iou[good] / (2 * len(good) + 1)  # IoUs never outweigh a pair
    return good[_assigned(table.true[good], table.pred[good], gain)]


def _matched(table: Overlap, iou: float) -> np.ndarray:
    """IoU of each matched pair."""
    return table.iou[matching(table, iou)]


class Match(NamedTuple):
    """True and false positives and false negatives at one IoU threshold, and their scores."""

    tp: int
    fp: int
    fn: int
    ap: float
    f1: float
    pq: float


def match(label: Ids, pred: Ids, iou: float = 0.5) -> Match:
    """True and predicted objects matched one to one where their IoU is at least `iou`.

    ap = TP / (TP + FP + FN), f1 = 2 TP / (2 TP + FP + FN), pq = sum of matched IoU /
    (TP + FP/2 + FN/2), all in [0, 1]. The matching has most pairs, and among those the largest
    sum of IoU. Both empty: all three are 1. One empty: 0. Counts add over images; scores do not.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
      iou: threshold in (0, 1].
    Returns: Match of ints and floats.
    Raises: ValueError as `overlap`, or for a threshold outside (0, 1].
    Source: ap of Data Science Bowl 2018, StarDist and Cellpose (not COCO's AP); pq of Kirillov
      et al. 2019, Panoptic Segmentation, equation 1, for one class.
    """
    table = overlap(label, pred)
    values = _matched(table, iou)
    tp = len(values)
    fp, fn = len(table.area_pred) - tp, len(table.area_true) - tp
    if tp + fp + fn == 0:
        return Match(0, 0, 0, 1.0, 1.0, 1.0)
    half = tp + (fp + fn) / 2
    return Match(tp, fp, fn, tp / (tp + fp + fn), tp / half, float(values.sum()) / half)


def average_precision(label: Ids, pred: Ids, thresholds=THRESHOLDS) -> Float64[np.ndarray, " t"]:
    """TP / (TP + FP + FN) at each IoU threshold, as `match` has it; its mean is DSB 2018's score.

    In [0, 1]. Both empty: 1 at every threshold. One empty: 0.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
      thresholds: T thresholds in (0, 1].
    Raises: ValueError as `match`.
    Source: Data Science Bowl 2018, which asks for an IoU above the threshold; here it may be
      equal, as in StarDist.
    """
    table = overlap(label, pred)
    tp = np.array([len(_matched(table, t)) for t in thresholds], float)
    return ratio(tp, len(table.area_true) + len(table.area_pred) - tp, 1.0)


def seg(label: Ids, pred: Ids) -> float:
    """SEG of the Cell Tracking Challenge: how well true objects are covered.

    Mean over true objects of the IoU with the prediction that covers more than half of the
    object, else 0; in [0, 1]. False positives are not penalised. Nothing predicted: 0. No true
    objects: NaN, the image is excluded. The challenge takes the mean over the objects of all
    images: `instance_scores` of summed counts.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
    Returns: float in [0, 1], or NaN.
    Raises: ValueError as `overlap`.
    Source: Maska et al. 2014, Bioinformatics 30; Ulman et al. 2017, Nature Methods 14.
    """
    table = overlap(label, pred)
    return float(ratio(table.iou[table.covered].sum(), len(table.area_true), np.nan))


def _detections(table: Overlap):
    """(missed, spurious, splits): the corrections that DET counts."""
    found = np.bincount(table.pred[table.covered], minlength=len(table.area_pred))
    return len(table.area_true) - found.sum(), (found == 0).sum(), np.maximum(found - 1, 0).sum()


def det(label: Ids, pred: Ids) -> float:
    """DET of the Cell Tracking Challenge: the cost of correcting the detections.

    1 - min(A, A0) / A0 with A = 5 splits + 10 missed + 1 spurious and A0 = 10 true objects; in
    [0, 1]. A true object is found by the prediction that covers more than half of it; one that
    finds m > 1 needs m - 1 splits. Nothing predicted: 0. No true objects: NaN. The challenge
    sums A and A0 over all frames: `instance_scores` of summed counts.

    Args:
      label: the tracking truth: a marker per cell, 0 background, all cells marked.
      pred: predicted instance ids.
    Returns: float in [0, 1], or NaN.
    Raises: ValueError as `overlap`.
    Source: Matula et al. 2015, PLoS ONE 10, AOGM-D; Ulman et al. 2017, Nature Methods 14.
    """
    table = overlap(label, pred)
    return float(_det(len(table.area_true), *_detections(table)))


def _det(n_true, missed, spurious, splits):
    cost = 5 * splits + 10 * missed + spurious
    return ratio(np.maximum(10 * n_true - cost, 0), 10 * n_true, np.nan)


def _aji_pixels(table: Overlap, chosen):
    """(intersection, union) summed over chosen pairs; objects in none add to the union."""
    alone_true = np.delete(table.area_true, table.true[chosen]).sum()
    alone_pred = np.delete(table.area_pred, table.pred[chosen]).sum()
    return table.pixels[chosen].sum(), table.union[chosen].sum() + alone_true + alone_pred


def _closest(table: Overlap) -> np.ndarray:
    """Of the M pairs, for each true object the one of largest IoU; of equals the smaller id."""
    order = np.lexsort((table.pred, -table.iou, table.true))
    return order[np.unique(table.true[order], return_index=True)[1]]


def aji(label: Ids, pred: Ids) -> float:
    """Aggregated Jaccard index: intersections over unions, each summed over all objects.

    Every true object takes the prediction of largest IoU, one prediction may be taken by many;
    objects left over add their area to the union. In [0, 1]. Both empty: 1. One empty: 0.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
    Returns: float in [0, 1].
    Raises: ValueError as `overlap`.
    Source: Kumar et al. 2017, IEEE TMI 36, algorithm 1.
    """
    table = overlap(label, pred)
    return float(ratio(*_aji_pixels(table, _closest(table)), 1.0))


def aji_plus(label: Ids, pred: Ids) -> float:
    """`aji` with a one-to-one matching of the largest sum of IoU, so that no object counts twice.

    In [0, 1]. Both empty: 1. One empty: 0.

    Args: as `aji`.
    Returns: float in [0, 1].
    Raises: ValueError as `overlap`.
    Source: Graham et al. 2019, HoVer-Net, Medical Image Analysis 58 (AJI+ of its authors).
    """
    table = overlap(label, pred)
    return float(ratio(*_aji_pixels(table, _assigned(table.true, table.pred, table.iou)), 1.0))


class ErrorKinds(NamedTuple):
    """Number of objects of each error type.

    The first five add up to the true objects; the last two are predictions.
    """

    correct: int
    merged: int
    split: int
    inexact: int
    missed: int
    spurious: int
    fragments: int


def error_kinds(label: Ids, pred: Ids) -> ErrorKinds:
    """Error type per object; every true object is of one type.

    A prediction covers a true object if it holds more than half of its pixels, and is part of one
    if more than half of the prediction lies in it. A true object is, the first that applies:

    correct: matched at IoU 0.5 or more, as tp of `match`.
    merged: covered by a prediction that covers another true object too.
    split: several predictions are part of it.
    inexact: a prediction covers it or is part of it, but their IoU is too low.
    missed: none of these.

    A prediction that is not matched and covers nothing is a fragment if it is part of a true
    object, of whichever type, and else spurious.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
    Raises: ValueError as `overlap`.
    """
    return _error_kinds(overlap(label, pred))


def _error_kinds(table: Overlap) -> ErrorKinds:
    num_true, num_pred = len(table.area_true), len(table.area_pred)
    pairs = matching(table, 0.5)
    covers, part = table.covered, 2 * table.pixels > table.area_pred[table.pred]
    num_covered = np.bincount(table.pred[covers], minlength=num_pred)  # by each prediction
    any_of = lambda pairs: np.bincount(table.true[pairs], minlength=num_true) > 0
    tests = (any_of(pairs), any_of(covers & (num_covered[table.pred] > 1)),
             np.bincount(table.true[part], minlength=num_true) > 1, any_of(covers | part))
    kind = np.select(tests, range(4), 4)
    used = np.union1d(table.pred[pairs], table.pred[covers])
    fragments = len(np.setdiff1d(table.pred[part], used))
    return ErrorKinds(*np.bincount(kind, minlength=5).tolist(),
                      num_pred - len(used) - fragments, fragments)


class InstanceCounts(NamedTuple):
    """Counts behind the instance scores. They add over images: see `summed`."""

    n_true: int
    n_pred: int
    tp: Shaped[ArrayLike, " t"]  # objects matched at each of THRESHOLDS
    matched_iou: Shaped[ArrayLike, " t"]  # sum of their IoU
    covered_iou: float  # sum of the IoU that SEG counts
    missed: int  # true objects not covered by more than half
    spurious: int  # predictions that cover no true object by more than half
    splits: int  # true objects beyond the first that one prediction covers
    intersection: int  # pixels of AJI
    union: int
    kinds: Shaped[ArrayLike, "7"]  # ErrorKinds


def instance_counts(label: Ids, pred: Ids) -> InstanceCounts:
    """InstanceCounts of one image, from one table of overlaps.

    Args:
      label: true instance ids, 0 background.
      pred: predicted instance ids.
    Raises: ValueError as `overlap`.
    """
    table = overlap(label, pred)
    values = [_matched(table, t) for t in THRESHOLDS]
    return InstanceCounts(
        len(table.area_true), len(table.area_pred),
        np.array([len(v) for v in values]), np.array([v.sum() for v in values]),
        float(table.iou[table.covered].sum()),
        *map(int, _detections(table)), *map(int, _aji_pixels(table, _closest(table))),
        np.array(_error_kinds(table)))


def summed(counts: Iterable[InstanceCounts]) -> InstanceCounts:
    """The counts of several images, at least one, together."""
    return InstanceCounts(*map(sum, zip(*counts, strict=True)))


def instance_scores(counts: InstanceCounts) -> dict[str, float]:
    """Scores of one image, or of many from summed counts.

    ap, ap50, ap75: `average_precision`, its mean over .5, .55, ..., .95 and at .5 and .75;
    f1, pq: `match` at .5; seg, det, aji: the functions of that name. Empty cases as there: seg
    and det are NaN without true objects.
    """
    objects = counts.n_true + counts.n_pred
    at = ratio(counts.tp, objects - counts.tp, 1.0)
    scores = {
        "ap": at.mean(),
        "ap50": at[THRESHOLDS.index(0.5)],
        "ap75": at[THRESHOLDS.index(0.75)],
        "f1": ratio(2 * counts.tp[0], objects, 1.0),
        "pq": ratio(2 * counts.matched_iou[0], objects, 1.0),
        "seg": ratio(counts.covered_iou, counts.n_true, np.nan),
        "det": _det(counts.n_true, counts.missed, counts.spurious, counts.splits),
        "aji": ratio(counts.intersection, counts.union, 1.0),
    }
    return {name: float(score) for name, score in scores.items()}
