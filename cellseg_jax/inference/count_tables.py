"""What the scores of a split are made of, image by image and object by object, as tables.

Every score of eval/<name>.json follows from eval/<name>_counts.csv, _objects.csv and _images.csv:
tests/inference/test_count_tables.py computes them again from these files alone.
"""

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference.summary import Measured
from cellseg_jax.metrics.detection import SIZES


def count_table(names, config, measured: Measured) -> list[dict]:
    """A row per image: its pixels, soft scores and objects, as they are added up for the scores.

    Columns: name, stratum, group; {seen,original,class}_K_{tp,fp,fn,tn}: pixels of output K, at
    data.size and original size of what headline scores are made of, and of each class at
    data.size; {soft scores}_K at data.size; n_true, n_pred, {matched,matched_iou}_T at IoU T in
    percent, the other fields of metrics.InstanceCounts, and {matched,objects}_{small,medium,large}.
    """
    main = measured.main(config)
    columns = {**_pixels("seen", main.counts), **_pixels("original", measured.original),
               **_pixels("class", measured.scores.counts)}
    for name, values in main.soft.items():
        columns |= {f"{name}_{k}": values[:, k] for k in range(values.shape[1])}
    edges = measured.found and metrics.size_edges(measured.found)
    rows = []
    for n, name in enumerate(names):
        row = {"name": name, "stratum": measured.strata[n], "group": measured.groups[n],
               **{key: _plain(values[n]) for key, values in columns.items()}}
        if measured.objects:
            row |= _objects(measured.objects[n])
        if edges:
            sizes = metrics.size_counts(measured.found[n], edges)
            row |= {f"{what}_{size}": int(sizes[k, s]) for k, what in enumerate((
                "matched", "objects")) for s, size in enumerate(SIZES)}
        rows.append(row)
    return rows


def object_table(names, measured: Measured) -> list[dict]:
    """A row per predicted object: its image, its score, and whether COCO matches it at each IoU.

    Labels without objects (binary, classes) give no rows.
    """
    if not measured.found:
        return []
    percent = [round(100 * t) for t in metrics.COCO_THRESHOLDS]
    return [{"image": name, "score": float(score),
             **{f"correct_{t}": int(one.correct[k, j]) for k, t in enumerate(percent)}}
            for name, one in zip(names, measured.found, strict=True)
            for j, score in enumerate(one.score)]


def _pixels(prefix, counts: metrics.Counts) -> dict[str, np.ndarray]:
    return {f"{prefix}_{k}_{field}": values[:, k] for k in range(counts.tp.shape[1])
            for field, values in counts._asdict().items()}


def _objects(counts: metrics.InstanceCounts) -> dict:
    percent = [round(100 * t) for t in metrics.THRESHOLDS]
    row = {"n_true": counts.n_true, "n_pred": counts.n_pred,
           **{f"matched_{t}": int(n) for t, n in zip(percent, counts.tp, strict=True)},
           **{f"matched_iou_{t}": float(v)
              for t, v in zip(percent, counts.matched_iou, strict=True)}}
    alone = ("covered_iou", "missed", "spurious", "splits", "intersection", "union")
    row |= {key: _plain(getattr(counts, key)) for key in alone}
    return row | {f"kind_{kind}": int(n) for kind, n in zip(
        metrics.ErrorKinds._fields, counts.kinds, strict=True)}


def _plain(value):
    """Whole numbers without a point, others in full precision."""
    return int(value) if float(value).is_integer() else float(value)
