"""Instance metrics: which predicted objects are which true objects. Host side, numpy."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Overlap(NamedTuple):
    """The I true and J predicted objects of one image, and the M pairs of them that touch."""

    true: np.ndarray  # (M,) rows in 0..I-1
    pred: np.ndarray  # (M,) columns in 0..J-1
    pixels: np.ndarray  # (M,) size of the intersection
    area_true: np.ndarray  # (I,)
    area_pred: np.ndarray  # (J,)

    @property
    def iou(self) -> np.ndarray:
        """(M,) float64."""
        areas = self.area_true[self.true] + self.area_pred[self.pred]
        return self.pixels / (areas - self.pixels)


def overlap(label, pred) -> Overlap:
    """Which objects share pixels, as a sparse table: cells touch few others, so M is about I.

    Args:
      label: (H, W) int, true instance ids, 0 background; ids below 2^31, gaps allowed.
      pred: (H, W) int, predicted instance ids.
    Returns: Overlap.
    Raises: ValueError if shapes differ, an array is not of integers or an id is negative.
    """
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape != pred.shape or label.ndim != 2:
        raise ValueError(f"label {label.shape} and pred {pred.shape}: expected one shape (H, W)")
    for name, ids in (("label", label), ("pred", pred)):
        if not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < 0:
            raise ValueError(f"{name}: expected instance ids, integers from 0; got {ids.dtype}")
    code = label.astype(np.int64) << 32 | pred.astype(np.int64)
    pairs, pixels = np.unique(code, return_counts=True)
    ids_true, true = np.unique(pairs >> 32, return_inverse=True)
    ids_pred, pred = np.unique(pairs & 0xFFFFFFFF, return_inverse=True)
    area_true = np.bincount(true, pixels, len(ids_true)).astype(np.int64)
    area_pred = np.bincount(pred, pixels, len(ids_pred)).astype(np.int64)
    # Background, where there is any, is the first id of each.
    i, j = int(ids_true[:1].sum() == 0), int(ids_pred[:1].sum() == 0)
    both = (true >= i) & (pred >= j)
    return Overlap(true[both] - i, pred[both] - j, pixels[both], area_true[i:], area_pred[j:])


def _best_pairs(true, pred, iou) -> np.ndarray:
    """Of the M candidate pairs, indices of the one-to-one matching with most pairs, then IoU."""
    _, rows, shared_rows = np.unique(true, return_inverse=True, return_counts=True)
    _, cols, shared_cols = np.unique(pred, return_inverse=True, return_counts=True)
    alone = (shared_rows[rows] == 1) & (shared_cols[cols] == 1)
    # Above IoU 1/2 every pair is alone; below, the few that compete are assigned together.
    compete = np.flatnonzero(~alone)
    _, rows = np.unique(rows[compete], return_inverse=True)
    _, cols = np.unique(cols[compete], return_inverse=True)
    gain = np.zeros((rows.max(initial=-1) + 1, cols.max(initial=-1) + 1))
    index = np.full(gain.shape, -1)
    gain[rows, cols] = 1 + iou[compete] / (2 * max(gain.shape))  # IoUs never outweigh a pair
    index[rows, cols] = compete
    chosen = index[linear_sum_assignment(gain, maximize=True)]
    return np.concatenate([np.flatnonzero(alone), chosen[chosen >= 0]])


class Match(NamedTuple):
    """Objects found, invented and missed at one IoU threshold, and scores of these."""

    tp: int
    fp: int
    fn: int
    ap: float
    f1: float
    pq: float


def match(label, pred, iou: float = 0.5) -> Match:
    """True and predicted objects matched one to one where their IoU is at least `iou`.

    ap = TP / (TP + FP + FN), f1 = 2 TP / (2 TP + FP + FN), pq = sum of matched IoU /
    (TP + FP/2 + FN/2). The matching has most pairs, and among those the largest sum of IoU.
    Both empty: all three are 1. One empty: 0. Counts add over images; scores do not.

    Args:
      label: (H, W) int, true instance ids, 0 background.
      pred: (H, W) int, predicted instance ids.
      iou: threshold in (0, 1].
    Returns: Match of ints and floats.
    Raises: ValueError as `overlap`, or for a threshold outside (0, 1].
    Source: ap of Data Science Bowl 2018, StarDist and Cellpose (not COCO's AP); pq of Kirillov
      et al. 2019, Panoptic Segmentation, equation 1, for one class.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou: got {iou}; expected a threshold in (0, 1]")
    table = overlap(label, pred)
    good = table.iou >= iou
    values = table.iou[good]
    values = values[_best_pairs(table.true[good], table.pred[good], values)]
    tp = len(values)
    fp, fn = len(table.area_pred) - tp, len(table.area_true) - tp
    if tp + fp + fn == 0:
        return Match(0, 0, 0, 1.0, 1.0, 1.0)
    half = tp + (fp + fn) / 2
    return Match(tp, fp, fn, tp / (tp + fp + fn), tp / half, float(values.sum()) / half)


def seg(label, pred) -> float:
    """SEG of the Cell Tracking Challenge: how well true objects are covered.

    Mean over true objects of the IoU with the prediction that covers more than half of the
    object, else 0. Invented objects cost nothing. No true objects: NaN, the image has no say.

    Args:
      label: (H, W) int, true instance ids, 0 background.
      pred: (H, W) int, predicted instance ids.
    Returns: float in [0, 1], or NaN.
    Raises: ValueError as `overlap`.
    Source: Maska et al. 2014, Bioinformatics 30; Ulman et al. 2017, Nature Methods 14.
    """
    table = overlap(label, pred)
    if len(table.area_true) == 0:
        return float("nan")
    covered = 2 * table.pixels > table.area_true[table.true]  # true of one prediction at most
    return float(table.iou[covered].sum() / len(table.area_true))
