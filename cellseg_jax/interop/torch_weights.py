"""Weights of published PyTorch networks, read from files and turned into variables of ours."""

import json
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


def _milesial_unet_key(path: str, model_options: Mapping) -> str:
    """milesial counts both ways downwards and numbers the layers of a block 0, 1, 3, 4."""
    bottom = len(model_options["channels"]) - 1
    place, *block, leaf = path.split("/")
    if place == "out":
        return f"outc.conv.{leaf}"
    name, _, level = place.partition("_")
    level = bottom if name == "bottom" else int(level)
    if name == "up":
        return f"up{bottom - level}.up.{leaf}"
    index = {"conv_1": 0, "norm_1": 1, "conv_2": 3, "norm_2": 4}[block[0]]
    if name == "merge":
        return f"up{bottom - level}.conv.double_conv.{index}.{leaf}"
    down = f"down{level}.maxpool_conv.1" if level else "inc"
    return f"{down}.double_conv.{index}.{leaf}"


def _brain_unet_key(path: str, _: Mapping) -> str:
    """The brain U-Net counts levels from 1 and repeats them in the names of layers."""
    renames = (
        (r"^out/", "conv."),
        (r"^bottom/(\w+)_(\d)/", r"bottleneck.bottleneck\1\2."),
        (r"^up_(\d)/", lambda found: f"upconv{int(found[1]) + 1}."),
        (
            r"^(down|merge)_(\d)/(\w+)_(\d)/",
            lambda found: "{0}oder{1}.{0}{1}{2}{3}.".format(
                "enc" if found[1] == "down" else "dec", int(found[2]) + 1, found[3], found[4]
            ),
        ),
    )
    for pattern, replacement in renames:
        path = re.sub(pattern, replacement, path)
    return path


def _skip_first(key: str, array):
    """The brain U-Net joins (upsampled, skip), equal halves; ours is (skip, upsampled)."""
    if not re.fullmatch(r"decoder\d\.dec\dconv1\.weight", key):
        return array
    return np.roll(array, array.shape[1] // 2, axis=1)


class Source(NamedTuple):
    """A published network: which of ours it is, and how its weights are called."""

    model: str
    key_of: Callable  # (path of ours, model options) -> torch key
    ends: tuple[str, str]  # patterns of the first and the last weight
    ignored: str = r"num_batches_tracked$"  # pattern of keys without effect
    options: Mapping = {}  # of our model, where the network differs from its defaults
    change: Callable = lambda key, array: array


SOURCES = {
    "monai_unet": Source(
        "unet",
        _monai_unet_key,
        (r"model\.0\.conv\.(unit0\.conv\.)?weight", r"model\.2\.(1\.conv\.unit0\.)?conv\.bias"),
    ),
    "monai_unetr": Source(
        "unetr",
        _monai_unetr_key,
        (r"vit\.patch_embedding\.patch_embeddings\.weight", r"out\.conv\.conv\.bias"),
        r"num_batches_tracked$|cross_attn\.",  # MONAI makes its norm, and once made all of it
    ),
    "milesial_unet": Source(
        "unet_classic",
        _milesial_unet_key,
        (r"inc\.double_conv\.0\.weight", r"outc\.conv\.bias"),
        r"num_batches_tracked$|^mask_values$",
        options=dict(odd="pad_up"),
    ),
    "brain_unet": Source(
        "unet_classic",
        _brain_unet_key,
        (r"encoder1\.enc1conv1\.weight", r"conv\.bias"),
        options=dict(channels=(32, 64, 128, 256, 512)),
        change=_skip_first,
    ),
}


def from_torch(source: str, state_dict: Mapping[str, Any], **model_options) -> dict:
    """The variables of our network that computes what the torch network computes.

    Strict: every weight of the state dict is used and every variable of ours is found.

    Args:
      source: "monai_unet" (act=LEAKYRELU, norm=BATCH), "monai_unetr" (norm_name="batch"),
        "milesial_unet" (github.com/milesial/Pytorch-UNet; up="bilinear" for its bilinear=True,
        bias="always" for old weights with double_conv.0.bias) or "brain_unet" (torch.hub's
        `unet` of mateuszbuda/brain-segmentation-pytorch).
      state_dict: name to numpy array or torch tensor; `load_weights` reads one from a file.
      model_options: the options of our model where they differ from `SOURCES[source].options`
        and its defaults; the numbers of input channels and outputs are read from the weights.
    Returns: {"params": ..., "batch_stats": ...} of numpy arrays, as `module.init` shapes them.
    Raises: InputError for a missing, unused or misshapen weight.
    """
    known = pick(SOURCES, source, "interop.source")
    arrays = {
        key: known.change(key, np.asarray(array))
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


def load_weights(path) -> dict[str, np.ndarray]:
    """The state dict in a file: name to numpy array.

    Formats: .npz (np.savez), .safetensors, and .pt or .pth, which need torch. A torch file may
    hold the state dict under "state_dict" or "model"; what is no tensor is left out. Pickled
    code is never run.
    Raises: InputError for a file that is missing, damaged, of another kind or without weights.
    """
    path = pathlib.Path(path)
    read = pick(READERS, path.suffix, f"{path}: file type")
    try:
        arrays = read(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected weights to read") from None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as {path.suffix}: {reason}") from error
    if not arrays:
        raise InputError(f"{path}: holds no weights; expected a state dict, name to tensor")
    return arrays


def _read_npz(path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


# Little-endian numbers of safetensors: https://github.com/huggingface/safetensors
SAFE_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}


def _read_safetensors(path) -> dict:
    """8 bytes with the length of a JSON header of types, shapes and offsets; then the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < start:
        raise ValueError(f"{len(data)} bytes; expected a header that ends at byte {start}")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        array = np.frombuffer(data[start + low : start + high], SAFE_TYPES[entry["dtype"]])
        array = array.astype(np.float32) if entry["dtype"] == "BF16" else array
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def _read_torch(path) -> dict:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: needs torch; install cellseg_jax[parity], or convert it to .safetensors"
        ) from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"damaged, or not weights alone: save network.state_dict() instead ({error})"
        ) from error
    if not isinstance(held, Mapping):
        raise ValueError(f"holds a {type(held).__name__}; expected a state dict")
    for key in ("state_dict", "model"):
        held = held[key] if isinstance(held.get(key), Mapping) else held
    return {
        key: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for key, value in held.items()
        if isinstance(value, torch.Tensor)
    }


READERS = {
    ".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch,
}
