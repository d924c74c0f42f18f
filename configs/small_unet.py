"""Report 1's small-UNET: nuclei, their contour and the background, in patches of 64x80 pixels.

Question: how far does a network of 75,000 parameters come on 15 images cut into patches?
Run: python -m cellseg_jax.main --config=configs/small_unet.py --config.data.root=DIR
Published: SEG 0.829 with these patches, 0.823 with 32x40 and 0.76 with whole images (4 test
images, one run). The report's own images are not public; DIR is BBBC039, which it adds: 11 of its
100 training images.
Result: a study of 13 images of this size is in docs/results/small_unet.md.
"""

from cellseg_jax import augment
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(
        name="bbbc039", size=(512, 640), fit="center_crop", channels="gray", split="official")
    config.data.train_fraction = 0.11  # 11 images, as there
    config.data.grid = 8
    config.data.target = "contour"
    config.data.copies = 10  # augmented variants of every image, always the same ones
    config.data.augment_before_grid = True
    config.augment.update(augment.preset("small_unet", (512, 640)))
    config.model = dict(name="small_unet", dropout=0.3)
    config.loss.dice = config.loss.focal = 0.0
    config.loss.cross_entropy = 1.0
    config.loss.renormalised = True
    config.loss.class_weights = (0.01, 1.0, 0.95)
    config.optimizer.lr = 1e-3  # Keras' default for Adam: the report's grid had no effect
    config.optimizer.weight_decay = 0.0
    config.train.epochs = 30
    config.train.batch_size = 44
    config.eval.decode = "components"
    config.eval.overlap = 0.0  # SEG of patches put together, not blended
    return config
