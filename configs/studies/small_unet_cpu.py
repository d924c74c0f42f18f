"""Rows of report 1 on 13 images of its size, 512x640, at a size for two CPU cores.

Question: which of report 1's choices can be distinguished from noise on 9 training images?
Run: python -m cellseg_jax.study --study=configs/studies/small_unet_cpu.py
    --workdir=runs/small_unet_cpu --config.data.root=DIR
Own data: DIR is stage1_train of dsb2018, of which 13 images are fluorescence of exactly 512x640:
9 for training and 4 for the test, as many as the report has, other ones in each repeat.
Published: as small_unet.py. Pixels, patches, network and loss are the report's. There is one
augmented variant of each image instead of 10, 2 epochs instead of 30, and batches of 11 instead of
44: 838 steps of `base`, of which the report has 21,120. In so few steps a background that weighs
0.001 or 0.01 is hardly learned (`weights_chosen`), so that all other rows have equal weights.
`augment_none_330` has as many steps as `base`. Whole images, of which an epoch is a single step,
are left out.
Result: in docs/results/small_unet.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("small_unet.py"))
CHOSEN = ("base", "augment_none", "augment_none_330", "patch_64x80", "no_blanks", "blank_image",
          "weights_chosen", "no_dense", "conv_model", "sgd")
# With equal weights; of the other rows the report has none with these.
PUBLISHED = {"base": "weights_equal", "no_blanks": "weights_equal_no_blanks"}

EPOCHS = 2

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    "data.name": "dsb2018", "data.only_size": (512, 640), "data.train_fraction": 1.0,
    "data.split": (0.7, 0.0, 0.3), "data.copies": 1, "train.epochs": EPOCHS,
    "train.batch_size": 11, **FULL.rows["weights_equal"]})
ROWS = {row: FULL.rows[row] for row in CHOSEN}
# Patches of four times the pixels in smaller batches: else 209 steps, too few for the running
# statistics of batch norm.
ROWS |= {row: {**FULL.rows[row], "train.batch_size": 3}
         for row in ("patch_64x80", "no_dense", "conv_model")}
ROWS["augment_none_330"] = {**ROWS["augment_none"], "train.epochs": 2 * EPOCHS}
REFERENCE = {row: FULL.reference[there] for row, there in PUBLISHED.items()}
CLAIMS = studies.claims_about(FULL.claims, ROWS)
REPEATS, VARIES, METRICS = 5, FULL.varies, FULL.metrics
BASELINE, SMOKE = FULL.baseline, {**FULL.smoke, "data.only_size": ()}

get_config = studies.rows(BASE, ROWS)
