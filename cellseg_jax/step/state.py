"""The state of a run at one step, and its start."""

import contextlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cellseg_jax.errors import InputError, shortened
from cellseg_jax.step.spec import Spec

RUNNING, STOPPED_EARLY, NON_FINITE = 0, 1, 2  # values of TrainState.stop


@flax.struct.dataclass
class TrainState:
    """All that a run is at one step. With members, every leaf has a leading axis K."""

    step: jax.Array  # () int32: optimiser steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # averaged params, {} without averaging
    loss_sum: jax.Array  # () of the steps of this epoch, so that a resumed epoch logs its mean
    gradient_sum: dict  # {layer: ()} likewise of mean |gradient|, {} where it is not logged
    stop: jax.Array  # () int32: RUNNING, STOPPED_EARLY or NON_FINITE
    values: dict  # traced hyper-parameters, {name: ()}: what members may differ in

    @property
    def weights(self) -> str:
        """The field of the parameters that are validated and predict."""
        return "ema" if self.ema else "params"


def init_state(spec: Spec, values: dict, image_shape: tuple[int, int, int]) -> TrainState:
    """The state of one member at step 0.

    Args:
      values: of traced_values.
      image_shape: (H, W, C).
    """
    variables = init_variables(spec, values, image_shape)
    tx, _ = spec.transformation(spec.hparams(values))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        ema=variables["params"] if spec.weights == "ema" else {},
        loss_sum=jnp.zeros((), spec.dtype),
        gradient_sum={layer.name: jnp.zeros((), spec.dtype) for layer in spec.logged_layers},
        stop=zero,
        values=values,
    )


def init_variables(spec: Spec, values: dict, image_shape: tuple[int, int, int]) -> dict:
    """The {"params", "batch_stats"} of init_state; the latter is {} without batch norm."""
    key = jax.random.fold_in(jax.random.key(values["seed"].astype(jnp.uint32)), 0)
    image = jnp.zeros((1, *image_shape), spec.dtype)
    variables = spec.module({}).init(key, image, train=False)
    variables = jax.tree.map(lambda x: x.astype(spec.dtype), variables)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


@contextlib.contextmanager
def building(config, shape: tuple[int, int, int]):
    """InputError in place of what Flax or XLA raise for a network that cannot be built.

    Args:
      shape: of its images, (H, W, C).
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of many kinds, by the option that is invalid
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"config.model: {config.model.name} cannot be built from "
                         f"{shortened(dict(config.model), 500)} for images {shape}: {reason}"
                         ) from error
