"""Report 2's ablations on H&E tissue: every configuration that it names, then one thing at a time.

Question: which choices of training and network matter, and which of the ranks are noise?
Run: python -m cellseg_jax.study --study=configs/studies/ebhi.py --workdir=runs/ebhi
    --config.data.root=DIR
Task: six classes of tissue are --config.data.labels=classes --config.data.target=classes
    --config.data.num_classes=7 --config.eval.report_compat=False of configs/ebhi_unet.py.
Own data: --config.data.name=folder with images/ and masks/ in DIR. The row `pretrained` reads
weights/unet-e012d006.pt, the brain MRI weights of torch.hub's mateuszbuda/
brain-segmentation-pytorch.
Published: one split by images, so that cases are on both sides of it (row split_by_image);
validation, early stopping and scores on the same 20 %. Its Dice and IoU are soft, meaned over the
images of each of six classes, then over the classes: soft_dice_macro here, dice_macro of masks cut
at 0.5. 1 - its test loss is the mean over images, soft_dice_mean or soft_jaccard_mean, and ranks
unet_final third. Its accuracy, precision and recall are of dithered probabilities, or logits with
cross-entropy, and precision and recall are swapped: the columns report2_* repeat that; swapped back
they stand in the macro columns too, but for unet_12_0, whose printed numbers are no scores. Printed
wrong: two entries of the class lists of unet_15_0, the loss .2237 of unet_0_3 on a later page
(.2337 is right). The conformity of the paper's tables, a mean over images, has no counterpart:
conformity_pooled is finite.
No claims here: "best trade-off" of unet_13_1 (no number), improvements "within [.05, .06]" (the
order is judged, not the size), early stopping 3 with batch and instance norm, transformations and
the pretrained network (curves without a statement), and what `analyze --analysis=pruning` judges:
every block matters; over all repeats of the folders unet_final,unet_9_2, Adenocarcinoma and
High-grade IN suffer first, and the simpler network suffers more.
Ranks by loss across Dice, Jaccard and cross-entropy compare different things.
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
NORM_INPUT = {"data.normalize": "symmetric"}
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
    "unet_1_0": {**INSTANCE_NORM, **JACCARD, **NORM_INPUT},
    "unet_0_7": {**BATCH_NORM, **JACCARD},
    "unet_0_2": {**SGD, **BATCH_NORM},
    "unet_12_0": {**CROSS_ENTROPY, **DOUBLE_INSTANCE_NORM, **_early_stopping(3)},
    "unet_0_3": {},
    "unet_9_2": {"model.channels": (32, 64, 128, 256), **DOUBLE_INSTANCE_NORM},
}
# Partners of these at the report's defaults, which it compares without naming them.
AT_DEFAULTS = {
    "adam_batch": BATCH_NORM,
    "adam_instance": INSTANCE_NORM,
    "norm_input_batch": {**BATCH_NORM, **NORM_INPUT},
    "norm_input_instance": {**INSTANCE_NORM, **NORM_INPUT},
    "early_stopping_3_batch": {**BATCH_NORM, **_early_stopping(3)},
    "early_stopping_3_instance": {**INSTANCE_NORM, **_early_stopping(3)},
    "double_instance_es3": {**DOUBLE_INSTANCE_NORM, **_early_stopping(3)},
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
    "padding_valid": {"model.padding": "valid"},
    **{f"drop_skips_{level}": {"model.drop_skips": (level,)} for level in range(4)},  # 0: the top
    "drop_skips_all": {"model.drop_skips": (0, 1, 2, 3)},
    "split_by_image": {"data.split_by": "image"},  # as the report: how much of its Dice is leak?
    # Its rate and batch size are those of the paper of the dataset.
    "paper_settings": {"optimizer.lr": 3e-6, **_batch_size(1)},
    "pretrained": {"model.channels": (32, 64, 128, 256, 512), **DOUBLE_BATCH_NORM,
                   "train.weights": "weights/unet-e012d006.pt"},
}
# The networks and methods that the paper of the dataset compares, and its settings.
PAPER_SETTINGS = {"optimizer.lr": 3e-6, **_batch_size(1)}
PAPER = {
    "paper_unet": PAPER_SETTINGS,
    "segnet": {"model.name": "segnet", **PAPER_SETTINGS},
    "medt": {"model.name": "medt", "model.image_size": 0, **PAPER_SETTINGS},
    **{name: {"model.name": name} for name in ("kmeans", "mrf", "otsu", "watershed", "sobel")},
}
ROWS = {
    **NAMED,
    **AT_DEFAULTS,
    **{row: {**FINAL, **changes} for row, changes in ONE_FACTOR.items()},
    **PAPER,
}


CLASSES = ("Normal", "Polyp", "Low-grade IN", "High-grade IN", "Adenocarcinoma", "Serrated adenoma")
DICE_OF_CLASSES = tuple(f"dice_mean[{name}]" for name in CLASSES)


def _dice_of(*classes):
    """The published Dice of CLASSES, and their mean."""
    return {"dice_macro": sum(classes) / len(classes),
            **dict(zip(DICE_OF_CLASSES, classes, strict=True))}


def _faulty(accuracy, precision, recall):
    """What the report prints: of dithered predictions, precision and recall swapped."""
    return {"report2_accuracy": accuracy, "report2_precision": precision, "report2_recall": recall}


def _published(gap, accuracy, precision, recall, soft_dice=None, soft_jaccard=None, **others):
    """Scores under their own names as well; accuracy, precision, recall as printed."""
    means = {"dice_mean": soft_dice, "soft_dice_mean": soft_dice, "soft_jaccard_mean": soft_jaccard}
    return {"loss_gap": gap, **{k: v for k, v in means.items() if v is not None},
            "accuracy_macro": accuracy, "precision_macro": recall, "recall_macro": precision,
            **_faulty(accuracy, precision, recall), **others}


def _with_classes(published, dice, iou, classes):
    """Published means and Dice of classes; the printed mean is of more digits than these."""
    return published | _dice_of(*classes) | {
        "dice_macro": dice, "soft_dice_macro": dice, "iou_macro": iou}


def _in_paper(iou, precision, recall, *dice):
    """Means of six classes in the paper's tables 3 and 4, where nothing is swapped, and Dice."""
    return {**_dice_of(*dice), "iou_macro": iou, "precision_macro": precision,
            "recall_macro": recall}


# Soft Dice or Jaccard of images: 1 - the test loss of rows that train with it alone.
REFERENCE = {
    "unet_18_0": _with_classes(
        _published(0.0063, 0.9376, 0.9621, 0.9411, 1 - 0.0542), 0.9483, 0.9073,
        (0.96469, 0.96344, 0.96520, 0.93124, 0.92125, 0.94399)),
    "unet_3_0": _with_classes(
        _published(0.0145, 0.9359, 0.9412, 0.9586, 1 - 0.0556), 0.9461, 0.9040,
        (0.96450, 0.96539, 0.96565, 0.92973, 0.91708, 0.93413)),
    "unet_final": _with_classes(
        _published(0.0145, 0.9406, 0.9639, 0.9443, 1 - 0.0564), 0.9506, 0.9117,
        (0.96690, 0.96389, 0.96533, 0.93871, 0.91210, 0.95651)),
    "unet_13_0": _with_classes(
        _published(0.0085, 0.9377, 0.9634, 0.9400, 1 - 0.0564), 0.9478, 0.9075,
        (0.96175, 0.96379, 0.96537, 0.93425, 0.91413, 0.94748)),
    "unet_13_1": _published(0.0051, 0.9360, 0.9521, 0.9487, 1 - 0.0572),
    "unet_4_0": _with_classes(
        _published(0.0059, 0.9352, 0.9487, 0.9504, 1 - 0.0578), 0.9459, 0.9035,
        (0.96499, 0.96385, 0.96634, 0.92664, 0.91123, 0.94257)),
    "unet_3_2": _with_classes(
        _published(0.0105, 0.9326, 0.9511, 0.9452, 1 - 0.0581), 0.9442, 0.9007,
        (0.96402, 0.96371, 0.96532, 0.92788, 0.91185, 0.93252)),
    "unet_15_0": _published(0.0069, 0.9334, 0.9539, 0.9430),
    "unet_15_1": _published(0.0130, 0.9223, 0.9480, 0.9345),
    "unet_1_0": _published(0.0175, 0.9242, 0.9584, 0.9297, soft_jaccard=1 - 0.1152),
    "unet_0_7": _published(0.0158, 0.9196, 0.9520, 0.9286, soft_jaccard=1 - 0.1217),
    "unet_0_2": _published(0.0188, 0.7782, 0.8498, 0.8165, 1 - 0.1751),
    "unet_12_0": {"loss_gap": 0.0224, **_faulty(0.5000, 0.4995, 0.6290)},
    "unet_0_3": _published(0.0086, 0.6289, 1.0, 0.6289, 1 - 0.2337,
                           dice_macro=0.7642, soft_dice_macro=0.7642),
    # Its Dice of Polyp, 0.965, is impossible with its IoU of 0.308: the mean is rather 0.752. The
    # slides print its recall as .7741.
    "paper_unet": _in_paper(0.6550, 0.7595, 0.7741, 0.411, 0.965, 0.911, 0.895, 0.887, 0.938),
    "segnet": _in_paper(0.8088, 0.8710, 0.9255, 0.777, 0.937, 0.924, 0.894, 0.865, 0.907),
    "medt": _in_paper(0.6373, 0.7892, 0.8020, 0.676, 0.771, 0.889, 0.824, 0.735, 0.670),
    "kmeans": _in_paper(0.4737, 0.6308, 0.6520, 0.648, 0.592, 0.650, 0.626, 0.633, 0.636),
    "mrf": _in_paper(0.4172, 0.6222, 0.5402, 0.636, 0.511, 0.554, 0.550, 0.554, 0.571),
    "otsu": _in_paper(0.3247, 0.5253, 0.4195, 0.410, 0.400, 0.886, 0.249, 0.336, 0.393),
    "watershed": _in_paper(0.2962, 0.6648, 0.3532, 0.461, 0.433, 0.464, 0.472, 0.458, 0.449),
    "sobel": _in_paper(0.4655, 0.7070, 0.5593, 0.652, 0.583, 0.656, 0.634, 0.553, 0.698),
}
TOP_FIVE = ("unet_3_0", "unet_13_0", "unet_13_1", "unet_4_0", "unet_3_2")
FINAL_TABLE = ("unet_18_0", "unet_3_0", "unet_final")
CLAIMS = (
    Claim("unet_final has the best Dice", "unet_final",
          ("unet_18_0", "unet_3_0", "unet_13_0", "unet_4_0", "unet_3_2"), every=True),
    Claim("unet_18_0 has the lowest loss", "unet_18_0",
          ("unet_final", "unet_3_0", "unet_13_0", "unet_4_0", "unet_3_2"), "soft_dice_mean",
          every=True),
    Claim("unet_13_1 has the smallest difference of test and training loss", "unet_13_1",
          ("unet_3_0", "unet_13_0", "unet_4_0", "unet_3_2"), "loss_gap", every=True),
    Claim("unet_3_0 has the best recall, which is precision once they are swapped back",
          "unet_3_0", ("unet_18_0", "unet_final", "unet_0_3"), "precision_macro", every=True),
    Claim("unet_final has the best precision but for unet_0_3, which is recall", "unet_final",
          ("unet_18_0", "unet_3_0"), "recall_macro", every=True),
    Claim("Among the best five, performance does not change dramatically", "unet_3_0",
          TOP_FIVE[1:], equal_within=0.01, every=True),
    Claim("The best configurations improve on the initial ones", TOP_FIVE,
          ("adam_batch", "adam_instance")),
    Claim("No norm at all is dramatically worse, at the end", "unet_final", "norm_none"),
    Claim("No norm at all is dramatically worse, at the defaults",
          ("adam_batch", "adam_instance"), "unet_0_3", every=True),
    Claim("No norm at all is the worst of all", tuple(row for row in NAMED if row != "unet_0_3"),
          "unet_0_3", every=True),
    Claim("SGD is dramatically worse than Adam, at the end", "unet_final", "optimizer_sgd"),
    Claim("SGD is dramatically worse than Adam, at the defaults", ("adam_batch", "adam_instance"),
          "unet_0_2", every=True),
    Claim("Input normalisation beside batch or instance norm does not increase performance",
          ("adam_batch", "adam_instance"), ("norm_input_batch", "norm_input_instance"),
          equal_within=0.01, matched=True),
    Claim("Dice is better than Jaccard for training, at the end", "unet_final", "loss_jaccard"),
    Claim("Dice is better than Jaccard for training, at the defaults", "adam_batch", "unet_0_7"),
    Claim("More Dice than Jaccard is better than less", "unet_15_0", "unet_15_1"),
    Claim("Dice is better than cross-entropy for training, at the end", "unet_final",
          "loss_cross_entropy"),
    Claim("Dice is better than cross-entropy for training, at the defaults",
          "double_instance_es3", "unet_12_0"),
    Claim("The paper's rate and batch size deteriorate performance", "unet_final",
          "paper_settings"),
    Claim("Batches of 32 do not converge to the optimum", "unet_final", "batch_32"),
    Claim("Batches of 4 improve performance", "unet_final", ("batch_1", "batch_16"), every=True),
    Claim("A rate of 0.001 is optimal", "unet_final", "lr_1e-4"),
    Claim("Initialisation improves performance", "unet_final", "init_default"),
    Claim("64 channels improve performance", "unet_final", "width_half"),
    Claim("Four poolings improve performance", "unet_final", ("depth_3", "depth_2"), every=True),
    Claim("Instance norm improves performance", "unet_final", ("norm_batch", "norm_double_batch"),
          every=True),
    Claim("Balanced classes improve performance", "unet_final", "not_balanced"),
    Claim("Augmented copies improve performance", "unet_final", "no_augmentation"),
    Claim("Early stopping after 6 epochs improves performance", "unet_final", "early_stopping_3"),
    *(Claim(f"The networks beat the U-Net of the dataset's paper by {name}", FINAL_TABLE,
            "paper_unet", f"{name}_macro", every=True) for name in ("dice", "precision", "recall")),
    Claim("Networks beat the classical methods", ("unet_final", "paper_unet", "segnet", "medt"),
          ("kmeans", "mrf", "otsu", "watershed", "sobel"), every=True),
)
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_macro", "iou_macro", "accuracy_macro", "precision_macro", "recall_macro",
           "soft_dice_macro", "dice_mean", "soft_dice_mean", "soft_jaccard_mean", *DICE_OF_CLASSES,
           "loss_gap", "report2_accuracy", "report2_precision", "report2_recall")
BASELINE = "unet_final"
SMOKE = {
    "data.size": (32, 32),
    "data.split": (0.5, 0.25, 0.25),
    "model.channels": lambda channels: tuple(max(2, n // 32) for n in channels[-3:]),
    "model.drop_skips": lambda levels: tuple(sorted({min(level, 1) for level in levels})),
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
