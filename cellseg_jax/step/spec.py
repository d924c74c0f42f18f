"""From configs to what the compiled step needs: its structure (Spec) and its traced numbers.

Configs that train together share one Spec and differ only in traced hyper-parameters. A term that
is off in all of them is left out of the program: its name is in `Spec.inactive`. Example: two
configs with optimizer.clip 0 and 1.5, both with augment.noise=(0, 1). The program clips, and for
the first config the traced limit 0 is the exact identity; no noise is compiled for either, and
"augment.noise" is in `inactive`. So the Spec of several configs differs from that of one of them
in `inactive` alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, Shaped

from cellseg_jax import losses, models, optim, targets
from cellseg_jax.config import compare, derived
from cellseg_jax.config.defaults import TRACED
from cellseg_jax.errors import InputError
from cellseg_jax.normalize import normalize
from cellseg_jax.targets.geometry import far_from_unknown

# Length of training, which follows from config and data.
LENGTHS = {"num_steps": "int32", "steps_per_epoch": "int32"}
# Never inactive. Momentum decides whether sgd keeps a buffer, which must not depend on the other
# members of the program.
ALWAYS_ACTIVE = ("seed", "lr", "momentum", *LENGTHS)
OPTIMIZER_OPTIONS = {field.name for field in dataclasses.fields(optim.Options)}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What all members of a program share: structure, not values. Hashable: a key of programs."""

    model: FrozenDict  # name, num_outputs and options of models.make, dropout excluded
    loss_options: FrozenDict  # {loss name: options}
    optimizer: FrozenDict  # name, nesterov, amsgrad, schedule, per of optim.make
    accumulate: int  # micro-batches of a step
    target: str
    target_options: FrozenDict  # of its encode, such as num_classes
    window: tuple[int, int] | None  # of random crops
    grid: int  # patches per side that images are cut into after augmentation; 1: not cut there
    remat: bool
    logged_layers: tuple[models.Layer, ...]  # whose gradients are summed up: train.log_gradients
    colours: int  # channels, the first ones, that intensity augmentations change
    ignore: bool  # whether labels may be -1 where an image is not annotated
    dtype: np.dtype  # of image, parameters and loss
    inactive: tuple[str, ...]  # hyper-parameters that are 0 in all members: not in the program

    def replace(self, **changes) -> "Spec":
        """The Spec with other values of some fields."""
        return dataclasses.replace(self, **changes)

    @property
    def weights(self) -> str:
        """The field of TrainState with the parameters that are validated and predict."""
        return "params" if "ema" in self.inactive else "ema"

    def hparams(self, traced: dict) -> dict:
        """{name: number} of all hyper-parameters: those that are traced, 0 for the inactive."""
        return {**dict.fromkeys(self.inactive, 0.0), **traced}

    def module(self, hparams: dict, axis_name: str | None = None) -> nn.Module:
        """The network, with the dropout rate of the hyper-parameters, if they have one."""
        dropout = {} if "dropout" not in hparams else {"dropout": hparams["dropout"]}
        return models.make(**self.model, **dropout, axis_name=axis_name)

    def logits(self, variables: dict, image: Shaped[ArrayLike, "n h w c"],
               range_: Float[ArrayLike, "n c 2"]) -> Float[Array, "n h w k"]:
        """The network's output for decoded images and their ranges, as in evaluation."""
        image = normalize(image, range_, self.dtype)
        return self.module({}).apply(variables, image, train=False)

    def transformation(self, hparams: dict):
        """(tx, lr_fn) of optim.make."""
        options = {name: value for name, value in hparams.items() if name in OPTIMIZER_OPTIONS}
        lengths = {name: hparams[name] for name in LENGTHS}
        return optim.make(**self.optimizer, lr=hparams["lr"], **options, **lengths)

    def encode(self, label: Integer[ArrayLike, "n h w"]) -> Float[ArrayLike, "n h w k"]:
        """What the network learns of a label; what is not annotated is background here."""
        label = jnp.maximum(label, 0) if self.ignore else label
        target = targets.TARGETS[self.target].encode(label, **self.target_options)
        return target.astype(self.dtype)

    def known(self, label: Integer[ArrayLike, "n h w"]) -> Bool[ArrayLike, "n h w"] | None:
        """Where the probabilities that the network learns of a label are known; None: everywhere.

        See targets.geometry.far_from_unknown.
        """
        if not self.ignore:
            return None
        reach = targets.TARGETS[self.target].reach(**self.target_options)
        return far_from_unknown(label, reach)

    def truth(self, batch: dict) -> dict:
        """What the losses of a batch take beside logits.

        Pixels that are not annotated weigh 0 in all losses, whose means still divide by the number
        of pixels: a pixel weighs the same whatever is annotated around it.

        Args:
          batch: label (n, H, W), maybe pixel_weight (n, H, W).
        Returns: target (n, H, W, K), maybe pixel_weight and regression_weight (n, H, W).
        """
        label = batch["label"]
        truth = {"target": self.encode(label)}
        if "pixel_weight" in batch:
            truth["pixel_weight"] = batch["pixel_weight"]
        if not self.ignore:
            return truth
        known = self.known(label).astype(self.dtype)
        truth["pixel_weight"] = known * truth.get("pixel_weight", 1)
        kind = targets.TARGETS[self.target]
        if kind.num_binary is not None:
            truth["regression_weight"] = kind.regression_known(label).astype(self.dtype)
        return truth

    def probabilities(self, maps: Float[ArrayLike, "*n h w k"]) -> Float[ArrayLike, "*n h w p"]:
        """Of the network's outputs, or of what it learns, those that are probabilities."""
        return maps[..., : targets.TARGETS[self.target].num_binary]

    def losses(self, logits: Float[ArrayLike, "n h w k"], target: Float[ArrayLike, "n h w k"],
               hparams: dict, axis_name: str | None = None,
               pixel_weight: Float[ArrayLike, "n h w"] | None = None,
               regression_weight: Float[ArrayLike, "n h w"] | None = None
               ) -> Float[Array, " n"] | float:
        """The weighted sum of the losses in use; 0.0 where loss_options is empty.

        Losses of probabilities see the first outputs, those of regression the others.

        Args:
          axis_name: mesh axis that shares the batch; None treats pooled losses image by image.
          regression_weight: in place of pixel_weight in losses of regression; None: pixel_weight.
        """
        if regression_weight is None:
            regression_weight = pixel_weight
        kind = targets.TARGETS[self.target]
        n = kind.num_binary or logits.shape[-1]
        total = 0.0
        for name, options in self.loss_options.items():
            if f"loss.{name}" in self.inactive:
                continue
            if options.get("pooled"):  # evaluation has no batch to pool over: image by image
                options = {**options, "pooled": axis_name is not None, "axis_name": axis_name}
            if name in losses.LOSSES:
                loss = losses.LOSSES[name](logits[..., :n], target[..., :n],
                                           pixel_weight=pixel_weight, **options)
            else:
                loss = losses.REGRESSION[name](
                    kind.probs(logits)[..., n:], target[..., n:],
                    pixel_weight=_product(kind.regression_weight, target, regression_weight),
                    **options)
            total += hparams[f"loss.{name}"] * loss
        return total


def _product(regression_weight, target, pixel_weight):
    """The weight of pixels in losses of regression; None where all weigh the same."""
    if regression_weight is None:
        return pixel_weight
    weight = regression_weight(target)
    return weight if pixel_weight is None else weight * pixel_weight


def make_spec(configs) -> Spec:
    """What the configs of one config.program_key share.

    Raises: InputError where the precision is not available.
    """
    config = configs[0]
    if config.train.precision == "float64" and not jax.config.jax_enable_x64:
        raise InputError("config.train.precision: float64 needs JAX_ENABLE_X64=1 in the "
                         "environment")
    model = _model_options(config)
    return Spec(
        model=FrozenDict(model),
        loss_options=FrozenDict({name: {k: config.loss[k] for k in losses.options(name)}
                                 for name in (*losses.LOSSES, *losses.REGRESSION)}),
        optimizer=FrozenDict(
            name=config.optimizer.name, nesterov=config.optimizer.nesterov,
            amsgrad=config.optimizer.amsgrad, schedule=config.optimizer.schedule,
            per=config.optimizer.schedule_per),
        accumulate=config.optimizer.accumulate,
        target=config.data.target,
        target_options=FrozenDict(derived.target_options(config)),
        window=config.data.size if config.data.fit == "random_crop" else None,
        grid=config.data.grid if config.data.augment_before_grid else 1,
        remat=config.train.remat,
        logged_layers=_logged_layers(config, model),
        colours=derived.channels(config) if config.data.channel_index else 3,
        ignore=derived.has_ignored(config),
        dtype=np.dtype("float64" if config.train.precision == "float64" else "float32"),
        inactive=_inactive([hyperparameters(c) for c in configs]),
    )


def _model_options(config) -> dict:
    options = {k: v for k, v in config.model.items() if k != "dropout"}
    if options.get("image_size") == 0:
        options["image_size"] = derived.input_size(config)
    if config.train.precision == "bfloat16":
        options["dtype"] = jax.numpy.bfloat16
    return {**options, "num_outputs": derived.num_outputs(config)}


def _logged_layers(config, model_options: dict) -> tuple[models.Layer, ...]:
    if not config.train.log_gradients:
        return ()
    shape = (*derived.input_size(config), derived.channels(config))
    return tuple(models.kernel_layers(models.make(**model_options), shape))


def _inactive(members: list[dict]) -> tuple[str, ...]:
    """The names that are off in the hyper-parameters of all members."""
    names = tuple(name for name in members[0] if name not in ALWAYS_ACTIVE
                  and all(np.ravel(values[name])[0] == 0 for values in members))
    if "augment.elastic" in names:
        names += ("augment.elastic_sigma",)
    return names


def hyperparameters(config, steps_per_epoch: int = 1) -> dict:
    """{name: number} of everything that members of one program may differ in."""
    values = compare.flatten(config)
    return {
        "num_steps": derived.num_steps(config, steps_per_epoch),
        "steps_per_epoch": steps_per_epoch,
        # A network without dropout lacks its rate.
        **{name: values[key] for key, (name, _) in TRACED.items() if key in values},
    }


def traced_values(config, spec: Spec, steps_per_epoch: int = 1) -> dict:
    """{name: array} of the hyper-parameters that the program takes.

    Args:
      steps_per_epoch: of the run's training images. It decides the lengths alone, so the default
        does where these are not read: for shapes, initial weights and evaluation.
    """
    dtypes = LENGTHS | dict(TRACED.values())
    return {name: np.asarray(value, dtypes[name] or spec.dtype)
            for name, value in hyperparameters(config, steps_per_epoch).items()
            if name not in spec.inactive}
