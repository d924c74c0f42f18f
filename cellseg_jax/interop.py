"""Weights of published PyTorch networks, as variables of ours."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cellseg_jax import models
from cellseg_jax.errors import InputError, pick

# What a leaf of ours is called in torch. Anything else keeps its name.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _monai_unet_key(path: str, model_options: Mapping) -> str:
    """MONAI nests its levels: level 1 lies in the submodule of level 0, and so on."""
    levels = len(model_options["channels"]) - 1
    residual = model_options["num_res_units"] > 0
    first, _, rest = path.partition("/")
    place, _, level = first.partition("_")
    depth = levels if place == "bottom" else int(level)
    up = "2.0." if residual else "2."
    block = {"down": "0.", "bottom": "", "up": up, "refine": "2.1."}[place]
    rest = re.sub(r"unit_(\d+)/(?!conv|norm)", r"conv/unit\1/conv/", rest)  # a bare convolution
    rest = re.sub(r"unit_(\d+)/", r"conv/unit\1/", rest)
    rest = rest.replace("norm/", "adn/N/").replace("skip/", "residual/")
    if rest in ("weight", "bias"):  # the last layer, bare
        rest = f"conv/{rest}"
    return "model." + "1.submodule." * depth + block + rest.replace("/", ".")


def _monai_unetr_key(path: str, _: Mapping) -> str:
    """MONAI numbers its decoders 5 to 2 and puts the transformer in `vit`."""
    renames = (
        (r"^position$", "vit.patch_embedding.position_embeddings"),
        (r"^patch_kernel$", "vit.patch_embedding.patch_embeddings.weight"),
        (r"^patch_bias$", "vit.patch_embedding.patch_embeddings.bias"),
        (r"^norm/", "vit.norm."),
        (r"^block_(\d+)/", r"vit.blocks.\1."),
        ("norm_attention/", "norm1."),
        ("norm_mlp/", "norm2."),
        ("qkv/", "attn.qkv."),
        ("project/", "attn.out_proj."),
        ("expand/", "mlp.linear1."),
        ("contract/", "mlp.linear2."),
        (r"^encoder_1/", "encoder1.layer."),
        (r"^encoder_(\d)/up_0/", r"encoder\1.transp_conv_init.conv."),
        (r"^decoder_(\d)/up/", lambda found: f"decoder{int(found[1]) + 1}.transp_conv.conv."),
        (r"^decoder_(\d)/block/", lambda found: f"decoder{int(found[1]) + 1}.conv_block."),
        (
            r"^encoder_(\d)/(up|block)_(\d)/",
            lambda found: f"encoder{found[1]}.blocks.{int(found[3]) - 1}."
            + ("0.conv." if found[2] == "up" else "1."),
        ),
        (r"conv_(\d)/", r"conv\1.conv."),
        (r"norm_(\d)/", r"norm\1."),
        (r"^out/", "out.conv.conv."),
    )
    for pattern, replacement in renames:
        path = re.sub(pattern, replacement, path)
    return path


# source: (our model, torch key of a path of ours, first and last weight, keys without effect)
SOURCES = {
    "monai_unet": (
        "unet",
        _monai_unet_key,
        (r"model\.0\.conv\.(unit0\.conv\.)?weight", r"model\.2\.(1\.conv\.unit0\.)?conv\.bias"),
        r"num_batches_tracked$",
    ),
    "monai_unetr": (
        "unetr",
        _monai_unetr_key,
        (r"vit\.patch_embedding\.patch_embeddings\.weight", r"out\.conv\.conv\.bias"),
        r"num_batches_tracked$|cross_attn\.",  # MONAI makes its norm, and once made all of it
    ),
}


def from_torch(source: str, state_dict: Mapping[str, Any], **model_options) -> dict:
    """The variables of our network that computes what the torch network computes.

    Strict: every weight of the state dict is used and every variable of ours is found.

    Args:
      source: "monai_unet" (act=LEAKYRELU, norm=BATCH) or "monai_unetr" (norm_name="batch").
      state_dict: name to numpy array or torch tensor.
      model_options: the options of our model where they differ from its defaults; the numbers
        of input channels and outputs are read from the weights.
    Returns: {"params": ..., "batch_stats": ...} of numpy arrays, as `module.init` shapes them.
    Raises: InputError for a missing, unused or misshapen weight.
    """
    name, key_of, ends, ignored = pick(SOURCES, source, "interop.source")
    arrays = {
        key: np.asarray(array) for key, array in state_dict.items() if not re.search(ignored, key)
    }
    inputs, outputs = (_one(source, arrays, end) for end in ends)
    model_options = {**models.options(name), **model_options}
    module = models.make(name, num_outputs=outputs.shape[0], **model_options)
    image = jax.ShapeDtypeStruct((1, 32, 32, inputs.shape[1]), jnp.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)

    def find(path, shape):
        _, *names, leaf = [entry.key for entry in path]
        key = key_of("/".join([*names, LEAVES.get(leaf, leaf)]), model_options)
        if key not in arrays:
            raise InputError(f"{source}: {key} is missing; check the model options")
        array = _oriented(arrays.pop(key), [*names, leaf], shape.shape)
        if array.shape != shape.shape:
            raise InputError(
                f"{source}: {key} has shape {array.shape}; expected {shape.shape} "
                "(height, width, in, out for a kernel); check the model options"
            )
        return array

    variables = jax.tree_util.tree_map_with_path(find, shapes)
    if arrays:
        raise InputError(
            f"{source}: {len(arrays)} weights are not used, first {min(arrays)}; "
            "check the model options"
        )
    return variables


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
