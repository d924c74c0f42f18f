"""Masked copies in one program beside one by one, and what is said of their scores."""

import csv
import types

import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import evaluate, feed, metrics, population, recipe, sparsity, step, train
from cellseg_jax.analysis import pruning, pruning_findings, weights
from cellseg_jax.errors import InputError
from cellseg_jax.predictor import make_predictor


@pytest.fixture(scope="module")
def untrained():
    """What the analysis asks of a Predictor, with the weights of step 0, of a tiny network."""
    config = tiny_config(data__count=16, data__split=(0.5, 0.0, 0.5), data__grid=2,
                         data__size=(64, 64))
    shared, mesh = recipe.make_recipe([config]), feed.all_devices()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    values = recipe.traced_values(config, 1, shared)
    state = population.init_program(shared, (32, 32, 4), everywhere)(values)
    return types.SimpleNamespace(
        config=config, recipe=shared, mesh=mesh,
        variables={"params": state.params, "batch_stats": state.batch_stats},
        values={k: v for k, v in state.values.items() if k.startswith("loss.")},
        eval_step=step.map_eval(shared, mesh, config.eval.threshold))


def one_by_one(predictor, part, one, layers, method, amount, seeds):
    """The counts of a series, each from masked variables of its own."""
    config, paths = predictor.config, [layer.kernel for layer in layers]
    flat = traverse_util.flatten_dict(jax.device_get(predictor.variables["params"]))
    kernels = {path: flat[path] for path in paths}
    chosen = paths if one.layer == "all" else [
        layer.kernel for layer in layers if layer.name in one.layer.split(" + ")]
    levels, found = len(one.sparsity), np.zeros((4, *one.counts.tp.shape))
    for m, seed in enumerate(seeds):
        ranks = sparsity.ranks(kernels if "grouped" not in method else
                               {path: kernels[path] for path in chosen}, method, seed)
        units = sparsity.units({path: kernels[path] for path in chosen}, method)
        for level in range(levels):
            masked = dict(flat)
            for path in chosen:
                gone = [0, *sparsity.counts(units[path], amount, levels - 1)][level]
                masked[path] = flat[path] * (ranks[path] >= gone)
            scores = evaluate.measure(
                predictor.eval_step, predictor.values,
                {**predictor.variables, "params": traverse_util.unflatten_dict(masked)},
                part.batches(), cells=config.data.grid**2)
            found[:, level, m] = scores.main(config)
    return metrics.Counts(*found)


def assert_one_pass_is_the_loop(predictor, split, prune, iterations, masks, copies):
    config = predictor.config
    layers = pruning._layers(config, "conv")
    part = pruning._part(config, predictor, split)
    pruner = pruning.Pruner(predictor, layers, part)
    targets = pruning._targets(
        pruning._experiments(prune, [layer.name for layer in layers]), layers, config, predictor)
    series = pruner.series(targets, 0.25, iterations, range(masks))
    assert pruner.program[1] == copies
    for one in series:
        method = one.experiment.partition(":")[0]
        slow = one_by_one(predictor, part, one, layers, method, 0.25,
                          range(one.zeros.shape[1]))
        for score in (metrics.dice, metrics.iou, metrics.precision, metrics.recall):
            np.testing.assert_allclose(score(one.counts), score(slow), atol=1e-6)
    return series


def test_masked_copies_in_one_program_equal_one_by_one(untrained, monkeypatch):
    """As on a GPU, where 8 copies need thrice the memory there is, and 2 are faster than one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    room = iter([0.3, 1.2])
    monkeypatch.setattr(pruning, "_room", lambda program: next(room))
    monkeypatch.setattr(pruning, "_seconds", lambda once: 1.0)
    series = assert_one_pass_is_the_loop(
        untrained, "test", "random_filters:each,l1_grouped:all", 2, 2, copies=2)
    assert len({float(one.dice().mean()) for one in series}) > 2  # pruning is seen
    for one in series:
        assert (one.zeros[0] == 0).all() and (np.diff(one.zeros, axis=0) >= 0).all()


@pytest.mark.slow
def test_a_map_of_19_layers_in_one_pass_equals_one_by_one(tmp_path):
    config = classic_config()
    train.train([config], [tmp_path / "run"])
    predictor = make_predictor(tmp_path / "run", config)
    series = assert_one_pass_is_the_loop(predictor, "test", "random_layers:each", 10, 3, copies=1)
    assert len(series) == 19 and series[0].counts.tp.shape[:2] == (11, 3)


def classic_config(**overrides):
    config = tiny_config(data__count=24, data__split=(0.5, 0.2, 0.3), train__epochs=3, **overrides)
    return config_lib.changed(config, {"model.name": "unet_classic",
                                       "model.channels": (4, 4, 8, 8, 8)})


@pytest.mark.slow
def test_a_whole_analysis_with_training_after_pruning(tmp_path):
    config = tiny_config(train__epochs=3)
    train.train([config], [tmp_path / "run"])
    folder = tmp_path / "pruning"
    folder.mkdir()
    found = pruning.analyse(
        tmp_path / "run", config, folder, iterations=2, masks=2, finetune_epochs=1,
        prune="l1_layers:all,random_filters:all,random_layers:each")
    for name, _ in (*found.figures, *found.tables):
        assert (folder / name).stat().st_size > 500
    with open(folder / "pruning.csv") as file:
        rows = list(csv.DictReader(file))
    layers = [layer for layer in weights.layers_of(config) if layer.kind == "conv"]
    total = sum(np.prod(layer.shape) for layer in layers)
    whole = [r for r in rows if r["experiment"] == "l1_layers:all" and r["class"] == "all"]
    assert [r["sparsity"] for r in whole] == ["0.0000", "0.2500", "0.4375"]
    assert [int(r["zeros"]) for r in whole] == [0, *(
        sum(sparsity.counts(int(np.prod(layer.shape)), 0.25, 2)[i] for layer in layers)
        for i in range(2))]
    assert {r["weights"] for r in whole} == {str(total)}
    measured = evaluate.evaluate(config, tmp_path / "run")["metrics"]
    for name in pruning_findings.SCORES:
        assert float(whole[0][name]) == pytest.approx(measured[f"{name}_mean"], abs=1e-6)
    # Runs that are trained on keep their zeros, and begin with the masks of the analysis.
    for experiment in ("l1_layers:all", "random_filters:all"):
        before, after = ([int(r["zeros"]) for r in rows if r["experiment"] == name
                          and r["class"] == "all" and r["mask"] == "0"]
                         for name in (experiment, f"{experiment}, then 1 epoch"))
        # Pruned at once or twice, a layer's count of weights may round to one more or less.
        np.testing.assert_allclose(
            after, before, atol=len(layers) if experiment.startswith("l1") else 0)
    assert any(", then 1 epoch" in text for text in found.text)


def counts_of_losses(lost):
    """(1 level, 1 mask, n, 1) Dice losses as _suffering and _claim take them: (n, 1)."""
    return np.asarray(lost, float)[:, None]


def test_a_claim_is_judged_by_its_interval():
    strata = np.repeat(["Adenocarcinoma", "High-grade IN", "Polyp", "Normal"], 10)
    groups = np.array([f"case {n}" for n in range(40)])
    config = tiny_config()
    classes = {c.name: c for c in pruning_findings.classes_of(config, strata)}
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    for shift, verdict in ((0.2, "supported"), (-0.2, "contradicted"), (0.0, "undecided")):
        lost = counts_of_losses(0.3 + noise + shift * (np.arange(40) < 20))
        said = pruning_findings._claim(lost, classes, groups)
        assert f"suffer first: {verdict}; at this level" in said
        assert "mean of Normal, Polyp." in said
        assert verdict not in pruning_findings._claim(lost, classes, groups, first=False)
    few = np.where(np.arange(40) < 20, "one case", groups)
    assert "undecided, too few cases" in pruning_findings._claim(lost, classes, few)
    assert pruning_findings._claim(lost, {"all": classes["all"]}, groups) == ""


def test_classes_are_told_apart_by_the_interval_of_their_difference():
    strata = np.repeat(["a", "b", "c"], 10)
    groups = np.array([f"case {n}" for n in range(20)] + ["case of all c"] * 10)
    noise = np.random.default_rng(1).normal(0, 0.01, 30)
    lost = counts_of_losses(noise + 0.1 * (strata == "b"))
    classes = pruning_findings.classes_of(tiny_config(), strata)[1:]
    said = pruning_findings._suffering(lost, classes, groups)
    assert said.startswith("Dice lost, most first: b 0.099 (0.09")
    assert "1 of 1 pairs (b more than a)" in said and "fewer than 3 cases: c" in said
    drawn = pruning_findings._drawn(lost, classes[0], groups)
    assert drawn.mean() == pytest.approx(noise[:10].mean(), abs=1e-3)
    assert drawn.std() == pytest.approx(noise[:10].std() / np.sqrt(10), rel=0.2)


def test_outputs_are_classes_too():
    config = config_lib.changed(tiny_config(), {
        "data.name": "folder", "data.labels": "classes", "data.target": "classes",
        "data.num_classes": 3, "data.root": "x"})
    found = pruning_findings.classes_of(config, np.array(["a", "a", "b"]))
    assert [c.name for c in found] == ["all", "a", "b", "output 1", "output 2"]
    scores = np.arange(6.0).reshape(3, 2)
    assert [float(pruning_findings._mean(scores, c)) for c in found] == [2.5, 1.5, 4.5, 2.0, 3.0]


@pytest.mark.parametrize("prune, message", [
    ("l1_layers", "HOW:LAYERS"), ("l2_layers:all", "did you mean l1_layers"),
    ("l1_layers:nowhere", "got 'nowhere'; expected one of all, each")])
def test_experiments_that_make_no_sense(prune, message):
    with pytest.raises(InputError, match=f"--prune: .*{message}"):
        pruning._experiments(prune, ["out"])


def test_options_that_make_no_sense(tmp_path):
    with pytest.raises(InputError, match="--kinds: got dense, but the layers of unet are conv"):
        pruning._layers(tiny_config(), "dense")
    with pytest.raises(InputError, match="--amount: got 1.5; expected a share"):
        pruning.analyse(tmp_path, tiny_config(), tmp_path, amount=1.5)
    with pytest.raises(InputError, match="--kinds: .*transposed with --finetune_epochs"):
        pruning.analyse(tmp_path, tiny_config(), tmp_path, kinds="transposed", finetune_epochs=1)


def test_map_sizes_of_a_network(untrained):
    layers = weights.layers_of(untrained.config)
    sizes = pruning._map_sizes(untrained, layers, (32, 32, 4))
    assert sizes.keys() == {layer.name for layer in layers}
    assert pruning_findings._ordered(sizes.values()) == [(32, 32), (16, 16)]
    assert sizes[layers[-1].name] == (32, 32)
