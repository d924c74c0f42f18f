"""Report 3's comparisons on a stack of electron microscopy: depth, augmentation, rate, optimiser.

Question: what keeps a U-Net that learns from a few slices from overfitting?
Run: python -m cellseg_jax.study --study=configs/studies/em.py --workdir=runs/em
    --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR.
Published: curves without numbers, 40 epochs, one run each; the orderings are below. They are
about losses, which all rows share here, so that their loss compares. The report finds overfitting
in validation losses that rise; a run is scored at its best validation, before that, so that the
last two columns of its curves say more about it than the table does.
Result: not run yet.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Claim, rows

RAW = {"data.copies": 0, **{f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS},
       "augment.elastic_sigma": augment.OPTIONS["elastic_sigma"]}
DEPTH_3 = {"model.channels": (64, 128, 256, 512)}  # contracting levels; the fourth is the bottom

TITLE = "U-Net on EM stacks: depth, augmentation, learning rate, optimiser"
BASE = config.load(str(pathlib.Path(__file__).resolve().parents[1] / "em_unet.py"))
ROWS = {
    "depth_4": {},  # augmented, Adam at 1e-4: what the other rows change one thing of
    "depth_3": DEPTH_3,
    "raw": RAW,
    "raw_depth_3": {**RAW, **DEPTH_3},  # where the report began
    "lr_1e-5": {"optimizer.lr": 1e-5},
    "lr_1e-3": {"optimizer.lr": 1e-3},
    "sgd": {"optimizer.name": "sgd"},  # no momentum, as in the report's formula
    "adamax": {"optimizer.name": "adamax"},
}
CLAIMS = (
    Claim("Four contracting levels are better than three", "depth_4", "depth_3"),
    Claim("Augmentation corrects the overfitting to the raw data", "depth_4", "raw"),
    Claim("A rate of 1e-5 does not converge to a low loss", "depth_4", "lr_1e-5", "loss"),
    Claim("A rate of 1e-3 makes the validation loss shoot up", "depth_4", "lr_1e-3", "loss"),
    Claim("SGD does not reduce the loss even after 40 epochs", "depth_4", "sgd", "loss"),
    Claim("Adamax does quite well too", "adamax", "sgd", "loss"),
    Claim("Adam has lower loss values towards the end than Adamax", "depth_4", "adamax", "loss"),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "accuracy_mean", "loss")
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "augment.elastic": lambda pair: (pair[0], 8.0),
    "augment.elastic_sigma": lambda sigma: min(sigma, 4.0),
    "model.channels": lambda channels: tuple(n // 32 for n in channels[-3:]),
    "train.steps": 2,
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
