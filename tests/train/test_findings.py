"""What a run says of its own config before its first step."""

import json
import pathlib

import imageio.v3 as iio
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.train import loop, training_data
from cellseg_jax.train.run import Run, Task


def test_a_split_file_without_validation_images_stops_no_run_early_and_that_is_said(tmp_path):
    config = tiny_config(train__early_stopping=3, optimizer__schedule="plateau")
    arrays = training_data.load(config).arrays
    run = Run(Task(0, config, tmp_path / "a", True), arrays)
    assert run.findings() == []
    names = list(arrays.image_names)
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:30], "test": names[30:]}))
    config = config_lib.changed(config, {"data.split": str(tmp_path / "split.json")})
    found = Run(Task(0, config, tmp_path / "b", True), arrays).findings()
    assert [one.where for one in found] == ["config.train.early_stopping",
                                            "config.optimizer.schedule"]
    assert "split.json' has no validation images" in found[0].what


def test_masks_are_judged_by_all_that_windows_are_cut_of(tmp_path):
    """Of images with cells in one corner; the middle of each, which validation sees, is empty."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((96, 96), np.uint8)
        label[:8, :8], label[8:16, :8] = 1, 2
        iio.imwrite(tmp_path / f"masks/{number}.png", label)
        iio.imwrite(tmp_path / f"images/{number}.png",
                    random.integers(0, 99, label.shape, np.uint8))
    config = config_lib.changed(config_lib.default(), {
        "data.name": "folder", "data.root": str(tmp_path), "data.cache": str(tmp_path / "cache"),
        "data.fit": "random_crop", "data.size": (32, 32), "data.labels": "classes",
        "data.target": "classes", "data.num_classes": 3})
    found = training_data.load(config).findings
    assert "foreground covers 1.39% of the pixels" in found[0].what
    assert not any("empty" in one.what for one in found)
    with pytest.raises(InputError, match=r"got 4, but the classes \[3\] .* no mask; expected 3"):
        training_data.load(config_lib.changed(config, {"data.num_classes": 4}))
    for path in (tmp_path / "masks").glob("*.png"):  # no number of classes helps then
        iio.imwrite(path, np.where(iio.imread(path) == 2, 3, iio.imread(path)).astype(np.uint8))
    with pytest.raises(InputError, match=r"classes \[2\] .* no mask; expected .*without gaps"):
        training_data.load(config_lib.changed(config, {"data.num_classes": 4}))


@pytest.mark.parametrize("fit", ["random_crop", "resize"])
def test_what_covers_the_masks_is_found_outside_of_the_middle_too(tmp_path, fit):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        label = np.full((96, 96), 255, np.uint8)
        label[24:72, 24:72] = 0
        label[30:34, 30:34], label[50:56, 50:56] = 1, 2
        iio.imwrite(tmp_path / f"masks/{number}.png", label)
        iio.imwrite(tmp_path / f"images/{number}.png", np.roll(label, number))
    config = config_lib.changed(config_lib.default(), {
        "data.name": "folder", "data.root": str(tmp_path), "data.cache": str(tmp_path / "cache"),
        "data.fit": fit, "data.size": (32, 32)})
    with pytest.raises(InputError, match="id 255 covers 75% of 6 masks"):
        training_data.load(config)


@pytest.mark.parametrize("changes, words", [
    ({}, []),
    ({"loss.gamma": 3.0, "loss.focal": 0.0},
     ["warning: config.loss.gamma: nothing reads it, since the weight of focal is 0"]),
    # 40 images, of which 32 train in batches of 8: 4 steps are an epoch.
    ({"train.steps": 9, "train.epochs": 100, "optimizer.warmup": 2}, []),
    ({"train.steps": 9, "train.epochs": 100, "optimizer.warmup": 3},
     ["config.optimizer.warmup: got 3, but the run has "
      "3 epochs: the learning rate never reaches"]),
    ({"data.balance": True}, []),
    ({"data.balance": True, "data.looks": ("stained",)},
     ["config.data.balance: all training images are of the one stratum 'stained'"]),
    ({"optimizer.schedule_per": "step", "optimizer.warmup": 7}, []),
    ({"optimizer.schedule_per": "step", "optimizer.warmup": 8}, ["the run has 8 steps"]),
])
def test_settings_without_effect_are_said_once(changes, words, tmp_path, capsys):
    config = tiny_config(**{key.replace(".", "__"): value for key, value in changes.items()})
    found = training_data.load(config)
    run = Run(Task(0, config, pathlib.Path(tmp_path), True), found.arrays)
    loop.report_findings(found, run, first=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "config." in line]
    assert len(said) == len(words) and all(map(str.__contains__, said, words))
    loop.report_findings(found, run, first=False)
    assert "config." not in capsys.readouterr().err
