"""Scores of a network that is pruned step by step, over classes of images, with intervals.

Intervals are of bootstrap samples that draw whole groups of images, and a mask.
"""

import math
from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.metrics.bootstrap import MIN_GROUPS

SCORES = ("dice", "iou", "precision", "recall")


class Series(NamedTuple):
    """One set of layers, pruned further and further. Level 0 is the network as it was trained."""

    experiment: str  # as the flag has it, "random_layers:each"
    layer: str  # its name, several with " + " between, or "all"
    zeros: np.ndarray  # (levels, masks) weights lost
    weights: int  # of these layers
    counts: metrics.Counts  # of (levels, masks, n, K): n images, K columns of Scores.main

    def dice(self):
        """(levels, masks, n, K)"""
        return metrics.dice(self.counts)

    def sparsity(self):
        """(levels,) share of these layers' weights that is 0: what whole weights or filters allow,
        less than wanted of small layers. Masks of one level are equally large."""
        return self.zeros.mean(1) / self.weights


class Class(NamedTuple):
    """Images or outputs with scores of their own."""

    name: str
    images: np.ndarray  # (n,) bool
    outputs: slice  # of the columns of Scores.main


def classes_of(config, strata) -> list[Class]:
    """All together, then the images of each stratum, then the outputs of each class of pixels."""
    everything = np.ones(len(strata), bool)
    found = [Class("all", everything, slice(None))]
    if len(set(strata)) > 1:
        found += [Class(name, strata == name, slice(None)) for name in sorted(set(strata))]
    if config.data.target == "classes":
        found += [Class(f"output {k + 1}", everything, slice(k, k + 1))
                  for k in range(config.data.num_classes - 1)]
    return found


def mean_over(scores, one: Class) -> np.ndarray:
    """(...) mean of (..., n, K) scores over the images and outputs of a class."""
    return scores[..., one.images, one.outputs].mean((-2, -1))


def bootstrap_means(scores, one: Class, groups) -> np.ndarray | None:
    """(draws, ...) of `mean_over` in bootstrap samples of whole groups; NaN without its images.

    None where the class has images of too few groups: samples would only repeat them.
    """
    if len(set(groups[one.images])) < MIN_GROUPS:
        return None
    per_image = np.moveaxis(scores[..., one.outputs].mean(-1), -1, 0)  # (n, ...)
    sums = metrics.resampled({
        "sum": per_image * one.images.reshape(-1, *[1] * (per_image.ndim - 1)),
        "n": one.images}, groups)
    with np.errstate(invalid="ignore"):
        return sums["sum"] / sums["n"].reshape(-1, *[1] * (per_image.ndim - 1))


def intervals(scores, one: Class, groups) -> np.ndarray:
    """(levels, 2) of (levels, masks, n, K): samples draw the groups of images and a mask."""
    drawn = bootstrap_means(scores, one, groups)  # (draws, levels, masks)
    if drawn is None:
        means = mean_over(scores, one)
        return np.stack([means.min(1), means.max(1)], -1)
    return np.array([metrics.interval(drawn[:, level]) or (np.nan, np.nan)
                     for level in range(len(scores))])


def joint_series(series) -> list[Series]:
    """The series of experiments on several layers at once; without any, the first series."""
    return [one for one in series if not one.experiment.endswith(":each")] or series[:1]


def single_layer_series(series) -> dict[str, list[Series]]:
    """{experiment: a Series per layer, from image to output}."""
    found = {}
    for one in series:
        if one.experiment.endswith(":each"):
            found.setdefault(one.experiment, []).append(one)
    return found


def pruned_series(layers) -> list[Series]:
    """The series that lost weights: a share of 1 or 2 filters may round to none."""
    return [one for one in layers if one.zeros[-1].any()]


def pooled_dice(layers) -> np.ndarray:
    """(levels, masks, n, K) Dice, the mean over several series."""
    return np.mean([one.dice() for one in layers], 0)


def pooled_sparsity(layers) -> np.ndarray:
    """(levels,) sparsity, the mean over several series."""
    return np.mean([one.sparsity() for one in layers], 0)


def score_rows(series, classes) -> list[dict]:
    """A row per series, level, mask and class."""
    rows = []
    for one in series:
        tables = {(c.name, name): mean_over(getattr(metrics, name)(one.counts), c)
                  for c in classes for name in SCORES}
        for level, mask in np.ndindex(one.zeros.shape):
            rows += [{
                "experiment": one.experiment, "layer": one.layer, "level": level,
                "sparsity": f"{one.sparsity()[level]:.4f}", "mask": mask, "class": c.name,
                "n_images": int(c.images.sum()),
                **{name: float(tables[c.name, name][level, mask]) for name in SCORES},
                "zeros": int(one.zeros[level, mask]), "weights": one.weights} for c in classes]
    return rows


def class_rows(series, classes, groups) -> list[dict]:
    """Of the experiments that are not one by one: a row per level and class."""
    rows = []
    for one in joint_series(series):
        dice = one.dice()
        for c in classes:
            means, lost = mean_over(dice, c).mean(1), dice[:1] - dice
            of_dice, of_loss = (intervals(x, c, groups) for x in (dice, lost))
            rows += [{
                "experiment": one.experiment, "layer": one.layer, "level": level,
                "sparsity": f"{one.sparsity()[level]:.4f}", "class": c.name,
                "n_images": int(c.images.sum()), "dice": means[level],
                "dice_low": of_dice[level, 0], "dice_high": of_dice[level, 1],
                "drop": means[0] - means[level], "drop_low": of_loss[level, 0],
                "drop_high": of_loss[level, 1]} for level in range(len(means))]
    return rows


def largest_first(sizes) -> list[tuple]:
    """Map sizes, the largest first."""
    return sorted(set(sizes), key=math.prod, reverse=True)


def size_text(size) -> str:
    """"64x64 pixels" of a map, "16 tokens" of a sequence."""
    return f"{'x'.join(map(str, size))} {'pixels' if len(size) > 1 else 'tokens'}"


def range_text(shares) -> str:
    """"0.44", or "0.33–0.44" of layers that reach different ones."""
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low}–{high}"


def cases_text(groups, one: Class) -> str:
    """"1 case", "3 cases" that a class has images of."""
    count = len(set(groups[one.images]))
    return f"{count} case{'s' * (count != 1)}"
