"""Masked copies in one program beside one by one, and what is said of their scores."""

import csv
import pathlib
import types

import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics, train
from cellseg_jax.analysis import pruner as pruner_lib
from cellseg_jax.analysis import (
    pruning,
    pruning_figures,
    pruning_pictures,
    pruning_series,
    pruning_text,
)
from cellseg_jax.errors import InputError
from cellseg_jax.inference import evaluate, measure
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.pruning import counts as counts_
from cellseg_jax.pruning import ranks as ranks_
from cellseg_jax.pruning import units as units_
from cellseg_jax.step.eval_step import map_eval
from cellseg_jax.step.mesh import all_devices
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.train import slot_states
from cellseg_jax.train.initial_weights import layers_of


@pytest.fixture(scope="module")
def untrained():
    """The parts of a Predictor that the analysis uses, of a tiny network at step 0."""
    config = tiny_config(data__count=16, data__split=(0.5, 0.0, 0.5), data__grid=2,
                         data__size=(64, 64))
    spec, mesh = make_spec([config]), all_devices()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    values = traced_values(config, spec)
    state = slot_states.init_program(spec, (32, 32, 4), everywhere)(values)
    network = types.SimpleNamespace(
        spec=spec, mesh=mesh,
        variables={"params": state.params, "batch_stats": state.batch_stats},
        values={k: v for k, v in state.values.items() if k.startswith("loss.")},
        eval_step=map_eval(spec, mesh, config.eval.threshold))
    return types.SimpleNamespace(config=config, network=network)


def one_by_one(predictor, part, one, layers, method, amount, seeds):
    """The counts of a series, each from masked variables of its own."""
    config, paths = predictor.config, [layer.kernel for layer in layers]
    flat = traverse_util.flatten_dict(jax.device_get(predictor.network.variables["params"]))
    kernels = {path: flat[path] for path in paths}
    chosen = paths if one.layer == "all" else [
        layer.kernel for layer in layers if layer.name in one.layer.split(" + ")]
    levels, found = len(one.zeros), np.zeros((4, *one.counts.tp.shape))
    for m, seed in enumerate(seeds):
        ranks = ranks_(kernels if "grouped" not in method else
                               {path: kernels[path] for path in chosen}, method, seed)
        units = units_({path: kernels[path] for path in chosen}, method)
        for level in range(levels):
            masked = dict(flat)
            for path in chosen:
                gone = [0, *counts_(units[path], amount, levels - 1)][level]
                masked[path] = flat[path] * (ranks[path] >= gone)
            scores = measure.measure(
                predictor.network.eval_step, predictor.network.values,
                {**predictor.network.variables, "params": traverse_util.unflatten_dict(masked)},
                part.batches(), cells=config.data.grid**2)
            found[:, level, m] = scores.main(config)
    return metrics.Counts(*found)


def assert_one_pass_is_the_loop(predictor, split, prune, iterations, masks, copies):
    config = predictor.config
    layers = pruning.chosen_layers(config, "conv")
    part = pruning.split_images(config, predictor, split)
    pruner = pruner_lib.Pruner(predictor, layers, part)
    targets = pruning.targets_of(
        pruning.parse_experiments(prune, [layer.name for layer in layers]), layers, config,
        predictor)
    series = pruner.series(targets, 0.25, iterations, range(masks))
    assert pruner.program[1] == copies
    for one in series:
        method = one.experiment.partition(":")[0]
        slow = one_by_one(predictor, part, one, layers, method, 0.25,
                          range(one.zeros.shape[1]))
        for score in (metrics.dice, metrics.iou, metrics.precision, metrics.recall):
            np.testing.assert_allclose(score(one.counts), score(slow), atol=1e-6)
    return series


@pytest.mark.slow
def test_masked_copies_in_one_program_equal_one_by_one(untrained, monkeypatch):
    """As on a GPU, where 4 copies need twice the memory there is, and 2 are faster than one."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    room, compiled = iter([0.5, 1.2]), []
    monkeypatch.setattr(pruner_lib, "_room", lambda program: next(room))
    monkeypatch.setattr(pruner_lib, "map_pruned", lambda *args, make=pruner_lib.map_pruned: (
        compiled.append(args[-1]), make(*args))[1])
    monkeypatch.setattr(pruner_lib, "_seconds", lambda once: 1.0)
    series = assert_one_pass_is_the_loop(
        untrained, "test", "random_filters:each,l1_grouped:all", 2, 2, copies=2)
    assert compiled == [1, 4, 2]  # 4 at most share their ranks; what is single goes alone
    assert len({float(one.dice().mean()) for one in series}) > 2  # pruning is seen
    for one in series:
        assert (one.zeros[0] == 0).all() and (np.diff(one.zeros, axis=0) >= 0).all()


@pytest.mark.parametrize("prune", [
    "l1_layers:all", *(pytest.param(name, marks=pytest.mark.slow)
                       for name in ("l1_grouped:all", "random_filters:each"))])
def test_pictures_are_of_the_network_that_is_scored(untrained, tmp_path, prune):
    """Predicted again with the pruned weights, each drawn image has the Dice of its series."""
    layers = pruning.chosen_layers(untrained.config, "conv")
    pruner = pruner_lib.Pruner(untrained, layers,
                               pruning.split_images(untrained.config, untrained, "test"))
    targets = pruning.targets_of(
        pruning.parse_experiments(prune, [layer.name for layer in layers]), layers,
        untrained.config, untrained)
    series = pruner.series(targets, 0.4, 3, [5])
    target, one, images = targets[-1], series[-1], [3, 0]
    for level in range(4):
        variables = pruner.variables_at(target, 0.4, level, 5)
        assert sum((x == 0).sum() for x in pruner.kernels_of(variables["params"]).values()) == (
            one.zeros[level, 0])
        for n, probs in zip(images, pruning_pictures.probs_of(pruner, variables, images),
                            strict=True):
            _, label = pruning_pictures._as_seen(pruner.part, n)
            assert probs.shape == (64, 64, 1) and label.shape == (64, 64)
            found, true = probs[..., 0] > 0.5, label > 0
            dice = 2 * (found & true).sum() / max(found.sum() + true.sum(), 1)
            assert one.dice()[level, 0, n, 0] == pytest.approx(dice, abs=1e-6)
    untrained.decode = lambda probs: (probs[..., 0] > 0.5).astype(np.int32)
    drawn = pruning_pictures.draw(tmp_path, pruner, target, one, 0.4, 5)
    assert all((tmp_path / name).stat().st_size > 2000 for name, _ in drawn) and len(drawn) == 2


@pytest.mark.slow
def test_a_map_of_19_layers_in_one_pass_equals_one_by_one(tmp_path):
    config = classic_config()
    train.train([config], [tmp_path / "run"])
    predictor = Predictor(tmp_path / "run", config)
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
    layers = [layer for layer in layers_of(config) if layer.kind == "conv"]
    total = sum(np.prod(layer.shape) for layer in layers)
    whole = [r for r in rows if r["experiment"] == "l1_layers:all" and r["class"] == "all"]
    assert [r["level"] for r in whole] == ["0", "1", "2"]
    assert [r["sparsity"] for r in whole] == [f"{int(r['zeros']) / total:.4f}" for r in whole]
    assert [int(r["zeros"]) for r in whole] == [0, *(
        sum(counts_(int(np.prod(layer.shape)), 0.25, 2)[i] for layer in layers)
        for i in range(2))]
    assert {r["weights"] for r in whole} == {str(total)}
    measured = evaluate.evaluate(config, tmp_path / "run")["metrics"]
    for name in pruning_series.SCORES:
        assert float(whole[0][name]) == pytest.approx(measured[f"{name}_mean"], abs=1e-6)
    # Runs that are trained on keep their zeros, and begin with the masks of the analysis.
    for experiment in ("l1_layers:all", "random_filters:all"):
        before, after = ([int(r["zeros"]) for r in rows if r["experiment"] == name
                          and r["class"] == "all" and r["mask"] == "0"]
                         for name in (experiment, f"{experiment}, then 1 epoch"))
        assert after == before
    assert any(", then 1 epoch" in text for text in found.text)


def test_patches_that_training_leaves_out_are_scored_with_their_image(untrained):
    config = config_lib.changed(untrained.config, {"data.keep_blank": False, "data.grid": 4,
                                                   "data.size": (128, 128)})
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)["train"]
    images = sorted({int(row) // 16 for row in rows})
    assert len(rows) < 16 * len(images)  # some are blank
    part = pruning.split_images(config, untrained, "train")
    assert part.images.tolist() == images
    assert sum(batch["weight"].sum() for batch in part.batches()) == 16 * len(images)
    assert evaluate.images_of(config, arrays, "train").tolist() == images


def test_training_after_pruning_is_not_taken_from_another_checkpoint(untrained, monkeypatch):
    """Nor from another length: each has a folder, and the masks of the analysis."""
    asked = []
    monkeypatch.setattr(train, "train", lambda configs, folders: asked.extend(
        zip(configs, folders, strict=True)) or [types.SimpleNamespace(status="interrupted")])
    series = [made_up("l1_filters:all", "all", [[[0.8]], [[0.7]], [[0.6]]], [0, 30, 50])]
    for step_, epochs in ((10, 1), (20, 1), (20, 2)):
        pruner = types.SimpleNamespace(predictor=types.SimpleNamespace(step=step_))
        assert pruning.finetuned(untrained.config, "run", pathlib.Path("run/analysis/at"), pruner,
                                  series, pruning.Options(finetune_epochs=epochs)) is None
    assert len({folder for _, folder in asked}) == len(asked) == 6
    assert [str(folder) for _, folder in asked[:2]] == [
        f"run/analysis/finetune/step10_epochs1/l1_filters_0.25_{level}" for level in (1, 2)]
    for number, (config, _) in enumerate(asked):
        assert config.train.prune == 0.25 and config.train.prune_how == "l1_filters"
        assert config.train.prune_iterations == 1 + number % 2


# --- what is said --------------------------------------------------------------------------------


def made_up(experiment, layer, dice, zeros, weights=100):
    """A Series of (levels, masks, n) Dice scores and (levels,) zeros, as large in every mask."""
    dice = np.asarray(dice, float)[..., None]
    counts = metrics.Counts(dice, 1 - dice, 1 - dice, 0 * dice)
    zeros = np.repeat(np.array(zeros)[:, None], dice.shape[1], 1)
    return pruning_series.Series(experiment, layer, zeros, weights, counts)


def of_classes(a, b):
    """(8,) scores of images whose first four are of class a, the others of class b."""
    return [a] * 4 + [b] * 4


STRATA, GROUPS = np.repeat(["a", "b"], 4), np.array([f"case {n}" for n in range(8)])
RANDOM = made_up("random_layers:all", "all", [
    [of_classes(0.8, 0.8)] * 2, [of_classes(0.6, 0.7), of_classes(0.4, 0.7)]], [0, 30])


def test_rows_of_classes_of_known_scores():
    """Images of a class are equal here, so their interval is that of the masks alone."""
    classes = pruning_series.classes_of(tiny_config(), STRATA)
    rows = pruning_series.class_rows([RANDOM], classes, GROUPS)
    found = {(r["class"], r["level"]): [r[key] for key in (
        "dice", "dice_low", "dice_high", "drop", "drop_low", "drop_high")] for r in rows}
    np.testing.assert_allclose(found["a", 1], [0.5, 0.4, 0.6, 0.3, 0.2, 0.4], atol=1e-9)
    np.testing.assert_allclose(found["b", 1], [0.7, 0.7, 0.7, 0.1, 0.1, 0.1], atol=1e-9)
    np.testing.assert_allclose(found["all", 0], [0.8] * 3 + [0] * 3, atol=1e-9)
    assert {(r["level"], r["sparsity"]) for r in rows} == {(0, "0.0000"), (1, "0.3000")}


def test_intervals_of_few_cases_run_from_mask_to_mask():
    everything = pruning_series.classes_of(tiny_config(), STRATA)[0]
    found = pruning_series.intervals(RANDOM.dice(), everything, np.repeat(["x", "y"], 4))
    np.testing.assert_allclose(found, [[0.8, 0.8], [0.55, 0.65]], atol=1e-9)


def test_words_of_known_scores():
    classes = pruning_series.classes_of(tiny_config(), STRATA)
    tuned = made_up("random_layers:all, then 3 epochs", "all",
                    [[of_classes(0.8, 0.8)], [of_classes(0.75, 0.75)]], [0, 30])
    summary, first, after, *_ = pruning_text.sentences(
        [RANDOM, tuned], classes, GROUPS, {}, pruning.Options(masks=2), "one masked copy per call")
    assert summary == ("The network needs all of its weights: each pruning that was tried costs "
                       "more than 0.01 of Dice. Mean Dice is 0.800 without pruning, and at the "
                       "last level: random_layers:all 0.600 at sparsity 0.300, "
                       "random_layers:all, then 3 epochs 0.750 at sparsity 0.300.")
    kept = made_up("l1_layers:all", "all", [[of_classes(0.8, 0.8)], [of_classes(0.795, 0.795)]],
                   [0, 30])
    assert pruning_text.sentences([RANDOM, kept], classes, GROUPS, {}, pruning.Options(masks=2),
                                  "")[0].startswith(
        "The network does without 30% of these weights: so many can be set to 0 (l1_layers:all)")
    assert first.startswith("random_layers:all at sparsity 0.300 (at the last level; the mean never"
                            " falls by half): mean Dice 0.600, from 0.800 without pruning.")
    assert "most first: a 0.300 (0.200 to 0.400), b 0.100 (0.100 to 0.100)." in first
    assert "1 of 1 pairs (a more than b)" in first
    assert after.startswith("random_layers:all, then 3 epochs of training, mean Dice of mask 0 "
                            "before and after it: 0.650 and 0.750 at 0.300.")


def test_one_small_layer_does_not_speak_for_the_network():
    """Nearly all of its weights may be free where none of the network's are."""
    everything = pruning_series.classes_of(tiny_config(), STRATA)[0]
    series = lambda name, layer, first, zeros, weights: made_up(
        name, layer, [[[first] * 8], [[first - 0.005] * 8]], [0, zeros], weights)
    top = series("random_layers:top1", "out", 0.8, 19, 20)
    assert pruning_text._spare([RANDOM, top], everything) == (
        "The network does without 95% of the weights of out: so many can be set to 0 "
        "(random_layers:top1) for less than 0.01 of Dice. ")
    whole = series("l1_layers:all", "all", 0.8, 25, 100)
    assert "does without 25% of these weights" in pruning_text._spare([top, whole], everything)
    blind = series("l1_layers:all", "all", 0.005, 25, 100)
    assert "finds next to nothing" in pruning_text._spare([blind], everything)


def test_weights_that_were_0_before_are_told():
    kernels = np.array([0.0, 1, 2]), np.array([[0.0, 3]])
    said, = pruning_text.zeros_before(kernels)
    assert said.startswith("40% of the weights that were pruned here, 2 of 5, were 0 before")
    assert pruning_text.zeros_before(kernels[0][1:][None]) == []


def one_by_one_series():
    layer = lambda name, first, second, zeros: made_up(
        "random_filters:each", name, [[[0.8] * 8] * 2, [[0.8 - first] * 8, [0.8 - second] * 8]],
        [0, zeros])
    return [layer("wide", 0.4, 0.2, 25), layer("wider", 0.1, 0.1, 50),
            layer("deep", 0.05, 0.05, 50), layer("out", 0.0, 0.0, 0)]


SIZES = {"wide": (32, 32), "wider": (32, 32), "deep": (16, 16), "out": (32, 32)}


def test_summary_names_the_layers_that_are_needed_most_and_least():
    everything = pruning_series.classes_of(tiny_config(), STRATA)[0]
    said = pruning_text._summary(one_by_one_series(), everything, 0.8)
    assert ("One layer alone (random_filters:each): wide is needed most (Dice lost 0.300), deep "
            "least (0.050).") in said


def test_words_of_layers_of_known_scores():
    everything = pruning_series.classes_of(tiny_config(), STRATA)[0]
    said = pruning_text._layer_sentences(
        "random_filters:each", one_by_one_series(), everything, SIZES, GROUPS)
    assert said.startswith(
        "random_filters:each: at sparsity 0.25–0.50 of one layer alone, most Dice is lost with "
        "wide (0.300), wider (0.100), deep (0.050), least with deep (0.050), wider (0.100), "
        "wide (0.300). Too small to be pruned: out. A low-level layer")
    assert "costs 0.200 on average" in said and "the deepest) 0.050;" in said
    assert said.endswith("difference +0.150 (0.100 to 0.200).")
    idle = one_by_one_series()[3:]
    assert pruning_text._layer_sentences("x:each", idle, everything, SIZES, GROUPS) == (
        "x:each: Too small to be pruned: out.")


def test_pictures_leave_out_layers_that_lost_nothing(tmp_path):
    classes = pruning_series.classes_of(tiny_config(), STRATA)
    layers = one_by_one_series()
    ax = pruning_figures._map_figure(layers, classes[0]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["not pruned", "0.30", "0.10", "0.05"]
    assert np.ma.getmaskarray(ax.images[0].get_array())[:, 0].tolist() == [False] * 3 + [True]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1\n0.25–0.50"]
    lines = pruning_figures._experiments_figure(layers, GROUPS, classes[0]).axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), [0, (0.25 + 0.5 + 0.5) / 3])
    np.testing.assert_allclose(lines[0].get_ydata(), [0.8, 0.8 - 0.15], atol=1e-9)
    shown = pruning_figures.draw(tmp_path, layers[3:], classes, GROUPS, SIZES)
    assert [name for name, _ in shown] == [
        "experiments.png", "classes.png", "sensitivity_random_filters.png"]


def counts_of_losses(lost):
    """(n,) Dice losses of one mask as _class_sentences and _report_2_claim take them: (1, n, 1)."""
    return np.asarray(lost, float)[None, :, None]


def test_a_claim_is_judged_by_its_interval():
    strata = np.repeat(["Adenocarcinoma", "High-grade IN", "Polyp", "Normal"], 10)
    groups = np.array([f"case {n}" for n in range(40)])
    config = tiny_config()
    classes = {c.name: c for c in pruning_series.classes_of(config, strata)}
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    for shift, verdict in ((0.2, "supported"), (-0.2, "contradicted"), (0.0, "undecided")):
        lost = counts_of_losses(0.3 + noise + shift * (np.arange(40) < 20))
        said = pruning_text._report_2_claim(lost, classes, groups)
        assert f"lose most first: {verdict}; at this level" in said
        assert "mean of Normal, Polyp." in said
        assert verdict not in pruning_text._report_2_claim(lost, classes, groups, first=False)
    few = np.where(np.arange(40) < 20, "one case", groups)
    assert "undecided, too few cases" in pruning_text._report_2_claim(lost, classes, few)
    assert pruning_text._report_2_claim(lost, {"all": classes["all"]}, groups) == ""


def test_classes_are_told_apart_by_the_interval_of_their_difference():
    strata = np.repeat(["a", "b", "c"], 10)
    groups = np.array([f"case {n}" for n in range(20)] + ["case of all c"] * 10)
    noise = np.random.default_rng(1).normal(0, 0.01, 30)
    lost = counts_of_losses(noise + 0.1 * (strata == "b"))
    classes = pruning_series.classes_of(tiny_config(), strata)[1:]
    said = pruning_text._class_sentences(lost, classes, groups)
    assert said.startswith("Dice lost, most first: b 0.099 (0.09")
    assert "1 of 1 pairs (b more than a)" in said and "fewer than 3 cases: c" in said
    drawn = pruning_series.bootstrap_means(lost, classes[0], groups)
    assert drawn.mean() == pytest.approx(noise[:10].mean(), abs=1e-3)
    assert drawn.std() == pytest.approx(noise[:10].std() / np.sqrt(10), rel=0.2)


def test_outputs_are_classes_too():
    config = config_lib.changed(tiny_config(), {
        "data.name": "folder", "data.labels": "classes", "data.target": "classes",
        "data.num_classes": 3, "data.root": "x"})
    found = pruning_series.classes_of(config, np.array(["a", "a", "b"]))
    assert [c.name for c in found] == ["all", "a", "b", "output 1", "output 2"]
    scores = np.arange(6.0).reshape(3, 2)
    assert [float(pruning_series.mean_over(scores, c)) for c in found] == [2.5, 1.5, 4.5, 2.0, 3.0]


@pytest.mark.parametrize("prune, message", [
    ("l1_layers", "HOW:LAYERS"), ("l2_layers:all", "did you mean l1_layers"),
    ("l1_layers:nowhere", "got 'nowhere'; expected one of all, each")])
def test_experiments_that_make_no_sense(prune, message):
    with pytest.raises(InputError, match=f"--prune: .*{message}"):
        pruning.parse_experiments(prune, ["out"])


def test_options_that_make_no_sense(tmp_path):
    with pytest.raises(InputError, match="--kinds: got dense, but the layers of unet are conv"):
        pruning.chosen_layers(tiny_config(), "dense")
    with pytest.raises(InputError, match="--amount: got 1.5; expected a share"):
        pruning.analyse(tmp_path, tiny_config(), tmp_path, amount=1.5)
    with pytest.raises(InputError, match="--kinds: .*transposed with --finetune_epochs"):
        pruning.analyse(tmp_path, tiny_config(), tmp_path, kinds="transposed", finetune_epochs=1)


def test_map_sizes_of_a_network(untrained):
    layers = layers_of(untrained.config)
    sizes = pruning.map_sizes(untrained, layers, (32, 32, 4))
    assert sizes.keys() == {layer.name for layer in layers}
    assert pruning_series.largest_first(sizes.values()) == [(32, 32), (16, 16)]
    assert sizes[layers[-1].name] == (32, 32)
