"""UNETR with Adam (report 0, table 1).

Question: does Adam at the U-Net's rate suit a transformer encoder?
Run: python -m cellseg_jax.main --config=configs/unetr_adam.py --config.data.root=DIR
Published: mean Dice 0.72, IoU 0.59 (one run; epochs, batch size and split unstated).
Result: docs/results/nuclei.md, at 96x96; not run at this size.
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.model = dict(name="unetr", image_size=0, dropout=0.2)  # image_size 0: data.size
    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-3
    config.optimizer.weight_decay = 3e-5
    config.train.batch_size = 4  # 88 million parameters at 512x512
    return config
