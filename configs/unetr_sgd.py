"""UNETR with SGD with Nesterov momentum 0.99 (report 0, table 1).

Question: does the transformer encoder need an adaptive optimiser?
Run: python -m cellseg_jax.main --config=configs/unetr_sgd.py --config.data.root=DIR
Published: mean Dice 0.79, IoU 0.68 (one run; epochs, batch size and split unstated).
Result: at 128x128, 5 epochs, one run: Dice 0.859, IoU 0.775 (2 CPU cores, f8ec14d); not run at
    full size.
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.model = dict(name="unetr", image_size=0, dropout=0.2)  # image_size 0: data.size
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.99
    config.optimizer.nesterov = True
    config.optimizer.lr = 5e-3
    config.optimizer.weight_decay = 3e-5
    config.train.batch_size = 4  # 88 million parameters at 512x512
    return config
