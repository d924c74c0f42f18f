"""Optimisers, learning rate schedules and weight averaging, equal to PyTorch's of the same name.

Weight decay is coupled as in torch: weight_decay * params joins the gradient before any moment
is taken; AdamW's is not. Numbers may be traced scalars, so that one compiled step serves many
settings. They take the dtype of the parameters. A Python 0 leaves the term out of the program
instead.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cellseg_jax.errors import pick


def _off(value) -> bool:
    """True for a 0 known before tracing; a traced 0 keeps its term, and its state."""
    return isinstance(value, (int, float)) and value == 0


class AmsgradState(NamedTuple):
    """Moments of torch Adam(amsgrad=True): nu_max is the largest nu so far."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


def scale_by_amsgrad(b1, b2, eps) -> optax.GradientTransformation:
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


def adam(*, b1, b2, amsgrad, **_):
    """Kingma & Ba 2015, algorithm 1; eps 1e-8."""
    return (scale_by_amsgrad if amsgrad else optax.scale_by_adam)(b1, b2, 1e-8)


def adamax(*, b1, b2, **_):
    """Kingma & Ba 2015, algorithm 2; eps 1e-8 joins |gradient| inside the maximum, as in torch."""
    return optax.scale_by_adamax(b1, b2, 1e-8)


def sgd(*, momentum, nesterov, **_):
    """v = momentum v + g, and g + momentum v (Nesterov) or v is followed; no dampening."""
    return optax.identity() if _off(momentum) else optax.trace(momentum, nesterov)


def rmsprop(*, momentum, rms_decay, **_):
    """g / (sqrt(v) + eps) with v the decaying mean of g^2, then momentum; eps 1e-8, not centred.

    Source: Tieleman & Hinton 2012, lecture 6.5; torch's alpha is `rms_decay`.
    """
    scaled = optax.scale_by_rms(rms_decay, 1e-8, eps_in_sqrt=False)
    return optax.chain(scaled, sgd(momentum=momentum, nesterov=False))


# Each takes the hyper-parameters it reads out of all of make's, and ignores the others.
OPTIMIZERS = {"adam": adam, "sgd": sgd, "adamax": adamax, "adamw": adam, "rmsprop": rmsprop}
# Whose weight decay acts on the parameters directly: params *= 1 - lr * weight_decay.
DECOUPLED = ("adamw",)


def constant(done, total, **_):
    """1 throughout."""
    return 1.0


def polynomial(done, total, *, power, **_):
    """(1 - done / total)^power; 0 at the end and after it."""
    return jnp.maximum(1.0 - done / total, 0.0) ** power


def cosine(done, total, **_):
    """(1 + cos(pi done / total)) / 2; 0 at the end and after it. Loshchilov & Hutter 2017."""
    return 0.5 * (1.0 + jnp.cos(math.pi * jnp.minimum(done / total, 1.0)))


def exponential(done, total, *, gamma, **_):
    """gamma^done."""
    return gamma**done


def step_decay(done, total, *, gamma, every, **_):
    """gamma^floor(done / every)."""
    return gamma ** jnp.floor((done + 0.5) / every)  # a whole quotient must not round down


# Factor on the learning rate after `done` of `total` epochs or steps, both floats.
SCHEDULES = {"constant": constant, "polynomial": polynomial, "cosine": cosine,
             "exponential": exponential, "step": step_decay,
             "plateau": constant}  # the caller multiplies lr by the scale of reduce_on_plateau


def make(
    name: str,
    *,
    lr,
    weight_decay=0.0,
    momentum=0.0,
    nesterov=False,
    b1=0.9,
    b2=0.999,
    amsgrad=False,
    rms_decay=0.99,
    schedule=None,
    power=0.9,
    gamma=0.9,
    every=30,
    warmup=0,
    per="epoch",
    clip=0.0,
    num_steps,
    steps_per_epoch,
):
    """An optimiser and its learning rate: `tx` to update with, `lr_fn(step)` to log.

    The structure of the state depends on the name, on nesterov, amsgrad and whether momentum
    is a Python 0, never on the values of traced numbers. `tx` counts its own updates, so it
    follows the training step as long as it is called once per step.

    Args:
      name: adam | adamw | sgd | adamax | rmsprop.
      lr: the learning rate that the schedule scales.
      weight_decay: L2 factor, joined to the gradient; with adamw params shrink by lr times it.
      momentum: read by sgd and rmsprop.
      nesterov: read by sgd; with momentum 0 it is plain descent.
      b1, b2: decay of the moments, read by adam, adamw and adamax.
      amsgrad: keep the largest second moment, read by adam and adamw.
      rms_decay: decay of the squared gradient, read by rmsprop (torch's alpha).
      schedule: None | constant | polynomial | cosine | exponential | step | plateau. Time counts
        in `per`, from the end of the warm-up to the end of training.
      power: exponent of polynomial.
      gamma: factor of exponential, each time, and of step, `every` times.
      warmup: epochs or steps, as `per` says, of a rate that rises linearly: (t + 1) / (warmup + 1)
        of lr at time t. The schedule begins after it: torch's SequentialLR([LinearLR(optimizer,
        1 / (warmup + 1), total_iters=warmup), schedule], [warmup]).
      per: the rate moves every "epoch" (nnU-Net, torch's LambdaLR) or every "step".
      clip: largest norm of the gradient over all parameters; a longer one is shortened before
        weight decay joins it (torch's clip_grad_norm_). 0 is no limit.
      num_steps, steps_per_epoch: length of training; the last epoch may be short.
    Returns: (optax.GradientTransformation, lr_fn); lr_fn takes an int step, maybe traced.
    Raises: InputError for a name that is not there.
    Source: torch.optim 2.x; equal in float64 to rounding.
    """
    rule = pick(OPTIMIZERS, name, "config.optimizer.name")
    factor = pick(SCHEDULES, schedule or "constant", "config.optimizer.schedule")
    per_step = pick({"epoch": False, "step": True}, per, "config.optimizer.per")

    def lr_fn(step):
        # int32 / int32 would be float32 even where lr is float64.
        dtype = jnp.result_type(float, lr)
        done, total = step, num_steps
        if not per_step:
            done, total = step // steps_per_epoch, -(-num_steps // steps_per_epoch)
        done, total = jnp.asarray(done, dtype), jnp.asarray(total, dtype)
        rise = 1.0
        if not _off(warmup):
            rise = jnp.minimum((done + 1.0) / (warmup + 1.0), 1.0)
            done, total = jnp.maximum(done - warmup, 0.0), jnp.maximum(total - warmup, 1.0)
        scale = factor(done, total, power=power, gamma=gamma, every=every)
        return jnp.asarray(lr * rise * scale, dtype)

    def built_for(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def cast(value):  # a Python number already follows the dtype of what it meets
            return value if isinstance(value, (int, float)) else jnp.asarray(value, dtype)

        numbers = dict(momentum=cast(momentum), b1=cast(b1), b2=cast(b2),
                       rms_decay=cast(rms_decay))
        direction = rule(nesterov=nesterov, amsgrad=amsgrad, **numbers)
        decay = optax.add_decayed_weights(cast(weight_decay))  # a Python 0 adds nothing
        order = (direction, decay) if name in DECOUPLED else (decay, direction)
        return optax.chain(*order, optax.scale_by_learning_rate(lr_fn))

    def update(grads, state, params):
        if not _off(clip):
            grads = clipped(grads, clip)
        return built_for(params).update(grads, state, params)

    init = lambda params: built_for(params).init(params)
    return optax.GradientTransformation(init, update), lr_fn


def clipped(grads, limit):
    """Gradients of norm at most `limit` over all arrays; 0 is no limit.

    Source: torch.nn.utils.clip_grad_norm_, whose 1e-6 in the denominator is kept.
    """
    factor = jnp.minimum(limit / (optax.tree.norm(grads) + 1e-6), 1.0)
    factor = jnp.where(limit > 0, factor, 1.0)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)


def averaged(average, params, *, decay, count):
    """decay * average + (1 - decay) * params, and params themselves after the first update.

    Args:
      average, params: trees of equal structure.
      decay: from 0, which gives params, to below 1.
      count: updates of the average before this one.
    Source: torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(decay).
    """
    decay = jnp.where(count == 0, 0.0, decay)
    mix = lambda a, p: decay.astype(p.dtype) * a + (1 - decay).astype(p.dtype) * p
    return jax.tree.map(mix, average, params)


# The state of reduce_on_plateau before the first score.
PLATEAU = {"scale": 1.0, "best": -math.inf, "waited": 0, "cooldown": 0}


def reduce_on_plateau(state: dict, score: float, *, lr: float, factor: float, patience: int,
                      cooldown: int, min_lr: float, threshold: float = 1e-4) -> dict:
    """The state after one more score: plain numbers on the host, for once per validation.

    The rate is lr * state["scale"]. After more than `patience` scores in a row that are not
    better than the best by the part `threshold`, it is multiplied by `factor`, down to min_lr;
    then `cooldown` scores are not counted.

    Args:
      state: PLATEAU or what this function gave.
      score: larger is better, so a loss comes negated.
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau (threshold_mode "rel", eps 1e-8).
    """
    scale, best, waited, wait = (state[k] for k in ("scale", "best", "waited", "cooldown"))
    goal = best + threshold * abs(best) if math.isfinite(best) else best
    best, waited = (score, 0) if score > goal else (best, waited + 1)
    if wait > 0:
        wait, waited = wait - 1, 0
    if waited > patience:
        lower = max(scale * factor, min_lr / lr)
        scale = lower if lr * (scale - lower) > 1e-8 else scale
        wait, waited = cooldown, 0
    return {"scale": scale, "best": best, "waited": waited, "cooldown": wait}
