"""Writes losses_monai.npz: values and gradients of MONAI's and torch's losses.

Run: python tests/golden/losses_monai.py
"""

import pathlib

import numpy as np
import torch
from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss

LOSSES = {
    "dice": DiceLoss(sigmoid=True),
    "dice_squared": DiceLoss(sigmoid=True, squared_pred=True),
    "dice_pooled": DiceLoss(sigmoid=True, batch=True),
    "jaccard": DiceLoss(sigmoid=True, jaccard=True),
    "focal": FocalLoss(gamma=2),
    "bce": torch.nn.BCEWithLogitsLoss(),
    "dice_focal": DiceFocalLoss(sigmoid=True),
}


def reference(name: str, logits: np.ndarray, target: np.ndarray):
    """(value, gradient) of the named loss for channel-last arrays, as torch gives them."""
    z = torch.tensor(np.moveaxis(logits, -1, 1), requires_grad=True)
    value = LOSSES[name](z, torch.tensor(np.moveaxis(target, -1, 1)))
    value.backward()
    return value.item(), np.moveaxis(z.grad.numpy(), 1, -1)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    arrays = {"logits": 3 * rng.normal(size=(2, 4, 3, 3))}
    arrays["target"] = rng.integers(0, 2, arrays["logits"].shape).astype(np.float64)
    arrays["target"][0, ..., 0] = 0  # an empty channel
    for name in LOSSES:
        value, gradient = reference(name, arrays["logits"], arrays["target"])
        arrays |= {name: value, name + "_grad": gradient}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
