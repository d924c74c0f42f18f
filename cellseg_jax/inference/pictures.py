"""Pictures of the worst, the median and the best images of an evaluation."""

import pathlib

import numpy as np

from cellseg_jax import crops
from cellseg_jax.config import derived
from cellseg_jax.report import panels


def pictures(config, arrays, indices, dice, predicted) -> dict:
    """{file name: panel} of eval.panels images: worst, median and best Dice, a third each.

    Args:
      dice: of the images, in the order of the indices.
      predicted: called with places in indices; returns their predicted labels at data.size.
    """
    chosen = extremes(dice, config.eval.panels)
    if not chosen:
        return {}
    out = {}
    for rank, ((n, kind), one) in enumerate(zip(chosen.items(), predicted(chosen), strict=True)):
        i = indices[n]
        name = pathlib.PurePath(arrays.image_names[i]).name[:40]
        cells = slice(i * arrays.grid**2, (i + 1) * arrays.grid**2)
        image, label = (crops.from_grid(x[cells]) for x in (arrays.image, arrays.label))
        out[f"{rank:02d}_{kind}_dice{dice[n]:.3f}_{name}.png"] = panels.panel(
            image, np.asarray(label, np.int32), one,
            f"{name}  {arrays.image_strata[i]}  Dice {dice[n]:.3f}",
            classes=derived.class_names(config))
    return out


def extremes(scores, count: int) -> dict:
    """{index: "worst" | "median" | "best"} of at most `count` scores, none of them twice.

    The worst get what does not divide by three, and what there is where images are few.
    """
    order = np.argsort(scores, kind="stable")
    third = min(count // 3, len(order) // 3)
    worst = min(count - 2 * third, len(order) - 2 * third)
    middle = order[worst : len(order) - third]
    start = min(max(len(order) // 2 - worst - third // 2, 0), len(middle) - third)
    return (dict.fromkeys(order[:worst].tolist(), "worst")
            | dict.fromkeys(middle[start : start + third].tolist(), "median")
            | dict.fromkeys(order[len(order) - third :].tolist(), "best"))
