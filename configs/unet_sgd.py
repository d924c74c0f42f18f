"""U-Net with SGD with Nesterov momentum 0.99 (report 0, table 1).

Question: does plain momentum do as well as Adam on a convolutional net?
Run: python -m cellseg_jax.main --config=configs/unet_sgd.py --config.data.root=DIR
Published: mean Dice 0.82, IoU 0.73 (one run; epochs, batch size and split unstated).
Result: docs/results/nuclei.md, at 96x96; not run at this size.
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.model = dict(name="unet", dropout=0.2)
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.99
    config.optimizer.nesterov = True
    config.optimizer.lr = 5e-3
    config.optimizer.weight_decay = 3e-5
    return config
