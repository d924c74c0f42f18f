"""Labels of an image of any size from maps in bands: the cells found, time and memory.

    python benchmarks/run.py large_labels [--targets=distance,flow] [--side=20000]

The maps are those of a network without error, of a field of 1,000 x 1,000 pixels with 625 cells
(ellipses and crescents) that is repeated, so that seams between blocks lie anywhere in a cell. One
process for each target; the peak is of its own memory, looked at after each block, without the
label, which is a file on disk.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from skimage.measure import label as label_pieces

from benchmarks.measuring import Result, Table
from cellseg_jax import targets
from cellseg_jax.inference import stitch_labels

FIELD, PITCH, BAND = 1000, 40, 256  # pixels: side of the field, of the place of a cell, of a band
SMALL = 5 * PITCH  # side of the field that smaller images repeat
OPTIONS = {
    "targets": (["foreground", "contour", "distance", "signed", "star", "flow"], "to decode"),
    "side": (20_000, f"pixels, a multiple of {SMALL}"),
}
HEAD = ["target", "side", "cells", "found", "pixels of cells that differ", "CPU s",
        "CPU s per 1,000 cells", "GiB before", "GiB peak"]


def field(seed: int, side: int) -> np.ndarray:
    """(side, side) int32, a cell in each square of PITCH pixels, away from its border."""
    rng = np.random.default_rng(seed)
    label = np.zeros((side, side), np.int32)
    y, x = np.mgrid[:PITCH, :PITCH] - PITCH / 2 + 0.5
    for number in range((side // PITCH) ** 2):
        angle, long, short = rng.uniform((0, 8, 5), (np.pi, 17, 12))
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        cell = (along / long) ** 2 + (across / short) ** 2 < 1
        if number % 5 == 0:  # a crescent
            cell &= (along / long) ** 2 + ((across - short / 2) / short) ** 2 >= 0.4
            cell = label_pieces(cell, connectivity=1)
            cell = cell == 1 + np.argmax(np.bincount(cell.reshape(-1))[1:])
        row, column = divmod(number, side // PITCH)
        place = np.s_[row * PITCH : (row + 1) * PITCH, column * PITCH : (column + 1) * PITCH]
        label[place] = cell * (number + 1)
    return label


def decoded(name: str, side: int) -> list:
    """A row of the table for one target."""
    one = field(0, FIELD if side % FIELD == 0 else SMALL)
    times = side // len(one)
    side, cells = times * len(one), times**2 * int(one.max())
    target = targets.TARGETS[name]
    maps = np.asarray(target.encode(one))
    bands = (np.tile(maps[start % len(one) :][:BAND], (1, times, 1))
             for start in _starts(side, len(one)))
    held = [anonymous()]

    def decode(maps):
        label = target.decode(target.logits(maps))
        held.append(anonymous())
        return label

    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        label = stitch_labels.stitched(bands, (side, side), decode, folder, touching=False)
        seconds, found = time.process_time() - start, int(label.max())
        wrong = sum(int(np.count_nonzero((label[y : y + len(one)] > 0) != np.tile(one > 0, times)))
                    for y in range(0, side, len(one)))
    return [name, side, cells, found, wrong, seconds, 1000 * seconds / cells, held[0], max(held)]


def anonymous() -> float:
    """GiB of memory of this process that belong to no file."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 2**20


def _starts(side, period):
    """First rows of bands that follow each other and end where the field does."""
    return (start for first in range(0, side, period)
            for start in range(first, first + period, BAND))


def measure(options) -> Result:
    rows = []
    for name in options.targets:
        done = subprocess.run([sys.executable, "-m", "benchmarks.large_labels", name,
                               str(options.side)], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return Result([Table(HEAD, rows)])


if __name__ == "__main__":  # the process of one target
    print(json.dumps(decoded(sys.argv[1], int(sys.argv[2]))))
