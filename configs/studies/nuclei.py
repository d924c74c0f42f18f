"""Report 0's table: U-Net and UNETR with Adam and SGD, with and without a schedule.

Question: which network, which optimiser, and does polynomial decay help, on nuclei of the 2018
Data Science Bowl? And what every reader asks next: was Adam's rate of 5e-3 too high for UNETR?
Run: python -m cellseg_jax.study --study=configs/studies/nuclei.py --workdir=runs/nuclei
    --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR; it has no modalities.
Published: mean Dice and IoU of the test split, one run per cell; epochs, batch size, split and
seeds unstated, so that differences of 0.01 say nothing. Curves and pictures are shown without
numbers. The report's tools scale an RGBA image by the range of all four channels (minmax_joint), so
that dark images stay dark; here the colours alone decide, and the rows *_joint show the difference.
One of its claims, that more images help, needs another study: learning_curve.py.
Result: docs/results/nuclei.md, of nuclei_cpu.py, its small sister; not at this size.
"""

import pathlib

from cellseg_jax import config
from cellseg_jax.studies import Claim, rows

BATCH_4 = {"train.batch_size": 4}
MODELS = {
    "unet": {},
    # 88 million parameters at 512x512, so that the batch is smaller
    "unetr": {"model.name": "unetr", "model.image_size": 0, "model.dropout": 0.2, **BATCH_4},
}
OPTIMIZERS = {
    "adam": {},
    "sgd": {"optimizer.name": "sgd", "optimizer.momentum": 0.99, "optimizer.nesterov": True},
}
SCHEDULES = {"": {}, "_poly": {"optimizer.schedule": "polynomial"}}

TITLE = "U-Net and UNETR on nuclei, two optimisers with and without polynomial decay"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "unet_adam.py"))
TABLE = {
    f"{model}_{optimizer}{schedule}": {**of_model, **of_optimizer, **of_schedule}
    for model, of_model in MODELS.items()
    for optimizer, of_optimizer in OPTIMIZERS.items()
    for schedule, of_schedule in SCHEDULES.items()
}
WARM_UP = {"optimizer.schedule": "polynomial", "optimizer.warmup": 5}
ROWS = {
    **TABLE,
    # Is it the optimiser or its rate?
    "unetr_adam_1e-3": {**TABLE["unetr_adam"], "optimizer.lr": 1e-3},
    "unetr_adam_3e-4": {**TABLE["unetr_adam"], "optimizer.lr": 3e-4},
    "unetr_adam_1e-4": {**TABLE["unetr_adam"], "optimizer.lr": 1e-4},
    "unetr_adam_warmup": {**TABLE["unetr_adam"], **WARM_UP},
    "unetr_adam_3e-4_warmup": {**TABLE["unetr_adam"], "optimizer.lr": 3e-4, **WARM_UP},
    "unetr_sgd_1e-3": {**TABLE["unetr_sgd"], "optimizer.lr": 1e-3},
    "unet_adam_1e-3": {"optimizer.lr": 1e-3},
    # Is it the network or the batch?
    "unet_adam_batch_4": BATCH_4,
    "unet_sgd_batch_4": {**TABLE["unet_sgd"], **BATCH_4},
    "unet_adam_residual": {"model.num_res_units": 2},
    "unet_adam_joint": {"data.normalize": "minmax_joint"},
    "unetr_sgd_joint": {**TABLE["unetr_sgd"], "data.normalize": "minmax_joint"},
    "unet_adam_balanced": {"data.balance": True},  # modalities equally often
    # Later networks, with their own optimisers' settings.
    "segformer": {"model.name": "segformer", "optimizer.name": "adamw", "optimizer.lr": 1e-3,
                  "optimizer.weight_decay": 1e-2, **SCHEDULES["_poly"]},
    "unet_plan": {"model.name": "unet_plan", **OPTIMIZERS["sgd"], "optimizer.lr": 1e-2,
                  **SCHEDULES["_poly"], **BATCH_4},
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
UNET, UNETR = (tuple(row for row in TABLE if row.startswith(f"{model}_")) for model in MODELS)
POLY = tuple(row for row in TABLE if row.endswith("_poly"))
CONSTANT = tuple(row.removesuffix("_poly") for row in POLY)
STAINED = "dice_mean[stain_dark_background]"
CLAIMS = (
    Claim("U-Net has overall better performance than UNETR", UNET, UNETR),
    Claim("U-Net requires significantly less time for training", UNET, UNETR, "cpu_seconds"),
    Claim("Adam converges faster for U-Net", "unet_adam", "unet_sgd", "epochs_to_95"),
    Claim("Adam does not improve the U-Net's testing metrics over SGD",
          "unet_adam", "unet_sgd", equal_within=0.01),
    Claim("SGD makes training more stable for UNETR",
          ("unetr_sgd", "unetr_sgd_poly"), ("unetr_adam", "unetr_adam_poly"), "val_loss_spread"),
    Claim("SGD allows for better testing performance of UNETR",
          ("unetr_sgd", "unetr_sgd_poly"), ("unetr_adam", "unetr_adam_poly")),
    Claim("The schedule has limited if not negative impact", CONSTANT, POLY, equal_within=0.01,
          matched=True),
    Claim("The schedule can be helpful if it is tuned", "unetr_adam_warmup", "unetr_adam"),
    Claim("U-Net with SGD has the best performance",
          "unet_sgd", tuple(row for row in TABLE if row != "unet_sgd"), every=True),
    Claim("U-Net with SGD requires low training resources", "unet_sgd", UNETR, "cpu_seconds",
          every=True),
    Claim("A more balanced dataset would help", "unet_adam_balanced", "unet_adam"),
    Claim("U-Net does not do well with stained images", UNET, UNET, "dice_mean[fluorescence]",
          worse_metric=STAINED),
    Claim("UNETR does not do well with stained images", UNETR, UNETR, "dice_mean[fluorescence]",
          worse_metric=STAINED),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "precision_mean", "recall_mean", "ap50", "pq", "epochs_to_95",
           "val_loss_spread", "dice_mean[fluorescence]", STAINED)
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
