"""What layers see: attention as the network computes it, statistics against Numpy."""

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import tiny_config

from cellseg_jax import models, train
from cellseg_jax.analysis import activations, attention, filters
from cellseg_jax.config import changed
from cellseg_jax.errors import InputError
from cellseg_jax.models import segformer
from cellseg_jax.models.unetr import TransformerBlock
from cellseg_jax.step.spec import make_spec
from cellseg_jax.targets import TARGETS

UNETR = dict(image_size=32, feature_size=4, hidden_size=16, mlp_dim=8, num_heads=4, num_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filters")
    config = tiny_config(train__steps=2, data__cache=str(folder))
    train.train([config], [folder / "run"])
    return config, folder / "run"


def noise(module, image, **options):
    """Variables of a module, all uniform in [0.1, 1); drawn by Numpy, nothing to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **options), image)
    return jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32), shapes)


def outputs(module, place, image, **options):
    """(params, {path under `place`: output}) of a module on its own."""
    variables = noise(module, image, **options)
    _, state = jax.jit(lambda v, x: module.apply(
        v, x, **options, capture_intermediates=True, mutable=["intermediates"]))(variables, image)
    return variables["params"], {
        f"{place}/{name}": found["__call__"][0] for name, found in state["intermediates"].items()
        if name != "__call__"}


def attended(layer, value):
    """(n, queries, C): values mixed by the attention weights."""
    mixed = jnp.einsum("nhpq,nqhd->nphd", attention.attention_weights(layer),
                       value.reshape(len(value), -1, *layer.key.shape[-2:]))
    return mixed.reshape(*mixed.shape[:2], -1)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def test_attention_of_unetr_is_the_network_s_own():
    """Values mixed by the weights, projected, are what the network projects."""
    tokens = np.random.default_rng(1).normal(size=(2, 6, 16)).astype(np.float32)
    params, found = outputs(TransformerBlock(4, 8), "block_0", tokens, train=False)
    found["logits"] = np.zeros((2, 40, 32, 1))  # padded to 48x32, 3x2 patches
    module = models.make("unetr", num_outputs=1, **UNETR)
    (name, layer), = attention.attention_layers(module, found).items()
    assert name == "block_0" and layer.query.shape == layer.key.shape == (2, 3, 2, 4, 4)
    mixed = attended(layer, found["block_0/qkv"][..., 32:])
    np.testing.assert_allclose(dense(params["project"], mixed), found["block_0/project"],
                               rtol=1e-4, atol=1e-6)


def test_attention_of_segformer_is_the_network_s_own():
    image = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    params, found = outputs(segformer.Attention(2, 4), "attention_1_0", image)
    module = models.make("segformer", num_outputs=1)
    (name, layer), = attention.attention_layers(module, found).items()
    assert name == "attention_1_0" and layer.spacing == (8, 32)
    assert layer.query.shape == (2, 8, 8, 2, 2) and layer.key.shape == (2, 2, 2, 2, 2)
    mixed = attended(layer, found[f"{name}/key_value"][..., 4:]).reshape(2, 8, 8, 4)
    np.testing.assert_allclose(dense(params["project"], mixed), found[f"{name}/project"],
                               rtol=1e-4, atol=1e-6)


def test_networks_without_softmax_attention_have_none():
    module, image = models.make("unet", num_outputs=1, channels=(2, 2)), np.zeros((1, 4, 4, 3))
    variables = noise(module, image, train=False)
    found = jax.eval_shape(lambda v: activations.activations(module, v, image), variables)
    assert attention.attention_layers(module, found) == {}
    assert set(found) == {"down_0/conv", "down_0/norm", "down_0", "bottom/conv", "bottom/norm",
                          "bottom", "up_0", "logits"}


def test_attention_distance_matches_loops():
    rng = np.random.default_rng(0)
    layer = attention.Attention(np.zeros((1, 2, 3, 2, 4)), np.zeros((1, 1, 2, 2, 4)), (8, 16))
    weights = rng.dirichlet(np.ones(2), (1, 2, 6))
    expected = np.zeros(2)
    for head in range(2):
        for p in range(6):
            for q in range(2):
                y, x = 8 * (p // 3 + 0.5), 8 * (p % 3 + 0.5)
                apart = np.hypot(y - 8, x - 16 * (q + 0.5))
                expected[head] += weights[0, head, p, q] * apart / 6
    np.testing.assert_allclose(attention.attention_distance(weights, layer), expected, rtol=1e-6)


def test_attention_to_itself_alone_reaches_0():
    grid = np.zeros((1, 3, 3, 1, 2))
    layer = attention.Attention(grid, grid, (16, 16))
    assert attention.attention_distance(np.eye(9)[None, None], layer) == [0]


def test_cell_centre_is_deepest_in_the_largest_object():
    label = np.zeros((20, 30), int)
    label[2:4, 2:4] = 1
    label[5:14, 10:19] = 2
    assert attention.cell_centre(label) == (9, 14)
    assert attention.cell_centre(np.zeros((20, 30), int)) == (10, 15)
    assert attention.cell_centre(np.where(label == 1, -1, 0)) == (10, 15)  # nothing annotated


class Shifted(nn.Module):
    """One dense layer."""

    @nn.compact
    def __call__(self, image, train):
        return nn.Dense(1, name="dense")(image)


def test_the_sd_of_outputs_far_from_0_is_exact():
    """In the difference of two sums of squares little of it is left in float32."""
    spec = SimpleNamespace(module=lambda _: Shifted(), dtype=jnp.float32)
    variables = {"params": {"dense": {"kernel": np.full((1, 1), 0.01, np.float32),
                                      "bias": np.full(1, 50, np.float32)}}}
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 1)).astype(np.uint8)
    found = activations.statistics(spec, variables, [
        {"image": image, "range": np.tile(np.float32([0, 255]), (2, 1, 1)),
         "weight": np.ones(2, np.float32)} for image in images])
    assert found["logits"]["sd"] == pytest.approx(0.01 * images.std() / 255, rel=1e-3)


def test_statistics_equal_numpy_and_find_the_dead_channel():
    spec = make_spec([tiny_config()])
    variables = noise(spec.module({}), np.zeros((1, 32, 32, 4), np.float32), train=False)
    variables["params"]["down_0"]["conv"]["kernel"][..., 1] = 0
    rng = np.random.default_rng(0)
    batches = [{"image": rng.integers(0, 256, (4, 32, 32, 4), np.uint8),
                "range": np.tile(np.float32([0, 255]), (4, 4, 1)),
                "weight": np.float32(weight)} for weight in ([1, 1, 1, 1], [1, 0, 0, 0])]
    found = activations.statistics(spec, variables, batches)
    image = np.concatenate([batches[0]["image"], batches[1]["image"][:1]]).astype(np.float32) / 255
    expected = jax.jit(lambda v: activations.activations(spec.module({}), v, image))(variables)
    assert list(found) == ["down_0/conv", "down_0/norm", "down_0", "bottom/conv", "bottom/norm",
                           "bottom", "up_0", "logits"]
    for name, values in expected.items():
        values = np.asarray(values, np.float64)
        assert found[name]["mean"] == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
        assert found[name]["sd"] == pytest.approx(values.std(), rel=1e-3)
        assert found[name]["zeros"] == np.mean(values == 0)
        dead = 1 if name.startswith("down_0") else 0
        assert (found[name]["channels"], found[name]["constant_channels"]) == (
            values.shape[-1], dead)


@pytest.mark.slow
def test_analysis_draws_filters_and_maps_of_the_images_it_names(run, tmp_path):
    config, folder = run
    findings = filters.analyse(folder, config, tmp_path, images=1)
    assert [file for file, _ in findings.figures] == [
        "filters_down_0.conv.png", "filters_output.png", "activations_input_0.png",
        "activations_output_0.png"]
    for file, _ in findings.figures:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "filters.csv").open()))
    assert [row["module"] for row in rows][:3] == ["down_0/conv", "down_0/norm", "down_0"]
    assert "output of down_0," in findings.figures[2][1]
    assert "over the 4 images" in findings.text[0]


@pytest.mark.slow
def test_an_empty_split_is_refused(run, tmp_path):
    config, folder = run
    with pytest.raises(InputError, match="--split: got test, which has no images"):
        filters.analyse(folder, changed(config, {"data.split": (0.8, 0.2, 0.0)}), tmp_path)


def test_maps_near_the_output_are_so_with_more_outputs_than_channels():
    """Stars have 33 outputs, and most networks fewer channels near them."""
    shapes = {"down_0": (16, 32), "bottom": (8, 64), "up_0/gate": (16, 1), "up_0": (16, 16),
              "out": (16, 33), "logits": (16, 33)}
    found = {name: np.zeros((1, side, side, k)) for name, (side, k) in shapes.items()}
    assert filters._places("down_0", found) == {"input": "down_0", "output": "up_0"}
    narrow = {name: found[name] for name in ("out", "logits")}
    assert filters._places("out", narrow)["output"] == "out"


def test_the_picture_of_stars_shows_their_probability(monkeypatch):
    """Not the longest of the rays, which are no probabilities."""
    maps = np.zeros((1, 8, 8, 5), np.float32)
    maps[..., 0], maps[..., 3] = np.linspace(0, 1, 8), 40
    predictor = SimpleNamespace(network=lambda image, range_: maps, config=tiny_config(),
                                target=TARGETS["star"])
    arrays = SimpleNamespace(image=np.zeros((1, 8, 8, 1), np.uint8),
                             label=np.zeros((1, 8, 8), np.int32),
                             range=lambda name: np.zeros((1, 1, 2)))
    drawn = filters.Drawn(predictor, arrays, [(0, 0.5)], [])
    fig = filters._activation_figure(drawn, 0, 0.5, "up_0", {"up_0": maps})
    assert fig.axes[1].get_title() == "probability"
    np.testing.assert_array_equal(fig.axes[1].images[0].get_array(), maps[0, ..., 0])


@pytest.mark.weekly
def test_analysis_of_a_transformer_draws_attention(tmp_path):
    config = changed(tiny_config(train__steps=2), {
        "model.name": "unetr", **{f"model.{k}": v for k, v in UNETR.items()}})
    train.train([config], [tmp_path / "run"])
    findings = filters.analyse(tmp_path / "run", config, tmp_path, images=2)
    files = [file for file, _ in findings.figures]
    assert {"filters_patch.png", "attention.png", "attention_distance.png"} <= set(files)
    rows = list(csv.DictReader((tmp_path / "attention.csv").open()))
    assert [(row["layer"], row["head"]) for row in rows] == [("block_0", str(h)) for h in range(4)]
    # of 2x2 patches: 16 pixels to two neighbours, 22.6 to the other, 0 to itself
    assert all(float(row["uniform"]) == pytest.approx((32 + 512**0.5) / 4) for row in rows)
    assert "Attention reaches" in findings.text[1]
