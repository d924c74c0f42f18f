"""Report 0's table: U-Net and UNETR with Adam and SGD, with and without a schedule.

Question: which network, which optimiser, and does polynomial decay help, on nuclei of the 2018
Data Science Bowl?
Run: python -m cellseg_jax.study --study=configs/studies/nuclei.py --workdir=runs/nuclei
    --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR.
Published: mean Dice and IoU of the test split, one run per cell; epochs, batch size, split and
seeds unstated, so that differences of 0.01 say nothing. The table also shows, as a figure
without numbers, that Adam converges faster for the U-Net; curves are in the study's page.
"Both models did not do well with stained images": per_stratum in a run's eval/test.json.
Result: not run at this size; nuclei_cpu.py is its small sister.
"""

import pathlib

from cellseg_jax import config
from cellseg_jax.studies import Claim, rows

MODELS = {
    "unet": {},
    "unetr": {"model.name": "unetr", "model.image_size": 0, "model.dropout": 0.2,
              "train.batch_size": 4},  # 85 million parameters at 512x512
}
OPTIMIZERS = {
    "adam": {},
    "sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.99, "optimizer.nesterov": True},
}
SCHEDULES = {"": {}, "_poly": {"optimizer.schedule": "polynomial"}}

TITLE = "U-Net and UNETR on nuclei, two optimisers with and without polynomial decay"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "unet_adam.py"))
ROWS = {
    f"{model}_{optimizer}{schedule}": {**of_model, **of_optimizer, **of_schedule}
    for model, of_model in MODELS.items()
    for optimizer, of_optimizer in OPTIMIZERS.items()
    for schedule, of_schedule in SCHEDULES.items()
}
REFERENCE = {
    "unet_adam": {"dice_mean": 0.82, "iou_mean": 0.73},
    "unet_adam_poly": {"dice_mean": 0.81, "iou_mean": 0.72},
    "unet_sgd": {"dice_mean": 0.82, "iou_mean": 0.73},
    "unet_sgd_poly": {"dice_mean": 0.82, "iou_mean": 0.71},
    "unetr_adam": {"dice_mean": 0.72, "iou_mean": 0.59},
    "unetr_adam_poly": {"dice_mean": 0.73, "iou_mean": 0.60},
    "unetr_sgd": {"dice_mean": 0.79, "iou_mean": 0.68},
    "unetr_sgd_poly": {"dice_mean": 0.78, "iou_mean": 0.68},
}
UNET, UNETR = (tuple(row for row in ROWS if row.startswith(f"{model}_")) for model in MODELS)
POLY = tuple(row for row in ROWS if row.endswith("_poly"))
CONSTANT = tuple(row for row in ROWS if row not in POLY)
CLAIMS = (
    Claim("U-Net has overall better performance than UNETR", UNET, UNETR),
    Claim("U-Net requires significantly less time for training", UNET, UNETR, "train_seconds"),
    Claim("Adam does not improve the U-Net's testing metrics over SGD",
          "unet_adam", "unet_sgd", equal_within=0.01),
    Claim("SGD allows for better testing performance of UNETR",
          ("unetr_sgd", "unetr_sgd_poly"), ("unetr_adam", "unetr_adam_poly")),
    Claim("The schedule has limited if not negative impact", CONSTANT, POLY, equal_within=0.01),
    Claim("U-Net with SGD has the best performance",
          "unet_sgd", tuple(row for row in ROWS if row != "unet_sgd")),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "precision_mean", "recall_mean", "ap50", "pq")
BASELINE = "unet_adam"
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "model.channels": (4, 8, 8),
    "model.feature_size": 4,
    "model.hidden_size": 12,
    "model.mlp_dim": 12,
    "model.num_heads": 2,
    "model.num_layers": 4,
    "train.steps": 2,
    "train.batch_size": lambda n: min(n, 4),
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
