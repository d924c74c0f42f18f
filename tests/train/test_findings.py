"""What a run says of its own config before its first step."""

import pathlib

import pytest
from helpers import tiny_config

from cellseg_jax.train import loop, training_data
from cellseg_jax.train.run import Run, Task


@pytest.mark.parametrize("changes, words", [
    ({}, []),
    ({"loss.gamma": 3.0, "loss.focal": 0.0},
     ["warning: config.loss.gamma: nothing reads it, since the weight of focal is 0"]),
    # 40 images, of which 32 train in batches of 8: 4 steps are an epoch.
    ({"train.steps": 9, "optimizer.warmup": 2}, []),
    ({"train.steps": 9, "optimizer.warmup": 3}, ["config.optimizer.warmup: got 3, but the run has "
                                                 "3 epochs: the learning rate never reaches"]),
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
