"""Rand and information scores: two images as partitions of their pixels, usual for membranes.

A pixel counts by the segment it is in, so that one hole in a membrane, which merges two cells,
costs much and a shifted membrane little. Host side, from the table of overlaps.
"""

import numpy as np
from jaxtyping import ArrayLike, Int32, Shaped
from scipy import ndimage
from scipy.special import xlogy
from skimage import segmentation

from cellseg_jax.metrics.instance import Ids, overlap


def _sizes(label, pred, foreground_only, background_alone):
    """Pixels of each true segment, each predicted one and each intersection of two.

    Predicted background is left out of the latter two: a pixel on its own makes no pair and,
    as 1 log 1, no entropy. So are pixels that are not annotated, where the label is -1.
    """
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape == pred.shape and label.min(initial=0) < 0:
        known = label >= 0
        label, pred = label[known][None], pred[known][None]
    # What are no ids goes on as it is, for `overlap` to refuse.
    is_ids = lambda x: np.issubdtype(x.dtype, np.integer) and x.min(initial=0) >= 0
    shift = lambda x, keep_background: (
        x.astype(np.int64) + 1 if keep_background and is_ids(x) else x)
    table = overlap(shift(label, not foreground_only), shift(pred, not background_alone))
    within = np.bincount(table.pred, table.pixels, len(table.area_pred))
    return table.area_true.astype(float), within, table.pixels.astype(float)


def rand_error(
    label: Ids, pred: Ids, *, foreground_only: bool = True, background_alone: bool = True
) -> float:
    """1 - Rand F-score: pairs of pixels that only one of the two images keeps together.

    1 - 2 sum_ij c(n_ij) / (sum_i c(t_i) + sum_j c(s_j)) with c(n) = n (n - 1), the pairs within
    n pixels, n_ij the pixels of true segment i in predicted segment j, t_i and s_j their sums.
    In [0, 1], 0 is perfect. No foreground in the truth: NaN, the image is excluded. Nothing
    predicted: 1. No segment of two pixels in either: 0.

    Args:
      label: ids of true segments, 0 the membrane.
      pred: ids of predicted segments, 0 the membrane; thin it first (thin_borders).
      foreground_only: leave out pixels on the true membrane; else it is a segment like others.
      background_alone: each pixel of the predicted membrane is a segment of its own; else all
        of it is one segment, which joins pixels far apart.
    Returns: float in [0, 1], or NaN.
    Raises: ValueError as `overlap`.
    Source: Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9, 1 - V^Rand at alpha 1/2
      (ISBI 2012); it also pairs each pixel with itself, which changes little in segments of many
      pixels. With background_alone=False it equals adapted_rand_error of scikit-image.
    """
    true, found, both = _sizes(label, pred, foreground_only, background_alone)
    if not true.size:
        return float("nan")
    together, apart = ((n * (n - 1)).sum() for n in (both, np.concatenate([true, found])))
    return float(1 - 2 * together / apart) if apart else 0.0


def _sums(label, pred, foreground_only, background_alone):
    """(pixels, sum of n log2 n over true segments, predicted segments, intersections)."""
    sizes = _sizes(label, pred, foreground_only, background_alone)
    return sizes[0].sum(), *(xlogy(n, n).sum() / np.log(2) for n in sizes)


def variation_of_information(
    label: Ids, pred: Ids, *, foreground_only: bool = True, background_alone: bool = True
) -> tuple[float, float]:
    """(split, merge): what the prediction adds to the truth, and what it loses of it, in bits.

    split = H(pred | label), merge = H(label | pred), both at least 0; 0 is perfect. Over- and
    undersegmentation apart; the variation of information is their sum. No foreground in the
    truth: NaN. Nothing predicted: all pixels are alone, merge is 0.

    Args: as `rand_error`.
    Raises: ValueError as `overlap`.
    Source: Meila 2007, J. Multivariate Analysis 98. With background_alone=False it equals
      variation_of_information of scikit-image, ignore_labels=(0,) if foreground_only.
    """
    n, true, found, both = _sums(label, pred, foreground_only, background_alone)
    if not n:
        return float("nan"), float("nan")
    return float(max(true - both, 0) / n), float(max(found - both, 0) / n)


def information_error(
    label: Ids, pred: Ids, *, foreground_only: bool = True, background_alone: bool = True
) -> float:
    """1 - information F-score: 1 - 2 I / (H(label) + H(pred)), I the mutual information.

    In [0, 1], 0 is perfect. No foreground in the truth: NaN. Both one segment: 0.

    Args: as `rand_error`.
    Returns: float in [0, 1], or NaN.
    Raises: ValueError as `overlap`.
    Source: Arganda-Carreras et al. 2015, 1 - V^Info at alpha 1/2 (ISBI 2012).
    """
    n, true, found, both = _sums(label, pred, foreground_only, background_alone)
    if not n:
        return float("nan")
    h_true, h_pred, h_both = (np.log2(n) - s / n for s in (true, found, both))
    total = h_true + h_pred
    return float(np.clip((2 * h_both - total) / total, 0, 1)) if total > 1e-12 else 0.0


def thin_borders(label: Shaped[ArrayLike, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Segments grown into the border between them until it is one pixel wide.

    Each pixel of the border goes to the nearest segment, but for the line where two meet. Then
    scores do not depend on how wide a membrane was drawn. No segments: unchanged.

    Args:
      label: ids of segments, 0 the border; 4-connected components of what is not
        membrane (targets.components).
    Returns: ids as given.
    Source: the border thinning of ISBI 2012 (Arganda-Carreras et al. 2015), by a watershed here.
    """
    label = np.asarray(label)
    if not label.any():
        return label.astype(np.int32)
    distance = ndimage.distance_transform_edt(label == 0)
    apart = segmentation.watershed(distance, label, connectivity=1, watershed_line=True)
    return apart.astype(np.int32)
