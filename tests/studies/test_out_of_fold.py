"""Folds as repeats: their configs, their test, what is tuned on whom, labels and ensembles."""

import csv
import json
import math
import types

import numpy as np
import pytest
import tifffile
from scipy import stats as scipy_stats

from cellseg_jax import cli, data, metrics, studies, study
from cellseg_jax.data.scale import as_image
from cellseg_jax.errors import InputError
from cellseg_jax.inference import tune
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.studies import out_of_fold, stats
from cellseg_jax.studies.runs import split_ratio

FILE = """
from cellseg_jax.config import default
from cellseg_jax.studies import folds, rows

TITLE = "folds"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=40)
BASE.model = dict(name="simple_conv")
BASE.train.epochs = 3
BASE.train.batch_size = 4
BASE.eval.batch_size = 8
BASE.eval.panels = 0
ROWS = {"base": {}, "slow": {"optimizer.lr": 1e-3}}
REPEATS = folds(3, test=0.25, tune="ap50")
get_config = rows(BASE, ROWS)
"""


def load(tmp_path, text=FILE):
    path = tmp_path / "folded.py"
    path.write_text(text)
    return studies.load(path)


def test_a_repeat_is_a_fold(tmp_path):
    found = load(tmp_path)
    assert found.repeats == 3
    for repeat in range(4):
        config = studies.config_of(found, "slow", repeat)
        assert config.data.split == f"fold:{repeat}/3:test=0.25"
        assert (config.seed, config.data.split_seed, config.data.split_by) == (repeat, 0, "group")


def test_nnunets_folds_have_no_validation_and_draw_images(tmp_path):
    found = load(tmp_path, FILE.replace('folds(3, test=0.25, tune="ap50")',
                                        'folds(groups="image", nnunet=True)'))
    config = studies.config_of(found, "base", 4)
    assert (config.data.split, config.data.split_by) == ("fold:4/5:nnunet", "image")
    arrays = data.load(config.data)
    parts = data.split_of(config.data, arrays)
    assert {part: len(i) for part, i in parts.items()} == {"train": 32, "val": 0, "test": 8}


@pytest.mark.parametrize("old, new, what", [
    ("folds(3, ", "folds(1, ", "at least 2"),
    ("folds(3, ", "folds('3', ", "got '3' folds; expected a whole number"),
    ("test=0.25", "test='oficial'", "got test='oficial'; expected a share from 0 to below 1, or '"),
    ("test=0.25", "test=1.5", "test=1.5"),
    ("test=0.25", "groups='case'", "REPEATS: groups"),
    ("test=0.25", "nnunet=True", "nnU-Net draws images"),
    ('"ap50"', '"dice"', "REPEATS: tune"),
    ("get_config", 'VARIES = ("seed", "data.split_seed")\nget_config', "tested exactly once"),
    ('{"optimizer.lr": 1e-3}', '{"data.split_seed": 3}', "sets data.split_seed"),
    ('{"optimizer.lr": 1e-3}', '{"data.split": "official"}', "sets data.split"),
    ('name="synthetic", size=(32, 32), count=40', 'name="folder", labels="binary"',
     "labels of row base are binary"),
])
def test_rejects_folds_that_make_no_sense(tmp_path, old, new, what):
    with pytest.raises(InputError) as error:
        load(tmp_path, FILE.replace(old, new))
    assert what in str(error.value)


# --- the test of folds ----------------------------------------------------------------------------


def folded_twins(rng, tables, rows, count, *, image_sd, training_sd, run_sd):
    """(tables, rows, count) scores of one method under many names, fold by fold.

    A name has its own luck with each image (image_sd), with each fold that it trains on
    (training_sd: networks of two folds share all but two of them) and with each run.
    """
    images = rng.normal(0, image_sd, (tables, rows, count, 20)).mean(-1)
    pieces = rng.normal(0, training_sd, (tables, rows, count))
    trained = (pieces.sum(-1, keepdims=True) - pieces) / (count - 1)
    return images + trained + rng.normal(0, run_sd, (tables, rows, count))


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.weekly)])
@pytest.mark.parametrize("image_sd, training_sd, run_sd", [
    (0.05, 0.0, 0.005), (0.05, 0.01, 0.005), (0.02, 0.004, 0.0), (0.0, 0.0, 0.01)])
def test_twins_in_folds_seldom_differ(tables, image_sd, training_sd, run_sd):
    rng, count = np.random.default_rng(11), 5
    names = [f"{i:03d}" for i in range(100)]
    splits = [{"test": names[20 * k : 20 * k + 20],
               "train": names[: 20 * k] + names[20 * k + 20 :]} for k in range(count)]
    ratio = split_ratio(splits, [1.0] * count)
    assert ratio == 0.25
    scores = folded_twins(rng, tables, 2, count, image_sd=image_sd, training_sd=training_sd,
                          run_sd=run_sd)
    d = scores[:, 0] - scores[:, 1]
    t = d.mean(-1) / (d.std(-1, ddof=1) * math.sqrt(1 / count + ratio))
    p = 2 * scipy_stats.t.sf(np.abs(t), count - 1)
    assert stats.paired(*scores[0], test_train_ratio=ratio).p == pytest.approx(p[0])
    assert np.mean(p < 0.05) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables


def test_folds_that_share_training_images_need_the_correction():
    """Equally correlated folds, as the correction assumes: 5 % with it, more than 12 % without."""
    rng, count, rho = np.random.default_rng(12), 5, 0.2
    shared = rng.normal(0, math.sqrt(rho), (20000, 1))
    d = shared + rng.normal(0, math.sqrt(1 - rho), (20000, count))
    share = lambda ratio: np.mean(2 * scipy_stats.t.sf(np.abs(
        d.mean(-1) / (d.std(-1, ddof=1) * math.sqrt(1 / count + ratio))), count - 1) < 0.05)
    assert share(0.0) > 0.12 and 0.045 < share(1 / (count - 1)) < 0.055


# --- tuned out of fold ----------------------------------------------------------------------------


class Thresholds:
    """A predictor whose probabilities are decoded by a threshold alone."""

    def __init__(self):
        self.config = types.SimpleNamespace(
            data={"target": "flow"}, eval={"threshold": 0.5, "flow_error": 0.4, "min_size": 0})
        self.config.data = types.SimpleNamespace(target="flow")

    def decode(self, probs, **options):
        return (probs[..., 0] > options["threshold"]).astype(np.int32)


def test_options_of_a_fold_are_found_without_its_images(monkeypatch):
    """Fold k alone wants another threshold: its images do not get it, those of others may."""
    monkeypatch.setattr(tune.derived, "decode_keys",
                        lambda config: ("threshold", "flow_error", "min_size"))
    label = np.zeros((8, 8), np.int32)
    label[2:6, 2:6] = 1
    best = {0: 0.25, 1: 0.65, 2: 0.65}  # between two of tune.CHOICES: only one cuts as the truth
    ring = np.zeros((8, 8), bool)
    ring[1:7, 1:7] = True
    kept, truth = [], []
    for fold, threshold in best.items():
        for _ in range(2):
            probs = np.where(label > 0, threshold + 0.1, np.where(ring, threshold - 0.02, 0.0))
            kept.append((fold, len(truth), probs[..., None].astype(np.float32)))
            truth.append(label)
    images = types.SimpleNamespace(arrays=types.SimpleNamespace(
        original_label=lambda i: truth[i]))
    found = out_of_fold._tuned("ap75", Thresholds(), images, kept)
    one, *others = [options["threshold"] for options in found["options_of_folds"]]
    assert one == 0.7 and all(other in (0.3, 0.7) for other in others)
    # The lone fold is scored with what the others found: its images lose, nobody's truth is read.
    assert found["scores"]["ap75"] < 1
    alone = [one for one in kept if one[0] != 0]
    assert out_of_fold._tuned("ap75", Thresholds(), images, alone)["scores"]["ap75"] == 1


def test_images_of_every_fold_are_tuned_on_where_few_fit_memory(tmp_path, monkeypatch):
    found, kept = load(tmp_path), []
    members = [types.SimpleNamespace(config=studies.config_of(found, "base", k), workdir=tmp_path)
               for k in range(3)]
    count = metrics.pixel_counts(*2 * [np.ones((1, 2, 2, 1))])
    score = out_of_fold.ImageScore(count, None)
    for name, function in {
            "check_same_data": lambda *_: None, "_write": lambda *_: None,
            "_predicted": lambda member, images, part: [(i, None, None, score) for i in part],
            "_tuned": lambda metric, member, images, chosen: kept.append(chosen),
            "_outer": lambda *_: None}.items():
        monkeypatch.setattr(out_of_fold, name, function)
    size = int(np.prod(data.load(members[0].config.data).original_sizes[0][:2]))
    for pixels, images_of_fold in ((30 * size, 10), (6 * size, 2), (1, 1)):
        monkeypatch.setattr(tune, "MAX_PIXELS", pixels)
        out_of_fold._combined(found, tmp_path, members)
        assert [fold for fold, *_ in kept[-1]] == [
            fold for fold in range(3) for _ in range(images_of_fold)]


# --- a whole study --------------------------------------------------------------------------------


@pytest.mark.weekly
def test_a_study_of_folds(tmp_path, capsys):
    path, out = tmp_path / "folded.py", tmp_path / "out"
    path.write_text(FILE)
    arguments = ["study", f"--study={path}", f"--workdir={out}"]
    assert cli.run_command(study.main, study.define_flags, arguments) == 0
    found = studies.load(path)
    config = studies.config_of(found, "base", 0)
    arrays, source = data.load(config.data), data.records_of(config.data)
    outer = {arrays.image_names[i] for i in data.outer_test_images(config.data, arrays)}
    members = [Predictor(out / "base" / str(k), studies.config_of(found, "base", k))
               for k in range(3)]

    with open(out / "out_of_fold/base/images.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(outer) == 10 and {row["name"] for row in rows} == {*arrays.image_names} - outer
    assert len(rows) == 30  # each image once, by the fold that tests it
    for row in rows[::7]:
        split = json.loads((out / "base" / row["fold"] / "split.json").read_text())
        assert row["name"] in split["test"]
        image = as_image(source[arrays.image_names.index(row["name"])])
        member = members[int(row["fold"])]
        label = tifffile.imread(out / f"out_of_fold/base/predictions/{row['name']}_label.tif")
        assert (label == member.decode(member.image_probs(image))).all()
    name = sorted(outer)[0]
    image = as_image(source[arrays.image_names.index(name)])
    mean = np.mean([member.image_probs(image) for member in members], 0)
    scores = json.loads((out / "out_of_fold/base/scores.json").read_text())
    label = tifffile.imread(out / f"out_of_fold/base/ensemble/{name}_label.tif")
    assert (label == members[0].decode(mean, **scores["tuned"]["options"])).all()
    assert scores["n_images"] == 30 and scores["outer"]["n_images"] == 10
    mean = np.mean([float(row["dice_mean"]) for row in rows])
    assert scores["scores"]["dice_mean"] == pytest.approx(mean)

    text = (out / "ensembles.md").read_text()
    assert text.count("| base | ensemble of 3 |") == text.count("| slow | ensemble of 3 |") == 1
    assert "their ensemble" in capsys.readouterr().out
    before = (out / "out_of_fold/base/scores.json").stat().st_mtime_ns
    assert cli.run_command(study.main, study.define_flags, [*arguments, "--collect"]) == 0
    assert (out / "out_of_fold/base/scores.json").stat().st_mtime_ns == before


def test_scores_of_some_of_the_images_say_of_how_many_they_are():
    """Where probabilities of all images do not fit memory, tuning sees a part of them."""
    found = {"n_images": 90, "scores": {"ap50": 0.5}, "tuned": {
        "metric": "ap50", "n_images": 30, "scores_before": {"ap50": 0.4}, "scores": {"ap50": 0.6}}}
    assert "; ap50 of 30 of them 0.4000, with" in out_of_fold._sentence("unet", found, "ap50")
    found["tuned"]["n_images"] = 90
    assert "; ap50 0.4000, with" in out_of_fold._sentence("unet", found, "ap50")


def test_rows_without_instances_share_a_table_with_those_that_have_them(tmp_path):
    scores = {"dice_mean": 0.9, "iou_mean": 0.8}
    combined = {"cells": {"folds": 3, "n_images": 9, "scores": scores | {"ap50": 0.7}},
                "mask": {"folds": 3, "n_images": 9, "scores": scores}}
    for row in combined:
        (tmp_path / "out_of_fold" / row).mkdir(parents=True)
        (tmp_path / "out_of_fold" / row / "images.csv").write_text(
            "name,group,dice_mean\n" + "".join(f"{n},{n},0.{n}\n" for n in range(9)))
    for baseline, names in (("cells", ("cells", "mask")), ("mask", ("mask", "cells"))):
        found = types.SimpleNamespace(metrics=("ap50",), baseline=baseline)
        notes = out_of_fold.write_table(found, tmp_path, {name: combined[name] for name in names})
        assert all("dice_mean of all 9 images" in note for note in notes)
        head, _, *lines = (tmp_path / "ensembles.md").read_text().splitlines()
        assert "| dice_mean | iou_mean | ap50 |" in head
        assert [line.count(" - |") for line in lines] == [1 + (name == "mask") - (
            name != baseline) for name in names]
