"""Rows of report 2 at a size that a CPU ends within the hour: 64x64, an eighth of the channels.

Question: which of report 2's choices can be distinguished from noise on a small sample?
Run: python -m cellseg_jax.study --study=configs/studies/ebhi_cpu.py --config.data.root=DIR
Published: as ebhi.py, at 224x224 with 64 to 1,024 channels.
Result: 4 epochs of 230 images, 21 minutes. No norm answers "foreground" everywhere (0.764, as
published); cross-entropy is level with Dice and Jaccard; Otsu 0.427 (published 0.446). Most of the
rest are not distinguishable: runs of one config differ by 0.024. Table in docs/benchmarks.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("ebhi.py"))
CHOSEN = ("unet_final", "norm_none", "norm_batch", "optimizer_sgd", "loss_jaccard",
          "loss_cross_entropy", "lr_1e-4", "batch_16", "no_augmentation", "not_balanced", "otsu")

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    "data.size": (64, 64), "model.channels": (8, 16, 32, 64, 128), "train.epochs": 8})
ROWS = {row: FULL.rows[row] for row in CHOSEN}
REFERENCE = {row: FULL.reference[row] for row in CHOSEN if row in FULL.reference}
CLAIMS = tuple(claim for claim in FULL.claims if {*claim.better, *claim.worse} <= {*CHOSEN})
REPEATS, VARIES, METRICS = FULL.repeats, FULL.varies, FULL.metrics
BASELINE, SMOKE = FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
