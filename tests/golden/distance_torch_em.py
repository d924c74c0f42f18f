"""Writes distance_torch_em.npz: maps and losses of torch-em.

Run: python tests/golden/distance_torch_em.py (needs torch_em 0.10.9).
"""

import pathlib

import numpy as np


def convex_cells(seed, size=40):
    """Label of ellipses that lie apart."""
    rng = np.random.default_rng(seed)
    label, (y, x) = np.zeros((size, size), np.int32), np.mgrid[:size, :size]
    for i, (cy, cx) in enumerate(((10, 10), (28, 12), (20, 30)), 1):
        a, b = rng.uniform(4, 9, 2)
        label[((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1] = i
    return label


def predicted(shape):
    """Probabilities, of which the loss is computed."""
    return np.random.default_rng(0).uniform(0.01, 0.99, shape).astype(np.float32)


def reference(seeds):
    """The maps of torch-em, and its loss of `predicted` with them as the target."""
    import torch
    from torch_em.loss import DiceBasedDistanceLoss
    from torch_em.transform.label import PerObjectDistanceTransform

    maps = np.stack([PerObjectDistanceTransform()(convex_cells(seed)) for seed in seeds])
    loss = DiceBasedDistanceLoss(mask_distances_in_bg=True)(
        torch.tensor(np.moveaxis(predicted(np.moveaxis(maps, 1, -1).shape), -1, 1)),
        torch.tensor(maps, dtype=torch.float32))
    return {"maps": np.moveaxis(maps, 1, -1).astype(np.float32), "loss": float(loss)}


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **reference(range(6)))
