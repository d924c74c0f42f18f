"""Report 4's choices on LIVECell: the loss, AMSGrad, plain and augmented training, cropping.

Question: do weights at the gaps between cells, or a Dice loss, keep cells apart that touch?
Run: python -m cellseg_jax.study --study=configs/studies/livecell.py --workdir=runs/livecell
    --config.data.root=DIR
Own data: --config.data.name=folder --config.data.split="(0.8,0.1,0.1)" with images/ and masks/ in
DIR, and "data.split_seed" in VARIES.
Published: no numbers; the claims are what the report expects or has seen in pictures. The plain
run comes first there and the augmented one, of twice as many images, second. Its formula of
weighted cross-entropy lacks a bracket; its code was unweighted (`bce`) or has the weights of the
2015 U-Net (`bce_boundary`). Losses differ between rows, so that they cannot rank them.
Result: not run yet.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Claim, rows

PLAIN = {"data.copies": 0, **{f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS}}
DICE = {"data.target": "foreground", "loss.bce": 0.0, "loss.dice": 1.0, "loss.squared": True}

TITLE = "U-Net on LIVECell: losses, AMSGrad, augmentation"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "livecell_unet.py"))
ROWS = {
    "bce_boundary": {},  # augmented, AMSGrad
    "bce": {"data.target": "foreground"},
    "dice": DICE,
    "no_amsgrad": {"optimizer.amsgrad": False},
    "exponential": {"optimizer.schedule": "exponential", "optimizer.schedule_gamma": 0.95},
    "plain": PLAIN,
    "dice_plain": {**DICE, **PLAIN},
    "resized": {"data.fit": "resize"},
}
CLAIMS = (
    Claim("Weighting makes the separation of cells possible", "bce_boundary", "bce", "ap50"),
    Claim("Dice sees neighbouring pixels, which cross-entropy does not", "dice", "bce"),
    Claim("AMSGrad solves Adam's possible convergence problem", "bce_boundary", "no_amsgrad"),
    Claim("Augmentation increases the invariance of the model",
          ("bce_boundary", "dice"), ("plain", "dice_plain")),
    Claim("Resizing loses quality, cropping does not", "bce_boundary", "resized"),
)
REPEATS = 3
VARIES = ("seed",)  # the split is LIVECell's own
METRICS = ("dice_mean", "iou_mean", "ap50", "seg", "precision_mean", "recall_mean")
SMOKE = {
    "data.size": (40, 48),
    "augment.elastic": lambda pair: (pair[0], 8.0),
    "augment.elastic_sigma": 4.0,
    "model.channels": (4, 8, 8),
    "train.steps": 2,
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
