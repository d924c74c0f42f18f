"""Report 1's full grid: 8,192 points, each a job of its own there.

Question: is there a better point than those which changing one thing at a time finds?
Plan: python -m cellseg_jax.study --study=configs/studies/small_unet_grid.py
    --workdir=runs/small_unet_grid --dry_run
Rows are made when asked for: adam-lr0.001-dropout0.3-batch_size44-augment_10-patch_32x40-
keep_blank-small_unet.
Published: no scores of the grid. Its rates were inert: they never reached the optimiser, so that
Adam ran at 1e-3 and SGD at 0.01 in all of it, and three quarters of its points were repeats. Here
they count. The convolution model has no dropout, so that its rows of both rates are equal.
Result: none; 8,192 runs were not affordable. docs/results/small_unet.md has one change at a time.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Grid, rows

TITLE = "small-UNET: the full grid"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "small_unet.py"))
GRID = {
    "optimizer.name": ("adam", "sgd"),
    "optimizer.lr": (1e-2, 1e-3, 1e-4, 5e-5),
    "model.dropout": (0.3, 0.5),
    "train.batch_size": (11, 22, 44, 121),
    "augment": {
        "augment_none": {
            "data.copies": 0, "data.augment_before_grid": False,
            **{f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS}},
        "augment_1": {"data.copies": 1},
        "augment_3": {"data.copies": 3},
        "augment_10": {"data.copies": 10},
    },
    "data.grid": {"patch_512x640": 1, "patch_64x80": 8, "patch_32x40": 16, "patch_16x20": 32},
    "data.keep_blank": (False, True),
    "model": {
        "conv_model": {"model.name": "simple_conv"},
        "small_unet": {},
        "no_dense": {"model.dense": False},
        "unet": {"model.name": "unet_add"},
    },
}
REPEATS = 1
METRICS = ("seg", "dice_mean", "iou_mean", "det", "ap50")
BASELINE = "adam-lr0.001-dropout0.3-batch_size44-augment_10-patch_32x40-keep_blank-small_unet"
SMOKE = {
    "data.size": (64, 64),
    "data.train_fraction": 1.0,
    "data.grid": lambda grid: max(1, grid // 4),
    "model.channels": lambda channels: tuple(max(4, n // 8) for n in channels),
    "train.steps": 2,
    "train.batch_size": lambda n: min(n, 4),
    "eval.batch_size": 16,
    "eval.panels": 2,
}

get_config = rows(BASE, Grid(GRID))
