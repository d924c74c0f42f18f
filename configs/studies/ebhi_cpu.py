"""Rows of report 2 at a size for two cores: windows of 80x80 at native pixels, 6 to 96
channels, 230 images, 5 epochs.

Question: which of report 2's choices can be distinguished from noise on a small sample, and how
much do cases on both sides of the split flatter? A fifth of the images is for testing, since a
class has 21 to 56 of them.
Run: python -m cellseg_jax.study --study=configs/studies/ebhi_cpu.py --workdir=runs/ebhi_cpu
    --config.data.root=DIR
Published: as ebhi.py, at 224x224 with 64 to 1,024 channels. Here training draws another window of
each image in every epoch; validation and scores are of the middle one.
Result: docs/results/ebhi.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("ebhi.py"))
CHOSEN = ("unet_final", "norm_none", "adam_batch", "unet_0_2", "loss_jaccard",
          "loss_cross_entropy", "not_balanced", "no_augmentation", "split_by_image", "otsu")

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    "data.fit": "random_crop", "data.size": (80, 80), "data.split": (0.7, 0.1, 0.2),
    "model.channels": (6, 12, 24, 48, 96), "train.epochs": 5})
ROWS = {row: FULL.rows[row] for row in CHOSEN}
REFERENCE = {row: FULL.reference[row] for row in CHOSEN if row in FULL.reference}
CLAIMS = studies.claims_about(FULL.claims, ROWS)
REPEATS, VARIES, METRICS = 5, FULL.varies, FULL.metrics
BASELINE, SMOKE = FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
