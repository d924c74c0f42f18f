"""The card of a network: parameters, FLOPs, memory and receptive field."""

import inspect
import math
import sys

import jax
import numpy as np
from flax import linen as nn

from cellseg_jax import classical, models
from cellseg_jax.config import derived
from cellseg_jax.models.flops import forward_flops
from cellseg_jax.report import terminal
from cellseg_jax.step.programs import check_model
from cellseg_jax.step.spec import make_spec

WHOLE_IMAGE_MODELS = ("unetr", "medt", "segformer", "unet_plan")  # attention, or instance norm


def rows(config) -> list[tuple[str, str]]:
    """(name, text) of a complete config's network at its image size, one image a batch.

    FLOPs are those of models.flops. Activations
    are the outputs of all layers, what training keeps for the backward pass if nothing is
    recomputed; an optimiser's state and XLA's temporary arrays come on top.
    """
    spec = make_spec([config])
    module = spec.module({})
    height, width = derived.input_size(config)
    image = jax.ShapeDtypeStruct((1, height, width, derived.channels(config)), spec.dtype)
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), image)
    outputs = jax.eval_shape(
        lambda v, x: module.apply(v, x, train=False, capture_intermediates=True,
                                  mutable=["intermediates"])[1], variables, image)
    flops = forward_flops(module, image.shape[1:])
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    activations = sum(math.prod(x.shape) * x.dtype.itemsize
                      for x in jax.tree.leaves(_innermost(outputs["intermediates"])))
    own = {k: v for k, v in config.model.items() if k not in ("name", "image_size")}
    field = (None if config.model.name in WHOLE_IMAGE_MODELS
             else models.receptive_field(config.model.name, **own))
    return [
        ("network", config.model.name),
        ("image", f"{height}x{width}, {image.shape[-1]} channels -> "
                  f"{derived.num_outputs(config)} outputs"),
        ("parameters", f"{parameters:,} "
                       f"({parameters * np.dtype(spec.dtype).itemsize / 2**20:.1f} MiB)"),
        ("forward", f"{flops / 1e9:.2f} GFLOP per image"),
        ("activations", f"{activations / 2**20:.1f} MiB per image"),
        ("receptive field", f"{field} pixels" if field else "the whole image"),
    ]


def print_description(config) -> None:
    """Print the network layer by layer and what it costs; of a classical method, what it does.

    Raises: InputError where it cannot be built.
    """
    check_model(config)
    if derived.is_labels(config):
        print(f"Labels made elsewhere, in the folder {config.model.folder!r}, scored as they are")
        return
    if derived.is_classical(config):
        print(inspect.getdoc(classical.CLASSICAL[config.model.name]))
        print(derived.classical_options(config))
        return
    print(table(config, width=140, colour=sys.stdout.isatty()))
    terminal.summary(rows(config))


def _innermost(outputs) -> dict:
    """The outputs of modules that hold no other: a block's own output is its last layer's."""
    inner = {name: _innermost(sub) for name, sub in outputs.items() if hasattr(sub, "items")}
    return inner or outputs


def table(config, width: int, colour: bool) -> str:
    """The network layer by layer: shapes, parameters and FLOPs."""
    spec = make_spec([config])
    shape = (1, *derived.input_size(config), derived.channels(config))
    show = nn.tabulate(spec.module({}), jax.random.key(0), compute_flops=True,
                       console_kwargs={"width": width, "force_terminal": colour})
    return show(jax.numpy.zeros(shape, spec.dtype), train=False)
