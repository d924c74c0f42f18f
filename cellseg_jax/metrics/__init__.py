"""Metrics: counts first, scores second. Truth first in every signature.

Pixel scores are made from counts that add up over images; instance scores match objects.
Images stay apart until a report joins them, so that means over images (`dice_mean`) and scores
from summed counts (`dice_pooled`) can both be had. Every score states its empty cases; where it is
undefined it is NaN, and the image is excluded from means.
"""

from cellseg_jax.metrics.bootstrap import interval, resampled
from cellseg_jax.metrics.detection import (
    COCO_THRESHOLDS,
    ImageObjects,
    coco_ap,
    count_scores,
    f1_by_size,
    image_objects,
    size_counts,
    size_edges,
)
from cellseg_jax.metrics.instance import (
    THRESHOLDS,
    ErrorKinds,
    InstanceCounts,
    Match,
    aji,
    aji_plus,
    average_precision,
    det,
    error_kinds,
    instance_counts,
    instance_scores,
    match,
    seg,
    summed,
)
from cellseg_jax.metrics.partition import (
    information_error,
    rand_error,
    thin_borders,
    variation_of_information,
)
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
from cellseg_jax.metrics.probability import (
    SOFT_SCORES,
    CalibrationCounts,
    calibration_counts,
    expected_calibration_error,
    soft_dice,
    soft_jaccard,
)
from cellseg_jax.metrics.surface import hausdorff95, surface_dice

__all__ = [
    "COCO_THRESHOLDS",
    "PIXEL_SCORES",
    "SOFT_SCORES",
    "THRESHOLDS",
    "CalibrationCounts",
    "Counts",
    "ErrorKinds",
    "ImageObjects",
    "InstanceCounts",
    "Match",
    "accuracy",
    "aji",
    "aji_plus",
    "average_precision",
    "calibration_counts",
    "coco_ap",
    "conformity",
    "count_scores",
    "det",
    "dice",
    "error_kinds",
    "expected_calibration_error",
    "f1_by_size",
    "hausdorff95",
    "image_objects",
    "information_error",
    "instance_counts",
    "instance_scores",
    "interval",
    "iou",
    "match",
    "pixel_counts",
    "precision",
    "rand_error",
    "recall",
    "resampled",
    "seg",
    "size_counts",
    "size_edges",
    "soft_dice",
    "soft_jaccard",
    "surface_dice",
    "thin_borders",
    "variation_of_information",
]
