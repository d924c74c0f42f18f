"""Report 4's U-Net on LIVECell: gaps between touching cells weigh more.

Question: do the weights of the 2015 U-Net keep cells apart that touch?
Run: python -m cellseg_jax.main --config=configs/livecell_unet.py --config.data.root=DIR
Published: no numbers. Windows of 333x434 pixels, since resizing blurs; the report compares this
loss with Dice: --config.loss.bce=0 --config.loss.dice=1 --config.loss.squared=true.
Result: docs/results/livecell.md, of a smaller network.
"""

from cellseg_jax import augment
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(
        name="livecell", size=(333, 434), fit="random_crop", channels="gray", split="official")
    config.data.target = "boundary"
    config.data.weight_w0 = 10.0
    config.data.weight_sigma = 5.0
    config.data.copies = 1  # a plain and an augmented pass
    config.augment.update(augment.preset("livecell", (333, 434)))
    config.model = dict(name="unet_classic", norm="double_batch", odd="resize_up")
    config.loss.dice = config.loss.focal = 0.0
    config.loss.bce = 1.0
    config.optimizer.lr = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.amsgrad = True
    config.train.epochs = 40
    config.train.batch_size = 2
    config.eval.batch_size = 2
    config.eval.decode = "components"
    return config
