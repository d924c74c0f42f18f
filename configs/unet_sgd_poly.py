"""U-Net with SGD with Nesterov momentum 0.99, polynomial decay per epoch (report 0, table 1).

Question: does lowering the rate every epoch help?
Run: python -m cellseg_jax.main --config=configs/unet_sgd_poly.py --config.data.root=DIR
Published: mean Dice 0.82, IoU 0.71 (one run; epochs, batch size and split unstated).
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
    config.optimizer.schedule = "polynomial"
    config.optimizer.schedule_power = 0.9
    config.optimizer.schedule_per = "epoch"
    return config
