"""A run scored on other data: what belongs to its training data is left out, and said."""

import json

import numpy as np
import pytest
from helpers import tiny_config
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.runs import other_data
from cellseg_jax.runs.folder import CONFIG_FILE, ENVIRONMENT_FILE


def write(root, names, seed=0):
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name in names:
        pixels = rng.integers(0, 200, (32, 32)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"images/{name}.png")
        Image.fromarray((pixels // 50).astype(np.uint8)).save(root / f"masks/{name}.png")
    return root


@pytest.fixture
def run(tmp_path):
    """A run's folder, as far as this needs it."""
    root = write(tmp_path / "own", [f"case{n}_{m}" for n in range(4) for m in "ab"])
    config = config_lib.changed(tiny_config(), {
        "data.name": "folder", "data.root": str(root), "data.group": "(case[0-9])",
        "data.only_size": (32, 32), "data.blank_images": 1, "data.cache": str(tmp_path / "cache")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text(config_lib.to_json(config))
    (tmp_path / "run" / ENVIRONMENT_FILE).write_text(json.dumps(
        {"data_fingerprint": data.load(config.data).fingerprint}))
    return tmp_path / "run", config


def test_group_and_selection_do_not_apply_to_other_images(run, tmp_path, capsys):
    workdir, own = run
    other = write(tmp_path / "other", ["one", "two", "three"], seed=1)
    config = other_data.config_for(workdir, [("data.root", str(other))])
    assert [record.group for record in data.records_of(config.data)] == ["one", "three", "two"]
    changed = {key for key in config_lib.diff(config, own)}
    assert changed == {"data.root", "data.group", "data.only_size", "data.blank_images"}
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{other}: other data than the run was trained on; left out: ")
    for text in ("data.group='(case[0-9])'", "data.only_size=(32, 32)", "data.blank_images=1"):
        assert text in line


def test_what_a_user_sets_and_a_group_that_matches_stay(run, tmp_path, capsys):
    workdir, _ = run
    other = write(tmp_path / "other", ["case7_a", "case7_b", "case8_a"], seed=1)
    config = other_data.config_for(workdir, [("data.root", str(other)),
                                             ("data.only_size", "(32, 32)")])
    assert [r.group for r in data.records_of(config.data)] == ["case7", "case7", "case8"]
    assert config.data.only_size == (32, 32) and config.data.blank_images == 0
    assert "data.group" not in capsys.readouterr().err


def test_the_same_images_in_another_place_are_the_runs_own(run, tmp_path, capsys):
    workdir, own = run
    (tmp_path / "own").rename(tmp_path / "moved")
    config = other_data.config_for(workdir, [("data.root", str(tmp_path / "moved"))])
    assert set(config_lib.diff(config, own)) == {"data.root"} and not capsys.readouterr().err


def test_another_dataset_drops_the_split_file_and_what_was_mixed_in(run, tmp_path, capsys):
    workdir, own = run
    mixed = config_lib.changed(own, {"data.split": str(tmp_path / "split.json")})
    (workdir / CONFIG_FILE).write_text(config_lib.to_json(mixed))
    config = other_data.config_for(workdir, [("data.name", "synthetic")])
    assert config.data.split == (0.8, 0.1, 0.1) and config.data.only_size == ()
    assert "split.json" in capsys.readouterr().err
