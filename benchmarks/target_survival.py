"""Cells that survive decode(encode(label)), by target: the share at three IoUs, and seconds.

    python -m benchmarks.target_survival --root=DIR [--targets=distance,flow] [--every=10]

DIR is stage1_train of the 2018 Data Science Bowl. Labels are padded with background, so that the
border of an image is an edge of its cells. Seconds are CPU seconds, of decoding and of encoding.
"""

import argparse
import time

import numpy as np

from cellseg_jax import metrics, targets
from cellseg_jax.crops import round_up
from cellseg_jax.data.datasets import dsb2018

LEVELS = {"0.5": 0.5, "0.9": 0.9, "equal": 1.0}
PAD = 64  # sizes are padded to multiples of it, so that few programs are compiled


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


def main():
    """Print a table, one row for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--targets", default="foreground,contour,distance,signed,star,flow")
    parser.add_argument("--every", type=int, default=1, help="1: all images")
    args = parser.parse_args()
    records = dsb2018.records(args.root)[::args.every]
    print("| target |", *(f"{level} |" for level in LEVELS),
          "objects found | of cells | encode, s | decode, s |")
    print("|---|" + "---|" * (len(LEVELS) + 4))
    for name in args.targets.split(","):
        labels = (padded(record.read().label) for record in records)
        cells, found, counts, (encode, decode) = survival(name, labels)
        print(f"| {name} |", *(f"{count / cells:.4f} |" for count in counts.values()),
              f"{found:,} | {cells:,} | {encode:.0f} | {decode:.0f} |", flush=True)


if __name__ == "__main__":
    main()
