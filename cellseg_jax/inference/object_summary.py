"""Scores of the objects of many images with their intervals; see score_definitions."""

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference.pixel_summary import mean_intervals


def scores(objects: list, found: list, chosen=None) -> dict:
    """Scores of the objects of all images, or of chosen ones by the size classes of all.

    Args:
      objects, found: metrics.InstanceCounts and metrics.ImageObjects of each image; empty where
        labels hold no instances: then there are no scores.
      chosen: (n,) bool.
    """
    if not objects:
        return {}
    edges = metrics.size_edges(found)
    which = range(len(objects)) if chosen is None else np.flatnonzero(chosen)
    objects, found = [objects[n] for n in which], [found[n] for n in which]
    total = metrics.summed(objects)
    sizes, coco = sum(_sizes(found, edges)), metrics.coco_ap(found)
    of_images = _of_images(objects)
    return (metrics.instance_scores(total)
            | {name: float(np.mean(values)) for name, values in of_images.items()}
            | {"ap_coco": coco.mean(), "ap50_coco": coco[0], "ap75_coco": coco[5]}
            | metrics.f1_by_size(sizes)
            | metrics.count_scores(total.n_true, total.kinds, of_images["count_error"].sum()))


def intervals(objects: list, found: list, groups) -> dict:
    """{score: (low, high)} of all `scores` but COCO's, which are not made of sums over images."""
    columns = dict(zip(metrics.InstanceCounts._fields,
                       map(np.stack, zip(*objects, strict=True)), strict=True))
    of_images = _of_images(objects)
    sums = metrics.resampled(columns | {
        "error": of_images["count_error"],
        "sizes": np.stack(_sizes(found, metrics.size_edges(found)))}, groups)
    if sums is None:
        return {}
    sizes, error = sums.pop("sizes"), sums.pop("error")
    drawn = [metrics.instance_scores(metrics.InstanceCounts(*one))
             for one in zip(*sums.values(), strict=True)]
    ratios = metrics.count_scores(sums["n_true"], sums["kinds"], error)
    return ({name: metrics.interval([one[name] for one in drawn]) for name in drawn[0]}
            | mean_intervals(of_images, groups)
            | {name: metrics.interval(values)
               for name, values in (metrics.f1_by_size(sizes) | ratios).items()})


def _of_images(objects) -> dict[str, np.ndarray]:
    """{score: (n,)} of those that are means over images."""
    of_each = [metrics.instance_scores(one) for one in objects]
    out = {f"{name}_image_mean": np.array([one[name] for one in of_each])
           for name in ("ap50", "ap75", "ap")}
    return out | {"count_error": np.array([abs(one.n_pred - one.n_true) for one in objects], float)}


def _sizes(found, edges) -> list[np.ndarray]:
    """metrics.size_counts of each image; without true objects predictions have no size class."""
    return [metrics.size_counts(one, edges) if edges else np.zeros((2, 3)) for one in found]
