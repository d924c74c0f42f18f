"""Gradients of layers against jax.grad of the loss written out image by image."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import data, train
from cellseg_jax.analysis import gradients
from cellseg_jax.config import complete
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.normalize import normalize
from cellseg_jax.runs.folder import GRADIENTS_LOG
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state
from cellseg_jax.train.initial_weights import layers_of

LAYERS = ["down_0/conv", "bottom/conv", "up_0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    config = tiny_config(train__steps=2, data__cache=str(folder))
    train.train([config], [folder / "run"])
    return config, folder / "run"


def written_out(predictor, arrays, chosen):
    """The gradient of the mean loss of the chosen images, one at a time."""
    def loss(params):
        total = 0.0
        for i in chosen:
            variables = {**predictor.network.variables, "params": params}
            logits = predictor.network.spec.logits(
                variables, jnp.asarray(arrays.image[i][None]),
                jnp.asarray(arrays.range("minmax")[i][None]))
            target = predictor.network.spec.encode(jnp.asarray(arrays.label[i][None]))
            total += predictor.network.spec.losses(
                logits, target, predictor.network.spec.hparams(predictor.network.values))[0]
        return total / len(chosen)

    return jax.jit(jax.grad(loss))(jax.device_get(predictor.network.variables["params"]))


@pytest.mark.slow
def test_mean_gradients_equal_the_loss_written_out(run):
    """Two batches, of 8 images and of 3 with padding."""
    config, folder = run
    predictor, arrays = Predictor(folder, config), data.load(config.data)
    chosen = np.arange(11)
    resident = resident_source(config, arrays, predictor.network.mesh)
    found = gradients.mean_gradients(predictor, layers_of(config), eval_batches(
        config, arrays, chosen, predictor.network.mesh, resident))
    grads = [written_out(predictor, arrays, part) for part in (chosen[:8], chosen[8:])]
    assert list(found) == LAYERS
    for layer in layers_of(config):
        node = [g[layer.kernel[0]] for g in grads]
        kernels = [n["conv"]["kernel"] if "conv" in n else n["kernel"] for n in node]
        expected = np.mean([np.abs(k).mean() for k in kernels])
        assert expected > 0
        assert found[layer.name] == pytest.approx(expected, rel=1e-4)  # float32 sums


def test_analysis_says_how_to_log_gradients_and_reads_those_that_are(run, tmp_path):
    config, folder = run
    findings = gradients.analyse(folder, config, tmp_path)
    assert "--config.train.log_gradients=True" in " ".join(findings.text)
    rows = list(csv.DictReader((tmp_path / "gradients.csv").open()))
    assert [(r["epoch"], r["layer"]) for r in rows] == [("end", name) for name in LAYERS]
    least = min(rows, key=lambda r: float(r["mean_abs_gradient"]))["layer"]
    assert findings.text[1].startswith(f"The smallest gradients are those of {least} (")
    layers = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert [row["layer"] for row in layers] == LAYERS

    lines = [{"step": 4 * e, "epoch": e, "gradients": {
        "down_0/conv": 10.0 ** -e, "bottom/conv": 0.0 if e == 2 else 0.1, "up_0": 1.0}}
        for e in (1, 2, 3)]
    (folder / GRADIENTS_LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    findings = gradients.analyse(folder, config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "gradients.csv").open()))
    assert len(rows) == 4 * len(LAYERS)
    logged = {(r["epoch"], r["layer"]): float(r["mean_abs_gradient"]) for r in rows}
    assert logged["3", "down_0/conv"] == 1e-3 and logged["2", "bottom/conv"] == 0
    text = " ".join(findings.text)
    assert "log_gradients" not in text
    assert "was 0.1 in epoch 1, 0.001 in epoch 3 and worst, 0, in epoch 2" in text
    assert [file for file, _ in findings.figures] == ["gradients_end.png",
                                                      "gradients_training.png"]
    for file, _ in findings.figures:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


# Measured on runs of the studies: (mean |dL/dw| / mean |w|, distance moved, norm after / before).
# A U-Net with Dice 0.79 on membranes, its smallest and largest gradients 1.3e-4 apart; and UNETR
# with Dice 0.86 on nuclei, whose last block weight decay had removed.
UNET = {
    "down_0": (2.5e-1, 0.18, 1.03), "down_1": (1.6e-1, 0.44, 1.08), "down_3": (3.2e-3, 0.92, 1.37),
    "bottom_1": (4.4e-4, 0.97, 1.40), "bottom_2": (2.6e-4, 1.24, 1.61), "up_3": (6e-4, 0.51, 1.11),
    "up_1": (1.3e-2, 0.33, 1.06), "up_0": (2.4e-2, 0.5, 1.18), "out": (3.8e-2, 1.1, 1.87)}
UNETR = {
    "patch": (4.4e-4, 4.05, 4.03), "block_0": (3.6e-4, 1.28, 0.99), "block_2": (3e-5, 0.99, 0.06),
    "block_3/qkv": (8e-7, 1.0, 1e-3), "block_3/contract": (3.4e-8, 1.0, 1e-3),
    "encoder_2": (3.8e-3, 0.78, 1.18), "encoder_3": (9e-4, 0.97, 1.2), "decoder": (5e-2, 0.93, 1.3),
    "out": (5.9e-2, 2.04, 2.78)}
# A deep network without norms: its first layers kept their initial weights.
LOST = {"first": (1e-9, 1e-4, 1.0), "second": (3e-8, 2e-4, 1.0), "third": (1e-6, 1e-3, 1.0),
        "fourth": (1e-4, 0.2, 1.0), "fifth": (1e-3, 0.4, 1.1), "out": (3e-2, 1.0, 1.2)}


def states(measured):
    return {name: gradients.LayerState(relative * 0.05, *(relative, *rest))
            for name, (relative, *rest) in measured.items()}


def test_a_good_networks_gradients_do_not_vanish():
    ratio = lambda found: min(r for r, *_ in found.values()) / max(r for r, *_ in found.values())
    assert ratio(UNET) < 2e-3 and not gradients.vanish(states(UNET))
    assert gradients.idle_layers(states(UNET)) == []
    said, = gradients._verdict(states(UNET), "adam")
    assert said.startswith("All layers learn") and "down_0, by 18%" in said


def test_layers_without_use_are_named_and_are_not_called_vanished():
    assert not gradients.vanish(states(UNETR))
    assert gradients.idle_layers(states(UNETR)) == ["block_3/qkv", "block_3/contract"]
    said, = gradients._verdict(states(UNETR), "adam")
    assert said.startswith("2 of 9 layers do nothing") and "weight decay has shrunk" in said


def test_layers_that_get_gradients_and_have_not_moved_are_not_called_learned():
    """As of a rate that is far too low: the same network, hardly moved."""
    slow = {name: (relative, 1e-3 * moved, 1.0) for name, (relative, moved, _) in UNET.items()}
    assert gradients.idle_layers(states(slow)) == [] and not gradients.vanish(states(slow))
    said, = gradients._verdict(states(slow), "adam")
    assert said.startswith("Gradients reach all layers, but 9 of 9 have not learned: down_0, ")
    one = UNET | {"down_1": (1.6e-1, 1e-3, 1.0)}
    said, = gradients._verdict(states(one), "adam")
    assert "1 of 9 have not learned: down_1 moved by less than 1%" in said


def test_gradients_that_are_lost_before_the_image_vanish():
    assert gradients.vanish(states(LOST))
    said, = gradients._verdict(states(LOST), "sgd")
    assert said.startswith("Gradients vanish on their way to the image: the layers near it (first)")
    moved = LOST | {"first": (1e-9, 0.5, 1.0)}  # it has learned, and is done
    assert not gradients.vanish(states(moved))


def test_layer_states_equal_hand_values():
    before = {"a": np.array([3.0, 4.0]), "b": np.zeros(2), "c": np.array([1.0, 1.0])}
    after = {"a": np.array([3.0, 0.0]), "b": np.ones(2), "c": np.zeros(2)}
    found = gradients.layer_states({"a": 0.3, "b": 0.5, "c": 0.0}, before, after)
    assert found["a"] == pytest.approx((0.3, 0.2, 0.8, 0.6))
    assert found["b"].learned and found["b"].relative == 0.5  # it began with zeros
    assert found["c"].relative == 0 and not found["c"].learned


def test_logged_layers_that_a_line_lacks_are_nan(tmp_path):
    assert gradients.read_logged(tmp_path, ["a"]) is None
    (tmp_path / GRADIENTS_LOG).write_text(
        '{"step": 1, "epoch": 1, "gradients": {"a": 0.5}}\n'
        '{"step": 2, "epoch": 2, "gradients": {"a": 0.25, "b": 1.0}}\n')
    epochs, values = gradients.read_logged(tmp_path, ["a", "b"])
    assert epochs == [1, 2]
    np.testing.assert_array_equal(values, [[0.5, 0.25], [np.nan, 1.0]])


@pytest.mark.slow
def test_gradients_that_training_logs_are_of_the_same_layers(tmp_path):
    config = tiny_config(train__log_gradients=True)
    train.train([config], [tmp_path / "run"])
    epochs, values = gradients.read_logged(tmp_path / "run", LAYERS)
    assert epochs == [1, 2] and values.shape == (3, 2) and (values > 0).all()
    gradients.analyse(tmp_path / "run", config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "gradients.csv").open()))
    logged = {(row["epoch"], row["layer"]): float(row["mean_abs_gradient"]) for row in rows}
    for n, layer in enumerate(LAYERS):
        assert logged["end", layer] > 0
        np.testing.assert_allclose([logged["1.0", layer], logged["2.0", layer]], values[n])


@pytest.mark.weekly
def test_coarse_logits_take_part_as_in_training():
    config = tiny_config().unlock()
    config.model = dict(
        name="unet_plan", features_per_stage=(2, 2, 3, 3), blocks_per_stage=(1, 1, 1, 1))
    config = complete(config)
    spec = make_spec([config])
    values = traced_values(config, spec)
    state = init_state(spec, values, (32, 32, 4))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 255, (2, 32, 32, 4), np.uint8),
             "label": rng.integers(0, 2, (2, 32, 32)).astype(np.int32),
             "range": np.tile(np.float32([0, 255]), (2, 4, 1)), "weight": np.ones(2, np.float32)}
    full = spec.hparams(values)
    loss, grads = jax.value_and_grad(gradients.evaluation_loss, 2)(
        spec, full, state.params, {}, batch)
    image = normalize(batch["image"], batch["range"], spec.dtype)
    logits, sown = spec.module({}).apply(
        {"params": state.params}, image, train=False, mutable=["intermediates"])
    target = spec.encode(batch["label"])
    small, = sown["intermediates"]["deep_supervision"]
    by_hand = (2 / 3 * spec.losses(logits, target, full)
               + 1 / 3 * spec.losses(small, target[:, 1::2, 1::2], full)).mean()
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
    assert all(np.abs(grads[name]["kernel"]).max() > 0 for name in ("out_0", "out_1"))
