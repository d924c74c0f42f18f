"""Scores against a brute-force twin: every image once, padding left out, original size too."""

import csv
import json
import types
from unittest import mock

import numpy as np
import pytest
from helpers import ROOT, tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics, train
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError
from cellseg_jax.inference import (
    evaluate,
    measure,
    original_size,
    pictures,
    score_definitions,
)
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.metrics import report_compat
from cellseg_jax.runs import page
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.mesh import all_devices
from cellseg_jax.step.programs import check_model
from cellseg_jax.targets import TARGETS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run; images of 128x128 are seen at 32x32, 13 test images fill no batch of 8."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(train__epochs=6, data__split=(0.6, 0.08, 0.32), data__cache=str(folder))
    train.train([config], [folder / "run"])
    return config, folder / "run", evaluate.evaluate(config, folder / "run")


def test_time_per_image_leaves_out_the_first_batch(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 10.4, 20.0, 20.8, 30.0, 30.4])  # 9 s with compilation
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timed = measure.TimedStep(lambda values, variables, batch: {"loss": batch["image"]})
    for _ in range(4):
        assert timed(None, None, {"image": np.ones((8, 2, 2, 1))})["loss"].shape == (8, 2, 2, 1)
    assert timed.ms_per_row() == pytest.approx(400 / 8)


def test_time_per_image_is_below_the_time_of_everything(run):
    result = run[2]
    assert 0 < result["ms_per_image"] < 1e3 * result["seconds"] / result["n_images"]


def dice_and_iou(truth, pred):
    tp, fp, fn = ((truth & pred).sum(), (~truth & pred).sum(), (truth & ~pred).sum())
    union = tp + fp + fn
    return (2 * tp / (2 * tp + fp + fn), tp / union) if union else (1.0, 1.0)


@pytest.mark.parametrize("where", ["metrics", "metrics_original_size"])
def test_scores_equal_a_loop_over_single_images(run, where):
    config, folder, result = run
    arrays = data.load(config.data)
    indices = data.split_of(config.data, arrays)["test"]
    assert len(indices) == result["n_images"] and len(indices) % 8
    predictor = Predictor(folder, config)
    scores = []
    for i in indices:
        image = data.records_of(config.data)[i].read().image
        label = arrays.original_label(i)
        probs = predictor.image_probs(image)
        if where == "metrics":
            label = arrays.label[i]
            probs = predictor.network(arrays.image[i][None], arrays.range("minmax")[i][None])[0]
        assert probs.shape == (*label.shape, 1)
        scores.append(dice_and_iou(label > 0, probs[..., 0] > 0.5))
    dice, iou = np.mean(scores, 0)
    assert result[where]["dice_mean"] == pytest.approx(dice, abs=2e-4)
    assert result[where]["iou_mean"] == pytest.approx(iou, abs=2e-4)
    assert 0 < dice < 1


def test_soft_scores_and_macros_equal_a_loop_over_single_images(run):
    config, folder, result = run
    arrays, predictor = data.load(config.data), Predictor(folder, config)
    soft = []
    for i in data.split_of(config.data, arrays)["test"]:
        probs = predictor.network(arrays.image[i][None], arrays.range("minmax")[i][None])[0, ..., 0]
        true = arrays.label[i] > 0
        both, either = probs[true].sum(), probs.sum() + true.sum()
        soft.append(((2 * both + 1) / (either + 1), (both + 1) / (either - both + 1)))
    scores, small = np.mean(soft, 0), result["metrics"]
    assert small["soft_dice_mean"] == pytest.approx(scores[0], abs=2e-4)
    assert small["soft_jaccard_mean"] == pytest.approx(scores[1], abs=2e-4)
    strata = result["per_stratum"].values()
    assert len(strata) > 1
    for name in ("dice", "precision", "soft_dice"):
        mean = np.mean([one[f"{name}_mean"] for one in strata])
        assert small[f"{name}_macro"] == pytest.approx(mean, abs=1e-12)
    assert set(small) - {"loss", "ece"} >= {f"{name}_macro" for name in (
        "dice", "iou", "precision", "recall", "accuracy", "soft_dice", "soft_jaccard")}
    assert set(small) <= set(result["definitions"])


def test_table_and_json_agree(run):
    config, folder, result = run
    lines = (folder / "eval/test_images.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert len(rows) == result["n_images"]
    for column, where, name in (("dice", "metrics", "dice_mean"), ("loss", "metrics", "loss"),
                                ("iou_original", "metrics_original_size", "iou_mean")):
        mean = np.mean([float(row[column]) for row in rows])
        assert mean == pytest.approx(result[where][name], abs=1e-9)
    tp = sum(float(r["ap50"]) * (int(r["n_true"]) + int(r["n_pred"])) / (1 + float(r["ap50"]))
             for r in rows)
    total = sum(int(r["n_true"]) + int(r["n_pred"]) for r in rows)
    assert result["metrics_original_size"]["ap50"] == pytest.approx(tp / (total - tp))
    assert json.loads((folder / "eval/test.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("residence", ["device", "host"])
def test_every_image_is_measured_once_and_padding_never(run, residence):
    config, _, result = run
    arrays = data.load(config.data)
    config = tiny_config(data__residence=residence, data__cache=config.data.cache)
    mesh = all_devices()
    chosen = np.arange(13)
    seen = []
    for batch in eval_batches(config, arrays, chosen, mesh,
                                   resident_source(config, arrays, mesh)):
        used = np.asarray(batch["weight"]) > 0
        seen += list(np.asarray(batch["image"])[used])
    assert len(seen) == 13
    np.testing.assert_array_equal(np.stack(seen), arrays.image[:13])


def test_stored_scores_are_only_used_for_the_same_checkpoint_data_and_options(run):
    config, folder, result = run
    assert evaluate.read_scores(folder, "test", config) == json.loads(json.dumps(result))
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.eval.decode = "components"
    assert evaluate.read_scores(folder, "test", other) is None
    assert evaluate.read_scores(folder, "val", config) is None


def test_model_that_cannot_be_built_is_one_line():
    config = tiny_config()
    with config.unlocked():
        config.model.channels = ("a", "b")
    with pytest.raises(Exception, match="config.model: unet cannot be built"):
        check_model(config)


KINDS = {
    "contour windows": dict(data__target="contour", data__fit="random_crop", data__contour_width=1,
                            data__image_size=(48, 40), data__oversample=0.3,
                            augment__rotation=(0.5, 20.0)),
    "boundary patches": dict(data__target="boundary", data__size=(64, 64), data__grid=2,
                             data__image_size=(64, 64), data__keep_blank=False),
    "scaled crops": dict(data__fit="random_crop", data__diameter=9.0, data__oversample=0.5),
    "scaled patches": dict(data__fit="center_crop", data__diameter=14.0, data__size=(24, 24),
                           data__grid=2),
    "scaled pads": dict(data__fit="pad", data__diameter=9.0, data__size=(48, 48),
                        data__image_size=(40, 44)),
    "copies mirrored": dict(data__copies=2, data__fit="pad", data__image_size=(32, 33),
                            data__size=(48, 40), data__balance=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[pytest.mark.weekly] if "scaled p" in kind else []) for kind in KINDS])
def test_every_kind_of_sample_trains_is_scored_and_predicts(kind, tmp_path):
    config = tiny_config(**KINDS[kind])
    assert train.train([config], [tmp_path])[0].status == "done"
    assert (tmp_path / "augmented.png").stat().st_size > 1000
    scores = evaluate.evaluate(config, tmp_path)
    arrays = data.load(config.data)
    assert scores["n_images"] == 4
    assert {"dice_mean", "seg", "ap50"} <= set(scores["metrics_original_size"])
    images = [row["name"] for row in csv.DictReader(open(tmp_path / "eval/test_images.csv"))]
    assert set(images) <= set(arrays.image_names) and len(images) == 4
    predictor = Predictor(tmp_path, config)
    index = arrays.image_names.index(images[0])
    probs = predictor.image_probs(data.records_of(config.data)[index].read().image)
    assert probs.shape[:2] == tuple(arrays.original_sizes[index])
    again = predictor.counts(arrays.original_label(index), probs)
    row = next(csv.DictReader(open(tmp_path / "eval/test_images.csv")))
    assert np.asarray(metrics.dice(again)).item() == pytest.approx(float(row["dice_original"]))


def test_report_2s_mistakes_stand_beside_the_right_scores(run):
    config, folder, result = run
    assert "report2" not in result and 0 <= result["metrics"]["ece"] <= 1
    config = config_lib.override(config, [("eval.report_compat", "true")])
    faulty = evaluate.evaluate(config, folder)
    assert faulty["metrics"] == result["metrics"]
    assert set(faulty["report2"]) == set(report_compat.REPORT2_DEFINITIONS)
    assert "WRONG" in faulty["definitions"]["report2_precision"]
    evaluate.evaluate(config_lib.override(config, [("eval.report_compat", "false")]), folder)


def test_intervals_errors_and_calibration_fit_the_scores(run):
    _, folder, result = run
    for where in ("metrics", "metrics_original_size"):
        intervals = result[where.replace("metrics", "intervals")]
        assert set(intervals) == {k for k, v in result[where].items()
                                  if v is not None and not k.endswith("_coco")}
        for name, (low, high) in intervals.items():
            assert low <= high
            if name != "ece":  # a mean of absolute values: draws can all lie above it
                assert low - 1e-9 <= result[where][name] <= high + 1e-9, name
    rows = list(csv.DictReader(open(folder / "eval/test_images.csv")))
    for kind, count in result["errors"].items():
        assert count == sum(int(row[kind]) for row in rows)
    true = [kind for kind in result["errors"] if kind not in ("spurious", "fragments")]
    assert sum(result["errors"][k] for k in true) == sum(int(row["n_true"]) for row in rows) > 0
    bins = metrics.CalibrationCounts(*(np.array(result["calibration"][name]) for name in (
        "pixels", "probs", "true")))
    assert bins.pixels.shape == (1, 15) and bins.pixels.sum() == len(rows) * 32 * 32
    assert metrics.expected_calibration_error(bins) == pytest.approx(result["metrics"]["ece"])


@pytest.mark.slow
def test_the_six_tissue_classes_of_ebhi_seg_are_segmented(tmp_path):
    twins.write("ebhi_seg", tmp_path / "twin", count=5, size=(56, 56))
    config = config_lib.load(str(ROOT / "configs/ebhi_unet.py"), [
        ("data.root", str(tmp_path / "twin")), ("data.cache", str(tmp_path)),
        ("data.labels", "classes"), ("data.target", "classes"), ("data.num_classes", "7"),
        ("data.size", "(32, 32)"), ("data.split", "(0.5, 0.25, 0.25)"),
        ("model.channels", "(4, 8)"), ("train.steps", "40"), ("train.batch_size", "8"),
        ("eval.report_compat", "False")])
    run_folder = tmp_path / "run"
    assert train.train([config], [run_folder])[0].status == "done"
    result = evaluate.evaluate(config, run_folder)
    arrays, predictor = data.load(config.data), Predictor(run_folder, config)
    assert set(np.unique(arrays.label)) == set(range(7))
    counts = np.zeros((7, 3))  # tp, fp, fn
    for i in data.split_of(config.data, arrays)["test"]:
        probs = predictor.network(arrays.image[i][None], arrays.range("dtype")[i][None])[0]
        found, true = probs.argmax(-1), arrays.label[i]
        for k in range(7):
            counts[k] += [((found == k) & (true == k)).sum(), ((found == k) & (true != k)).sum(),
                          ((found != k) & (true == k)).sum()]
    for k, (tp, fp, fn) in enumerate(counts):
        dice = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0
        assert result["per_class"][str(k)]["dice_pooled"] == pytest.approx(dice, abs=2e-3)
    tissue = [result["per_class"][str(k)]["dice_pooled"] for k in range(1, 7)]
    assert result["metrics"]["dice_pooled"] == pytest.approx(np.mean(tissue))
    assert result["metrics"]["soft_dice_macro"] > 0 and "report2" not in result


OTHER = [("data.count", "9"), ("data.image_size", "(40, 48)")]


def test_other_data_are_scored_beside_the_runs_own(run):
    config, folder, _ = run
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    other = config_lib.override(config, OTHER)
    result = evaluate.evaluate(other, folder, split="all")
    assert {p: p.read_bytes() for p in before} == before
    name, arrays = result["name"], data.load(other.data)
    assert name == f"synthetic-{arrays.fingerprint[:8]}_all" and result["n_images"] == 9
    predictor, scores = Predictor(folder, config), []
    for i, record in enumerate(data.records_of(other.data)):
        probs = predictor.image_probs(record.read().image)
        scores.append(dice_and_iou(arrays.original_label(i) > 0, probs[..., 0] > 0.5)[0])
    assert result["metrics_original_size"]["dice_mean"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert evaluate.read_scores(folder, "all", other) == json.loads(json.dumps(result))
    trained = json.loads((folder / "split.json").read_text())
    trained = {*trained["train"], *trained["val"]}
    assert result["names_of_training_images"] == len(trained & set(arrays.image_names)) > 0
    path = page.write_run_page(folder, name)
    assert path.name == f"report_{name}.html" and "have the names of images" in path.read_text()
    assert len(list((folder / f"eval/{name}_predictions").glob("*.png"))) == 9


@pytest.mark.parametrize("overrides,split,words", [
    (OTHER + [("data.channels", "rgb")], "all", "data.channels was 'rgba', is 'rgb'; on other"),
    (OTHER + [("data.size", "(64, 64)")], "test", "data.size was"),
    ([("data.name", "folder"), ("data.num_classes", "3")], "test", "data.num_classes was 2, is 3"),
    (OTHER + [("model.channels", "(8, 8)")], "test", "model.channels was"),
    ([], "all", "expected train, val or test, or other data by --config.data.name=NAME and"),
    ([("data.split_seed", "1")], "test", "data.split_seed was 0, is 1"),
])
def test_what_would_change_the_network_or_leak_is_refused(run, overrides, split, words):
    config, folder, _ = run
    other = config_lib.override(config, overrides)
    fingerprint = "0" * 32 if other.data.name == "folder" else data.load(other.data).fingerprint
    with pytest.raises(InputError) as error:
        evaluate.result_name(folder, other, split, fingerprint)
    assert words in str(error.value)


@pytest.mark.slow
def test_surface_and_partition_scores_equal_their_functions(run):
    config, folder, result = run
    slow = config_lib.override(config, [("eval.surface", "2")])
    scores = evaluate.evaluate(slow, folder)["metrics_original_size"]
    assert {k: v for k, v in scores.items() if k in result["metrics_original_size"]} == (
        result["metrics_original_size"])
    predictor, arrays, found = Predictor(folder, config), data.load(config.data), []
    for i in data.split_of(config.data, arrays)["test"]:
        probs = predictor.image_probs(data.records_of(config.data)[i].read().image)
        label, pred = arrays.original_label(i), predictor.decode(probs)
        found.append((metrics.hausdorff95(label > 0, probs[..., 0] > 0.5),
                      metrics.surface_dice(label > 0, probs[..., 0] > 0.5, 2.0),
                      metrics.rand_error(label, pred)))
    mean = [np.mean([x for x in column if np.isfinite(x)]) for column in zip(*found, strict=True)]
    names = ("hausdorff95", "surface_dice", "rand_error")
    for name, value in zip(names, mean, strict=True):
        assert scores[name] == pytest.approx(value, rel=0.02)
    assert set(score_definitions.SURFACE_DEFINITIONS) <= set(scores)
    evaluate.evaluate(config, folder)


@pytest.mark.parametrize("target", ["foreground", "distance", "star", "flow", "signed"])
def test_all_scores_of_an_image_are_of_the_cells_that_are_found(monkeypatch, target):
    """Of a perfect network whose smallest object is left out."""
    config = config_lib.changed(config_lib.default(), {
        "data.name": "synthetic", "data.target": target, "eval.surface": 1.0, "eval.min_size": 30})
    y, x = np.mgrid[:128, :128]
    label = ((y - 60) ** 2 + (x - 64) ** 2 <= 45**2).astype(np.int32)
    drawn = np.where((y > 122) & (x > 122), 2, label)  # 25 pixels
    monkeypatch.setattr(original_size, "DecodingTable", mock.Mock())
    predictor = object.__new__(Predictor)
    predictor.config, predictor.target = config, TARGETS[target]
    predictor.network = types.SimpleNamespace(learned=False)
    arrays = types.SimpleNamespace(grid=1, label=label[None], original_label=lambda i: label)
    scores = original_size.OriginalSize(predictor, arrays, [0])
    scores.add(np.asarray(TARGETS[target].encode(drawn), np.float32))
    dice, surface = float(metrics.dice(scores.counts)[0, 0]), scores.surfaces[0]["surface_dice"]
    if target == "foreground":  # whose mask is that of all pixels above the threshold
        assert scores.surfaces[0]["hausdorff95"] == metrics.hausdorff95(label > 0, drawn > 0)
        return
    assert dice > 0.99 and surface > 0.99 and scores.surfaces[0]["hausdorff95"] <= 1


@pytest.mark.parametrize("foreground", ["cell", "membrane"])
def test_partition_scores_of_membranes_are_those_of_the_cells_between(foreground):
    membrane = np.zeros((20, 21), bool)
    membrane[:, 10] = membrane[8] = True
    thick = membrane.copy()
    thick[:, 9:12] = thick[7:10] = True  # drawn wider: nothing is lost once it is thinned
    hole = membrane.copy()
    hole[14, 10] = False  # merges two cells
    config = config_lib.default()
    config.data.update(labels="binary", foreground=foreground)
    config.eval.surface = 1.0
    scores = []
    for pred in (thick, hole):
        draw = (lambda m: m) if foreground == "membrane" else np.logical_not
        scores.append(original_size.surface_scores(
            draw(membrane).astype(np.int32), draw(pred), None, config))
    assert scores[0]["rand_error"] < 0.05 and scores[0]["surface_dice"] > 0.95
    assert scores[0]["variation_of_information"] < 0.1 and scores[0]["hausdorff95"] < 1.5
    assert scores[1]["rand_error"] > 0.1 and scores[1]["information_error"] > 0.1


@pytest.mark.parametrize("count,images,expected", [
    (12, 30, (4, 4, 4)), (12, 5, (3, 1, 1)), (12, 2, (2, 0, 0)), (2, 30, (2, 0, 0)),
    (0, 9, (0, 0, 0)), (4, 9, (2, 1, 1)), (12, 1, (1, 0, 0))])
def test_pictures_are_of_the_worst_the_median_and_the_best(count, images, expected):
    scores = np.random.default_rng(0).permutation(images)
    chosen = pictures.extremes(scores, count)
    of = lambda kind: sorted(scores[n] for n, k in chosen.items() if k == kind)
    assert tuple(map(len, map(of, ("worst", "median", "best")))) == expected
    assert of("worst") == list(range(expected[0]))
    assert of("best") == list(range(images - expected[2], images))
    if expected == (4, 4, 4):
        assert of("median") == [13, 14, 15, 16]
