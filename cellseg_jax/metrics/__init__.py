"""Metrics: counts first, scores second. Truth first in every signature.

Pixel scores are made from counts that add up over images; instance scores match objects.
Images stay apart until a report joins them, so that means over images (`dice_mean`) and scores
from summed counts (`dice_pooled`) can both be had.
"""

from cellseg_jax.metrics.instance import Match, match, seg
from cellseg_jax.metrics.pixel import (
    PIXEL_SCORES,
    Counts,
    accuracy,
    conformity,
    dice,
    iou,
    pixel_counts,
    precision,
    recall,
)

__all__ = [
    "PIXEL_SCORES",
    "Counts",
    "Match",
    "accuracy",
    "conformity",
    "dice",
    "iou",
    "match",
    "pixel_counts",
    "precision",
    "recall",
    "seg",
]
