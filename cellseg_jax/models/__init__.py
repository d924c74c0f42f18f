"""The networks, by name."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cellseg_jax.errors import InputError, nearest, pick
from cellseg_jax.models.conv import ConvTranspose
from cellseg_jax.models.medt import MedT
from cellseg_jax.models.resenc_unet import ResEncUNet
from cellseg_jax.models.segformer import SegFormer
from cellseg_jax.models.segnet import SegNet
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
    "unet_plan": ResEncUNet,
    "segformer": SegFormer,
    "segnet": SegNet,
    "medt": MedT,
}
COMMON = ("num_outputs", "axis_name", "dtype", "parent", "name")  # no keys of the config


def options(name: str) -> dict:
    """The keyword options of the network `name` with their defaults, as the config lists them.

    Raises: InputError for an unknown name.
    """
    model = pick(MODELS, name, "config.model.name")
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


class Layer(NamedTuple):
    """A layer with a kernel (..., in, out), whose last axis is its filters."""

    name: str  # "down_0/unit_0/conv": where its parameters are
    kernel: tuple[str, ...]  # path of the kernel in params
    kind: str  # conv | transposed | dense
    shape: tuple[int, ...]


def kernel_layers(module: nn.Module, image_shape) -> list[Layer]:
    """The layers of a network that have kernels, in the order of the forward pass.

    Args:
      image_shape: (H, W, C).
    """
    order = {}

    def record(next_, args, kwargs, context):
        order.setdefault(context.module.path, (len(order), type(context.module)))
        return next_(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x, train=False), image)
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        path = tuple(entry.key for entry in path)
        if path[-1].endswith("kernel"):
            number, owner = order[path[:-1]]
            kind = ("transposed" if owner is ConvTranspose else
                    "conv" if len(leaf.shape) > 2 else "dense")
            # Several kernels of one module have names of their own: "patch_kernel".
            name = "/".join((*path[:-1], path[-1].removesuffix("kernel").rstrip("_"))).strip("/")
            found.append((number, Layer(name, path, kind, leaf.shape)))
    return [layer for _, layer in sorted(found)]


def stride(module: nn.Module, channels: int) -> int:
    """Input pixels, along a side, for each pixel of the network's smallest feature map.

    By how much a map grows with the image: so a map of a single pixel, a mean over the image, does
    not count, and the borders that unpadded convolutions lose cancel. Nothing is computed.

    Args:
      channels: of the image.
    """
    side = 512

    def maps(side):
        image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        _, variables = jax.eval_shape(lambda x: module.init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True), image)
        return [x.shape for x in jax.tree.leaves(variables["intermediates"])]

    growth = [large[1] - small[1] for small, large in zip(maps(side), maps(2 * side), strict=True)
              if len(small) == 4 and small[1] == small[2]]
    return max(side // grown for grown in growth if grown > 0)


def receptive_field(name: str, *, largest: int = 512, **model_options) -> int | None:
    """Side, in pixels, of the window of the image on which one logit can depend in evaluation.

    Measured, not derived: a NaN in one pixel reaches exactly the logits that depend on it,
    through any layer and any weights. Strides make neighbouring logits differ, so that all rows
    of a stride are tried; the largest window counts.

    Returns: pixels; None where images of `largest` pixels are too small to measure it, as for
      networks whose logits depend on the whole image (attention, instance norm).
    Raises: InputError as `make`.
    """
    found = _dependence(name, largest, model_options)
    return found and found[0]


def reach(name: str, *, largest: int = 512, **model_options) -> int | None:
    """How far, in pixels along one axis, the farthest pixel is that a logit can depend on.

    A window may reach farther to one side than to the other. Measured as `receptive_field`, whose
    arguments, None and errors it has.
    """
    found = _dependence(name, largest, model_options)
    return found and found[1]


def _dependence(name, largest, model_options) -> tuple[int, int] | None:
    """(receptive_field, reach)."""
    module = make(name, num_outputs=1, **model_options)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
    with jax.default_device(jax.devices("cpu")[0]):  # elsewhere, fast convolutions mix pixels
        image = jnp.zeros((1, 32, 32, 1))
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        period = max(32, stride(module, 1))
        size = 2 * period
        while size <= largest:
            rows = size // 2 + np.arange(-period // 2, period // 2)
            images = np.zeros((len(rows), size, 32, 1), np.float32)
            images[np.arange(len(rows)), rows, 16] = np.nan
            reached = np.isnan(apply(variables, images)).any((2, 3))
            if not reached[:, [0, -1]].any():
                source, logit = np.nonzero(reached)
                offset, phase = rows[source] - logit, logit % period
                return (1 + max(int(np.ptp(offset[phase == p])) for p in range(period)),
                        int(np.abs(offset).max()))
            size *= 2
    return None
