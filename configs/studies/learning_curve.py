"""How Dice grows with the number of training images: nuclei at 96x96, five shares, a small budget.

Question: how many more images does the U-Net need for a Dice of 0.90?
Run: python -m cellseg_jax.study --study=configs/studies/learning_curve.py --config.data.root=DIR
Own data: --config.data.name=folder with images/ and masks/ in DIR.
Every run takes the same 400 steps of 4 images, so that few images are seen more often and not less
trained on; the weights of the last step are scored, and validation images choose nothing.
Result: 10 minutes on two busy cores (stage1_train, three repeats, bec20e0). Dice 0.785, 0.827,
0.812, 0.838 and 0.830 with 7, 14, 28, 113 and 451 images, none distinguishable from the last. The
fitted curve levels off at 0.830 (95 %: 0.798 to 1.000), below both wanted scores; the runs do not
rule 0.90 out, with 3,400 images or more. With all images the training loss (0.33) is as high as the
validation loss (0.31), which points to the short training as the limit. A first form, 200 steps of
16 with 28, 56, 113, 226 and 451 images, was flat: 0.837, 0.845, 0.848, 0.844, 0.843.
"""

import pathlib

from cellseg_jax import config, studies

NUCLEI = studies.load(pathlib.Path(__file__).with_name("nuclei.py"))

TITLE = "U-Net on nuclei with fewer images"
BASE = config.changed(NUCLEI.base, {
    "data.size": (96, 96), "train.steps": 400, "train.batch_size": 4, "eval.every": 1000,
    "optimizer.schedule": "polynomial", "optimizer.schedule_per": "step"})
ROWS = studies.fractions({"unet": {}}, (1 / 64, 1 / 32, 1 / 16, 1 / 4, 1))
# The cost of a row is its annotations: a share that is no worse by 0.02, less than two trainings of
# one config differ by, needs no further images.
MARGIN = {"dice_mean": 0.02}
LEARNING_CURVE = {"metric": "dice_mean", "targets": (0.85, 0.90)}
REPEATS = 3
VARIES = ("seed", "data.split_seed")
METRICS = ("dice_mean", "iou_mean", "ap50")
BASELINE = "unet_1"
SMOKE = {**NUCLEI.smoke, "data.split": (0.6, 0.2, 0.2), "train.batch_size": 1,
         "data.train_fraction": lambda share: 0.2 + 0.8 * share}  # of 9 images

get_config = studies.rows(BASE, ROWS)
