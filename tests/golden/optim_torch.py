"""Writes optim_torch.npz: 50 float64 steps of torch's optimisers on a small convex problem.

Run: python tests/golden/optim_torch.py
"""

import pathlib

import numpy as np
import torch

STEPS, STEPS_PER_EPOCH = 50, 7  # the last epoch is short
ADAM = {"lr": 5e-3, "weight_decay": 3e-2}
# Name of the case: (torch class, its arguments); a decay large enough to be seen in 50 steps.
CASES = {
    "adam": (torch.optim.Adam, ADAM),
    "adam_amsgrad": (torch.optim.Adam, ADAM | {"amsgrad": True, "betas": (0.7, 0.9)}),
    "sgd": (torch.optim.SGD, {"lr": 5e-3, "weight_decay": 3e-2}),
    "sgd_momentum": (torch.optim.SGD, {"lr": 5e-3, "momentum": 0.9}),
    "sgd_nesterov": (
        torch.optim.SGD,
        {"lr": 5e-3, "weight_decay": 3e-2, "momentum": 0.99, "nesterov": True},
    ),
    "adamax": (torch.optim.Adamax, ADAM),
}


def reference(kind, arguments: dict, polynomial: bool, start, noise) -> np.ndarray:
    """The parameters after each step, (STEPS, n); gradient = x + sin(3x) + noise of the step."""
    x = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([x], **arguments)
    epochs = -(-STEPS // STEPS_PER_EPOCH)
    factor = (lambda epoch: (1 - epoch / epochs) ** 0.9) if polynomial else (lambda epoch: 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    path = []
    for step in range(STEPS):
        x.grad = (x + torch.sin(3 * x) + torch.tensor(noise[step])).detach()
        optimizer.step()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
        path.append(x.detach().numpy().copy())
    return np.stack(path)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    arrays = {"start": rng.normal(size=3), "noise": rng.normal(size=(STEPS, 3))}
    for name, (kind, arguments) in CASES.items():
        for suffix, polynomial in (("", False), ("_polynomial", True)):
            path = reference(kind, arguments, polynomial, arrays["start"], arrays["noise"])
            arrays[name + suffix] = path[[0, 6, 7, -1]]
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
