"""The definitions of all scores, in words."""

from cellseg_jax import metrics
from cellseg_jax.metrics import report_compat

DEFINITIONS = {
    "dice_mean": "2TP/(2TP+FP+FN) per image, 1 where truth and prediction are empty; mean of "
                 "images",
    "iou_mean": "TP/(TP+FP+FN) per image, 1 where truth and prediction are empty; mean of images",
    "dice_pooled": "2TP/(2TP+FP+FN) of the pixels of all images together",
    "iou_pooled": "TP/(TP+FP+FN) of the pixels of all images together",
    "precision_mean": "TP/(TP+FP) per image; where nothing is predicted 1 if nothing is true, else "
                      "0, the rule of Dice; mean of images",
    "recall_mean": "TP/(TP+FN) per image; where nothing is true 1 if nothing is predicted, else 0, "
                   "the rule of Dice; mean of images",
    "accuracy_mean": "(TP+TN)/all per image; mean of images",
    "conformity_pooled": "1-(FP+FN)/TP of the pixels of all images together; 1 is best, below 0 "
                         "there are more wrong than found pixels",
    "soft_dice_mean": "(2 sum pg + 1)/(sum p + sum g + 1) per image, of probabilities p and truth "
                      "g of the network's outputs, at data.size; mean of images: 1 - the Dice loss "
                      "with loss.smooth 1. Not to be compared with dice_mean",
    "soft_jaccard_mean": "(sum pg + 1)/(sum p + sum g - sum pg + 1), as soft_dice_mean",
    "ap50": "matched objects TP/(TP+FP+FN) at IoU 0.5 or more, as in DSB 2018 and StarDist, not "
            "COCO's AP; counts of all images together (StarDist's matching_dataset)",
    "ap75": "as ap50, at IoU 0.75",
    "ap": "as ap50, mean over IoU .5, .55, ..., .95",
    "ap50_image_mean": "as ap50, of each image on its own, 1 where truth and prediction are "
                       "empty; mean of images (the mean of Cellpose's average_precision, which "
                       "has no value for such an image)",
    "ap75_image_mean": "as ap50_image_mean, at IoU 0.75",
    "ap_image_mean": "as ap50_image_mean, mean over IoU .5, .55, ..., .95",
    "ap50_coco": "COCO's AP at IoU 0.5: mean precision at 101 recalls of all objects ranked by "
                 "their mean probability of a cell; no limit of detections per image. Objects of "
                 "labels made elsewhere all rank alike, so that the order of images decides",
    "ap75_coco": "as ap50_coco, at IoU 0.75",
    "ap_coco": "as ap50_coco, mean over IoU .5, .55, ..., .95",
    "f1_small": "as f1, of the true objects up to the first tercile of the areas of all true "
                "objects of this split (size_edges, pixels) and the unmatched predictions of such "
                "an area",
    "f1_medium": "as f1_small, between the terciles",
    "f1_large": "as f1_small, above the second tercile",
    "count_error": "number of predicted minus true objects without its sign; mean of images",
    "count_error_relative": "sum over images of count_error / true objects of all images",
    "merge_rate": "share of the true objects that are merged, see errors",
    "split_rate": "share of the true objects that are split, see errors",
    "f1": "matched objects 2TP/(2TP+FP+FN) at IoU 0.5, counts of all images together",
    "pq": "panoptic quality: sum of matched IoU / (TP+FP/2+FN/2) at IoU 0.5, all images together",
    "seg": "Cell Tracking Challenge SEG: mean over the true objects of all images of the IoU with "
           "the prediction that covers more than half of it, else 0; false positives are not "
           "penalised",
    "det": "Cell Tracking Challenge DET on this segmentation truth: 1 - (5 splits + 10 missed + "
           "1 false positive) / (10 true objects), at least 0; counts of all images together",
    "aji": "aggregated Jaccard index, Kumar 2017: intersections over unions of each true object "
           "with its closest prediction, sums of all images together",
    "ece": "expected calibration error: sum over 15 bins of the probability of the share of pixels "
           "times |mean probability - share that is true|, all pixels together; 0 is best",
    "loss": "the training loss, image by image, without dropout; mean of images",
}
MACRO_DEFINITION = ("{} as in {}, the mean of each stratum's mean, so that each stratum (class of "
                    "images) counts alike, whatever its number of images")
DEFINITIONS |= {name.replace("_mean", "_macro"): MACRO_DEFINITION.format(
    name.removesuffix("_mean"), name) for name in DEFINITIONS
    if name.endswith("_mean") and not name.endswith("_image_mean")}
MEAN_SCORES = {name: score for name, score in metrics.PIXEL_SCORES.items()
               if f"{name}_mean" in DEFINITIONS}
POOLED_SCORES = {name: score for name, score in metrics.PIXEL_SCORES.items()
                 if f"{name}_pooled" in DEFINITIONS}
SURFACE_DEFINITIONS = {
    "hausdorff95": "95th percentile of the distances between true and predicted outline of all "
                   "cells, the larger of both directions, pixels; mean of the images in which both "
                   "have an outline",
    "surface_dice": "part of both outlines that lies within eval.surface pixels of the other, 1 "
                    "where both are empty; mean of images",
    "rand_error": "1 - Rand F-score of the pixels inside of true cells (ISBI 2012), each pixel of "
                  "predicted background on its own; cells of binary labels are 4-connected "
                  "components, the predicted ones thinned to borders of one pixel; mean of images "
                  "with cells",
    "information_error": "1 - information F-score of the same partitions; mean of images with "
                         "cells",
    "variation_of_information": "H(prediction|truth) + H(truth|prediction) of the same partitions, "
                                "bits; mean of images with cells",
}
SCORES = (*DEFINITIONS, *SURFACE_DEFINITIONS, *report_compat.REPORT2_DEFINITIONS)  # all names
UNBOUNDED = frozenset({"conformity_pooled", "count_error", "count_error_relative", "hausdorff95",
                       "variation_of_information", "loss"})  # the other scores are in [0, 1]
INTERVAL_DEFINITION = ("95 % percentile bootstrap that draws whole cases (groups of images): what "
                       "another sample of such images might give. The spread between runs with "
                       "other seeds is not included. A stratum without a drawn image is left "
                       "out of the macro scores of that draw")
CLASS_DEFINITION = {
    "classes": "means are over the classes too, without background (class 0); a class that is "
               "neither in the truth nor in the prediction of an image counts 1 there",
}


def definitions_of(config, measured, report2: bool) -> dict[str, str]:
    """{score: definition} of an evaluation.

    Args:
      measured: summary.Measured.
      report2: whether report 2's scores are in it.
    """
    out = dict(DEFINITIONS)
    if report2:
        out |= report_compat.REPORT2_DEFINITIONS
    if config.data.target == "classes":
        out |= CLASS_DEFINITION
    if measured.surfaces:
        out |= SURFACE_DEFINITIONS
    return out | {"interval": INTERVAL_DEFINITION}
