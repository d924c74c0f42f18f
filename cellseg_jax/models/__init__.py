"""The networks, by name."""

import dataclasses

from flax import linen as nn

from cellseg_jax import classical
from cellseg_jax.errors import InputError, nearest, pick
from cellseg_jax.models.simple_conv import SimpleConv
from cellseg_jax.models.small_unet import SmallUNet, UNetAdd
from cellseg_jax.models.unet import UNet
from cellseg_jax.models.unet_classic import UNetClassic
from cellseg_jax.models.unetr import UNETR

MODELS = {
    "unet": UNet,
    "unetr": UNETR,
    "unet_classic": UNetClassic,
    "small_unet": SmallUNet,
    "unet_add": UNetAdd,
    "simple_conv": SimpleConv,
}
COMMON = ("num_outputs", "axis_name", "dtype", "parent", "name")  # no keys of the config


def options(name: str) -> dict:
    """The model's own keyword options with their defaults, as the config lists them.

    `name` may be a classical method as well, of which `make` knows nothing.
    """
    if name in classical.CLASSICAL:
        return classical.options(name)
    model = pick(MODELS | classical.CLASSICAL, name, "config.model.name")
    return {
        field.name: field.default
        for field in dataclasses.fields(model)
        if field.name not in COMMON
    }


def make(
    name: str, *, num_outputs: int, axis_name: str | None = None, **model_options
) -> nn.Module:
    """The network `name`, as a Flax module with the contract of every model here.

    `module.init(key, image, train=False)` makes the variables and
    `module.apply(variables, image, train=False)` maps (N, H, W, C), any H and W, to logits
    (N, H, W, num_outputs), float32 (float64 where image and parameters are). In training:
    `train=True, mutable=["batch_stats"], rngs={"dropout": key}`.

    Args:
      axis_name: mesh axis that shares the batch; only training uses it.
      model_options: see `options(name)`; and dtype, None or jnp.bfloat16.
    Raises: InputError for an unknown name or option.
    """
    model = pick(MODELS, name, "config.model.name")
    known = [*options(name), "dtype"]
    for option in model_options:
        if option not in known:
            choices = ", ".join(known)
            raise InputError(
                f"config.model.{option}: {name} has no such option; "
                f"expected one of {choices}{nearest(option, known)}"
            )
    return model(num_outputs=num_outputs, axis_name=axis_name, **model_options)
