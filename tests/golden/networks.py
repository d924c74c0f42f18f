"""Networks that torch ran: their weights, an image and its logits."""

import pathlib

from cellseg_jax import interop

GOLDEN = pathlib.Path(__file__).parent / "models_monai.npz"
GOLDEN_TORCH = GOLDEN.with_name("models_torch.safetensors")
TINY = dict(channels=(2, 4, 4))
UNETR = dict(image_size=32, feature_size=2, hidden_size=4, mlp_dim=4, num_heads=2)
CASES = {
    "monai_unet": ("monai_unet", "unet", dict(channels=(2, 3, 4))),
    "monai_unet_residual": ("monai_unet", "unet", dict(channels=(2, 3, 4), num_res_units=2)),
    "monai_unetr": ("monai_unetr", "unetr", UNETR),
    "milesial": ("milesial_unet", "unet_classic", dict(TINY, odd="pad_up")),
    "bilinear": ("milesial_unet", "unet_classic", dict(TINY, odd="pad_up", up="bilinear")),
    "batch": ("milesial_unet", "unet_classic", dict(TINY, odd="pad_up", norm="batch")),
    "double_instance": (
        "milesial_unet", "unet_classic", dict(TINY, odd="pad_up", norm="double_instance"),
    ),
    "group": ("milesial_unet", "unet_classic", dict(TINY, odd="pad_up", norm="group", groups=2)),
    "layer_bias": (
        "milesial_unet", "unet_classic", dict(TINY, odd="pad_up", norm="layer", bias="always"),
    ),
    "none_add": (
        "milesial_unet", "unet_classic", dict(TINY, odd="pad_up", norm="none", skip="add"),
    ),
    "drop_skips": ("milesial_unet", "unet_classic", dict(TINY, odd="resize_up", drop_skips=(0,))),
    "no_skip": ("milesial_unet", "unet_classic", dict(TINY, odd="pad_up", skip="none")),
    "brain": ("brain_unet", "unet_classic", dict(channels=(1, 2, 4, 8, 16))),
}


def golden(case):
    """(state dict, image, logits) of a network that torch ran."""
    monai = case.startswith("monai")
    arrays = interop.load_weights(GOLDEN if monai else GOLDEN_TORCH)
    state = {
        key.removeprefix(f"{case}/"): array
        for key, array in arrays.items()
        if key.startswith(f"{case}/")
    }
    return state, arrays["image"], state.pop("logits")
