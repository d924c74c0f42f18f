"""Published PyTorch networks: which of ours they are, and how their weights are named."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


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
