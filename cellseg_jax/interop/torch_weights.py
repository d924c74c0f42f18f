"""Weights of published PyTorch networks as variables of ours."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cellseg_jax import models
from cellseg_jax.errors import InputError, pick
from cellseg_jax.interop.torch_files import to_numpy
from cellseg_jax.interop.torch_sources import SOURCES

# Names in torch of the leaves of our variables; others keep their name.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def from_torch(source: str, state_dict: Mapping[str, Any], **model_options) -> dict:
    """The variables of our network that computes what the torch network computes.

    Strict: every weight of the state dict is used and every variable of ours is found.

    Args:
      source: "monai_unet" (act=LEAKYRELU, norm=BATCH and all strides 2, which the weights do not
        show), "monai_unetr" (norm_name="batch"), "milesial_unet"
        (github.com/milesial/Pytorch-UNet; up="bilinear" for its bilinear=True, bias="always" for
        old weights with double_conv.0.bias) or "brain_unet" (torch.hub's `unet` of
        mateuszbuda/brain-segmentation-pytorch).
      state_dict: name to numpy array or torch tensor; `load_weights` reads one from a file.
      model_options: the options of our model where they differ from `SOURCES[source].options`
        and its defaults; the numbers of input channels and outputs are read from the weights.
    Returns: {"params": ..., "batch_stats": ...} of numpy arrays, as `module.init` shapes them.
    Raises: InputError for a missing, unused or misshapen weight, or one that is not a finite
      floating-point number.
    """
    known = pick(SOURCES, source, "interop.source")
    arrays = {
        key: known.change(key, to_numpy(array))
        for key, array in state_dict.items()
        if not re.search(known.ignored, key)
    }
    inputs, outputs = (_one(source, arrays, end) for end in known.ends)
    model_options = {**models.options(known.model), **known.options, **model_options}
    module = models.make(known.model, num_outputs=outputs.shape[0], **model_options)
    image = jax.ShapeDtypeStruct((1, 32, 32, inputs.shape[1]), jnp.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)

    def find(path, shape):
        _, *names, leaf = [entry.key for entry in path]
        key = known.key_of("/".join([*names, LEAVES.get(leaf, leaf)]), model_options)
        if key not in arrays:
            raise InputError(f"{source}: {key} is missing; check the model options")
        array = _oriented(arrays.pop(key), [*names, leaf], shape.shape)
        if array.shape != shape.shape:
            raise InputError(
                f"{source}: {key} has shape {array.shape}; expected {shape.shape} "
                "(height, width, in, out for a kernel); check the model options"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):  # quantised, or bfloat16 in an .npz
            raise InputError(f"{source}: {key} is of type {array.dtype}; expected floating-point "
                             "weights, save them as float32")
        if not np.isfinite(array).all():
            raise InputError(f"{source}: {key} holds NaN or infinity; expected finite weights, "
                             "such as those of an earlier checkpoint")
        return array

    variables = jax.tree_util.tree_map_with_path(find, shapes)
    if arrays:
        raise InputError(
            f"{source}: {len(arrays)} weights are not used, first {min(arrays)}; "
            "check the model options"
        )
    return variables


def source_of(state_dict: Mapping[str, Any], model: str) -> str:
    """Which of SOURCES a state dict is from, by its names, among those that become `model`.

    Raises: InputError where no published form of the model has such names.
    """
    known = [name for name, source in SOURCES.items() if source.model == model]
    for name in known:
        if all(any(re.fullmatch(end, key) for key in state_dict) for end in SOURCES[name].ends):
            return name
    raise InputError(f"train.weights: names such as {min(state_dict)!r} are of no network that "
                     f"becomes {model}; expected {', '.join(known) or 'a run of the same network'}")


def _one(source, arrays, pattern):
    """The array whose key matches the pattern."""
    for key, array in arrays.items():
        if re.fullmatch(pattern, key):
            return array
    raise InputError(f"{source}: this state dict has no {pattern!r}; it is from another network")


def _oriented(array, names: list[str], shape):
    """A torch weight in our order of axes."""
    if names == ["position"]:  # (1, rows * columns, E)
        return array.reshape(shape) if array.size == np.prod(shape) else array
    transposed = any(name.startswith("up") for name in names)
    if array.ndim == 4 and transposed:  # (in, out, height, width), and turned over
        return array.transpose(2, 3, 0, 1)[::-1, ::-1]
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T
