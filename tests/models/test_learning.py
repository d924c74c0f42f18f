"""Every network learns synthetic cells at a reduced width; bfloat16 sees the same cells.

SegNet, MedT, unet_plan and SegFormer have tests of their own beside this one.
"""

import numpy as np
import pytest

from cellseg_jax import data, metrics, train
from cellseg_jax.config import complete, default
from cellseg_jax.inference.predictor import Predictor

# Options, side of the images, epochs: Keras' batch norm averages over hundreds of steps before its
# statistics are of use, so that report 1's networks get more steps on smaller images.
NETWORKS = {
    "unet": (dict(channels=(8, 16, 32), dropout=0.0), 64, 16),
    "unetr": (dict(image_size=0, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4,
                   num_layers=4, dropout=0.0), 64, 16),
    "unet_classic": (dict(channels=(8, 16, 32)), 64, 16),
    "small_unet": (dict(dropout=0.0), 32, 70),
    "unet_add": (dict(channels=(8, 16, 32), dropout=0.0), 32, 70),
    "simple_conv": ({}, 64, 16),  # it sees windows of 7 pixels; bright cells are enough for 0.88
}


def cells_config(name, precision="float32"):
    options, side, epochs = NETWORKS[name]
    config = default()
    config.data = dict(name="synthetic", size=(side, side), image_size=(side, side), count=60)
    config.model = dict(name=name, **options)
    config.optimizer.lr = 3e-3
    config.optimizer.schedule = "polynomial"
    config.train.update(epochs=epochs, batch_size=8, precision=precision)
    config.eval.every = epochs // 4
    return complete(config)


@pytest.mark.weekly
@pytest.mark.parametrize("name", NETWORKS)
def test_network_learns_synthetic_cells(name, tmp_path):
    config = cells_config(name)
    result, = train.train([config], [tmp_path / "run"])
    print(f"{name}: validation Dice {result.metrics['val_dice_mean']:.3f}")
    assert result.metrics["val_dice_mean"] > 0.85
    dice = []
    for precision in ("float32", "bfloat16"):
        predictor = Predictor(tmp_path / "run", cells_config(name, precision))
        arrays = data.load(config.data)
        probs = predictor.network(arrays.image[:16], arrays.range(config.data.normalize)[:16])
        counts = metrics.pixel_counts(arrays.label[:16, ..., None] > 0, probs > 0.5)
        dice.append(np.asarray(metrics.dice(counts)).mean())
    assert abs(dice[0] - dice[1]) < 0.01
