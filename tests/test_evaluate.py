"""Scores against a brute-force twin: every image once, padding left out, original size too."""

import csv
import json

import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import data, evaluate, feed, metrics, recipe, train
from cellseg_jax.metrics import report_compat


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run; images of 128x128 are seen at 32x32, 13 test images fill no batch of 8."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(train__epochs=6, data__split=(0.6, 0.08, 0.32), data__cache=str(folder))
    train.train([config], [folder / "run"])
    return config, folder / "run", evaluate.evaluate(config, folder / "run")


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
    predictor = evaluate.Predictor(folder, config)
    scores = []
    for i in indices:
        image = data.records_of(config.data)[i].read().image
        label = arrays.original_label(i)
        probs = predictor.image_probs(image)
        if where == "metrics":
            label = arrays.label[i]
            probs = predictor(arrays.image[i][None], arrays.range("minmax")[i][None])[0]
        assert probs.shape == (*label.shape, 1)
        scores.append(dice_and_iou(label > 0, probs[..., 0] > 0.5))
    dice, iou = np.mean(scores, 0)
    assert result[where]["dice_mean"] == pytest.approx(dice, abs=2e-4)
    assert result[where]["iou_mean"] == pytest.approx(iou, abs=2e-4)
    assert 0 < dice < 1


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
    mesh = feed.all_devices()
    chosen = np.arange(13)
    seen = []
    for batch in feed.eval_batches(config, arrays, chosen, mesh,
                                   feed.resident_source(config, arrays, mesh)):
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
        config.model.channels = ()
    with pytest.raises(Exception, match="config.model: unet cannot be built"):
        recipe.check_model(config)


KINDS = {
    "contour windows": dict(data__target="contour", data__fit="random_crop", data__contour_width=1,
                            data__image_size=(48, 40), data__oversample=0.3,
                            augment__rotation=(0.5, 20.0)),
    "boundary patches": dict(data__target="boundary", data__size=(64, 64), data__grid=2,
                             data__image_size=(64, 64), data__keep_blank=False),
    "copies mirrored": dict(data__copies=2, data__fit="pad", data__image_size=(32, 33),
                            data__size=(48, 40), data__balance=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
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
    predictor = evaluate.Predictor(tmp_path, config)
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
