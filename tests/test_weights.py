"""Weights to start from: another run's, or a file of a published network."""

import jax
import numpy as np
import pytest
from helpers import tiny_config
from test_interop import CASES, golden

from cellseg_jax import config, derived, interop, recipe, step, train, weights
from cellseg_jax.errors import InputError
from cellseg_jax.predictor import Predictor


def wanted(complete):
    """Shapes of the fresh weights of a config."""
    shared = recipe.make_recipe([complete])
    shape = (*derived.input_size(complete), derived.channels(complete))
    state = jax.eval_shape(lambda v: step.init_state(shared, v, shape),
                           recipe.traced_values(complete, 1, shared))
    return {"params": state.params, "batch_stats": state.batch_stats}


@pytest.mark.slow
def test_a_run_starts_from_another_runs_best_weights(tmp_path):
    first = tiny_config(train__epochs=1, optimizer__ema=0.5)
    train.train([first], [tmp_path / "first"])
    second = tiny_config(train__weights=str(tmp_path / "first"), optimizer__lr=1e-30, seed=7,
                         optimizer__weight_decay=0.0, train__epochs=1)
    train.train([second], [tmp_path / "second"])
    before, after = (Predictor(tmp_path / name, c).variables["params"]
                     for name, c in (("first", first), ("second", second)))
    assert before.keys() == after.keys()
    for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(one, other)  # the averaged ones: what the run is scored by


def test_weights_of_a_file_and_what_does_not_fit(tmp_path):
    state, image, _ = golden("milesial")
    np.savez(tmp_path / "weights.npz", **state)
    source, name, options = CASES["milesial"]
    complete = config.default()
    complete.data = dict(name="synthetic", size=(32, 32))
    complete.model = dict(name=name, **options)
    complete.train.weights = str(tmp_path / "weights.npz")
    complete = config.complete(complete)
    expected = interop.from_torch(source, state, **options)
    found = weights.read(complete, expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"train.weights: params/.* has shape .* in this run"):
        weights.read(complete, wanted(complete))  # one output, where the file has two
    with pytest.raises(InputError, match="train.weights: names such as .* becomes unet; .*monai"):
        weights.read(tiny_config(train__weights=str(tmp_path / "weights.npz")), expected)
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere.npz", "config.train.weights: no file or folder"),
                          ("empty", "empty.*config.json|no run")):
        with pytest.raises(InputError, match=message):
            weights.read(tiny_config(train__weights=str(tmp_path / path)), expected)
