"""Report 4's choices on LIVECell: the loss, AMSGrad, plain and augmented training, cropping.

Question: do weights at the gaps between cells, or a Dice loss, keep cells apart that touch?
Run: python -m cellseg_jax.study --study=configs/studies/livecell.py --workdir=runs/livecell
    --config.data.root=DIR
Own data: --config.data.name=folder --config.data.split="(0.8,0.1,0.1)" with images/ and masks/ in
DIR, and "data.split_seed" in VARIES.
Published: no numbers; the claims are what the report expects or has seen in pictures. Its formula
of weighted cross-entropy lacks a bracket; its code was unweighted (`bce`) or has the weights of the
2015 U-Net (`bce_boundary`); its introduction has the background heavier than cells (`background`).
It trains first on plain images, then on twice as many with augmented ones (`plain_then_augmented`),
and calls each batch different: augmented anew (`online`) rather than stored. Losses differ between
rows, so that they cannot rank them, and Dice favours what is trained with Dice: cells told apart
are counted by ap50. That batch norm speeds up training is judged by epochs_to_95. That the
background attains a larger loss than cells is not judged: a loss per class of pixels is not kept.
Result: docs/results/livecell.md, of livecell_cpu.py, its small sister; not at this size.
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
    "background": {"data.target": "foreground", "loss.pos_weight": 0.5},
    "online": {"data.copies": 0},  # as many images per epoch as plain, each time other variants
    "plain_then_augmented": {"train.weights": "row:plain"},
    "no_batch_norm": {"model.norm": "none"},
}
CLAIMS = (
    Claim("Weighting makes the separation of cells possible", "bce_boundary", "bce", "ap50"),
    Claim("A heavier background makes the separation of cells possible", "background", "bce",
          "ap50"),
    Claim("Dice sees neighbouring pixels, which cross-entropy does not", "dice", "bce", "ap50"),
    Claim("AMSGrad solves Adam's possible convergence problem", "bce_boundary", "no_amsgrad"),
    Claim("Augmentation increases the invariance of the model",
          ("bce_boundary", "dice"), ("plain", "dice_plain"), matched=True),
    Claim("Augmentation helps to prevent overfitting", "bce_boundary", "plain", "val_loss_rise"),
    Claim("Batches that differ from one another generalise better", "online", "bce_boundary"),
    Claim("The second part, augmented, improves on the first", "plain_then_augmented", "plain"),
    Claim("Batch norm speeds up the training", "bce_boundary", "no_batch_norm", "epochs_to_95"),
    Claim("Resizing loses quality, cropping does not", "bce_boundary", "resized",
          "dice_mean[original size]"),
)
REPEATS = 3
VARIES = ("seed",)  # the split is LIVECell's own
METRICS = ("dice_mean", "iou_mean", "ap50", "seg", "precision_mean", "recall_mean", "epochs_to_95")
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
