"""Training from arrays in memory: the run of a command on the same files."""

import json
import subprocess
import sys
import types

import matplotlib
import numpy as np
import pytest
import tifffile
from helpers import ROOT, child_environment, tiny_config

import cellseg_jax
from cellseg_jax import cli, data, predict
from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.inference import trained_run
from cellseg_jax.runs.folder import read_config
from cellseg_jax.train import from_arrays

TINY = {"model": {"name": "unet", "channels": (4, 8)}, "train.epochs": 2, "train.batch_size": 8,
        "eval.batch_size": 8, "eval.panels": 0}


@pytest.fixture(scope="module")
def arrays():
    """Synthetic images (48, 40) and labels."""
    options = data.options("synthetic") | {"count": 12, "image_size": (48, 40)}
    samples = [record.read() for record in data.DATASETS["synthetic"](**options)]
    return [sample.image[..., 0] for sample in samples], [sample.label for sample in samples]


@pytest.mark.slow
def test_arrays_become_a_run_that_segments(arrays, tmp_path, capsys):
    images, labels = arrays
    run = cellseg_jax.train(TINY, images, labels, workdir=tmp_path / "run")
    assert run.workdir == tmp_path / "run" and "ap50" in run.scores
    assert run.config.data.channels == "gray" and run.config.data.size == (64, 64)
    assert run.config.data.fit == "random_crop" and run.config.data.normalize == "percentile"
    assert run.predict(images[0]).shape == (48, 40)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / f"run_data/images/{n:02d}.tif"), image)
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / f"run_data/masks/{n:02d}.tif"), label)
    before = (tmp_path / "run/metrics.jsonl").read_text()
    again = cellseg_jax.train(TINY, images, labels, workdir=tmp_path / "run")  # it has ended
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    np.testing.assert_array_equal(again.predict(images[0]), run.predict(images[0]))
    with pytest.raises(InputError, match="run_data holds other images or labels"):
        cellseg_jax.train(TINY, images, labels[::-1], workdir=tmp_path / "run")
    # The command, with the config that the run has, trains the same.
    config = read_config(tmp_path / "run")
    from_arrays.train_and_score(config, tmp_path / "twin")
    assert (tmp_path / "twin/metrics.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("index", ["", "1"])
def test_two_channels_from_training_to_the_command(arrays, tmp_path, index):
    """Cells in the second of two channels: all channels are taken, or that one is chosen."""
    rng = np.random.default_rng(0)
    images = [np.stack([rng.integers(0, 256, image.shape).astype(np.uint8), image], -1)
              for image in arrays[0]]
    run = cellseg_jax.train(TINY | ({"data.channel_index": index} if index else {}),
                            images, arrays[1], workdir=tmp_path / "run")
    assert run.config.data.channel_index == (index or "0,1")
    words = ["predict", f"--workdir={tmp_path / 'run'}", f"--images={tmp_path / 'run_data/images'}",
             f"--out={tmp_path / 'out'}", "--format=tiff"]
    assert cli.run_command(predict.main, predict.define_flags, words) == 0
    for n, label in enumerate(run.predict(images)):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"out/{n:02d}_label.tif"), label)
    if index:
        alone = run.predict([image[..., 1] for image in images])
        np.testing.assert_array_equal(alone, run.predict(images))


def test_settings_win_over_those_of_arrays(arrays, tmp_path):
    images, labels = arrays
    found = from_arrays._kept(tmp_path / "data", images, labels)
    config = from_arrays._config(TINY | {"data.size": (32, 32), "data.fit": "resize"}, found)
    assert config.data.size == (32, 32) and config.data.fit == "resize"
    given = tiny_config()
    config = from_arrays._config(given, found)
    assert config.data.name == "folder" and config.data.channels == given.data.channels
    assert {key.partition(".")[0] for key in config_lib.diff(config, given)} == {"data"}
    with pytest.raises(InputError, match="config.data.name: got 'synthetic' and arrays"):
        from_arrays._config({"data.name": "synthetic"}, found)
    with pytest.raises(InputError, match="config.train.epoch: no such key; did you mean"):
        from_arrays._config({"train.epoch": 3}, found)


def test_pixels_that_are_not_annotated_are_kept(arrays, tmp_path):
    images, labels = arrays
    labels = [np.array(label) for label in labels]
    labels[3][:10] = -1
    config = from_arrays._config(TINY, from_arrays._kept(tmp_path / "data", images, labels))
    for label, record in zip(labels, data.records_of(config.data), strict=True):
        np.testing.assert_array_equal(record.read().label, label)
    found = {key: config.data[key.removeprefix("data.")]
             for key in ("data.name", "data.root", "data.ignore")}
    assert from_arrays._config(config, found) == config
    other = config_lib.changed(config, {"data.ignore": "255"})
    for settings in (TINY | {"data.ignore": "255"}, other):
        with pytest.raises(InputError, match="config.data.ignore: got '255' and labels with -1"):
            from_arrays._config(settings, found)


@pytest.mark.parametrize("channels, keys", [
    (3, {"channels": "rgb"}), (4, {"channels": "rgba"}), (2, {"channel_index": "0,1"}),
    (5, {"channel_index": "0,1,2,3,4"})])
def test_channels_are_read_as_they_were_given(tmp_path, channels, keys):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (36, 40, channels)).astype(np.uint8) for _ in range(3)]
    labels = [rng.integers(0, 3, (36, 40)) for _ in range(3)]
    config = from_arrays._config(TINY, from_arrays._kept(tmp_path / "data", images, labels))
    for key, value in keys.items():
        assert config.data[key] == value
    for image, record in zip(images, data.records_of(config.data), strict=True):
        np.testing.assert_array_equal(record.read().image, image)


def test_channels_that_a_run_chose_are_chosen_of_arrays():
    image = trained_run.as_image(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    pixels = image.read()
    for index, wanted in (("", pixels), ("1", pixels[..., [1]]), ("2,0", pixels[..., [2, 0]]),
                          ("0,5,7", pixels), ("DAPI,GFP,RFP", pixels)):
        found = trained_run.chosen(image, index)
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(found.read(), wanted)
    with pytest.raises(InputError, match="image: got 3 channels; expected 2, which are 0,5"):
        trained_run.chosen(image, "0,5")


def measuring(**changes):
    """A run that can only measure."""
    run = object.__new__(trained_run.TrainedRun)
    run._members = [types.SimpleNamespace(config=config_lib.changed(config_lib.default(), {
        "data.name": "folder"} | {name.replace("__", "."): value
                                  for name, value in changes.items()}))]
    return run


@pytest.mark.parametrize("index, options, wanted", [
    ("2,0", {}, (30, 10)), ("2,0", {"channels": "1,2"}, (20, 30)), ("", {}, (10, 20, 30))])
def test_intensities_are_of_the_channels_that_a_run_sees(index, options, wanted):
    image = np.broadcast_to(np.array([10, 20, 30, 40][: 4 if index else 3], np.uint8),
                            (5, 6, 4 if index else 3))
    columns = measuring(data__channel_index=index).measure(np.eye(5, 6) > 0, image, **options)
    assert [columns[name] for name in columns if name.startswith("mean_intensity")] == [
        [one] for one in wanted]


def test_ids_of_any_integer_type_are_measured():
    label = np.eye(5, 6).astype(np.uint64) * 7
    assert measuring().measure(label)["id"] == [7] and measuring().measure(label)["area_px"] == [5]
    classes = measuring(
        data__labels="classes", data__target="classes", data__num_classes=3,
        data__classes=("a", "b"))
    assert classes.measure(np.eye(5, 6, dtype=np.uint8))["class"] == ["a"]
    for run, wrong, expected in ((measuring(), -label.astype(int), "ids, from 0"),
                                 (classes, label, "classes, 0 to 2")):
        with pytest.raises(InputError, match=f"label: got numbers from .*; expected {expected}"):
            run.measure(wrong)


@pytest.mark.parametrize("images, labels, text", [
    ([np.zeros((4, 4))], [], "got 1 and 0; expected as many labels"),
    ([np.zeros((4, 4))], None, "got 1 and none"),
    ([np.zeros((4, 4))], [np.zeros((4, 5), int)], r"label 0: got int64 of shape \(4, 5\)"),
    ([np.zeros((4, 4))], [np.zeros((4, 4))], "label 0: got float64"),
    ([np.zeros((4, 4))], [np.full((4, 4), -2)], "label 0: got -2 to -2; expected -1"),
    ([np.zeros((9, 9, 9))], [np.zeros((9, 9), int)], "channels first"),
])
def test_arrays_that_do_not_fit_are_one_line(tmp_path, images, labels, text):
    with pytest.raises(InputError, match=text):
        cellseg_jax.train({}, images, labels, workdir=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_settings_have_keys_of_the_config(tmp_path):
    with pytest.raises(InputError, match="settings: got the key 3; expected keys of the config"):
        cellseg_jax.train({3: 1}, workdir=tmp_path / "run")


def test_importing_the_package_imports_nothing_else():
    text = ("import sys, cellseg_jax; assert not hasattr(cellseg_jax, 'predict'); "
            "assert not {'jax', 'numpy', 'tifffile'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, env=child_environment())
    assert callable(cellseg_jax.train) and callable(cellseg_jax.train.train)
    assert callable(cellseg_jax.load) and cellseg_jax.__version__


@pytest.mark.weekly
def test_the_notebook_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["run"].scores["dice_mean"] > 0.8
    assert names["label"].max() > 3 and len(names["table"]["id"]) == names["label"].max()
    assert names["several"][0].shape == (128, 128)


@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_channels_is_kept_and_chosen(tmp_path, count):
    images = list(np.random.default_rng(0).integers(0, 99, (3, 32, 32, count), np.uint8))
    labels = [np.ones((32, 32), np.uint16)] * 3
    config = from_arrays._config(TINY, from_arrays._kept(tmp_path / "data", images, labels))
    assert config.data.channel_index == ",".join(map(str, range(count)))
    found = [record.read().image for record in data.records_of(config.data)]
    np.testing.assert_array_equal(found, images)
