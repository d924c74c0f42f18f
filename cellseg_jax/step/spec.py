"""From configs to what the compiled step needs: structure (Spec) and traced values."""

from typing import Any, NamedTuple

import jax
import numpy as np

from cellseg_jax import losses, models, optim, targets
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.normalize import normalize


class Spec(NamedTuple):
    """What all members of a program share: structure, not values."""

    model: dict  # name, num_outputs and options of models.make, dropout excluded
    loss_options: dict  # {loss name: options}
    optimizer: dict  # name, nesterov, amsgrad, schedule, per of optim.make
    accumulate: int  # micro-batches of a step
    target: str
    target_options: dict  # num_classes, contour_width
    window: tuple[int, int] | None  # of random crops
    remat: bool
    log_gradients: bool
    dtype: Any  # of image, parameters and loss
    inactive: tuple[str, ...]  # values that are zero in all members: left out of the program

    def module(self, values: dict, axis_name=None):
        dropout = {} if "dropout" not in values else {"dropout": values["dropout"]}
        return models.make(**self.model, **dropout, axis_name=axis_name)

    def logits(self, variables: dict, image, range_):
        """(n, H, W, K) of decoded images and their ranges, as evaluation and prediction see it."""
        image = normalize(image, range_, self.dtype)
        return self.module({}).apply(variables, image, train=False)

    def transformation(self, values: dict):
        """(tx, lr_fn) of optim.make."""
        names = ("lr", "weight_decay", "momentum", "b1", "b2", "rms_decay", "power", "gamma",
                 "every", "warmup", "clip", "num_steps", "steps_per_epoch")
        return optim.make(**self.optimizer, **{k: values[k] for k in names})

    def encode(self, label):
        """(n, H, W, K) of (n, H, W) labels."""
        target = targets.TARGETS[self.target].encode(label, **self.target_options)
        return target.astype(self.dtype)

    def losses(self, logits, target, values: dict, axis_name=None, pixel_weight=None):
        """(N,) weighted sum of the losses in use."""
        total = 0.0
        for name, options in self.loss_options.items():
            if f"loss.{name}" in self.inactive:
                continue
            if options.get("pooled"):  # evaluation has no batch to pool over: image by image
                options = {**options, "pooled": axis_name is not None, "axis_name": axis_name}
            loss = losses.LOSSES[name](logits, target, pixel_weight=pixel_weight, **options)
            total += values[f"loss.{name}"] * loss
        return total

    def all_values(self, traced: dict) -> dict:
        return {**dict.fromkeys(self.inactive, 0.0), **traced}


def make_spec(configs) -> Spec:
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
    numbers = [hyperparameters(c, 1) for c in configs]
    # momentum decides whether sgd keeps a buffer: that must not depend on who else trains along
    structural = ("seed", "num_steps", "steps_per_epoch", "lr", "momentum")
    inactive = tuple(k for k in numbers[0] if k not in structural
                  and all(np.ravel(v[k])[0] == 0 for v in numbers))
    if "augment.elastic" in inactive:
        inactive += ("augment.elastic_sigma",)
    return Spec(
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
        inactive=inactive,
    )


def hyperparameters(config, steps_per_epoch: int) -> dict:
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


def traced_values(config, steps_per_epoch: int, spec: Spec) -> dict:
    """hyperparameters that are in the program, as arrays of its dtype."""
    kinds = {"seed": np.uint32, "num_steps": np.int32, "steps_per_epoch": np.int32}
    return {k: np.asarray(v, kinds.get(k, spec.dtype))
            for k, v in hyperparameters(config, steps_per_epoch).items() if k not in spec.inactive}
