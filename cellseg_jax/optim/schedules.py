"""The learning rate: schedules of a run's length, and one that follows the scores."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, Integer, Num

from cellseg_jax.errors import pick

Scalar, Count = Num[ArrayLike, ""], Integer[ArrayLike, ""]  # may be traced
Time = Float[ArrayLike, "*t"]  # epochs or steps that are done


def is_off(value) -> bool:
    """Whether it is a Python 0; a traced 0 keeps its term, and its state."""
    return isinstance(value, (int, float)) and value == 0


def constant(done: Time, total: Scalar, **_) -> float:
    """1 throughout."""
    return 1.0


def polynomial(done: Time, total: Scalar, *, power: Scalar, **_) -> Time:
    """(1 - done / total)^power; 0 at the end and after it."""
    return jnp.maximum(1.0 - done / total, 0.0) ** power


def cosine(done: Time, total: Scalar, **_) -> Time:
    """(1 + cos(pi done / total)) / 2; 0 at the end and after it. Loshchilov & Hutter 2017."""
    return 0.5 * (1.0 + jnp.cos(math.pi * jnp.minimum(done / total, 1.0)))


def exponential(done: Time, total: Scalar, *, gamma: Scalar, **_) -> Time:
    """gamma^done."""
    return gamma**done


def step_decay(done: Time, total: Scalar, *, gamma: Scalar, every: Scalar, **_) -> Time:
    """gamma^floor(done / every)."""
    return gamma ** jnp.floor((done + 0.5) / every)  # a whole quotient must not round down


# Factor on the learning rate after `done` of `total` epochs or steps, both floats.
SCHEDULES = {"constant": constant, "polynomial": polynomial, "cosine": cosine,
             "exponential": exponential, "step": step_decay,
             "plateau": constant}  # the caller multiplies lr by the scale of reduce_on_plateau

# Of these, those whose rate at any time depends on how long training is.
OF_LENGTH = ("polynomial", "cosine")


def rate(lr: Scalar, num_steps: Count, steps_per_epoch: Count, options) -> Callable:
    """lr_fn(step): the learning rate of the schedule, after its warm-up.

    Args:
      options: optim.Options.
    """
    factor = pick(SCHEDULES, options.schedule or "constant", "config.optimizer.schedule")
    per_step = pick({"epoch": False, "step": True}, options.per, "config.optimizer.per")

    def lr_fn(step):
        # int32 / int32 would be float32 even where lr is float64.
        dtype = jnp.result_type(float, lr)
        done, total = step, num_steps
        if not per_step:
            done, total = step // steps_per_epoch, -(-num_steps // steps_per_epoch)
        done, total = jnp.asarray(done, dtype), jnp.asarray(total, dtype)
        rise, warmup = 1.0, options.warmup
        if not is_off(warmup):
            rise = jnp.minimum((done + 1.0) / (warmup + 1.0), 1.0)
            done, total = jnp.maximum(done - warmup, 0.0), jnp.maximum(total - warmup, 1.0)
        scale = factor(done, total, power=options.power, gamma=options.gamma, every=options.every)
        return jnp.asarray(lr * rise * scale, dtype)

    return lr_fn


# The state of reduce_on_plateau before the first score.
PLATEAU = {"scale": 1.0, "best": -math.inf, "waited": 0, "cooldown": 0}
PLATEAU_THRESHOLD = 1e-4  # improvement, as a part of the best score, that counts


def reduce_on_plateau(state: dict, score: Scalar, *, lr: float, factor: float, patience: int,
                      cooldown: int, min_lr: float) -> dict:
    """The state after one more score: plain numbers on the host, for once per validation.

    The rate is lr * state["scale"]. After more than `patience` scores in a row that are not better
    than the best by PLATEAU_THRESHOLD of it, the rate is multiplied by `factor`, down to min_lr;
    then `cooldown` scores are not counted.

    Args:
      state: PLATEAU or what this function gave.
      score: larger is better, so a loss comes negated.
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau (threshold_mode "rel", eps 1e-8).
    """
    scale, best, waited, wait = (state[k] for k in ("scale", "best", "waited", "cooldown"))
    goal = best + PLATEAU_THRESHOLD * abs(best) if math.isfinite(best) else best
    best, waited = (score, 0) if score > goal else (best, waited + 1)
    if wait > 0:
        wait, waited = wait - 1, 0
    if waited > patience:
        lower = max(scale * factor, min_lr / lr)
        scale = lower if lr * (scale - lower) > 1e-8 else scale
        wait, waited = cooldown, 0
    return {"scale": scale, "best": best, "waited": waited, "cooldown": wait}
