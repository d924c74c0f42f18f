"""Scores of objects beyond one table of counts: COCO's AP, F1 by size of cells, errors of counts.

AP has three definitions in use. StarDist pools TP, FP and FN over images (`instance_scores` of
summed counts); Cellpose takes TP / (TP + FP + FN) of each image, whose mean is reported;
both match one to one, with most pairs at IoU >= threshold, so that of one image
they are `average_precision`, but for an image with nothing true and nothing predicted: 1 here,
0 in StarDist, NaN in Cellpose. COCO ranks predictions by score and integrates precision over
recall (`coco_ap`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Real, Shaped

from cellseg_jax.metrics.instance import (
    Ids,
    Overlap,
    annotated,
    bands,
    matching,
    overlap,
)
from cellseg_jax.metrics.pixel import ratio

# As pycocotools computes them: 0.6000000000000001 is one of them.
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = ("small", "medium", "large")


class ImageObjects(NamedTuple):
    """The I true and J predicted objects of one image, as far as `coco_ap` and F1 by size go."""

    area_true: Shaped[np.ndarray, " i"]  # pixels
    found: Bool[np.ndarray, " i"]  # matched at IoU 0.5 or more, as in `match`
    area_spurious: Shaped[np.ndarray, " k"]  # of the predictions that are not matched
    score: Float64[np.ndarray, " j"]  # of the predictions, falling
    correct: Bool[np.ndarray, "t j"]  # as COCO matches them at each of COCO_THRESHOLDS


def image_objects(label: Ids, pred: Ids, probs: Real[np.ndarray, "h w"]) -> ImageObjects:
    """ImageObjects of one image; the score of a prediction is the mean of probs over its pixels.

    Args:
      label: true instance ids, 0 background, -1 not annotated.
      pred: predicted instance ids.
      probs: how probable a cell is at each pixel.
    Raises: ValueError as `overlap`.
    """
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape == pred.shape and label.min(initial=0) < 0:
        label, pred = annotated(label, pred)
    table = overlap(label, pred)
    ids, score = _means(pred, np.asarray(probs))
    score = score[ids > 0]
    order = np.argsort(-score, kind="stable")
    pairs = matching(table, 0.5)
    return ImageObjects(
        table.area_true, np.isin(np.arange(len(table.area_true)), table.true[pairs]),
        np.delete(table.area_pred, table.pred[pairs]), score[order], _coco_matched(table, order))


def _means(pred, probs) -> tuple[np.ndarray, np.ndarray]:
    """(ids in their order, the mean of probs over the pixels of each)."""
    found = []
    for rows in bands(pred.shape):
        ids, place, pixels = np.unique(pred[rows], return_inverse=True, return_counts=True)
        found.append((ids, pixels, np.bincount(place.reshape(-1), np.ravel(probs[rows]), len(ids))))
    ids, pixels, sums = map(np.concatenate, zip(*found, strict=True))
    ids, place = np.unique(ids, return_inverse=True)
    return ids, np.bincount(place, sums, len(ids)) / np.bincount(place, pixels, len(ids))


def _coco_matched(table: Overlap, order) -> Bool[np.ndarray, "t j"]:
    """Whether each prediction, in `order`, takes a true object that none before it has taken.

    It takes the one of largest IoU, of equals the last, if the IoU reaches the threshold.
    """
    correct = np.zeros((len(COCO_THRESHOLDS), len(order)), bool)
    candidates = [[] for _ in order]
    by_iou = np.lexsort((-table.true, -table.iou))
    for pair in by_iou[table.iou[by_iou] >= COCO_THRESHOLDS[0]]:
        candidates[table.pred[pair]].append((table.true[pair], table.iou[pair]))
    for t, threshold in enumerate(COCO_THRESHOLDS):
        taken = set()
        for n, j in enumerate(order):
            free = [i for i, iou in candidates[j] if iou >= threshold and i not in taken]
            taken.update(free[:1])
            correct[t, n] = bool(free)
    return correct


def coco_ap(images: list[ImageObjects], max_detections: int | None = None) -> Float[
        np.ndarray, " t"]:
    """COCO's AP at each of COCO_THRESHOLDS: the mean precision at 101 recalls, all sizes.

    Predictions of all images are ranked by score; of equal scores those of earlier images, and in
    them of smaller ids, come first, as in pycocotools: without scores the AP depends on that
    order. Precision at a recall is the largest at that recall or more, 0 where it is not reached.
    In [0, 1]; NaN without true objects (-1 in pycocotools).

    Args:
      max_detections: of an image, those of largest score; None: all. COCO's own 100 is fewer than
        the cells of many images.
    Source: Lin et al. 2014, Microsoft COCO; COCOeval of pycocotools, iouType "segm".
    """
    n_true = sum(len(one.area_true) for one in images)
    if not n_true:
        return np.full(len(COCO_THRESHOLDS), np.nan)
    score = np.concatenate([one.score[:max_detections] for one in images])
    correct = np.concatenate([one.correct[:, :max_detections] for one in images], 1)
    tp = np.cumsum(correct[:, np.argsort(-score, kind="stable")], 1).astype(float)
    precision = tp / np.arange(1, tp.shape[1] + 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = [np.searchsorted(one, RECALLS) for one in tp / n_true]
    return np.array([np.append(one, 0.0)[place].mean()
                     for one, place in zip(precision, reached, strict=True)])


def size_edges(images: list[ImageObjects]) -> tuple[float, ...]:
    """The terciles of the areas of all true objects, pixels; () without any."""
    areas = np.concatenate([one.area_true for one in images])
    return tuple(np.quantile(areas, (1 / 3, 2 / 3)).tolist()) if areas.size else ()


def size_counts(image: ImageObjects, edges) -> Integer[np.ndarray, "2 3"]:
    """(matched pairs, true objects + predictions) of cells of each of SIZES; they add over images.

    A matched pair counts where its true object belongs, with both its objects; an unmatched
    prediction where its own area does. Small: up to the first edge; large: above the second.

    Args:
      edges: two areas in pixels.
    """
    in_class = lambda areas: np.bincount(np.searchsorted(edges, areas), minlength=3)
    matched = in_class(image.area_true[image.found])
    return np.stack([matched, matched + in_class(image.area_true) + in_class(image.area_spurious)])


def f1_by_size(counts) -> dict[str, np.ndarray]:
    """{"f1_small", "f1_medium", "f1_large"}: F1 at IoU 0.5 of (..., 2, 3) sums of `size_counts`.

    2TP / (2TP + FP + FN); NaN where a class has no object.
    """
    f1 = ratio(2.0 * counts[..., 0, :], counts[..., 1, :], np.nan)
    return {f"f1_{size}": f1[..., k] for k, size in enumerate(SIZES)}


def count_scores(n_true, kinds, error) -> dict:
    """Errors of the number of cells, and the shares of true objects merged and split.

    count_error_relative is the sum over images of |predicted - true objects| over the true objects
    of all; merge_rate and split_rate are true objects of these `error_kinds` over all of them. NaN
    without true objects.

    Args:
      n_true, error: (...) sums over images of true objects and of |predicted - true objects|.
      kinds: (..., 7) sums of ErrorKinds.
    """
    share = lambda number: ratio(number, np.asarray(n_true), np.nan)
    return {"count_error_relative": share(error), "merge_rate": share(kinds[..., 1]),
            "split_rate": share(kinds[..., 2])}
