"""Report 0's table at a size that a CPU ends in an hour: 96x96 windows, small networks, 12 epochs.

Question: what of report 0's table can be seen without a GPU, and how much of it is noise?
Run: python -m cellseg_jax.study --study=configs/studies/nuclei_cpu.py --workdir=runs/nuclei_cpu
    --config.data.root=DIR
Published: as nuclei.py, at 512x512, with a U-Net of 2.7 and a UNETR of 88 million parameters. Here
they have 0.2 and 0.5 million, the same batch, half of the training images, and windows of native
pixels in the place of resized images.
Result: docs/results/nuclei.md.
"""

import pathlib

from cellseg_jax import config, studies

FULL = studies.load(pathlib.Path(__file__).with_name("nuclei.py"))
SMALL_UNETR = {"model.hidden_size": 96, "model.mlp_dim": 192, "model.num_heads": 4,
               "model.num_layers": 4, "model.feature_size": 4, "train.batch_size": 8}
# Both networks have one batch here, there are too few epochs to warm up in, and an hour is short.
LEFT_OUT = ("unet_adam_batch_4", "unet_sgd_batch_4", "unetr_adam_warmup",
            "unetr_adam_3e-4_warmup", "unetr_adam_1e-4", "unetr_sgd_1e-3", "unetr_sgd_joint",
            "unet_adam_1e-3", "segformer", "unet_plan")

TITLE = f"{FULL.title}, small"
BASE = config.changed(FULL.base, {
    "data.size": (96, 96), "data.fit": "random_crop", "data.train_fraction": 0.5,
    "model.channels": (8, 16, 32, 64, 128), "train.epochs": 12, "train.batch_size": 8,
    "eval.overlap": 0.0})
ROWS = {row: {**changes, **(SMALL_UNETR if row.startswith("unetr") else {})}
        for row, changes in FULL.rows.items() if row not in LEFT_OUT}
REFERENCE, REPEATS = FULL.reference, 5
CLAIMS = studies.claims_about(FULL.claims, ROWS)
VARIES, METRICS, BASELINE, SMOKE = FULL.varies, FULL.metrics, FULL.baseline, FULL.smoke

get_config = studies.rows(BASE, ROWS)
