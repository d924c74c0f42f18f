"""Writes losses_monai.npz: values and gradients of MONAI's and torch's losses.

Run: python tests/golden/losses_monai.py
"""

import pathlib

import numpy as np
import torch
from monai.losses import (
    BoundaryLoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    SoftclDiceLoss,
    TverskyLoss,
)
from torch.nn import functional as F

WEIGHTS = (0.3, 1.05)  # of the two channels


def lovasz(errors, g):
    """The definition: errors of the worst pixels, times what each adds to 1 - IoU."""
    total = 0.0
    rows = lambda x: x.flatten(2).flatten(0, 1)
    for e, true in zip(rows(errors), rows(g) > 0.5, strict=True):
        order = torch.argsort(-e.detach())
        wrong, before = torch.zeros_like(true), 0.0
        for i in order:
            wrong[i] = True
            mask = true ^ wrong
            after = 1 - (true & mask).sum().double() / (true | mask).sum()
            total = total + e[i] * (after - before)
            before = after
    return total / (g.shape[0] * g.shape[1])


def boundary(z, g):
    """MONAI's, less its own value for the true mask."""
    return BoundaryLoss(sigmoid=True)(z, g) - BoundaryLoss()(g, g)


def cldice(z, g):
    """Channel by channel; MONAI would sum over channels together."""
    loss = SoftclDiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, smooth=1e-300)
    return sum(loss(z[:, k : k + 1], g[:, k : k + 1]) for k in range(z.shape[1])) / z.shape[1]


def cross_entropy(z, g):
    return F.cross_entropy(z, g.argmax(1), torch.tensor(WEIGHTS, dtype=z.dtype),
                           reduction="none").mean()


def renormalised(z, g):
    """Keras's categorical_crossentropy(g, sigmoid(z)), weighted."""
    p = torch.sigmoid(z)
    q = torch.clip(p / p.sum(1, keepdim=True), 1e-7, 1 - 1e-7)
    weights = torch.tensor(WEIGHTS, dtype=z.dtype)[:, None, None]
    return -(weights * g * torch.log(q)).sum(1).mean()


def bce_positive(z, g):
    return F.binary_cross_entropy_with_logits(z, g, pos_weight=torch.tensor(3.0, dtype=z.dtype))


# Name: loss of (N, K, H, W) logits and target. Those of CLASSES need a one-hot target.
LOSSES = {
    "dice": DiceLoss(sigmoid=True),
    "dice_squared": DiceLoss(sigmoid=True, squared_pred=True),
    "dice_pooled": DiceLoss(sigmoid=True, batch=True),
    "dice_weighted": DiceLoss(sigmoid=True, weight=WEIGHTS),
    "jaccard": DiceLoss(sigmoid=True, jaccard=True),
    "tversky": TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7),
    "lovasz": lambda z, g: lovasz(torch.relu(1 - z * (2 * g - 1)), g),
    "boundary": boundary,
    "cldice": cldice,
    "focal": FocalLoss(gamma=2),
    "bce": torch.nn.BCEWithLogitsLoss(),
    "bce_positive": bce_positive,
    "dice_focal": DiceFocalLoss(sigmoid=True),
    "cross_entropy": cross_entropy,
    "renormalised": renormalised,
    "lovasz_softmax": lambda z, g: lovasz(torch.abs(g - torch.softmax(z, 1)), g),
}
CLASSES = ("cross_entropy", "renormalised", "lovasz_softmax")


def cases(count: int, seed: int = 0):
    """(logits, target, one_hot) of `count` batches (count, N, H, W, 2): channels last.

    Every fourth batch has an empty channel in one image, every fifth a full one.
    """
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(count, 2, 4, 3, 2))
    target = (rng.random(logits.shape) < rng.random((count, 2, 1, 1, 2))).astype(np.float64)
    target[::4, 0, ..., 0] = 0
    target[::5, 1, ..., 1] = 1
    first = target[..., :1]
    return logits, target, np.concatenate([first, 1 - first], -1)


def reference(name: str, logits: np.ndarray, target: np.ndarray):
    """(value, gradient) of the named loss for channel-last arrays, as torch gives them."""
    z = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    value = LOSSES[name](z, torch.tensor(np.moveaxis(target, -1, 1).copy()))
    value.backward()
    return value.item(), np.moveaxis(z.grad.numpy(), 1, -1)


def references(name: str, logits, target, one_hot):
    """Values (count,) and gradients of all cases."""
    targets = one_hot if name in CLASSES else target
    found = [reference(name, *case) for case in zip(logits, targets, strict=True)]
    value, gradient = zip(*found, strict=True)
    return np.array(value), np.stack(gradient)


if __name__ == "__main__":
    logits, target, one_hot = cases(10)
    arrays = {"logits": logits, "target": target, "one_hot": one_hot}
    for name in LOSSES:
        arrays[name], arrays[name + "_grad"] = references(name, logits, target, one_hot)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
