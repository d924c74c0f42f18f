"""Optimisers and learning rate schedules, equal to PyTorch's of the same name.

Decay is coupled as in torch: weight_decay * params joins the gradient before any moment is
taken. Numbers may be traced scalars, so that one compiled step serves many settings. They take
the dtype of the parameters. A Python 0 leaves the term out of the program instead.
"""

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


# Each takes the hyper-parameters it reads out of all of make's, and ignores the others.
OPTIMIZERS = {"adam": adam, "sgd": sgd, "adamax": adamax}


def constant(progress, *, power):
    """1 throughout."""
    del progress, power
    return 1.0


def polynomial(progress, *, power):
    """(1 - progress)^power; 0 at the end and after it."""
    return jnp.maximum(1.0 - progress, 0.0) ** power


# Factor on the learning rate from the part of training that is done, in [0, 1).
SCHEDULES = {"constant": constant, "polynomial": polynomial}


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
    schedule=None,
    power=0.9,
    per="epoch",
    num_steps,
    steps_per_epoch,
):
    """An optimiser and its learning rate: `tx` to update with, `lr_fn(step)` to log.

    The structure of the state depends on the name, on nesterov, amsgrad and whether momentum
    is a Python 0, never on the values of traced numbers. `tx` counts its own updates, so it
    follows the training step as long as it is called once per step.

    Args:
      name: adam | sgd | adamax.
      lr: learning rate at step 0.
      weight_decay: L2 factor, joined to the gradient.
      momentum, nesterov: read by sgd; Nesterov with momentum 0 is plain descent.
      b1, b2: decay of the moments, read by adam and adamax.
      amsgrad: keep the largest second moment, read by adam.
      schedule: None | constant | polynomial.
      power: exponent of polynomial.
      per: the schedule moves every "epoch" (nnU-Net, torch's LambdaLR) or every "step".
      num_steps, steps_per_epoch: length of training; the last epoch may be short.
    Returns: (optax.GradientTransformation, lr_fn); lr_fn takes an int step, maybe traced.
    Raises: InputError for a name that is not there.
    Source: torch.optim 2.x; equal in float64 to rounding.
    """
    rule = pick(OPTIMIZERS, name, "config.optimizer.name")
    factor = pick(SCHEDULES, schedule or "constant", "config.optimizer.schedule")
    per_step = pick({"epoch": False, "step": True}, per, "config.optimizer.per")

    def lr_fn(step):
        done, total = step, num_steps
        if not per_step:
            done, total = step // steps_per_epoch, -(-num_steps // steps_per_epoch)
        # int32 / int32 would be float32 even where lr is float64.
        dtype = jnp.result_type(float, lr)
        progress = jnp.asarray(done, dtype) / jnp.asarray(total, dtype)
        return jnp.asarray(lr * factor(progress, power=power), dtype)

    def built_for(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def cast(value):  # a Python number already follows the dtype of what it meets
            return value if isinstance(value, (int, float)) else jnp.asarray(value, dtype)

        numbers = dict(momentum=cast(momentum), b1=cast(b1), b2=cast(b2))
        return optax.chain(
            optax.add_decayed_weights(cast(weight_decay)),  # a Python 0 adds nothing
            rule(nesterov=nesterov, amsgrad=amsgrad, **numbers),
            optax.scale_by_learning_rate(lr_fn),
        )

    return optax.GradientTransformation(
        lambda params: built_for(params).init(params),
        lambda grads, state, params: built_for(params).update(grads, state, params),
    ), lr_fn
