"""Report 2's ablations on H&E tissue: every configuration that it names, then one thing at a time.

Question: which choices of training and network matter, and which of the ranks are noise?
Run: python -m cellseg_jax.study --study=configs/studies/ebhi.py --workdir=runs/ebhi
    --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR. The row `pretrained` reads
weights/unet-e012d006.pt, the brain MRI weights of torch.hub's mateuszbuda/
brain-segmentation-pytorch.
Published: one split by images, so that cases are on both sides of it; validation, early stopping
and scores on the same 20 %. Its Dice and IoU are soft (1 - the loss of each image, smooth 1),
meaned over images, then over six classes; closest to them is dice_mean, of masks at 0.5, meaned
over all images; eval/test.json has them by class in per_stratum. Precision and recall are
swapped there, and swapped back in REFERENCE. Probabilities were dithered, not cut at 0.5, and
those of cross-entropy were logits: its scores of unet_12_0 are not the network's. Ranks by loss
across Dice, Jaccard and cross-entropy compare different things. Shown as curves only:
optimisers, batch sizes, early stopping, rates, widths, depths, data and weights to start from.
Result: not run at this size; ebhi_cpu.py has some of its rows, small.
"""

import pathlib

from cellseg_jax import augment, config
from cellseg_jax.studies import Claim, rows

SIZE = (224, 224)
AUGMENT_NOTHING = {f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS}


def _augmented(preset):
    return {**AUGMENT_NOTHING,
            **{f"augment.{name}": value for name, value in augment.preset(preset, SIZE).items()}}


# The report's flags. Without them: Adam at 1e-4, batches of 4, Dice loss, no norm, no augmentation,
# and training that may stop after the fifth epoch.
BATCH_NORM = {"model.norm": "batch"}  # after the second convolution of each block
DOUBLE_BATCH_NORM = {"model.norm": "double_batch"}
INSTANCE_NORM = {"model.norm": "instance"}
DOUBLE_INSTANCE_NORM = {"model.norm": "double_instance"}
WEIGHTS_INIT = {"model.weights_init": "kaiming"}
LR_3 = {"optimizer.lr": 1e-3}
SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.9}
JACCARD = {"loss.dice": 0.0, "loss.jaccard": 1.0}
CROSS_ENTROPY = {"loss.dice": 0.0, "loss.bce": 1.0}
DATASET_AUG_3 = {"data.copies": 3, **_augmented("ebhi_copies")}
TRANSFORMATIONS = {"data.copies": 0, **_augmented("ebhi")}  # others in every epoch
NO_AUGMENTATION = {"data.copies": 0, **AUGMENT_NOTHING}
BALANCED = {"data.balance": True}


def _custom_loss(dice, jaccard):
    return {"loss.dice": dice, "loss.jaccard": jaccard}


def _early_stopping(epochs):
    return {"train.early_stopping": epochs}


def _batch_size(images):
    return {"train.batch_size": images}


FINAL = {**INSTANCE_NORM, **LR_3, **WEIGHTS_INIT, **DATASET_AUG_3, **BALANCED,
         **_early_stopping(6)}

TITLE = "Ablations of a U-Net on EBHI-Seg"
BASE = config.changed(
    config.load(str(pathlib.Path(__file__).resolve().parents[1] / "ebhi_unet.py")),
    {"model.norm": "none", "model.weights_init": "default", "optimizer.lr": 1e-4,
     "data.balance": False, **NO_AUGMENTATION, **_early_stopping(5)})
NAMED = {
    "unet_18_0": {**DOUBLE_INSTANCE_NORM, **DATASET_AUG_3, **LR_3, **WEIGHTS_INIT,
                  **_early_stopping(6)},
    "unet_3_0": {**INSTANCE_NORM, **_early_stopping(15)},
    "unet_final": FINAL,
    "unet_13_0": {**DOUBLE_BATCH_NORM, **_batch_size(16), **DATASET_AUG_3, **_early_stopping(6)},
    "unet_13_1": {**DOUBLE_BATCH_NORM, **_batch_size(16), **DATASET_AUG_3, **LR_3, **WEIGHTS_INIT,
                  **_early_stopping(6)},
    "unet_4_0": {**INSTANCE_NORM, **_early_stopping(7), **WEIGHTS_INIT, **_batch_size(1)},
    "unet_3_2": {**LR_3, **INSTANCE_NORM, **WEIGHTS_INIT, **_early_stopping(15)},
    "unet_15_0": {**DOUBLE_INSTANCE_NORM, **_custom_loss(0.7, 0.3), **_early_stopping(3)},
    "unet_15_1": {**DOUBLE_INSTANCE_NORM, **_custom_loss(0.3, 0.7), **_early_stopping(3)},
    "unet_1_0": {**INSTANCE_NORM, **JACCARD, "data.normalize": "symmetric"},  # norm_input
    "unet_0_7": {**BATCH_NORM, **JACCARD},
    "unet_0_2": {**SGD, **BATCH_NORM},
    "unet_12_0": {**CROSS_ENTROPY, **DOUBLE_INSTANCE_NORM, **_early_stopping(3)},
    "unet_0_3": {},
    "unet_9_2": {"model.channels": (32, 64, 128, 256), **DOUBLE_INSTANCE_NORM},
}
ONE_FACTOR = {
    "optimizer_sgd": SGD,
    "batch_1": _batch_size(1),
    "batch_16": _batch_size(16),
    "batch_32": _batch_size(32),
    "norm_none": {"model.norm": "none"},
    "norm_batch": BATCH_NORM,
    "norm_double_batch": DOUBLE_BATCH_NORM,
    "norm_double_instance": DOUBLE_INSTANCE_NORM,
    "loss_jaccard": JACCARD,
    "loss_0.7_dice_0.3_jaccard": _custom_loss(0.7, 0.3),
    "loss_0.3_dice_0.7_jaccard": _custom_loss(0.3, 0.7),
    "loss_cross_entropy": CROSS_ENTROPY,
    "early_stopping_3": _early_stopping(3),
    "early_stopping_5": _early_stopping(5),
    "early_stopping_7": _early_stopping(7),
    "early_stopping_15": _early_stopping(15),
    "lr_1e-4": {"optimizer.lr": 1e-4},
    "lr_3e-6": {"optimizer.lr": 3e-6},
    "width_half": {"model.channels": (32, 64, 128, 256, 512)},
    "depth_3": {"model.channels": (64, 128, 256, 512)},
    "depth_2": {"model.channels": (64, 128, 256)},
    "init_default": {"model.weights_init": "default"},
    "transformations": TRANSFORMATIONS,
    "no_augmentation": NO_AUGMENTATION,
    "not_balanced": {"data.balance": False},
    # Its rate and batch size are those of the paper of the dataset.
    "paper_settings": {"optimizer.lr": 3e-6, **_batch_size(1)},
    "pretrained": {"model.channels": (32, 64, 128, 256, 512), **DOUBLE_BATCH_NORM,
                   "train.weights": "weights/unet-e012d006.pt"},
}
# The networks and methods that the paper of the dataset compares; its settings are 3e-6 and 1.
PAPER = {
    "segnet": {"model.name": "segnet", "optimizer.lr": 3e-6, **_batch_size(1)},
    "medt": {"model.name": "medt", "model.image_size": 0, "optimizer.lr": 3e-6, **_batch_size(1)},
    **{name: {"model.name": name} for name in ("kmeans", "mrf", "otsu", "watershed", "sobel")},
}
ROWS = {
    **NAMED,
    **{row: {**FINAL, **changes} for row, changes in ONE_FACTOR.items()},
    **PAPER,
}


def _published(accuracy, precision, recall, dice=None, iou=None):
    """Scores under their own names, given in the report's order, which swaps two of them."""
    scores = {"dice_mean": dice, "iou_mean": iou, "accuracy_mean": accuracy,
              "precision_mean": recall, "recall_mean": precision}
    return {name: score for name, score in scores.items() if score is not None}


def _in_paper(dice, iou, precision, recall):
    """Means of the six classes in the paper's tables 3 and 4, where nothing is swapped."""
    return {"dice_mean": dice, "iou_mean": iou, "precision_mean": precision, "recall_mean": recall}


REFERENCE = {
    "unet_18_0": _published(0.9376, 0.9621, 0.9411, 0.9483, 0.9073),
    "unet_3_0": _published(0.9359, 0.9412, 0.9586, 0.9461, 0.9040),
    "unet_final": _published(0.9406, 0.9639, 0.9443, 0.9506, 0.9117),
    "unet_13_0": _published(0.9377, 0.9634, 0.9400, 0.9478, 0.9075),
    "unet_13_1": _published(0.9360, 0.9521, 0.9487),
    "unet_4_0": _published(0.9352, 0.9487, 0.9504, 0.9459, 0.9035),
    "unet_3_2": _published(0.9326, 0.9511, 0.9452, 0.9442, 0.9007),
    "unet_15_0": _published(0.9334, 0.9539, 0.9430),
    "unet_15_1": _published(0.9223, 0.9480, 0.9345),
    "unet_1_0": _published(0.9242, 0.9584, 0.9297),
    "unet_0_7": _published(0.9196, 0.9520, 0.9286),
    "unet_0_2": _published(0.7782, 0.8498, 0.8165),
    "unet_12_0": _published(0.5000, 0.4995, 0.6290),
    "unet_0_3": _published(0.6289, 1.0, 0.6289, 0.7642),
    # Its Dice of Polyp, 0.965, is impossible with its IoU of 0.308: the mean is rather 0.752.
    "paper_settings": _in_paper(0.8345, 0.6550, 0.7595, 0.7742),
    "segnet": _in_paper(0.8840, 0.8088, 0.8710, 0.9255),
    "medt": _in_paper(0.7608, 0.6373, 0.7892, 0.8020),
    "kmeans": _in_paper(0.6308, 0.4737, 0.6308, 0.6520),
    "mrf": _in_paper(0.5627, 0.4172, 0.6222, 0.5402),
    "otsu": _in_paper(0.4457, 0.3247, 0.5253, 0.4195),
    "watershed": _in_paper(0.4562, 0.2962, 0.6648, 0.3532),
    "sobel": _in_paper(0.6293, 0.4655, 0.7070, 0.5593),
}
CLAIMS = (
    Claim("unet_final has the best Dice", "unet_final",
          ("unet_18_0", "unet_3_0", "unet_13_0", "unet_4_0", "unet_3_2")),
    Claim("Among the best five, performance does not change dramatically",
          ("unet_3_0", "unet_13_0"), ("unet_13_1", "unet_4_0", "unet_3_2"), equal_within=0.01),
    Claim("No norm at all is dramatically worse", "unet_final", "norm_none"),
    Claim("No norm at all is the worst of all", ("unet_0_2", "unet_0_7", "unet_12_0"), "unet_0_3"),
    Claim("SGD is dramatically worse than Adam", "unet_final", "optimizer_sgd"),
    Claim("Dice is better than Jaccard for training", "unet_final", "loss_jaccard"),
    Claim("More Dice than Jaccard is better than less", "unet_15_0", "unet_15_1"),
    Claim("Dice is better than cross-entropy for training", "unet_final", "loss_cross_entropy"),
    Claim("The paper's rate and batch size deteriorate performance", "unet_final",
          "paper_settings"),
    Claim("Batches of 32 do not converge to the optimum", "unet_final", "batch_32"),
    Claim("Batches of 4 improve performance", "unet_final", ("batch_1", "batch_16")),
    Claim("A rate of 0.001 is optimal", "unet_final", "lr_1e-4"),
    Claim("Initialisation improves performance", "unet_final", "init_default"),
    Claim("Four poolings and 64 channels improve performance", "unet_final",
          ("width_half", "depth_3", "depth_2")),
    Claim("Instance norm improves performance", "unet_final", ("norm_batch", "norm_double_batch")),
    Claim("Balanced classes improve performance", "unet_final", "not_balanced"),
    Claim("Augmented copies improve performance", "unet_final", "no_augmentation"),
    Claim("Early stopping after 6 epochs improves performance", "unet_final", "early_stopping_3"),
    Claim("Networks beat the classical methods", ("unet_final", "segnet"),
          ("kmeans", "mrf", "otsu", "watershed", "sobel")),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "accuracy_mean", "precision_mean", "recall_mean")
BASELINE = "unet_final"
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "model.channels": lambda channels: tuple(n // 32 for n in channels[-3:]),
    "model.convs": (1, 1, 1),
    "model.features": 4,
    "model.stem_features": 4,
    "model.num_heads": 2,
    "model.blocks": (1, 1),
    "model.branches": ("global",),
    "train.weights": "",
    "train.steps": 2,
    "train.batch_size": lambda n: min(n, 4),
    "eval.batch_size": 4,
    "eval.panels": 2,
}

get_config = rows(BASE, ROWS)
