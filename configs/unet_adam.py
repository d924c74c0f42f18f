"""U-Net with Adam (report 0, table 1).

Question: the reference cell of the table
Run: python -m cellseg_jax.main --config=configs/unet_adam.py --config.data.root=DIR
Published: mean Dice 0.82, IoU 0.73 (one run; epochs, batch size and split unstated).
Result: at 128x128, 40 epochs, one run: Dice 0.889, IoU 0.819 (2 CPU cores, 3 minutes, 4e43cea);
    not run at full size.
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.model = dict(name="unet", dropout=0.2)
    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-3
    config.optimizer.weight_decay = 3e-5
    return config
