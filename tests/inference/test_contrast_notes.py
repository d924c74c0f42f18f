"""Predicted images that are empty, or whose range hot pixels decide, are told apart from others."""

import json
import re
import types

import numpy as np
import pytest
import tifffile

import cellseg_jax
from cellseg_jax import cli, normalize, predict, train
from cellseg_jax import config as config_lib
from cellseg_jax.data.lazy import from_array
from cellseg_jax.inference import contrast_notes
from cellseg_jax.inference.contrast_notes import ContrastNotes


def cells(seed=0, level=1.0, dtype=np.uint16):
    """An image of 500 to 600 with bright squares of about 2,000; `level` scales all differences."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, 100, (64, 64, 1))
    pixels[8:24, 8:24] += 1500
    return (500 + level * pixels).astype(dtype)


def notes_of(image, name="minmax", like=cells):
    """The lines on one image by a run that was trained on `like` with a normalisation."""
    config = types.SimpleNamespace(channels="gray", channel_index="", normalize=name,
                                   percentiles=normalize.PERCENTILES)
    predictor = types.SimpleNamespace(config=types.SimpleNamespace(data=config),
                                      contrast=like and normalize.contrast(like()))
    notes = ContrastNotes(predictor)
    notes.add(from_array(image, "a"), None)
    return list(notes.lines())


def hot(value=65000):
    image = cells(1)
    image[40, 40] = value
    return image


@pytest.mark.parametrize("image, name, words", [
    (cells(1), "minmax", []), (cells(1, 0.5), "minmax", []), (cells(1, 3), "minmax", []),
    (cells(1, 0.1), "minmax", [r"1 of 1 .* less contrast .* by 1\d{3} at .*: a: 1\d\d\S*\. An"]),
    (cells(1, 0.1), "percentile", ["less contrast"]),
    (hot(), "minmax", [r"a few pixels that widen .* in training by 1 times .*: a: 4\d\.\d times"]),
    (hot(), "percentile", []), (hot(2500), "minmax", []),
    (cells(1, 0.1).astype(np.uint8), "minmax", [])])  # of another type: nothing is known of it
def test_images_unlike_those_of_the_training_are_noted(image, name, words):
    lines = notes_of(image, name)
    assert len(lines) == len(words), lines
    assert all(map(re.search, words, lines)), lines


def test_runs_of_older_code_know_nothing():
    assert notes_of(cells(1, 0.01), like=None) == []


def test_of_large_images_some_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(contrast_notes, "MANY", 100)
    assert notes_of(cells(1)) == []
    assert "less contrast" in notes_of(cells(1, 0.1))[0]


def test_contrast_is_that_of_numpy():
    image = np.random.default_rng(0).integers(0, 4000, (30, 40, 3)).astype(np.uint16)
    width = np.diff(np.percentile(image, normalize.PERCENTILES)).item()
    found = normalize.contrast(image)
    assert found.dtype == "uint16" and found.width == pytest.approx(width, rel=1e-6)
    assert found.stretch == pytest.approx(np.ptp(image) / width, rel=1e-6)
    assert normalize.contrast(np.full((4, 4, 1), 7, np.uint8)) == ("uint8", 0, 0)


def test_channels_of_their_own_are_compared_each():
    """The faint stain of a pair counts, and the fourth of four stains is no alpha."""
    image = np.concatenate([cells(0), cells(1, 0.1), cells(2), cells(3, 0.05)], -1)
    width = lambda part, each: normalize.contrast(part, each=each).width
    assert width(image, True) == width(image[..., 3:], False) < width(image[..., 1:2], False)
    assert width(image, False) == width(image[..., :3], False)  # of colours the fourth is alpha


def test_a_run_keeps_the_contrast_of_its_images_and_prediction_compares(tmp_path, capsys):
    config = config_lib.changed(config_lib.default(), {
        "model.name": "otsu", "data.name": "synthetic", "data.count": 12, "data.size": (48, 48),
        "data.channels": "gray"})
    train.train([config], [tmp_path / "run"])
    known = json.loads((tmp_path / "run/environment.json").read_text())["training_contrast"]
    assert known["dtype"] == "uint8" and known["width"] > 20 and 1 <= known["stretch"] < 3
    (tmp_path / "images").mkdir()
    empty = np.random.default_rng(0).integers(30, 33, (48, 48)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "images/empty.tif", empty)
    words = [f"--workdir={tmp_path}/run", f"--images={tmp_path}/images", f"--out={tmp_path}/out"]
    assert cli.run_command(predict.main, predict.define_flags, ["predict", *words]) == 0
    assert "1 of 1 images have less contrast than any training image" in capsys.readouterr().err


def test_notes_name_options_as_python_has_them(tmp_path, capsys, monkeypatch):
    config = config_lib.changed(config_lib.default(), {
        "model.name": "otsu", "data.name": "synthetic", "data.count": 12, "data.size": (48, 48),
        "data.channels": "gray"})
    train.train([config], [tmp_path])
    capsys.readouterr()
    monkeypatch.setattr(ContrastNotes, "lines", lambda notes: iter(["dark. Pass --scale"]))
    run = cellseg_jax.load(tmp_path)
    run.predict(np.zeros((48, 48), np.uint8))
    assert run.notes == ["dark. Pass scale"] and capsys.readouterr().err == "dark. Pass scale\n"
