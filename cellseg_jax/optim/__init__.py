"""Optimisers, learning rate schedules and weight averaging, equal to PyTorch's of the same name.

Weight decay is coupled as in torch: weight_decay * params joins the gradient before any moment
is taken; AdamW's is not. Numbers may be traced scalars, so that one compiled step serves many
settings. They take the dtype of the parameters. A Python 0 leaves the term out of the program
instead.

What there is, and what it reads, is known without optax: prediction checks configs, and no more.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from cellseg_jax.errors import InputError, nearest, pick
from cellseg_jax.optim.schedules import (
    OF_LENGTH,
    PLATEAU,
    SCHEDULES,
    Count,
    Scalar,
    rate,
    reduce_on_plateau,
)

__all__ = ["OF_LENGTH", "OPTIMIZERS", "PLATEAU", "SCHEDULES", "Options", "averaged", "make",
           "reduce_on_plateau"]

# {name of a function in optim.directions: the Options that it takes}; the others concern them all.
OPTIMIZERS = {
    "adam": ("b1", "b2", "amsgrad"),
    "sgd": ("momentum", "nesterov"),
    "adamax": ("b1", "b2"),
    "adamw": ("b1", "b2", "amsgrad"),
    "rmsprop": ("momentum", "rms_decay"),
}
# Whose weight decay acts on the parameters directly: params *= 1 - lr * weight_decay.
DECOUPLED = ("adamw",)


@dataclasses.dataclass(frozen=True)
class Options:
    """What `make` takes beside the name, the rate and the length of training.

    Numbers may be traced scalars.
    """

    # L2 factor, joined to the gradient; with adamw params shrink by lr times it.
    weight_decay: Scalar = 0.0
    momentum: Scalar = 0.0  # sgd, rmsprop
    nesterov: bool = False  # sgd; with momentum 0 it is plain descent
    b1: Scalar = 0.9  # decay of the moments of adam, adamw and adamax
    b2: Scalar = 0.999
    amsgrad: bool = False  # adam, adamw: keep the largest second moment
    rms_decay: Scalar = 0.99  # rmsprop: decay of the squared gradient (torch's alpha)
    # constant | polynomial | cosine | exponential | step | plateau, or None for constant. Time
    # counts in `per`, from the end of the warm-up to the end of training.
    schedule: str | None = None
    power: Scalar = 0.9  # exponent of polynomial
    gamma: Scalar = 0.9  # factor of exponential, each time, and of step, `every` times
    every: Scalar = 30
    # Epochs or steps, as `per` says, of a rate that rises linearly: (t + 1) / (warmup + 1) of lr at
    # time t. The schedule begins after it: torch's SequentialLR([LinearLR(optimizer,
    # 1 / (warmup + 1), total_iters=warmup), schedule], [warmup]).
    warmup: Scalar = 0
    per: str = "epoch"  # the rate moves every epoch (nnU-Net, torch's LambdaLR) or every "step"
    # Largest norm of the gradient over all parameters; a longer one is shortened before weight
    # decay joins it (torch's clip_grad_norm_). 0 is no limit.
    clip: Scalar = 0.0


def make(name: str, *, lr: Scalar, num_steps: Count, steps_per_epoch: Count,
         **options) -> tuple[tuple[Callable, Callable], Callable]:
    """An optimiser and its learning rate: `tx` to update with, `lr_fn(step)` to log.

    The structure of the state depends on the name, on nesterov, amsgrad and whether momentum
    is a Python 0, never on the values of traced numbers. `tx` counts its own updates, so it
    follows the training step as long as it is called once per step.

    Args:
      name: adam | adamw | sgd | adamax | rmsprop.
      lr: the learning rate that the schedule scales.
      num_steps, steps_per_epoch: length of training; the last epoch may be short.
      options: fields of Options.
    Returns: (optax.GradientTransformation, lr_fn); lr_fn takes an int step, maybe traced.
    Raises: InputError for an unknown name or option.
    Source: torch.optim 2.x; equal in float64 to rounding.
    """
    reads = pick(OPTIMIZERS, name, "config.optimizer.name")
    known = [field.name for field in dataclasses.fields(Options)]
    for option in options:
        if option not in known:
            raise InputError(f"config.optimizer.{option}: no such option; expected one of "
                             f"{', '.join(known)}{nearest(option, known)}")
    given = Options(**options)
    lr_fn = rate(lr, num_steps, steps_per_epoch, given)
    from cellseg_jax.optim import directions  # late: it imports optax, which only training needs

    taken = {option: getattr(given, option) for option in reads}
    return directions.transformation(
        getattr(directions, name), taken, lr_fn, weight_decay=given.weight_decay,
        decoupled=name in DECOUPLED, clip=given.clip), lr_fn


def averaged(average: PyTree, params: PyTree, *, decay: Scalar, count: Count) -> PyTree:
    """decay * average + (1 - decay) * params, and params themselves after the first update.

    Args:
      average, params: trees of equal structure.
      decay: from 0, which gives params, to below 1.
      count: updates of the average before this one.
    Source: torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(decay).
    """
    decay = jnp.where(count == 0, 0.0, decay)
    return jax.tree.map(
        lambda a, p: decay.astype(p.dtype) * a + (1 - decay).astype(p.dtype) * p, average, params)
