"""Writes optim_torch.npz: float64 numbers of torch's optimisers and schedules.

50 steps on a small convex problem by each optimiser, by one with clipped gradients, and of its
averaged weights; the rates of each schedule, with and without warm-up, and on a plateau.

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
    "adamw": (torch.optim.AdamW, {"lr": 5e-3, "weight_decay": 0.3}),
    "adamw_amsgrad": (torch.optim.AdamW, {"lr": 5e-3, "weight_decay": 0.3, "amsgrad": True}),
    "rmsprop": (torch.optim.RMSprop, ADAM),
    "rmsprop_momentum": (torch.optim.RMSprop, ADAM | {"momentum": 0.9, "alpha": 0.8}),
}
EPOCHS, WARMUP = 12, 3
lr_scheduler = torch.optim.lr_scheduler
# Of the epochs that are left after the warm-up.
SCHEDULES = {
    "polynomial": lambda optimizer, total: lr_scheduler.LambdaLR(
        optimizer, lambda epoch: max(1 - epoch / total, 0) ** 0.9),
    "cosine": lr_scheduler.CosineAnnealingLR,
    "exponential": lambda optimizer, total: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "step": lambda optimizer, total: lr_scheduler.StepLR(optimizer, 3, 0.8),
    "constant": lambda optimizer, total: lr_scheduler.ConstantLR(optimizer, 1.0),
}
PLATEAUS = {  # (mode, options)
    "plain": ("min", {"factor": 0.5, "patience": 2}),
    "cooldown": ("max", {"factor": 0.1, "patience": 0, "cooldown": 2, "min_lr": 5e-6}),
}


def rates(name: str, warmup: int) -> np.ndarray:
    """The learning rate of each epoch, and of one beyond the end, from 0.1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = SCHEDULES[name](optimizer, EPOCHS - warmup)
    if warmup:
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, scheduler], [warmup])
    out = []
    for _ in range(EPOCHS + 1):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(out)


def plateau(mode: str, options: dict, scores) -> np.ndarray:
    """The learning rate after each score, from 0.1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode, **options)
    out = []
    for score in scores:
        scheduler.step(score)
        out.append(optimizer.param_groups[0]["lr"])
    return np.array(out)


def reference(kind, arguments: dict, polynomial: bool, start, noise, clip=0.0, ema=0.0):
    """The parameters after each step, (STEPS, n); gradient = x + sin(3x) + noise of the step."""
    x = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([x], **arguments)
    epochs = -(-STEPS // STEPS_PER_EPOCH)
    factor = (lambda epoch: (1 - epoch / epochs) ** 0.9) if polynomial else (lambda epoch: 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average = torch.optim.swa_utils.AveragedModel(
        torch.nn.ParameterList([x]), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema))
    path = []
    for step in range(STEPS):
        x.grad = (x + torch.sin(3 * x) + torch.tensor(noise[step])).detach()
        if clip:
            torch.nn.utils.clip_grad_norm_([x], clip)
        optimizer.step()
        average.update_parameters(torch.nn.ParameterList([x]))
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
        path.append((average.module[0] if ema else x).detach().numpy().copy())
    return np.stack(path)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    arrays = {"start": rng.normal(size=3), "noise": rng.normal(size=(STEPS, 3))}
    for name, (kind, arguments) in CASES.items():
        for suffix, polynomial in (("", False), ("_polynomial", True)):
            path = reference(kind, arguments, polynomial, arrays["start"], arrays["noise"])
            arrays[name + suffix] = path[[0, 6, 7, -1]]
    for name, options in (("clip", {"clip": 1.5}), ("ema", {"ema": 0.9})):
        path = reference(*CASES["adam"], False, arrays["start"], arrays["noise"], **options)
        arrays[name] = path[[0, 6, 7, -1]]
    for name in SCHEDULES:
        arrays[f"rate_{name}"] = np.stack([rates(name, 0), rates(name, WARMUP)])
    arrays["scores"] = 1 + 0.3 * rng.normal(size=40) * np.linspace(1, 0, 40)
    for name, (mode, options) in PLATEAUS.items():
        arrays[f"plateau_{name}"] = plateau(mode, options, arrays["scores"])
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
