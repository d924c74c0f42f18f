"""Report 3's comparisons on a stack of electron microscopy: depth, augmentation, rate, optimiser.

Question: what keeps a U-Net that learns from a few slices from overfitting?
Run: python -m cellseg_jax.study --study=configs/studies/em.py --workdir=runs/em
    --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR.
Published: curves without numbers, 40 epochs, one run each; the orderings are below. They are
about losses, which all rows share here, so that their loss compares, and about the course of
training: a run is scored at its best validation, before its validation loss rises. Foreground are
the membranes, a fifth of the pixels; the report does not say. With --config.data.foreground=cell
an answer of "cell" everywhere has a Dice of 0.87. Rand and information errors are the challenge's,
of the cells between the membranes.
Result: docs/results/em.md, of em_cpu.py, its small sister; not at this size.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Claim, rows

RAW = {"data.copies": 0, **{f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS},
       "augment.elastic_sigma": augment.OPTIONS["elastic_sigma"]}
DEPTH_3 = {"model.channels": (64, 128, 256, 512)}  # contracting levels; the fourth is the bottom
SGD = {"optimizer.name": "sgd"}

TITLE = "U-Net on EM stacks: depth, augmentation, learning rate, optimiser"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "em_unet.py"))
ROWS = {
    "depth_4": {},  # augmented, Adam at 1e-4: what the other rows change one thing of
    "depth_3": DEPTH_3,
    "raw": RAW,
    "raw_depth_3": {**RAW, **DEPTH_3},  # where the report began
    "rate_low": {"optimizer.lr": 1e-5},
    "rate_high": {"optimizer.lr": 1e-3},
    "sgd": SGD,  # no momentum, as in the report's formula
    "adamax": {"optimizer.name": "adamax"},
    # Was it SGD or its rate? What else than augmentation keeps a network from overfitting?
    "sgd_momentum": {**SGD, "optimizer.momentum": 0.9, "optimizer.lr": 1e-2},
    "raw_dropout": {**RAW, "model.dropout": 0.5},
    "online": {"data.copies": 0},  # other augmentations in each batch, not stored ones
}
CLAIMS = (
    Claim("Four contracting levels are better than three", "depth_4", "depth_3"),
    Claim("With three levels the validation loss stagnates", "depth_4", "depth_3", "val_loss"),
    Claim("The raw data have lower errors in training", "raw", "depth_4", "train_loss"),
    Claim("The validation loss of the raw data rises, that of augmented data does not", "depth_4",
          "raw", "val_loss_rise"),
    Claim("Augmentation improves the test", "depth_4", "raw"),
    Claim("A tenth of the rate, 1e-5, does not converge to a low loss", "depth_4", "rate_low",
          "train_loss"),
    Claim("Ten times the rate, 1e-3, makes the validation loss shoot up", "depth_4",
          "rate_high", "val_loss_rise"),
    Claim("A rate between them, 1e-4, is the best", "depth_4", ("rate_low", "rate_high"),
          every=True),
    Claim("SGD does not reduce the loss even after 40 epochs", ("depth_4", "adamax"), "sgd",
          "train_loss", every=True),
    Claim("Adam has lower loss values towards the end than Adamax", "depth_4", "adamax",
          "train_loss"),
    Claim("Adam's validation loss diverges, Adamax's does not", "adamax", "depth_4",
          "val_loss_rise"),
    Claim("Adamax follows a smoother trajectory", "adamax", "depth_4", "val_loss_spread"),
    Claim("So Adamax is to be preferred", "adamax", "depth_4"),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "rand_error", "information_error", "loss", "train_loss",
           "val_loss", "val_loss_rise", "val_loss_spread", "epochs_to_95")
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "augment.elastic": lambda pair: (pair[0], 8.0),
    "augment.elastic_sigma": lambda sigma: min(sigma, 4.0),
    "model.channels": lambda channels: tuple(max(2, n // 32) for n in channels[-3:]),
    "train.steps": 2,
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
