"""How far layers moved: against Numpy, and against runs that did not move at all."""

import csv

import jax
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import train
from cellseg_jax.analysis import distances
from cellseg_jax.inference.predictor import Predictor


def params_of(folder, config):
    return Predictor(folder, config).network.variables["params"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(config, folder) of a run that never moved and of one that did."""
    folder = tmp_path_factory.mktemp("weights")
    out = {}
    for name, lr in (("still", 1e-50), ("moved", 5e-3)):  # the first is 0 in float32
        config = tiny_config(optimizer__lr=lr, train__steps=2, seed=3, data__cache=str(folder))
        train.train([config], [folder / name])
        out[name] = config, folder / name
    return out


def assert_equal(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(other))


def test_initial_params_equal_those_of_step_0_bit_for_bit(runs):
    config, folder = runs["still"]
    assert_equal(distances.initial_params(config, folder), params_of(folder, config))
    moved = params_of(runs["moved"][1], runs["moved"][0])
    assert not np.array_equal(moved["up_0"]["kernel"],
                              distances.initial_params(config, folder)["up_0"]["kernel"])


def test_initial_params_are_those_that_the_run_was_given(runs):
    config, folder = runs["moved"]
    other = tiny_config(train__weights=str(folder), data__cache=config.data.cache)
    assert_equal(distances.initial_params(other, folder), params_of(folder, config))


def test_distances_equal_numpy():
    rng = np.random.default_rng(0)
    before = {n: rng.normal(size=s).astype(np.float32)
              for n, s in (("a", (3, 3, 2, 5)), ("b", (7, 4)))}
    after = {n: x + rng.normal(size=x.shape).astype(np.float32) for n, x in before.items()}
    before["zero"], after["zero"] = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    found = distances.distances(before, after)
    for name in ("a", "b"):
        pairs = zip(before[name].ravel().tolist(), after[name].ravel().tolist(), strict=True)
        l2 = sum((y - x) ** 2 for x, y in pairs) ** 0.5
        norm = sum(x**2 for x in before[name].ravel().tolist()) ** 0.5
        assert found[name] == pytest.approx((l2, l2 / norm), abs=1e-6)
    assert found["zero"][0] == 2 and np.isnan(found["zero"][1])


def test_analysis_lists_layers_in_order_and_names_those_that_moved_most(runs, tmp_path):
    config, folder = runs["moved"]
    findings = distances.analyse(folder, config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "weights.csv").open()))
    assert [row["layer"] for row in rows] == ["down_0/conv", "bottom/conv", "up_0"]
    after = np.asarray(params_of(folder, config)["bottom"]["conv"]["kernel"])
    before = distances.initial_params(config, folder)["bottom"]["conv"]["kernel"]
    assert float(rows[1]["l2_distance"]) == pytest.approx(np.linalg.norm(after - before), abs=1e-6)
    assert float(rows[1]["sd_after"]) == pytest.approx(np.std(after), abs=1e-6)
    most = max(rows, key=lambda row: float(row["relative_distance"]))["layer"]
    assert f"moved most: {most}" in findings.text[0]
    for file, _ in findings.figures:
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_text_speaks_of_layers_that_shrank_and_of_zeros():
    config = tiny_config()
    row = {"weights": 8, "l2_distance": 1.0, "relative_distance": 0.5, "zeros": 0.0}
    rows = [{**row, "layer": "kept", "norm_ratio": 1.0},
            {**row, "layer": "shrunk", "norm_ratio": 0.2, "zeros": 0.5}]
    text = " ".join(distances._text(config, rows, step=7))
    assert "1 of 2 layers moved by shrinking: shrunk to 0.2" in text
    assert "Exactly 0 are 4 of 16 weights; the largest share is in shrunk" in text
