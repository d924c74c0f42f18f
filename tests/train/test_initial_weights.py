"""Weights to start from: another run's, or a file of a published network."""


import jax
import numpy as np
import pytest
from flax import traverse_util
from golden.networks import CASES, golden
from helpers import assert_same_run, interrupt_at_batch, tiny_config

from cellseg_jax import config, interop, models, pruning, train
from cellseg_jax.analysis import distances as beginnings
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state
from cellseg_jax.train import initial_weights


def wanted(complete):
    """Shapes of the fresh weights of a config."""
    spec = make_spec([complete])
    shape = (*derived.input_size(complete), derived.channels(complete))
    state = jax.eval_shape(lambda v: init_state(spec, v, shape),
                           traced_values(complete, spec))
    return {"params": state.params, "batch_stats": state.batch_stats}


@pytest.mark.slow
def test_a_run_starts_from_another_runs_best_weights(tmp_path):
    first = tiny_config(train__epochs=1, optimizer__ema=0.5)
    train.train([first], [tmp_path / "first"])
    second = tiny_config(train__weights=str(tmp_path / "first"), optimizer__lr=1e-30, seed=7,
                         optimizer__weight_decay=0.0, train__epochs=1)
    train.train([second], [tmp_path / "second"])
    before, after = (Predictor(tmp_path / name, c).network.variables["params"]
                     for name, c in (("first", first), ("second", second)))
    assert before.keys() == after.keys()
    for one, other in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(one, other)  # the averaged ones: what the run is scored by


def test_another_row_of_a_study_is_the_run_of_the_same_repeat(tmp_path):
    of = lambda weights: str(initial_weights.weights_path(
        tiny_config(train__weights=weights), tmp_path / "augmented/3"))
    assert of("row:plain") == str(tmp_path / "plain/3")
    assert of(str(tmp_path / "file.pt")) == str(tmp_path / "file.pt")
    config = tiny_config(train__weights="row:plain")
    with pytest.raises(InputError, match=r"plain/3'; expected .* row:NAME .* which is run first"):
        initial_weights.read(config, wanted(config), tmp_path / "augmented/3")


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
    found = initial_weights.read(complete, expected, tmp_path)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"train.weights: params/.* has shape .* in this run"):
        # one output, where the file has two
        initial_weights.read(complete, wanted(complete), tmp_path)
    with pytest.raises(InputError, match="train.weights: names such as .* becomes unet; .*monai"):
        initial_weights.read(tiny_config(train__weights=str(tmp_path / "weights.npz")),
                             expected, tmp_path)
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere.npz", "config.train.weights: no file or folder"),
                          (".", "config.train.weights: no run in"),
                          ("empty", "empty.*config.json|no run")):
        with pytest.raises(InputError, match=message):
            initial_weights.read(tiny_config(train__weights=str(tmp_path / path)), expected,
                                 tmp_path)


def test_a_run_starts_pruned():
    plain = tiny_config(seed=3)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype),
                          wanted(plain)["params"])
    assert initial_weights.pruned(plain, params) is params
    for method in pruning.METHODS:
        complete = tiny_config(seed=3, train__prune=0.4375, train__prune_how=method)
        found = traverse_util.flatten_dict(initial_weights.pruned(complete, params))
        layers = models.kernel_layers(make_spec([complete]).module({}), (32, 32, 4))
        conv = [layer.kernel for layer in layers if layer.kind == "conv"]
        zeros = {path: int((found[path] == 0).sum()) for path in found}
        assert {path for path, count in zeros.items() if count} <= set(conv)
        for path, kernel in traverse_util.flatten_dict(params).items():
            kept = np.asarray(found[path]) != 0
            np.testing.assert_array_equal(np.asarray(found[path])[kept], kernel[kept])
            if path in conv and method.endswith("layers"):
                assert zeros[path] == round(0.4375 * kernel.size)
            if path in conv and method.endswith("filters"):
                assert (~kept).all((0, 1, 2)).sum() == round(0.4375 * kernel.shape[-1])
        if method.endswith("grouped"):
            assert sum(zeros.values()) == round(0.4375 * sum(found[path].size for path in conv))


@pytest.mark.parametrize("method", pruning.METHODS)
def test_a_run_starts_with_the_masks_of_pruning_again_and_again(method):
    """A layer of 1 or 2 filters loses none, where 94 % at once would take them all."""
    complete = tiny_config(seed=3, model__channels=(2, 5), train__prune=0.25,
                           train__prune_iterations=10, train__prune_how=method)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype),
                          wanted(complete)["params"])
    flat, found = map(traverse_util.flatten_dict,
                      (params, initial_weights.pruned(complete, params)))
    conv = [layer.kernel for layer in models.kernel_layers(
        make_spec([complete]).module({}), (32, 32, 4)) if layer.kind == "conv"]
    kernels = {path: flat[path] for path in conv}
    ranks, left = pruning.ranks(kernels, method, 3), pruning.units(kernels, method)
    gone = dict.fromkeys(conv, 0)
    for _ in range(10):
        for path in conv:
            taken = round(0.25 * left[path])
            gone[path], left[path] = gone[path] + taken, left[path] - taken
    for path in conv:
        np.testing.assert_array_equal(np.asarray(found[path]) != 0, ranks[path] >= gone[path])
        if method.endswith("filters") and kernels[path].shape[-1] <= 2:
            assert np.all(found[path])
    assert any(kernel.shape[-1] == 2 for kernel in kernels.values())


@pytest.mark.slow
def test_a_pruned_run_that_is_interrupted_goes_on_bit_for_bit_and_keeps_its_zeros(
        tmp_path, monkeypatch):
    complete = tiny_config(train__epochs=3, train__prune=0.25, train__prune_iterations=3,
                           train__prune_how="random_layers", optimizer__ema=0.9)
    train.train([complete], [tmp_path / "whole"])
    interrupt_at_batch(monkeypatch, 7)
    assert train.train([complete], [tmp_path / "cut"])[0].status == "interrupted"
    assert train.train([complete], [tmp_path / "cut"])[0].status == "done"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    params = Predictor(tmp_path / "cut", complete, "last").network.variables["params"]
    zeros, begun = (traverse_util.flatten_dict(jax.tree.map(lambda x: np.asarray(x) == 0, tree))
                    for tree in (params, beginnings.initial_params(complete, tmp_path / "cut")))
    pruned = 0
    for layer in initial_weights.layers_of(complete):
        if layer.kind == "conv":
            np.testing.assert_array_equal(zeros[layer.kernel], begun[layer.kernel])
            total = int(np.prod(layer.shape))
            assert zeros[layer.kernel].sum() == pruning.counts(total, 0.25, 3)[-1] > 0
            pruned += 1
    assert pruned == 2


def test_prune_options_that_make_no_sense():
    for options, message in (
            (dict(train__prune=1.0), "config.train.prune: got 1.0; expected a share"),
            (dict(train__prune=0.5, train__prune_how="l1"), "train.prune_how: .*l1_layers"),
            (dict(train__prune_how="l1_grouped"), "train.prune_how: .*without train.prune"),
            (dict(train__prune=0.5, train__prune_iterations=0), "prune_iterations: .*at least 1"),
            (dict(train__prune_iterations=3), "prune_iterations: .*without train.prune")):
        with pytest.raises(InputError, match=message):
            tiny_config(**options)
