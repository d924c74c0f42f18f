"""What marking undrawn parts of an image as not annotated is worth: `data.ignore`.

    python benchmarks/run.py partly_annotated --root=DIR --folder=DIR

DIR is stage1_train of the 2018 Data Science Bowl, of which the fluorescence images are taken. In
each image of training only the cells of one half, chosen at random, count as drawn. The other half
is either marked as not annotated, or left as background, as a mask without marks has it; with all
cells drawn the same images stand beside them. The validation and test images are whole. A study of
these three rows (the small network of instances_cpu.py, flows) is trained in --folder and continues
there.
"""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import tifffile
from scipy import ndimage

from benchmarks.measuring import Result, Table
from benchmarks.peers.export_split import split_names
from cellseg_jax import config
from cellseg_jax.data.datasets import dsb2018

OPTIONS = {
    "root": (pathlib.Path, "stage1_train"),
    "folder": (pathlib.Path, "for the data and the runs; kept"),
    "repeats": (5, "runs of each row"),
    "steps": (400, "of 8 windows, in a run"),
    "size": (128, "pixels of a window's side"),
}
NOT_ANNOTATED = 65535
SMALL = pathlib.Path(__file__).resolve().parents[1] / "configs/studies/instances_cpu.py"
COLUMNS = ("row", "metric", "mean", "sd", "difference", "interval_low", "interval_high", "verdict")
STUDY = '''"""What marking undrawn parts of images as not annotated is worth."""

import pathlib

from cellseg_jax import config, studies

HERE = pathlib.Path(__file__).parent
TITLE = "Half of the cells drawn"
BASE = config.changed(config.load(%r), {
    "data.name": "folder", "data.root": str(HERE / "data"), "data.split": str(HERE / "split.json"),
    "data.strata": (), "data.channels": "gray", "data.target": "flow",
    "data.size": (%d, %d), "train.steps": %d, "optimizer.warmup": %d})
ROWS = {
    "half_marked": {"data.folders": "images,half_marked", "data.ignore": "%d"},
    "half_as_background": {"data.folders": "images,half_as_background"},
    "all_drawn": {"data.folders": "images,all_drawn"},
}
BASELINE, REPEATS, VARIES = "half_marked", %d, ("seed",)
METRICS = ("ap50", "ap", "dice_mean")
get_config = studies.rows(BASE, ROWS)
'''


def half_drawn(label, left: bool):
    """(drawn, annotated): the cells whose centre is in that half, and where the image is known.

    The known part is that half without the other cells, and what is drawn of cells beyond it.
    """
    middle = (label.shape[1] - 1) / 2
    ids = np.unique(label[label > 0])
    centres = np.array(ndimage.center_of_mass(label > 0, label, ids)).reshape(-1, 2)[:, 1]
    drawn = np.where(np.isin(label, ids[(centres <= middle) == left]), label, 0)
    half = (np.arange(label.shape[1]) <= middle) == left
    return drawn, (half & ((label == 0) | (drawn > 0))) | (drawn > 0)


def export(options):
    """Writes data/ and split.json, where they are not yet there."""
    data = options.folder / "data"
    if (options.folder / "split.json").exists():
        return
    records = dsb2018.records(options.root)
    samples = {record.name: record.read() for record in records}
    records = [r for r in records if samples[r.name].stratum == "fluorescence"]
    names = split_names(config.default().data, records, ["fluorescence"] * len(records))
    rng = np.random.default_rng(0)
    for part, chosen in names.items():
        for name in chosen:
            label = samples[name].label.astype(np.uint16)
            drawn, annotated = half_drawn(label, rng.random() < 0.5)
            if part != "train":
                drawn, annotated = label, np.ones(label.shape, bool)
            files = {"images": samples[name].image[..., :3].max(-1), "all_drawn": label,
                     "half_as_background": drawn,
                     "half_marked": np.where(annotated, drawn, NOT_ANNOTATED).astype(np.uint16)}
            for folder, pixels in files.items():
                (data / folder).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(data / folder / f"{name}.tif", pixels)
    (options.folder / "split.json").write_text(json.dumps(names))


def measure(options) -> Result:
    export(options)
    study = options.folder / "partly_annotated.py"
    study.write_text(STUDY % (str(SMALL), options.size, options.size, options.steps,
                              options.steps // 8, NOT_ANNOTATED, options.repeats))
    runs = options.folder / "runs"
    subprocess.run([sys.executable, "-m", "cellseg_jax.study", f"--study={study}",
                    f"--workdir={runs}"], check=True)
    with open(runs / "table.csv", newline="") as file:
        rows = [[line[name] for name in COLUMNS] for line in csv.DictReader(file)]
    return Result([Table(list(COLUMNS), [[*row[:2], *map(_number, row[2:-1]), row[-1]]
                                         for row in rows])])


def _number(text: str):
    return float(text) if text else None
