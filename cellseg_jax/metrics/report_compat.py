"""Report 2's evaluation as it was run, mistakes included, to reproduce its tables. Host side.

Nothing here is a score to report: all names begin with `report2`, and the correct numbers stand
beside them.
Three mistakes act on every image: precision and recall were swapped; predictions were binarised
by dithering, not by a threshold; and with the BCE loss, whose network has no sigmoid, raw logits
took the place of probabilities. The fourth, to rank losses by their own values, is not a score.
"""

import numpy as np
from jaxtyping import ArrayLike, Bool, Num, Shaped
from PIL import Image
from scipy.special import expit

from cellseg_jax.metrics.pixel import Counts

REPORT2_DEFINITIONS = {
    "report2_accuracy": "report 2's accuracy: of dithered predictions; with BCE, of raw logits; "
                        "the mean of each stratum's mean, as all of these",
    "report2_precision": "report 2's precision, WRONG: truth and prediction swapped, so it is the "
                         "recall; of dithered predictions; with BCE, of raw logits",
    "report2_recall": "report 2's recall, WRONG: truth and prediction swapped, so it is the "
                      "precision; of dithered predictions; with BCE, of raw logits",
    "report2_f1": "report 2's F1: of dithered predictions; with BCE, of raw logits",
    "report2_jaccard": "report 2's Jaccard index: of dithered predictions; with BCE, of raw logits",
}


def dithered(values: Num[ArrayLike, "h w"]) -> Bool[np.ndarray, "h w"]:
    """A mask by Floyd-Steinberg dithering: the density of its dots follows the values.

    Values are cut to 8 bits after multiplication by 255; what lies outside [0, 1], as logits do,
    wraps around modulo 256.

    Args:
      values: probabilities; or logits, which is the mistake.
    Source: torchvision ToPILImage, then PIL convert("1"), as report 2 binarised.
    """
    levels = np.trunc(np.asarray(values, np.float32) * 255).astype(np.int64) % 256
    return np.asarray(Image.fromarray(levels.astype(np.uint8)).convert("1"))


def swapped(counts: Counts) -> Counts:
    """The counts of a metric that is called with truth and prediction exchanged."""
    return counts._replace(fp=counts.fn, fn=counts.fp)


def report2_scores(
    target: Shaped[ArrayLike, "h w"], logits: Shaped[ArrayLike, "h w"], loss: str
) -> dict[str, float]:
    """The scores of report 2's evaluation for one image: REPORT2_DEFINITIONS, in that order.

    Undefined ratios are 0, also where both are empty.

    Args:
      target: {0, 1}.
      logits: raw.
      loss: the loss the network was trained with; "bce" skips the sigmoid, as there.
    Returns: {name: score in [0, 1]}.
    Raises: ValueError if shapes differ.
    """
    mask, logits = np.asarray(target) > 0, np.asarray(logits)
    if mask.shape != logits.shape or mask.ndim != 2:
        raise ValueError(f"target {mask.shape} and logits {logits.shape}: expected one (H, W)")
    pred = dithered(logits if loss == "bce" else expit(logits))
    counts = swapped(Counts(*(int(c.sum()) for c in (
        mask & pred, ~mask & pred, mask & ~pred, ~mask & ~pred))))
    tp, fp, fn, tn = counts
    ratio = lambda part, whole: part / whole if whole else 0.0
    return dict(zip(REPORT2_DEFINITIONS, (
        ratio(tp + tn, sum(counts)), ratio(tp, tp + fp), ratio(tp, tp + fn),
        ratio(2 * tp, 2 * tp + fp + fn), ratio(tp, tp + fp + fn)), strict=True))
