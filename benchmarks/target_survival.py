"""Cells that survive decode(encode(label)), by target: the share at three IoUs, and seconds.

    python benchmarks/run.py target_survival --root=DIR [--targets=distance,flow] [--every=10]

DIR is stage1_train of the 2018 Data Science Bowl. Labels are padded with background, so that the
border of an image is an edge of its cells. Seconds are CPU seconds, of decoding and of encoding.
"""

import pathlib
import time

import numpy as np

from benchmarks.measuring import Result, Table
from cellseg_jax import metrics, targets
from cellseg_jax.crops import round_up
from cellseg_jax.data.datasets import dsb2018

LEVELS = {"0.5": 0.5, "0.9": 0.9, "equal": 1.0}
PAD = 64  # sizes are padded to multiples of it, so that few programs are compiled
OPTIONS = {
    "root": (pathlib.Path, "stage1_train"),
    "targets": (["foreground", "contour", "distance", "signed", "star", "flow"], "to survive"),
    "every": (1, "1: all images"),
}


def padded(label):
    """The label with a border of background, its sides multiples of PAD."""
    return np.pad(label, [(1, round_up(n + 2, PAD) - n - 1) for n in label.shape])


def survival(name, labels):
    """(cells, objects found, {level: cells of that IoU}, CPU seconds of encode and decode)."""
    target = targets.TARGETS[name]
    cells = found = 0
    counts, seconds = dict.fromkeys(LEVELS, 0), np.zeros(2)
    for label in labels:
        start = time.process_time()
        maps = np.asarray(target.encode(label))
        middle = time.process_time()
        pred = target.decode(maps)
        seconds += middle - start, time.process_time() - middle
        for level, iou in LEVELS.items():
            match = metrics.match(label, pred, iou=iou)
            counts[level] += int(match.tp)
        cells, found = cells + len(np.unique(label)) - 1, found + pred.max()
    return cells, found, counts, seconds


def measure(options) -> Result:
    records = dsb2018.records(options.root)[::options.every]
    rows = []
    for name in options.targets:
        labels = (padded(record.read().label) for record in records)
        cells, found, counts, seconds = survival(name, labels)
        rows.append([name, *(f"{count / cells:.4f}" for count in counts.values()), int(found),
                     cells, *map(float, seconds)])
    return Result([Table(["target", *LEVELS, "objects found", "of cells", "encode, s",
                          "decode, s"], rows)], [f"{len(records)} images."])
