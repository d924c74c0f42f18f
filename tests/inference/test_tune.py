"""Tuned decoding: on validation images alone, better or equal, kept, and refused when stale."""

import json
import shutil
import types

import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import cli, data, main, train
from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.inference import tune
from cellseg_jax.inference.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    config = tiny_config(train__epochs=8, optimizer__lr=1e-2, data__split=(0.5, 0.25, 0.25),
                         data__cache=str(folder))
    train.train([config], [folder / "run"])
    return config, folder / "run"


@pytest.mark.slow
def test_tunes_on_validation_images_alone_and_keeps_what_it_found(run, monkeypatch):
    config, folder = run
    arrays = data.load(config.data)
    split, seen = data.split_of(config.data, arrays), []
    labels = {arrays.original_label(i).tobytes(): part for part in split for i in split[part]}
    counts = tune.metrics.instance_counts
    monkeypatch.setattr(tune.metrics, "instance_counts", lambda label, pred: (
        seen.append(labels[label.tobytes()]), counts(label, pred))[1])
    predictor = Predictor(folder, config)
    tuning = tune.tune(predictor, "pq")
    assert set(seen) == {"val"} and tuning["n_images"] == len(split["val"]) == 10
    assert tuning["score"] >= tuning["score_before"] and tuning["score"] == max(
        score for _, score in tuning["tried"])
    sentence = tune.sentence(tuning)
    assert "validation images" in sentence and "eval.threshold=" in sentence

    predictor.config = tune.apply(config, tuning)  # the score is that of the options
    options = {k.removeprefix("eval."): v for k, v in tuning["options"].items()}
    assert {k: predictor.config.eval[k] for k in options} == options
    images = tune.validation_images(predictor)
    score = tune.Score(predictor, images, "pq", lambda done: None)
    assert score({}) == pytest.approx(tuning["score"])

    seen.clear()
    assert tune.tune(Predictor(folder, config), "pq") == tuning and not seen
    assert tune.read(folder, config, predictor.step) == tuning
    with pytest.raises(InputError, match="another checkpoint step"):
        tune.read(folder, config, predictor.step + 1)


@pytest.mark.slow
def test_a_run_is_scored_with_its_tuned_decoding(run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(run[1], folder)
    evaluate = ["main", "--mode=eval", f"--workdir={folder}", "--tuned"]
    (folder / "tuning.json").unlink(missing_ok=True)
    assert cli.run_command(main.main, main.define_flags, evaluate) == 2
    assert "has no tuning.json; make it with" in capsys.readouterr().err
    tuning = tune.tune(Predictor(folder, run[0]), "pq")
    assert cli.run_command(main.main, main.define_flags, evaluate) == 0
    assert "tuned for pq on 10 validation images" in capsys.readouterr().err
    options = json.loads((folder / "eval/test.json").read_text())["eval_options"]
    assert {f"eval.{key}": value for key, value in options.items()}.items() >= tuning[
        "options"].items()


@pytest.mark.slow
def test_what_the_user_fixed_stays(run):
    config, folder = run
    config = config_lib.override(config, [("eval.decode", "components"), ("eval.min_size", "3")])
    tuning = tune.tune(Predictor(folder, config), "seg", fixed=["eval.decode", "eval.min_size"])
    assert tuning["options"]["eval.decode"] == "components"
    assert tuning["options"]["eval.min_size"] == 3
    assert len({json.dumps(options) for options, _ in tuning["tried"]}) == len(tuning["tried"]) <= 9


def test_says_what_cannot_be_tuned(tmp_path):
    config = tiny_config()
    with pytest.raises(InputError, match="has no tuning.json; make it with"):
        tune.read(tmp_path, config, 0)
    with pytest.raises(InputError, match="--tune: got 'dice'; expected one of ap, ap50"):
        tune.tune(None, "dice")
    classes = tiny_config().copy_and_resolve_references()
    with classes.unlocked():
        classes.data.target = "classes"
    with pytest.raises(InputError, match="no instances to match"):
        tune.validation_images(types.SimpleNamespace(config=classes, workdir=tmp_path))


def test_choices_hold_the_defaults():
    for key, values in tune.CHOICES.items():
        assert tiny_config().eval[key] in values and len(np.unique(values)) == len(values)


@pytest.mark.parametrize("target", ["foreground", "distance", "star", "flow"])
def test_tries_the_options_that_the_target_reads(target):
    config = config_lib.default()
    config.data.target = target
    keys = derived.decode_keys(config)
    own = {"foreground": {"decode", "watershed_h"}, "distance": {"smooth", "seed_depth"},
           "star": {"nms"}, "flow": {"flow_error"}}[target]
    assert {key for key in tune.CHOICES if key in keys} == own | {"threshold"}
    start = {key: config.eval[key] for key in (*tune.CHOICES, "min_size") if key in keys}
    seen = []
    best = tune.best_options(start, {k: v for k, v in tune.CHOICES.items() if k in keys},
                             lambda options: seen.append(options) or options["threshold"])
    assert best == {**start, "threshold": 0.8} and all(set(o) == set(start) for o in seen)
