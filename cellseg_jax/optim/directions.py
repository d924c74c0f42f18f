"""Where each optimiser goes along a gradient, as transformations of optax."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cellseg_jax.optim.schedules import Scalar, is_off


def transformation(rule: Callable, options: dict, lr_fn: Callable, *, weight_decay: Scalar,
                   decoupled: bool, clip: Scalar) -> optax.GradientTransformation:
    """The optimiser of optim.make: a limit for gradients, weight decay, a direction and the rate.

    Args:
      rule: a function of this module, which takes the options.
      lr_fn: the learning rate of a step.
    """
    def built_for(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def cast(value):  # a Python number already follows the dtype of what it meets
            return value if isinstance(value, (int, float)) else jnp.asarray(value, dtype)

        direction = rule(**{name: cast(value) for name, value in options.items()})
        decay = optax.add_decayed_weights(cast(weight_decay))  # a Python 0 adds nothing
        order = (direction, decay) if decoupled else (decay, direction)
        return optax.chain(*order, optax.scale_by_learning_rate(lr_fn))

    def update(grads, state, params):
        if not is_off(clip):
            grads = clipped(grads, clip)
        return built_for(params).update(grads, state, params)

    return optax.GradientTransformation(lambda params: built_for(params).init(params), update)


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


def adam(*, b1: Scalar, b2: Scalar, amsgrad: bool) -> optax.GradientTransformation:
    """Kingma & Ba 2015, algorithm 1; eps 1e-8."""
    return (scale_by_amsgrad if amsgrad else optax.scale_by_adam)(b1, b2, 1e-8)


adamw = adam  # but for its weight decay: optim.DECOUPLED


def adamax(*, b1: Scalar, b2: Scalar) -> optax.GradientTransformation:
    """Kingma & Ba 2015, algorithm 2; eps 1e-8 joins |gradient| inside the maximum, as in torch."""
    return optax.scale_by_adamax(b1, b2, 1e-8)


def sgd(*, momentum: Scalar, nesterov: bool) -> optax.GradientTransformation:
    """v = momentum v + g, and g + momentum v (Nesterov) or v is followed; no dampening."""
    return optax.identity() if is_off(momentum) else optax.trace(momentum, nesterov)


def rmsprop(*, momentum: Scalar, rms_decay: Scalar) -> optax.GradientTransformation:
    """g / (sqrt(v) + eps) with v the decaying mean of g^2, then momentum; eps 1e-8, not centred.

    Source: Tieleman & Hinton 2012, lecture 6.5; torch's alpha is `rms_decay`.
    """
    scaled = optax.scale_by_rms(rms_decay, 1e-8, eps_in_sqrt=False)
    return optax.chain(scaled, sgd(momentum=momentum, nesterov=False))


def clipped(grads: optax.Updates, limit: Scalar) -> optax.Updates:
    """Gradients of norm at most `limit` over all arrays; 0 is no limit.

    Source: torch.nn.utils.clip_grad_norm_, whose 1e-6 in the denominator is kept.
    """
    factor = jnp.minimum(limit / (optax.tree.norm(grads) + 1e-6), 1.0)
    factor = jnp.where(limit > 0, factor, 1.0)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
