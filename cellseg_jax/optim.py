"""Optimisers, learning rate schedules and weight averaging, equal to PyTorch's of the same name.

Weight decay is coupled as in torch: weight_decay * params joins the gradient before any moment
is taken; AdamW's is not. Numbers may be traced scalars, so that one compiled step serves many
settings. They take the dtype of the parameters. A Python 0 leaves the term out of the program
instead.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, Float, Integer, Num

from cellseg_jax.errors import InputError, nearest, pick

Scalar, Count = Num[ArrayLike, ""], Integer[ArrayLike, ""]  # may be traced
Time = Float[ArrayLike, "*t"]  # epochs or steps that are done


def _is_off(value) -> bool:
    """Whether it is a Python 0; a traced 0 keeps its term, and its state."""
    return isinstance(value, (int, float)) and value == 0


class AmsgradState(NamedTuple):
    """Moments of torch Adam(amsgrad=True): nu_max is the largest nu so far."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


def scale_by_amsgrad(b1: Scalar, b2: Scalar, eps: float) -> optax.GradientTransformation:
    """Adam whose second moment never falls: m / (1 - b1^t) / (sqrt(max v / (1 - b2^t)) + eps).

    Source: Reddi et al. 2018, algorithm 2, with torch's bias correction: the maximum is taken
    over the raw v and corrected afterwards. `optax.amsgrad` corrects first, which differs.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return AmsgradState(jnp.zeros([], jnp.int32), zeros, zeros, zeros)

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        updates = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu_max, b2, count),
        )
        return updates, AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def adam(*, b1: Scalar, b2: Scalar, amsgrad: bool, **_) -> optax.GradientTransformation:
    """Kingma & Ba 2015, algorithm 1; eps 1e-8."""
    return (scale_by_amsgrad if amsgrad else optax.scale_by_adam)(b1, b2, 1e-8)


def adamax(*, b1: Scalar, b2: Scalar, **_) -> optax.GradientTransformation:
    """Kingma & Ba 2015, algorithm 2; eps 1e-8 joins |gradient| inside the maximum, as in torch."""
    return optax.scale_by_adamax(b1, b2, 1e-8)


def sgd(*, momentum: Scalar, nesterov: bool, **_) -> optax.GradientTransformation:
    """v = momentum v + g, and g + momentum v (Nesterov) or v is followed; no dampening."""
    return optax.identity() if _is_off(momentum) else optax.trace(momentum, nesterov)


def rmsprop(*, momentum: Scalar, rms_decay: Scalar, **_) -> optax.GradientTransformation:
    """g / (sqrt(v) + eps) with v the decaying mean of g^2, then momentum; eps 1e-8, not centred.

    Source: Tieleman & Hinton 2012, lecture 6.5; torch's alpha is `rms_decay`.
    """
    scaled = optax.scale_by_rms(rms_decay, 1e-8, eps_in_sqrt=False)
    return optax.chain(scaled, sgd(momentum=momentum, nesterov=False))


# Each takes the hyper-parameters it reads out of all of make's, and ignores the others.
OPTIMIZERS = {"adam": adam, "sgd": sgd, "adamax": adamax, "adamw": adam, "rmsprop": rmsprop}
# Whose weight decay acts on the parameters directly: params *= 1 - lr * weight_decay.
DECOUPLED = ("adamw",)


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
         **options) -> tuple[optax.GradientTransformation, Callable]:
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
    rule = pick(OPTIMIZERS, name, "config.optimizer.name")
    known = [field.name for field in dataclasses.fields(Options)]
    for option in options:
        if option not in known:
            raise InputError(f"config.optimizer.{option}: no such option; expected one of "
                             f"{', '.join(known)}{nearest(option, known)}")
    given = Options(**options)
    lr_fn = _rate(lr, num_steps, steps_per_epoch, given)

    def built_for(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def cast(value):  # a Python number already follows the dtype of what it meets
            return value if isinstance(value, (int, float)) else jnp.asarray(value, dtype)

        numbers = {k: cast(getattr(given, k)) for k in ("momentum", "b1", "b2", "rms_decay")}
        direction = rule(nesterov=given.nesterov, amsgrad=given.amsgrad, **numbers)
        decay = optax.add_decayed_weights(cast(given.weight_decay))  # a Python 0 adds nothing
        order = (direction, decay) if name in DECOUPLED else (decay, direction)
        return optax.chain(*order, optax.scale_by_learning_rate(lr_fn))

    def update(grads, state, params):
        if not _is_off(given.clip):
            grads = clipped(grads, given.clip)
        return built_for(params).update(grads, state, params)

    return optax.GradientTransformation(lambda params: built_for(params).init(params),
                                        update), lr_fn


def _rate(lr, num_steps, steps_per_epoch, options: Options) -> Callable:
    """lr_fn(step): the learning rate of the schedule, after its warm-up."""
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
        if not _is_off(warmup):
            rise = jnp.minimum((done + 1.0) / (warmup + 1.0), 1.0)
            done, total = jnp.maximum(done - warmup, 0.0), jnp.maximum(total - warmup, 1.0)
        scale = factor(done, total, power=options.power, gamma=options.gamma, every=options.every)
        return jnp.asarray(lr * rise * scale, dtype)

    return lr_fn


def clipped(grads: optax.Updates, limit: Scalar) -> optax.Updates:
    """Gradients of norm at most `limit` over all arrays; 0 is no limit.

    Source: torch.nn.utils.clip_grad_norm_, whose 1e-6 in the denominator is kept.
    """
    factor = jnp.minimum(limit / (optax.tree.norm(grads) + 1e-6), 1.0)
    factor = jnp.where(limit > 0, factor, 1.0)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)


def averaged(average: optax.Params, params: optax.Params, *, decay: Scalar,
             count: Count) -> optax.Params:
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
