"""A small U-Net tells built-in synthetic cells apart: two minutes on two CPU cores, no download.

Question: does the installation work, and what does a run leave behind?
Run: python -m cellseg_jax.main --config=configs/quickstart.py
"""

from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(128, 128), count=160, target="flow")
    config.augment.flip_horizontal = (0.5, 1.0)
    config.augment.flip_vertical = (0.5, 1.0)
    config.model = dict(name="unet", channels=(16, 32, 64, 128), dropout=0.1)
    config.optimizer.schedule = "polynomial"
    config.train.epochs = 40
    return config
