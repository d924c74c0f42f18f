"""Pixel metrics: counts of each image and channel, and scores of counts.

Counts add: the score of `Counts(*(c.sum(0) for c in counts))` is the score of all pixels
together. Scores take jax or numpy counts and answer in kind; sum many images in float64 numpy.
They lie in [0, 1], but for conformity. Where only one of truth and prediction is empty, Dice, IoU,
precision and recall are 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Counts(NamedTuple):
    """Pixels by truth and prediction: true/false positives, false/true negatives."""

    tp: jax.Array
    fp: jax.Array
    fn: jax.Array
    tn: jax.Array


def pixel_counts(mask, pred) -> Counts:
    """Pixels of each kind, of each image and channel.

    Args:
      mask: (N, H, W, K) of {0, 1}, the truth.
      pred: (N, H, W, K) of {0, 1}.
    Returns: Counts of (N, K) float32, exact below 2^24 pixels an image.
    Raises: ValueError if shapes differ.
    """
    if mask.ndim != 4 or mask.shape != pred.shape:
        shapes = f"mask {mask.shape} and pred {pred.shape}"
        raise ValueError(f"{shapes}: expected one shape (N, H, W, K)")
    mask, pred = jnp.asarray(mask, bool), jnp.asarray(pred, bool)
    tp = jnp.sum(mask & pred, (1, 2))  # int32: a float32 sum stops growing at 2^24
    fp, fn = jnp.sum(pred, (1, 2)) - tp, jnp.sum(mask, (1, 2)) - tp
    tn = mask.shape[1] * mask.shape[2] - tp - fp - fn
    return Counts(*(c.astype(jnp.float32) for c in (tp, fp, fn, tn)))


def ratio(part, whole, empty):
    """part / whole, and `empty` where whole is 0."""
    xp = jnp if isinstance(whole, jax.Array) else np
    return xp.where(whole == 0, empty, part / xp.where(whole == 0, 1, whole))


def _nothing(counts):
    """1 where neither truth nor prediction has a pixel, else 0: what 0/0 means below."""
    return 1.0 * (counts.tp + counts.fp + counts.fn == 0)


def dice(counts: Counts):
    """2 TP / (2 TP + FP + FN), also called F1. Both empty: 1. Source: Dice 1945."""
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, 1.0)


def iou(counts: Counts):
    """TP / (TP + FP + FN), Jaccard index. Both empty: 1. Source: Jaccard 1912."""
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn, 1.0)


def precision(counts: Counts):
    """TP / (TP + FP). Nothing predicted: 1 if nothing is true either, else 0, as Dice has it."""
    return ratio(counts.tp, counts.tp + counts.fp, _nothing(counts))


def recall(counts: Counts):
    """TP / (TP + FN). Nothing true: 1 if nothing is predicted either, else 0, as Dice has it."""
    return ratio(counts.tp, counts.tp + counts.fn, _nothing(counts))


def accuracy(counts: Counts):
    """(TP + TN) / all pixels. Both empty: 1, from the true negatives. No pixels: 1."""
    right = counts.tp + counts.tn
    return ratio(right, right + counts.fp + counts.fn, 1.0)


def conformity(counts: Counts):
    """1 - (FP + FN) / TP = (3 Dice - 2) / Dice, in [-inf, 1]. Both empty: 1; no TP else: -inf.

    A mean over images is -inf as soon as one image is missed altogether.
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
