"""From configs to what the compiled step needs: a Recipe of structure, and traced values."""

import jax
import numpy as np

from cellseg_jax import classical, derived, losses, step
from cellseg_jax.errors import InputError


def make_recipe(configs) -> step.Recipe:
    """What the configs of one program share. Raises InputError where precision is impossible."""
    config = configs[0]
    dtype = np.dtype("float64" if config.train.precision == "float64" else "float32")
    if config.train.precision == "float64" and not jax.config.jax_enable_x64:
        raise InputError("config.train.precision: float64 needs JAX_ENABLE_X64=1 in the "
                         "environment")
    model = {k: v for k, v in config.model.items() if k != "dropout"}
    if model.get("image_size") == 0:
        model["image_size"] = derived.input_size(config)
    if config.train.precision == "bfloat16":
        model["dtype"] = jax.numpy.bfloat16
    numbers = [hyper_values(c, 1) for c in configs]
    # momentum decides whether sgd keeps a buffer: that must not depend on who else trains along
    structural = ("seed", "num_steps", "steps_per_epoch", "lr", "momentum")
    zeros = tuple(k for k in numbers[0] if k not in structural
                  and all(np.ravel(v[k])[0] == 0 for v in numbers))
    if "augment.elastic" in zeros:
        zeros += ("augment.elastic_sigma",)
    return step.Recipe(
        model={**model, "num_outputs": derived.num_outputs(config)},
        loss_options={name: {k: config.loss[k] for k in losses.options(name)}
                      for name in losses.LOSSES},
        optimizer=dict(name=config.optimizer.name, nesterov=config.optimizer.nesterov,
                       amsgrad=config.optimizer.amsgrad,
                       schedule=config.optimizer.schedule, per=config.optimizer.schedule_per),
        accumulate=config.optimizer.accumulate,
        target=config.data.target,
        target_options=derived.target_options(config),
        window=config.data.size if config.data.fit == "random_crop" else None,
        remat=config.train.remat,
        log_gradients=config.train.log_gradients,
        dtype=dtype,
        zeros=zeros,
    )


def hyper_values(config, steps_per_epoch: int) -> dict:
    """{name: number} of everything that members of one program may differ in."""
    optimizer = config.optimizer
    values = {
        "seed": config.seed,
        "num_steps": derived.num_steps(config, steps_per_epoch),
        "steps_per_epoch": steps_per_epoch,
        **{k: optimizer[k] for k in ("lr", "weight_decay", "momentum", "b1", "b2", "rms_decay",
                                     "warmup", "clip", "ema")},
        **{k: optimizer[f"schedule_{k}"] for k in ("power", "gamma", "every")},
        "prune": config.train.prune,
        **{f"loss.{name}": config.loss[name] for name in losses.LOSSES},
        **{f"augment.{name}": value for name, value in config.augment.items()},
    }
    if "dropout" in config.model:
        values["dropout"] = config.model.dropout
    return values


def classical_options(config) -> dict:
    """The keyword options of the classical method."""
    return {k: v for k, v in config.model.items() if k != "name"}


def traced_values(config, steps_per_epoch: int, recipe: step.Recipe) -> dict:
    """hyper_values that are in the program, as arrays of its dtype."""
    kinds = {"seed": np.uint32, "num_steps": np.int32, "steps_per_epoch": np.int32}
    return {k: np.asarray(v, kinds.get(k, recipe.dtype))
            for k, v in hyper_values(config, steps_per_epoch).items() if k not in recipe.zeros}


def check_model(config) -> None:
    """InputError if the network cannot be built for the config's images.

    Of a classical method, if one of its options is out of range.
    """
    if derived.is_classical(config):
        method = classical.CLASSICAL[config.model.name]
        try:
            method(np.eye(3), **classical_options(config))
        except ValueError as error:  # which begins with the option's name
            raise InputError(f"config.model.{error}") from error
        return
    shared = make_recipe([config])
    shape = (*derived.input_size(config), derived.channels(config))
    try:
        jax.eval_shape(lambda v: step.init_state(shared, v, shape),
                       traced_values(config, 1, shared))
    except InputError:
        raise
    except Exception as error:  # whatever Flax or XLA say to an option that makes no sense
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"config.model: {config.model.name} cannot be built from "
                         f"{dict(config.model)} for images {shape}: {reason}") from error
