"""Report 1's tables: small-UNET on nuclei, their contours and the background, one thing at a time.

Question: what do augmentation, patches, blank patches, other data, class weights, batch size and
the network itself change where 11 images are all there is?
Run: python -m cellseg_jax.study --study=configs/studies/small_unet.py --workdir=runs/small_unet
    --config.data.root=DIR
Own data: the report's 15 images are not public; DIR is BBBC039, which it adds in one row: 11 of its
100 training images, other ones in each repeat. With images and masks of your own in DIR:
--config.data.name=folder --config.data.split="(0.6,0.1,0.3)" --config.data.train_fraction=1.
The row `extra_dataset` reads data/Fluo-N2DL-HeLa, of the Cell Tracking Challenge.
Published: SEG of 4 test images and time in seconds, one run each: differences of 0.006 say
nothing. "Memory (%CPU)" there is percent of a processor, not memory: times the elapsed time it is
cpu_seconds. One configuration is listed with 0.823 (in three tables) and 0.81 (beside its twin
without blanks), 64x80 patches with 44:02 and 53:03.3 minutes (the latter with %CPU). The text says
that smaller patches shorten the running time, its table that they lengthen it. The full grid of
8,192 points is small_unet_grid.py.
No claim: "all the images are almost equal in uncertainty", since no score of an image is one of
uncertainty (predict --format=uncertainty draws it).
Result: of small_unet_cpu.py, in docs/results/small_unet.md; this table at full size was not
measured.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Claim, rows

AUGMENT_NOTHING = {f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS} | {
    "data.copies": 0, "data.augment_before_grid": False}
WEIGHTS_1_1 = {"loss.class_weights": (0.001, 1.0, 1.0)}  # background, nucleus, contour
WEIGHTS_EQUAL = {"loss.class_weights": (1.0, 1.0, 1.0)}
NO_BLANKS = {"data.keep_blank": False}
PATCH_64X80 = {"data.grid": 8}
EPOCHS_20 = {**WEIGHTS_1_1, "train.epochs": 20}
EXTRA = {"data.mix": ("ctc:data/Fluo-N2DL-HeLa",)}
SGD = {"optimizer.name": "sgd", "optimizer.lr": 1e-2}

TITLE = "small-UNET: patches, augmentation, class weights and network"
BASE = config.changed(
    config.load(str(pathlib.Path(__file__).resolve().parents[1] / "small_unet.py")),
    {"data.grid": 16, "loss.class_weights": (0.001, 1.05, 0.93)})
ROWS = {
    "base": {},  # patches of 32x40, 11 images made 121, batch size 44
    # "Dataset size" 11, 22 and 44: so many variants of each of 11 images.
    "augment_none": AUGMENT_NOTHING,
    "augment_none_330": {**AUGMENT_NOTHING, "train.epochs": 330},  # as many steps as base
    "augment_1": {"data.copies": 1},
    "augment_3": {"data.copies": 3},
    "augment_patches": {"data.augment_before_grid": False},  # each patch by itself
    "augment_online": {"data.copies": 0, "train.epochs": 330},  # others in every epoch
    "patch_512x640": {"data.grid": 1},
    "patch_64x80": PATCH_64X80,
    "patch_16x20": {"data.grid": 32},
    "no_blanks": NO_BLANKS,
    "blank_image": {"data.blank_images": 1},  # "an original size blank image"
    "weights_1_1": WEIGHTS_1_1,
    "weights_1_1_no_blanks": {**WEIGHTS_1_1, **NO_BLANKS},
    "weights_equal": WEIGHTS_EQUAL,
    "weights_equal_no_blanks": {**WEIGHTS_EQUAL, **NO_BLANKS},
    "weights_chosen": {"loss.class_weights": (0.01, 1.0, 0.95)},
    "epochs_20": EPOCHS_20,
    # 321 images: 121 and 200 that are not augmented.
    "extra_dataset": {**EPOCHS_20, **EXTRA, "data.mix_copies": False},
    "epochs_20_augment_none": {**EPOCHS_20, **AUGMENT_NOTHING},
    "extra_dataset_augment_none": {**EPOCHS_20, **EXTRA, **AUGMENT_NOTHING},
    "unet": {**PATCH_64X80, "model.name": "unet_add", "model.dropout": 0.3},
    "conv_model": {**PATCH_64X80, "model.name": "simple_conv"},
    "no_dense": {**PATCH_64X80, "model.dense": False},
    "no_norm": {"model.batch_norm": False},
    "tanh": {"model.activation": "tanh"},
    "batch_1": {"train.batch_size": 1},
    "batch_11": {"train.batch_size": 11},
    "batch_22": {"train.batch_size": 22},
    "batch_121": {"train.batch_size": 121},
    "epochs_200": {"train.epochs": 200},
    "dropout_0.5": {"model.dropout": 0.5},
    # The report's rates never reached Keras: Adam ran at 1e-3, SGD at 0.01 without momentum.
    "sgd": SGD,
    "sgd_momentum": {**SGD, "optimizer.momentum": 0.9},
    "plateau": {"optimizer.schedule": "plateau", "optimizer.plateau_patience": 5,
                "optimizer.plateau_cooldown": 5, "optimizer.plateau_min_lr": 1e-5,
                "train.early_stopping": 10},
    "softmax": {"loss.renormalised": False},  # instead of sigmoids that are renormalised
    "contour_width_1": {"data.contour_width": 1},
    "contour_width_3": {"data.contour_width": 3},
    # The last table: patches of 64x80, other weights and batches than the row that it repeats.
    "final": {**PATCH_64X80, "loss.class_weights": (0.01, 1.0, 0.95), "train.batch_size": 30},
}
REFERENCE = {
    "base": {"seg": 0.823, "train_seconds": 53 * 60 + 28.37},
    "augment_none": {"seg": 0.577},
    "augment_1": {"seg": 0.717},
    "augment_3": {"seg": 0.758},
    "patch_512x640": {"seg": 0.76, "train_seconds": 20 * 60 + 39.19},
    # Elapsed time of the table of patches, processor time of that of networks (53:03.3, 1199 %).
    "patch_64x80": {"seg": 0.829, "train_seconds": 44 * 60 + 1.9,
                    "cpu_seconds": (53 * 60 + 3.3) * 11.99},
    "patch_16x20": {"seg": 0.72, "train_seconds": 55 * 60 + 29.39},  # printed 55:29:39
    "no_blanks": {"seg": 0.776},
    "weights_1_1": {"seg": 0.823},
    "weights_1_1_no_blanks": {"seg": 0.78},
    "weights_equal": {"seg": 0.79},
    "weights_equal_no_blanks": {"seg": 0.765},
    "epochs_20": {"seg": 0.78},
    "extra_dataset": {"seg": 0.76},
    "unet": {"seg": 0.835, "train_seconds": 113 * 60 + 37, "cpu_seconds": (113 * 60 + 37) * 12.94},
    "conv_model": {"seg": 0.0, "train_seconds": 23 * 60 + 6.9,
                   "cpu_seconds": (23 * 60 + 6.9) * 14.54},
    "no_dense": {"seg": 0.79, "train_seconds": 50 * 60 + 55.6,
                 "cpu_seconds": (50 * 60 + 55.6) * 11.75},
    "batch_1": {"seg": 0.736},
    "batch_11": {"seg": 0.762},
    "batch_22": {"seg": 0.772},
    "batch_121": {"seg": 0.81},
    "final": {"seg": 0.829},
}
CLAIMS = (
    Claim("Augmentation improves the score", "base", "augment_none"),
    Claim("It is augmentation, not the number of steps", "base", "augment_none_330"),
    Claim("More variants of each image are better", ("augment_1", "augment_3", "base"),
          ("augment_none", "augment_1", "augment_3"), matched=True),
    Claim("Patches improve the score", ("patch_64x80", "base"), "patch_512x640"),
    Claim("Too small patches do not", ("patch_64x80", "base"), "patch_16x20"),
    Claim("Smaller patches shorten the running time", "patch_64x80", "patch_512x640",
          "train_seconds"),
    Claim("The model learns from blank patches too", ("base", "weights_1_1", "weights_equal"),
          ("no_blanks", "weights_1_1_no_blanks", "weights_equal_no_blanks"), matched=True),
    Claim("A blank image of the original size improves performance", "blank_image", "base"),
    Claim("Other data bring nothing after augmentation", "extra_dataset", "epochs_20",
          equal_within=0.02),
    Claim("Without augmentation they would bring something", "extra_dataset_augment_none",
          "epochs_20_augment_none"),
    Claim("It is faster to train small-UNET than the full one", "patch_64x80", "unet",
          "train_seconds"),
    Claim("It takes less processor time too", "patch_64x80", "unet", "cpu_seconds"),
    Claim("small-UNET and the full one are almost equal", "patch_64x80", "unet",
          equal_within=0.01),
    Claim("The layers of neurons help", "patch_64x80", "no_dense"),
    Claim("A simple convolution model does not find nuclei", "patch_64x80", "conv_model"),
    Claim("Class weights have big influence", ("base", "weights_1_1"), "weights_equal"),
    Claim("Class weights move the decision bounds towards cells", ("base", "weights_1_1"),
          "weights_equal", "recall_mean"),
    Claim("Weights of 0.01, 1 and 0.95 are the best", "weights_chosen",
          ("base", "weights_1_1", "weights_equal"), every=True),
    Claim("Batches of 44 give the best results", "base",
          ("batch_1", "batch_11", "batch_22", "batch_121"), every=True),
    Claim("Batches of 44 give the fastest run time", "base",
          ("batch_1", "batch_11", "batch_22", "batch_121"), "train_seconds", every=True),
    Claim("Dropout of 0.3 is better than 0.5", "base", "dropout_0.5"),
    Claim("Normalization has great impact", "base", "no_norm"),
    Claim("The activation has great impact", "base", "tanh"),
    Claim("SGD has a very bad result", "base", "sgd"),
    Claim("It is the solver: SGD with momentum has one too", "base", "sgd_momentum"),
    Claim("More images are better than more epochs", "base", "epochs_200"),
    Claim("Lowering the rate on a plateau fails", "base", "plateau"),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")  # the split is BBBC039's own, but for the choice of 11 images
METRICS = ("seg", "dice_mean", "iou_mean", "det", "ap50", "recall_mean")
SMOKE = {
    "data.size": (64, 64),
    "data.train_fraction": 1.0,
    "data.grid": lambda grid: max(1, grid // 4),  # patches of 64, 32, 16 and 8 pixels
    "model.channels": lambda channels: tuple(max(4, n // 8) for n in channels),
    "train.steps": 2,
    "train.batch_size": lambda n: min(n, 4),
    "eval.batch_size": 16,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
