"""The export command: what it writes computes what the run computes, or is not written."""

import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import imagecodecs
import jax
import numpy as np
import pytest
import tifffile
from helpers import child_environment, tiny_config
from PIL import Image

from cellseg_jax import cli, export
from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.files import write_atomic
from cellseg_jax.inference.options import PredictOptions
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.interop import bioimageio, exporting, stablehlo, usage_example
from cellseg_jax.normalize import RANGES, band_ranges, image_ranges, normalize
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import read_config
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state

BLOCKED = """
import sys
for name in ("flax", "cellseg_jax", "optax", "orbax"):
    sys.modules[name] = None
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_run(folder, config=None, **overrides):
    """A run whose network has its first weights; returns the folder."""
    config = config or tiny_config(data__count=20, **overrides)
    folder.mkdir(parents=True)
    write_atomic(folder / "config.json", config_lib.to_json(config))
    spec = make_spec([config])
    shape = (*derived.input_size(config), derived.channels(config))
    state = jax.jit(lambda values: init_state(spec, values, shape))(
        traced_values(config, spec))
    saves = checkpoint.Checkpoints(folder / "checkpoints")
    saves.save(state, 3, score=0.5)
    saves.close()
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return write_run(folder / "run", data__channels="gray", data__cache=str(folder / "cache"))


@pytest.fixture
def run(capsys):
    """run(**flags) -> (exit code, stdout, stderr)."""
    def command(*words, **values):
        given = [f"--{key}={value}" for key, value in values.items()]
        code = cli.run_command(export.main, export.define_flags, ["export", *given, *words])
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize("flags, message", [
    ({}, "--format: got ''; expected one of stablehlo, onnx, bioimageio"),
    ({"format": "onxx"}, "did you mean onnx"),
    ({"format": "stablehlo"}, "--workdir: missing"),
    ({"format": "stablehlo", "workdir": "nowhere"}, "no run in nowhere"),
    ({"format": "stablehlo", "workdir": ".", "checkpoint": "first"}, "--checkpoint"),
    ({"format": "stablehlo", "workdir": ".", "config": "a.py"}, "has its own config"),
    ({"format": "onnx", "workdir": ".", "author": "Ada"}, "--author: got 'Ada' with --format=onnx"),
    ({"format": "bioimageio", "workdir": ".", "license": ""}, "--license: got ''"),
])
def test_bad_flags_are_told_in_one_line(run, flags, message):
    code, _, err = run(**flags)
    assert code == 2 and len(err.splitlines()) == 1 and message in err


def test_missing_packages_classical_methods_and_foreign_folders(run, tmp_path):
    config = config_lib.default()
    config.data, config.model = dict(name="synthetic"), dict(name="otsu")
    folder = tmp_path / "otsu"
    folder.mkdir()
    (folder / "config.json").write_text(config_lib.to_json(config_lib.complete(config)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="needs no_such_package; install cellseg_jax.export."):
        exporting.check_installed("onnx", ("json", "no_such_package"))
    code, _, err = run(workdir=folder, format="stablehlo")
    assert code == 2 and "otsu is a classical method" in err and len(err.splitlines()) == 1
    code, _, err = run(workdir=folder, format="stablehlo", out=tmp_path / "out")
    assert code == 2 and "holds something else" in err
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "3", "0,4", "a,b", "1,2,3"])
def test_tile_is_two_numbers(text):
    with pytest.raises(ValueError, match="--tile: got"):
        exporting.parse_tile(text)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_export_runs_where_neither_flax_nor_this_package_is(run, workdir, tmp_path, form):
    pytest.importorskip("onnxruntime" if form == "onnx" else "flatbuffers")
    code, out, err = run("--config.eval.threshold=0.4", workdir=workdir, format=form)
    assert code == 0, err
    assert "largest difference on 16 images" in out
    folder = workdir / "export" / form
    about = json.loads((folder / "export.json").read_text())
    assert about["parity"]["largest_difference"] <= 1e-4
    assert about["decode"]["threshold"] == 0.4 and about["run"]["checkpoint_step"] == 3
    assert about["input"]["shape"] == (["b", "h", "w", 1] if form == "stablehlo"
                                       else ["b", 1, 32, 32])
    pixels = np.random.default_rng(0).integers(7, 200, (45, 61)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, folder / "usage.py", tmp_path / "image.png",
         tmp_path / "probs.npy"], capture_output=True, text=True, env=child_environment(),
        cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    explained = subprocess.run([sys.executable, folder / "usage.py"], capture_output=True,
                               text=True, env=child_environment(), cwd=tmp_path)
    assert explained.returncode == 1 and "python usage.py IMAGE OUT.npy" in explained.stderr
    assert "Traceback" not in explained.stderr
    wanted = Predictor(workdir, read_config(workdir)).image_probs(pixels[..., None])
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy"), wanted, atol=1e-4)
    assert wanted.std() > 1e-3  # or anything would pass


@pytest.mark.slow
def test_a_program_that_differs_is_not_written(run, workdir, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    whole = stablehlo.to_stablehlo
    monkeypatch.setattr(stablehlo, "to_stablehlo",
                        lambda function, shape: whole(lambda x: function(x) + 3e-4, shape))
    code, out, err = run(workdir=workdir, format="stablehlo", out=tmp_path / "new/out")
    assert code == 1 and not out and err.count("\n") == 1
    assert "differs from the run by 3.0e-04 on 16 images, 1e-04 is allowed" in err
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minmax", "percentile", "dtype", "symmetric"])
def test_bioimageio_package_passes_its_own_validator(run, tmp_path, name):
    pytest.importorskip("onnxruntime")
    # Its packages contradict ours: CELLSEG_BIOIMAGEIO names the Python that has them.
    python = os.environ.get("CELLSEG_BIOIMAGEIO", sys.executable)
    code = """
import sys, numpy as np, onnxruntime, zipfile, bioimageio.core as core
summary = core.test_description(sys.argv[1])
assert summary.status == "passed", summary.format()
image = np.random.default_rng(0).integers(0, 255, (1, 1, 70, 110)).astype(np.float32)
made = core.predict(model=sys.argv[1], inputs={"image": image}, blocksize_parameter=1)
probs = made.members["probabilities"].data.values
print(probs.shape)
# The second block along both axes: 32x48 pixels without a halo of 4 and 6.
session = onnxruntime.InferenceSession(zipfile.ZipFile(sys.argv[1]).read("weights.onnx"))
block, = session.run(None, {"image": image[..., 20:52, 30:78] / np.float32(255)})
print(np.abs(probs[..., 24:48, 36:72] - block[..., 4:-4, 6:-6]).max())
"""
    if subprocess.run([python, "-c", "import bioimageio.core"], capture_output=True).returncode:
        pytest.skip("no bioimageio.core: set CELLSEG_BIOIMAGEIO to a Python that has it")
    folder = write_run(tmp_path / "run", data__channels="gray", data__normalize=name,
                       data__cache=str(tmp_path / "cache"))
    assert run(workdir=folder, format="bioimageio", author="Ada; Bob", tile="32,48")[0] == 0
    package = folder / "export/bioimageio/model.zip"
    done = subprocess.run([python, "-c", code, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shape, difference = done.stdout.splitlines()[-2:]
    assert shape == "(1, 1, 70, 110)"  # an image of any size, put together from blocks
    assert name != "dtype" or float(difference) <= 1e-6  # others take the range of the image
    with zipfile.ZipFile(package) as files:
        rdf = files.read("rdf.yaml").decode()
        assert {"weights.onnx", "cover.png", "README.md", "sample_input.tif"} <= {*files.namelist()}
    assert "name: Ada" in rdf and "name: Bob" in rdf
    assert ("scale_range" if RANGES[name].percentiles else "scale_linear") in rdf


@pytest.mark.parametrize("target, losses", [
    ("flow", "loss__mse"), ("signed", "loss__mae"), ("star", "loss__mae"), ("contour", "")])
def test_usage_tells_which_outputs_change_where_it_resizes(target, losses):
    """Arrows too: stretched in one direction, they point elsewhere."""
    config = tiny_config(data__target=target, **({losses: 0.2} if losses else {}))
    about = {"format": "onnx", "input": {"channels": list("rgba"), "shape": ["b", 4, 32, 32]},
             "output": {"channels": derived.output_names(config.data)}}
    script = usage_example.usage(about, config)
    assert ("and directions, are those of the resized image" in script) == (target != "contour")


def test_an_export_in_the_current_folder_is_replaced(tmp_path, monkeypatch):
    config = tiny_config(data__cache=str(tmp_path / "cache"))
    run = exporting.ExportedRun(config, SimpleNamespace(workdir=tmp_path), (32, 32), None, None, "")
    monkeypatch.setattr(exporting, "program_of", lambda run, form: stablehlo.Program(b"new", ()))
    monkeypatch.setattr(exporting, "runtime", lambda form, data: None)
    monkeypatch.setattr(exporting, "largest_difference", lambda *_: 0.0)
    monkeypatch.setattr(exporting, "describe", lambda *_: {"notes": []})
    monkeypatch.setattr(exporting, "usage", lambda *_: "")
    (out := tmp_path / "out").mkdir()
    (out / "export.json").write_text("{}")
    (out / "model.stablehlo").write_bytes(b"old")
    monkeypatch.chdir(out)
    exporting.export(run, exporting.ExportOptions("stablehlo", "."))
    assert (out / "model.stablehlo").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_package_says_what_its_outputs_are_in_as_many_characters_as_are_allowed():
    said = lambda **changes: (config := tiny_config(**changes)) and bioimageio._description(
        config, derived.output_names(config.data))
    assert said().endswith("gives per pixel as probabilities: cell.")
    assert said(data__target="contour").endswith("background, nucleus, contour.")
    stars = said(data__target="star", data__num_rays=128, loss__mae=0.2)
    assert stars.endswith("as probabilities: object probability; and 128 outputs that are none.")
    assert len(stars) < 1024


def test_a_package_has_scores_of_its_own_weights_alone(tmp_path):
    """The test split is scored with the best checkpoint; another one may be exported."""
    run = SimpleNamespace(config=tiny_config(), predictor=SimpleNamespace(workdir=tmp_path),
                          source="16 images")
    about = {"input": exporting_input(), "output": {"channels": ["cell"], "meaning": "one"},
             "run": {"model": {}, "checkpoint_step": 7, "identity": "a"}, "decode": {},
             "parity": {"largest_difference": 1e-7}}
    readme = lambda: bioimageio._readme(run, about, "name", "description", True)
    assert "These weights were not scored on the test split." in readme()
    (tmp_path / "eval").mkdir()
    for step, words in ((7, "dice_mean 0.812."), (5, "These weights were not scored")):
        (tmp_path / "eval/test.json").write_text(json.dumps(
            {"checkpoint_step": step, "metrics": {"dice_mean": 0.8123}}))
        assert words in readme() and ("0.812" in readme()) == (step == 7)


def exporting_input():
    """What export.json says of an input, as far as a README shows it."""
    config = tiny_config()
    return {"channels": exporting.channel_names(config), "size": exporting.size_text(config),
            "normalization": exporting.normalization_of(config)}


def test_a_package_made_without_the_images_divides_by_the_largest_value_of_their_type(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config = config_lib.changed(tiny_config(), {
        "data.name": "folder", "data.root": str(tmp_path / "gone"), "data.channels": "gray",
        "data.normalize": "dtype"})
    folder, options = write_run(tmp_path / "run", config), exporting.ExportOptions(
        "bioimageio", tmp_path / "out")
    for dtype in ("uint8", "uint16"):
        known = {"training_contrast": {"dtype": dtype, "width": 9.0, "stretch": 2.0}}
        (folder / "environment.json").write_text(json.dumps(known))
        run = exporting.open_run(folder, [], "best", options)
        assert run.images.max() > 0.9 * np.iinfo(dtype).max and "noise" in run.source
        (step,) = bioimageio.preprocessing(run.config, run.images.dtype)
        assert step["kwargs"]["gain"] == pytest.approx(1 / np.iinfo(dtype).max)
    (folder / "environment.json").unlink()  # as runs of older code
    with pytest.raises(InputError, match="has not kept whether its images are 8 or 16 bit"):
        exporting.open_run(folder, [], "best", options)
    assert exporting.open_run(folder, [], "best", options._replace(format="onnx"))


# --- every normalisation -------------------------------------------------------------------------


def normalised(config, name):
    return config_lib.override(config, [("data.normalize", name)])


def test_ranges_are_described_as_they_are_computed():
    image = np.random.default_rng(0).integers(9, 200, (20, 30, 4)).astype(np.uint8)
    for name, range_ in RANGES.items():
        about = exporting.normalization_of(normalised(tiny_config(), name))  # rgba
        assert about["low and high"] == range_.words and about["name"] == name
        assert ("alpha" in about) == range_.alpha_apart
        low, high = eval(range_.python, {"np": np, "image": image, "colour": image[..., :3]})
        np.testing.assert_allclose(image_ranges(image, name)[:3], [(low, high)] * 3, rtol=1e-6)
        assert (image_ranges(image, name)[3] == (0, 255)).all() or not range_.alpha_apart


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("channels", ["gray", "rgb", "rgba"])
def test_bioimageio_steps_normalise_as_the_run_does(name, channels):
    """The steps as bioimage.io defines them, in numpy; None where a user has to normalise."""
    config = normalised(tiny_config(data__channels=channels), name)
    depth = derived.channels(config)
    for dtype in (np.uint8, np.uint16):
        image = np.random.default_rng(1).integers(
            3, np.iinfo(dtype).max - 5, (40, 50, depth)).astype(dtype)
        steps = bioimageio.preprocessing(config, dtype)
        colour_alone = depth == 4 and RANGES[name].alpha_apart
        if steps is None:
            assert colour_alone and name != "dtype"
            continue
        (step,) = steps
        values = image.astype(np.float64)
        if step["id"] == "scale_linear":
            out = values * step["kwargs"]["gain"] + step["kwargs"].get("offset", 0)
        else:
            assert step["kwargs"]["axes"] == ["channel", "y", "x"]
            low, high = (np.percentile(values, step["kwargs"][f"{end}_percentile"])
                         for end in ("min", "max"))
            out = (values - low) / (high - low)
        wanted = normalize(image, band_ranges([image], depth, image.dtype, name), np.float32)
        np.testing.assert_allclose(out, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usage")
    return write_run(folder / "run", data__cache=str(folder / "cache"), data__channels="rgba")


@pytest.mark.parametrize("name", RANGES)
def test_usage_gives_what_the_run_gives(colour_run, tmp_path, name, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config = normalised(read_config(colour_run), name)
    run = exporting.ExportedRun(config, Predictor(colour_run, config), (32, 32),
                                *exporting.comparison_images(config, (32, 32)))
    exporting.export(run, exporting.ExportOptions("onnx", tmp_path / "out"))
    pixels = np.random.default_rng(0).integers(7, 200, (45, 61, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    monkeypatch.setattr(sys, "argv", ["usage.py", str(tmp_path / "image.png"),
                                      str(tmp_path / "probs.npy")])
    runpy.run_path(str(tmp_path / "out/usage.py"), run_name="__main__")
    wanted = run.predictor.image_probs(pixels)
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy"), wanted, atol=1e-4)
    assert wanted.std() > 1e-3  # or anything would pass


def made_example(pixels, folder, script, monkeypatch, file="image.npy"):
    """What a usage.py saves for an image of an .npy file, or for `file` where that is there."""
    if not (folder / file).exists():
        np.save(folder / file, pixels)
    monkeypatch.setattr(sys, "argv", ["usage.py", str(folder / file), str(folder / "probs.npy")])
    runpy.run_path(str(script), run_name="__main__")
    return np.load(folder / "probs.npy")


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_usage_mirrors_an_image_below_a_tile_as_prediction_does(tmp_path, form, monkeypatch):
    pytest.importorskip("onnxruntime" if form == "onnx" else "flatbuffers")
    config = config_lib.changed(tiny_config(), {
        "data.channels": "gray", "data.count": 20, "data.cache": str(tmp_path / "cache"),
        "data.fit": "random_crop"})
    write_run(tmp_path / "run", config)
    run = exporting.ExportedRun(config, Predictor(tmp_path / "run", config), (32, 32),
                                *exporting.comparison_images(config, (32, 32)))
    exporting.export(run, exporting.ExportOptions(form, tmp_path / "out"))
    pixels = np.random.default_rng(0).integers(99, 200, (21, 13)).astype(np.uint8)
    made = made_example(pixels, tmp_path, tmp_path / "out/usage.py", monkeypatch)
    np.testing.assert_allclose(made, run.predictor.image_probs(pixels[..., None]), atol=1e-5)
    wide = 200 * pixels.astype(np.uint16)
    np.save(tmp_path / "big.npy", wide.astype(">u2"))  # as ImageJ writes
    made = made_example(wide, tmp_path, tmp_path / "out/usage.py", monkeypatch, "big.npy")
    np.testing.assert_allclose(made, run.predictor.image_probs(wide[..., None]), atol=1e-5)


def test_usage_refuses_images_that_it_would_read_otherwise_than_the_run(
        colour_run, tmp_path, monkeypatch):
    """Colours of 16 bit, of which Pillow reads 8; fractions, which rounding would make 0 and 1."""
    pytest.importorskip("flatbuffers")
    config = config_lib.changed(read_config(colour_run), {"eval.overlap": 0.0})
    run = exporting.ExportedRun(config, Predictor(colour_run, config), (32, 32),
                                *exporting.comparison_images(config, (32, 32)))
    exporting.export(run, exporting.ExportOptions("stablehlo", tmp_path / "out"))
    pixels = np.random.default_rng(0).integers(300, 4095, (45, 61, 4)).astype(np.uint16)
    made = lambda pixels, file: made_example(
        pixels, tmp_path, tmp_path / "out/usage.py", monkeypatch, file)
    np.testing.assert_allclose(made(pixels, "twelve_bit.npy"), run.predictor.image_probs(pixels),
                               atol=1e-4)
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(SystemExit, match="deep.png has colours of 16 bit, of which Pillow reads 8"):
        made(None, "deep.png")
    with pytest.raises(SystemExit, match="has pixels of float64; expected uint8 or uint16"):
        made(pixels / 4095, "fractions.npy")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 45, 61), np.uint8),
                     photometric="minisblack")
    with pytest.raises(SystemExit, match="stack.tif has 5 planes; expected one"):
        made(None, "stack.tif")


def test_usage_asks_for_the_factor_to_the_scale_of_the_training(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    config = config_lib.changed(tiny_config(), {
        "data.channels": "gray", "data.count": 20, "data.cache": str(tmp_path / "cache"),
        "data.fit": "random_crop", "data.diameter": 20.0, "data.target": "signed"})
    write_run(tmp_path / "run", config)
    known = {"training_cells": {"least_area": 17}}
    (tmp_path / "run/environment.json").write_text(json.dumps(known))
    config = config_lib.changed(config, {"eval.min_size": -1, "eval.overlap": 0.0})
    run = exporting.ExportedRun(config, Predictor(tmp_path / "run", config), (32, 32),
                                *exporting.comparison_images(config, (32, 32)))
    exporting.export(run, exporting.ExportOptions("stablehlo", tmp_path / "out"))
    assert json.loads((tmp_path / "out/export.json").read_text())["decode"]["min_size"] == 17
    script = (tmp_path / "out/usage.py").read_text()
    assert "FACTOR first, so that its median cell has a diameter of 20 pixels." in script
    assert "Outputs in pixels, and directions, are those of the resized image" in script
    pixels = np.random.default_rng(0).integers(7, 200, (64, 64)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    words = ["usage.py", str(tmp_path / "image.png"), str(tmp_path / "probs.npy")]
    monkeypatch.setattr(sys, "argv", [*words, "0.5"])
    runpy.run_path(str(tmp_path / "out/usage.py"), run_name="__main__")
    wanted = run.predictor.image_probs(pixels[..., None], PredictOptions(scale=0.5))
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy")[..., 0], wanted[..., 0], atol=1e-4)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        runpy.run_path(str(tmp_path / "out/usage.py"), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("name", RANGES)
def test_an_export_of_chosen_channels_normalises_each_by_itself(tmp_path, name, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    config = normalised(config_lib.changed(tiny_config(), {
        "data.name": "folder", "data.channel_index": "DAPI,1", "data.root": str(tmp_path)}), name)
    write_run(tmp_path / "run", config)
    run = exporting.ExportedRun(config, Predictor(tmp_path / "run", config), (32, 32),
                                *exporting.comparison_images(config, (32, 32)))
    exporting.export(run, exporting.ExportOptions("onnx", tmp_path / "out"))
    about = json.loads((tmp_path / "out/export.json").read_text())["input"]
    assert about["channels"] == ["DAPI", "1"]
    assert about["normalization"]["low and high"].endswith("each channel has its own")
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.integers(7, 20, (45, 61)), rng.integers(0, 200, (45, 61))], -1)
    np.save(tmp_path / "image.npy", pixels.astype(np.uint8))
    monkeypatch.setattr(sys, "argv", ["usage.py", str(tmp_path / "image.npy"),
                                      str(tmp_path / "probs.npy")])
    runpy.run_path(str(tmp_path / "out/usage.py"), run_name="__main__")
    wanted = run.predictor.image_probs(pixels.astype(np.uint8))
    np.testing.assert_allclose(np.load(tmp_path / "probs.npy"), wanted, atol=1e-4)
    assert wanted.std() > 1e-3  # or anything would pass
    steps = bioimageio.preprocessing(config, np.uint8)
    assert steps[0]["kwargs"].get("axes", ["y", "x"]) == ["y", "x"]


@pytest.mark.parametrize("changes, words", [
    ({}, "stays at its own scale"), ({"data.diameter": 20.0}, "median cell .* 20 pixels"),
    ({"data.pixel_size": 0.5}, "rescaled to pixels of 0.5 um")])
def test_an_export_names_the_scale_that_images_are_brought_to(changes, words):
    config = config_lib.changed(config_lib.default(), {"data.fit": "random_crop"} | changes)
    assert re.search(words, exporting.size_text(config))
