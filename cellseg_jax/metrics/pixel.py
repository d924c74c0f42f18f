"""Pixel metrics: counts of each image and channel, and scores of counts.

Counts add: the score of `Counts(*(c.sum(0) for c in counts))` is the score of all pixels
together. Scores take jax or numpy counts and return the same kind; sum many images in float64
numpy. They lie in [0, 1], except conformity. Where only one of truth and prediction is empty,
Dice, IoU, precision and recall are 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Shaped

Scores = Float[ArrayLike, "..."]


class Counts(NamedTuple):
    """Pixels by truth and prediction: true/false positives, false/true negatives."""

    tp: Shaped[ArrayLike, "*n k"]
    fp: Shaped[ArrayLike, "*n k"]
    fn: Shaped[ArrayLike, "*n k"]
    tn: Shaped[ArrayLike, "*n k"]


def pixel_counts(
    mask: Shaped[ArrayLike, "n h w k"], pred: Shaped[ArrayLike, "n h w k"],
    known: Bool[ArrayLike, "n h w"] | None = None,
) -> Counts:
    """Pixels of each kind, of each image and channel.

    Args:
      mask: {0, 1}, the truth.
      pred: {0, 1}.
      known: the pixels that are counted; None: all.
    Returns: Counts of (N, K) float32, exact below 2^24 pixels per image.
    Raises: ValueError if shapes differ.
    """
    if mask.ndim != 4 or mask.shape != pred.shape:
        shapes = f"mask {mask.shape} and pred {pred.shape}"
        raise ValueError(f"{shapes}: expected one shape (N, H, W, K)")
    mask, pred = jnp.asarray(mask, bool), jnp.asarray(pred, bool)
    pixels = mask.shape[1] * mask.shape[2]
    if known is not None:
        known = jnp.asarray(known)[..., None]
        mask, pred, pixels = mask & known, pred & known, jnp.sum(known, (1, 2))
    tp = jnp.sum(mask & pred, (1, 2))  # int32: a float32 sum stops growing at 2^24
    fp, fn = jnp.sum(pred, (1, 2)) - tp, jnp.sum(mask, (1, 2)) - tp
    tn = pixels - tp - fp - fn
    return Counts(*(c.astype(jnp.float32) for c in (tp, fp, fn, tn)))


def ratio(part, whole, empty):
    """part / whole of numbers or arrays of one shape, and `empty` where whole is 0."""
    xp = jnp if isinstance(whole, jax.Array) else np
    return xp.where(whole == 0, empty, part / xp.where(whole == 0, 1, whole))


def _both_empty(counts):
    """1 where neither truth nor prediction has a pixel, else 0: the value of 0/0 below."""
    return 1.0 * (counts.tp + counts.fp + counts.fn == 0)


def dice(counts: Counts) -> Scores:
    """2 TP / (2 TP + FP + FN), also called F1. Both empty: 1. Source: Dice 1945."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, 1.0)


def iou(counts: Counts) -> Scores:
    """TP / (TP + FP + FN), Jaccard index. Both empty: 1. Source: Jaccard 1912."""
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn, 1.0)


def precision(counts: Counts) -> Scores:
    """TP / (TP + FP). Nothing predicted: 1 if the truth is empty, else 0, as in Dice."""
    return ratio(counts.tp, counts.tp + counts.fp, _both_empty(counts))


def recall(counts: Counts) -> Scores:
    """TP / (TP + FN). Empty truth: 1 if nothing is predicted, else 0, as in Dice."""
    return ratio(counts.tp, counts.tp + counts.fn, _both_empty(counts))


def accuracy(counts: Counts) -> Scores:
    """(TP + TN) / all pixels. Both empty: 1, from the true negatives. No pixels: 1."""
    right = counts.tp + counts.tn
    return ratio(right, right + counts.fp + counts.fn, 1.0)


def conformity(counts: Counts) -> Scores:
    """1 - (FP + FN) / TP = (3 Dice - 2) / Dice, in [-inf, 1]. Both empty: 1; else TP = 0: -inf.

    A mean over images is -inf as soon as one image has no true positive.
    Source: Chang et al. 2009, NeuroImage 47.
    """
    xp = jnp if isinstance(counts.tp, jax.Array) else np
    empty = xp.where(counts.fp + counts.fn == 0, 1.0, -xp.inf)
    return ratio(counts.tp - counts.fp - counts.fn, counts.tp, empty)


PIXEL_SCORES = {
    "dice": dice,
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "accuracy": accuracy,
    "conformity": conformity,
}
