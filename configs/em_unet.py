"""Report 3's U-Net on a stack of electron microscopy: membranes between cells.

Question: does augmentation keep the validation loss from rising, as the report saw?
Run: python -m cellseg_jax.main --config=configs/em_unet.py --config.data.root=DIR
Published: no numbers; depth 4 above depth 3, learning rate 1e-4 best, augmentation stable.
Neighbouring slices are nearly copies: blocks of slices stay together in the split.
Result: docs/results/em.md, of a smaller network.
"""

from cellseg_jax import augment
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(name="isbi2012", size=(512, 512), channels="gray", block=3,
                       foreground="membrane")
    config.data.copies = 1  # the augmented set is appended to the raw one
    config.augment.update(augment.preset("em", (512, 512)))
    config.model = dict(name="unet_classic", norm="double_batch", odd="pad_up")
    config.loss.dice = config.loss.focal = 0.0
    config.loss.bce = 1.0
    config.optimizer.lr = 1e-4
    config.optimizer.weight_decay = 0.0
    config.train.epochs = 40
    config.train.batch_size = 2
    config.eval.batch_size = 2
    config.eval.decode = "components"
    config.eval.surface = 2.0  # with the challenge's Rand and information scores
    return config
