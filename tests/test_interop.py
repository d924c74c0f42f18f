"""Weights from PyTorch files: equal outputs, and one clear line where they do not fit."""

import pathlib

import jax
import numpy as np
import pytest

from cellseg_jax import interop, models
from cellseg_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "models_monai.npz"
UNETR = dict(image_size=32, feature_size=2, hidden_size=4, mlp_dim=4, num_heads=2)
CASES = {
    "monai_unet": ("monai_unet", "unet", dict(channels=(2, 3, 4))),
    "monai_unet_residual": ("monai_unet", "unet", dict(channels=(2, 3, 4), num_res_units=2)),
    "monai_unetr": ("monai_unetr", "unetr", UNETR),
}


def golden(case):
    """(state dict, image, logits) of a network that MONAI ran."""
    arrays = dict(np.load(GOLDEN))
    state = {
        key.removeprefix(f"{case}/"): array
        for key, array in arrays.items()
        if key.startswith(f"{case}/")
    }
    return state, arrays["image"], state.pop("logits")


@pytest.mark.parametrize("case", CASES)
def test_from_torch_matches_stored_logits(case):
    """Made by: python tests/golden/models_monai.py"""
    source, name, options = CASES[case]
    state, image, logits = golden(case)
    variables = interop.from_torch(source, state, **options)
    module = models.make(name, num_outputs=2, **options)
    got = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)
    np.testing.assert_allclose(got, logits, atol=1e-5)


def change(state, missing=None, unused=None, misshapen=None):
    state = dict(state)
    if missing:
        del state[missing]
    if unused:
        state[unused] = np.zeros(3)
    if misshapen:
        state[misshapen] = state[misshapen][:1]
    return state


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        (dict(missing="model.1.submodule.0.adn.N.running_var"), "N.running_var is missing"),
        (dict(missing="model.0.conv.weight"), "from another network"),
        (dict(unused="model.0.conv.kernel"), "1 weights are not used, first model.0.conv.kernel"),
        (dict(misshapen="model.1.submodule.0.conv.bias"), r"has shape \(1,\); expected \(3,\)"),
    ],
)
def test_from_torch_rejects_what_does_not_fit(flaw, message):
    state, *_ = golden("monai_unet")
    with pytest.raises(InputError, match=message) as error:
        interop.from_torch("monai_unet", change(state, **flaw), channels=(2, 3, 4))
    assert "\n" not in str(error.value)


def test_from_torch_rejects_unknown_source():
    with pytest.raises(InputError, match="did you mean monai_unet"):
        interop.from_torch("monai_une", {})


def test_from_torch_ignores_weights_without_effect():
    """MONAI counts batches, and older files hold cross attention that was never used."""
    state, *_ = golden("monai_unetr")
    state["vit.blocks.0.cross_attn.out_proj.weight"] = np.zeros((4, 4))
    state["encoder1.layer.norm1.num_batches_tracked"] = np.zeros(())
    interop.from_torch("monai_unetr", state, **UNETR)
