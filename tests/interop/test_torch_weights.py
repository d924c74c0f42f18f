"""Weights from PyTorch files: equal outputs, and one clear line where they do not fit."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.networks import CASES, GOLDEN_TORCH, TINY, UNETR, golden

from cellseg_jax import interop, models
from cellseg_jax.errors import InputError
from cellseg_jax.interop import torch_weights


def padded(image):
    """11 x 14 pixels made 16 x 16, as the caller of a network without odd sizes does."""
    return np.pad(image, ((0, 0), (0, 5), (0, 2), (0, 0)))


@pytest.mark.parametrize("case", [
    case if case in ("monai_unet", "brain") else pytest.param(case, marks=pytest.mark.slow)
    for case in CASES])
def test_from_torch_matches_stored_logits(case):
    """Made by tests/golden/models_monai.py and models_torch.py."""
    source, name, options = CASES[case]
    state, image, logits = golden(case)
    image = padded(image) if case == "brain" else image  # it takes no odd sizes
    variables = interop.from_torch(source, state, **options)
    module = models.make(name, num_outputs=2, **options)
    got = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)
    np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


def test_small_unet_matches_stored_logits():
    """Its golden weights carry our names, since no torch file of it is published."""
    state, image, logits = golden("small_unet")
    variables = {}
    for key, array in state.items():
        *path, leaf = key.split(".")
        node = variables
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    image = padded(image)
    module = models.make("small_unet", num_outputs=2, channels=(2, 3, 3), dense=False)
    got = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, image)
    np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("value, message", [
    (np.int8(3), "of type int8; expected floating-point"),
    (np.zeros((), "V2"), "of type .V2; expected"),  # bfloat16, as an .npz gives it back
    (np.float32("nan"), "holds NaN or infinity; expected finite weights")])
def test_from_torch_rejects_weights_that_are_no_finite_numbers(value, message):
    state, *_ = golden("monai_unet")
    key = "model.1.submodule.0.conv.bias"
    flawed = {**state, key: np.broadcast_to(value, state[key].shape)}
    with pytest.raises(InputError, match=f"{key} (is )?{message}"):
        interop.from_torch("monai_unet", flawed, channels=(2, 3, 4))


def test_from_torch_takes_parameters_and_bfloat16():
    torch = pytest.importorskip("torch")
    state, *_ = golden("monai_unet")
    tensors = {key: torch.nn.Parameter(torch.tensor(np.asarray(array, np.float32)).bfloat16())
               for key, array in state.items()}
    found = interop.from_torch("monai_unet", tensors, channels=(2, 3, 4))
    wanted = interop.from_torch("monai_unet", state, channels=(2, 3, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), found, wanted)


def test_from_torch_rejects_unknown_source():
    with pytest.raises(InputError, match="did you mean monai_unet"):
        interop.from_torch("monai_une", {})


def test_from_torch_ignores_weights_without_effect():
    """MONAI counts batches, and older files hold cross attention that was never used."""
    state, *_ = golden("monai_unetr")
    state["vit.blocks.0.cross_attn.out_proj.weight"] = np.zeros((4, 4))
    state["encoder1.layer.norm1.num_batches_tracked"] = np.zeros(())
    interop.from_torch("monai_unetr", state, **UNETR)


def test_from_torch_knows_what_differs_from_our_defaults():
    assert torch_weights.SOURCES["milesial_unet"].options == {"odd": "pad_up"}
    state, *_ = golden("milesial")
    state["mask_values"] = [0, 1]  # milesial saves it beside the weights
    interop.from_torch("milesial_unet", state, **TINY)
    with pytest.raises(InputError, match="down3.* is missing; check the model options"):
        interop.from_torch("milesial_unet", state, channels=(2, 4, 4, 4))


def write_safetensors(path, arrays, names):
    """The format, spelt out: length of the header, header, numbers."""
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for key, array in arrays.items():
        start, data = len(numbers), array.tobytes()
        numbers += data
        header[key] = dict(
            dtype=names[key], shape=array.shape, data_offsets=[start, start + len(data)]
        )
    text = json.dumps(header).encode() + b"  "
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


def test_load_weights_roundtrip_of_npz_and_safetensors(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.normal(size=(2, 3, 3, 3)).astype(np.float32),
        "half": rng.normal(size=4).astype(np.float16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "brain": np.asarray(jnp.array([1.5, -2.0], jnp.bfloat16)),
    }
    names = {"a.weight": "F32", "half": "F16", "count": "I64", "empty": "F32", "brain": "BF16"}
    got = interop.load_weights(write_safetensors(tmp_path / "w.safetensors", arrays, names))
    assert got.keys() == arrays.keys() and got["brain"].dtype == np.float32
    for key in arrays:
        np.testing.assert_array_equal(got[key], arrays[key])
        assert got[key].shape == arrays[key].shape
    del arrays["brain"]
    np.savez(tmp_path / "w.npz", **arrays)
    got = interop.load_weights(tmp_path / "w.npz")
    jax.tree.map(np.testing.assert_array_equal, got, arrays)


def test_load_weights_says_what_is_wrong_with_a_file(tmp_path):
    whole = GOLDEN_TORCH.read_bytes()
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    np.savez(tmp_path / "none.npz")
    for name, data, message in (
        ("absent.npz", None, "absent.npz: no such file"),
        ("weights.h5", b"", "weights.h5: file type: got '.h5'; expected one of .npz"),
        ("cut.safetensors", whole[:-9], "cut.safetensors: cannot be read as .safetensors"),
        ("short.safetensors", whole[:5000], r"5000 bytes; expected a header that ends at byte \d+"),
        ("text.npz", b"weights", "text.npz: cannot be read as .npz"),
        ("objects.npz", None, "objects.npz: cannot be read as .npz: Object arrays"),
        ("none.npz", None, "none.npz: holds no weights"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message) as error:
            interop.load_weights(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parity
def test_load_weights_reads_torch_files_without_running_code(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"a.weight": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}
    for held in (state, {"state_dict": {**state, "mask_values": [0, 1]}, "epoch": 3}):
        torch.save(held, tmp_path / "w.pt")
        got = interop.load_weights(tmp_path / "w.pt")
        assert got.keys() == state.keys()
        np.testing.assert_array_equal(got["a.weight"], [0, 1, 2])
    torch.save({"path": pathlib.PurePosixPath("x")}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="code.pth: .*save network.state_dict"):
        interop.load_weights(tmp_path / "code.pth")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.pt: cannot be read as .pt"):
        interop.load_weights(tmp_path / "cut.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(InputError, match="empty.pt: cannot be read as .pt: EOFError"):
        interop.load_weights(tmp_path / "empty.pt")


def test_load_weights_says_how_to_get_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"w.pt: needs torch; install cellseg_jax\[parity\]"):
        interop.load_weights(tmp_path / "w.pt")
