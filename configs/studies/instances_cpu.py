"""Ways to tell nuclei apart at a size that a CPU ends in an hour: fluorescence, 128-pixel windows.

Question: which target tells touching nuclei apart after a few minutes of training, and what do
scale and normalisation do? Which differences are noise?
Run: python -m cellseg_jax.study --study=configs/studies/instances_cpu.py
    --workdir=runs/instances_cpu --config.data.root=DIR
Published: as instances.py. Here a U-Net of half a million parameters, windows of 128x128 native
pixels, and 400 steps of 8 at a tenfold rate: at 1e-3 regressed outputs end far from their scale.
Result: docs/results/instances.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("instances.py"))

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    "data.strata": ("fluorescence",), "data.channels": "gray", "data.size": (128, 128),
    "model.channels": (8, 16, 32, 64, 128), "optimizer.lr": 1e-2, "train.steps": 400,
    "eval.every": 4, "eval.panels": 3})
ROWS = {row: changes for row, changes in FULL.rows.items() if row.startswith("unet_classic")}
CLAIMS = studies.claims_about(FULL.claims, ROWS)
REPEATS, VARIES, METRICS = 5, FULL.varies, FULL.metrics
BASELINE, SMOKE = FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
