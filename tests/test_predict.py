"""The predict command: exact sizes, one bad image among good ones, going on where it stopped."""

import collections
import csv
import functools
import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import roifile
import tifffile
from absl import flags
from helpers import ROOT, child_environment, tiny_config
from PIL import Image

import cellseg_jax
from cellseg_jax import cli, predict, train
from cellseg_jax.data.annotations import geojson, imagej
from cellseg_jax.data.annotations.raster import Plane
from cellseg_jax.data.datasets import folder
from cellseg_jax.data.read import image_axes
from cellseg_jax.data.stacks import AS_IT_IS
from cellseg_jax.errors import InputError

CAPPED = """
import functools, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))
from cellseg_jax import cli, predict
main = functools.partial(predict.main, in_memory_pixels={whole})
sys.exit(cli.run_command(main, predict.define_flags, sys.argv))
"""

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    train.train([tiny_config(train__epochs=6, optimizer__lr=1e-2)], [folder / "run"])
    return folder / "run"


@pytest.fixture
def run(workdir, tmp_path, capsys):
    """run(**flags) -> (exit code, stdout, stderr); writes to tmp_path/out unless told otherwise."""

    def command(*words, main=predict.main, **values):
        values = {"workdir": workdir, "images": tmp_path / "in", "out": tmp_path / "out"} | values
        given = [f"--{k}={one}" for k, v in values.items() if v is not None
                 for one in (v if isinstance(v, list) else [v])]
        code = cli.run_command(main, predict.define_flags, ["predict", *given, *words])
        return code, *capsys.readouterr()

    return command


def write_image(path, size=(40, 50), channels=None, seed=0):
    """Random 8-bit pixels: where the network sees cells is all the same here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if channels is None else (*size, channels)
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


def lines(err):
    """Without the note on the specks that a network finds in images of noise."""
    return [line for line in err.splitlines() if "cells of another size" not in line]


@pytest.mark.parametrize("scale", [0, pytest.param(0.25, marks=pytest.mark.slow)])
def test_labels_have_the_exact_size_of_their_images(run, tmp_path, scale):
    y, x = np.mgrid[:3000, :2000]
    spots = np.sin(y / 90) * np.sin(x / 90) > 0.5
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/large.tif", (300 + 60000 * spots).astype(np.uint16))
    write_image(tmp_path / "in/odd.png", (61, 47))
    code, out, _ = run(scale=scale)
    assert code == 0 and "images predicted: 2, bad: 0" in out and "peak memory" in out
    for name, size in (("large", (3000, 2000)), ("odd", (61, 47))):
        label = tifffile.imread(tmp_path / f"out/{name}_label.tif")
        assert label.shape == size and label.dtype == np.uint16
        assert np.asarray(Image.open(tmp_path / f"out/{name}_overlay.png")).shape == (*size, 3)
    with tifffile.TiffFile(tmp_path / "out/odd_label.tif") as file:
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


@pytest.mark.parametrize("words, text", [
    (dict(diameter=8), None), (dict(diameter="nan"), "--diameter: got nan; expected 0"),
    (dict(pixel_size=-1), "--pixel_size: got -1.0; expected 0"),
    (dict(pixel_size=1), "--pixel_size: the run does not know"),
    (dict(diameter=8, scale=1), "--scale: got --diameter too")])
def test_the_diameter_of_cells_is_an_option(run, tmp_path, words, text):
    write_image(tmp_path / "in/a.png", (61, 47))
    code, out, err = run(format="tiff", **words)
    if text:
        assert code == 2 and len(err.splitlines()) == 1 and text in err
        return
    assert code == 0 and tifffile.imread(tmp_path / "out/a_label.tif").shape == (61, 47)
    assert json.loads((tmp_path / "out/predict.json").read_text())["--diameter"] == 8
    assert run(format="tiff")[0] == 2  # labels of another scale are no continuation
    assert "--diameter" not in json.loads(
        (run(out=tmp_path / "other"), tmp_path / "other/predict.json")[1].read_text())


@pytest.mark.parametrize("flags_, options, whole", [
    pytest.param({}, {}, 2**24),
    pytest.param({}, {}, 2500, id="bands"),
    pytest.param({"scale": 0.7, "tta": "flips"}, {"scale": 0.7, "tta": "flips"}, 2**24,
                 marks=pytest.mark.slow),
    pytest.param({"scale": 1, "halo": "auto"}, {"scale": 1, "halo": "auto"}, 2**24,
                 marks=pytest.mark.slow),
    pytest.param({"diameter": 8, "config.eval.threshold": 0.4, "config.eval.min_size": 3},
                 {"diameter": 8, "threshold": 0.4, "min_size": 3}, 2**24, marks=pytest.mark.slow),
])
def test_arrays_get_the_labels_that_the_command_writes(run, workdir, tmp_path, flags_, options,
                                                       whole):
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (40, 50, 3)).astype(np.uint8),
              rng.integers(0, 60000, (61, 47)).astype(np.uint16),
              rng.normal(size=(32, 33)), rng.random((70, 30)) > 0.5]
    (tmp_path / "in").mkdir()
    for n, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"in/{n}.tif", image.astype(np.float32)
                         if image.dtype == np.float64 else image,
                         photometric="rgb" if image.ndim == 3 else "minisblack")
    images[2] = images[2].astype(np.float32)
    main = functools.partial(predict.main, in_memory_pixels=whole)
    assert run(main=main, format="tiff,probability,csv", **flags_)[0] == 0
    trained = cellseg_jax.load(workdir)
    trained.in_memory_pixels = whole
    labels = trained.predict(images, **options)
    probabilities = trained.probabilities(images, **options)
    for n, image in enumerate(images):
        np.testing.assert_array_equal(labels[n], tifffile.imread(tmp_path / f"out/{n}_label.tif"))
        assert labels[n].dtype == np.int32
        np.testing.assert_array_equal(
            probabilities[n][..., 0], tifffile.imread(tmp_path / f"out/{n}_probability.tif"))
        rows = list(csv.DictReader(open(tmp_path / f"out/{n}_objects.csv")))
        measured = trained.measure(labels[n], image)
        assert [row["id"] for row in rows] == [str(one) for one in measured["id"]]
        assert list(rows[0] if rows else measured) == list(measured)
        for name in measured if rows else ():
            np.testing.assert_allclose([float(row[name]) for row in rows], measured[name],
                                       rtol=1e-6, equal_nan=True)
    np.testing.assert_array_equal(trained.predict(images[1], **options), labels[1])


@pytest.mark.parametrize("image, options, text", [
    (np.zeros((3, 40, 50), np.uint8), {}, "image: got shape (3, 40, 50); expected (H, W)"),
    (np.full((4, 4), np.nan), {}, "NaN"),
    (np.zeros((4, 4)), {"treshold": 0.5}, "option: got 'treshold'; expected one of scale"),
    (np.zeros((4, 4)), {"threshold": "high"}, "config.eval.threshold: got 'high'"),
    (np.zeros((4, 4)), {"diameter": -1}, "diameter: got -1; expected 0"),
    (np.zeros((4, 4)), {"diameter": "8"}, "diameter: got '8'; expected 0"),
    (np.zeros((4, 4)), {"diameter": 8, "scale": 1}, "scale: got diameter too"),
    (np.zeros((4, 4)), {"tta": "mirror"}, "tta: got 'mirror'"),
])
def test_what_arrays_cannot_be_used_is_one_line(workdir, image, options, text):
    with pytest.raises(InputError) as error:
        cellseg_jax.load(workdir).predict(image, **options)
    assert text in str(error.value) and not str(error.value).startswith("--")


@pytest.mark.parametrize("label, pixel_size, text", [
    (np.zeros((4, 4)), 0, "label: got float64; expected integers"),
    (np.full((4, 4), -1), 0, "label: got numbers from -1 to -1; expected ids, from 0"),
    (np.zeros((4, 4), int), -1, "pixel_size: got -1; expected micrometres, or 0"),
    (np.zeros((4, 4), int), "0.5", "pixel_size: got '0.5'; expected micrometres, or 0"),
    (np.zeros((4, 4), int), np.nan, "pixel_size: got nan; expected micrometres, or 0"),
])
def test_what_cannot_be_measured_is_one_line(workdir, label, pixel_size, text):
    with pytest.raises(InputError, match=text):
        cellseg_jax.load(workdir).measure(label, pixel_size=pixel_size)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        cellseg_jax.load(tmp_path)
    assert str(error.value).startswith(f"workdir: no run in {tmp_path}")
    assert str(error.value).endswith("python -m cellseg_jax.main --config=FILE")


def test_threshold_decides_how_much_is_foreground(run, tmp_path):
    write_image(tmp_path / "in/a.png")
    areas = []
    for threshold in (0.01, 0.99):
        out = tmp_path / f"out{threshold}"
        assert run(f"--config.eval.threshold={threshold}", out=out)[0] == 0
        areas.append((tifffile.imread(out / "a_label.tif") > 0).sum())
    assert areas[0] > areas[1]


def test_any_channels_are_accepted(run, tmp_path):
    for n, channels in enumerate((None, 3, 4)):
        write_image(tmp_path / f"in/{n}.png", size=(40, 50 + n), channels=channels)
    assert run()[0] == 0
    labels = [tifffile.imread(tmp_path / f"out/{n}_label.tif") for n in range(3)]
    assert [label.shape for label in labels] == [(40, 50), (40, 51), (40, 52)]


def test_one_bad_image_is_named_and_the_others_go_on(run, tmp_path):
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/b.png").read_bytes()[:500])
    code, out, err = run()
    assert code == 2 and "images predicted: 2, bad: 1" in out
    assert len(lines(err)) == 1 and "b.png" in err and err.startswith("error: ")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == [
        "a_label.tif", "c_label.tif"]


def test_options_that_the_message_names_work_in_the_folder_that_got_nothing(run, tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/a.tif", np.zeros((5, 40, 40), np.uint8), imagej=True,
                     metadata={"axes": "CYX"})
    code, out, err = run()
    assert code == 2 and "images predicted: 0, bad: 1" in out and "predict: --channels" in err
    assert run(channels="1")[0] == 0
    assert "holds predictions made with another --channels" in run(channels="2")[2]


def test_second_run_does_only_what_is_missing_or_changed(run, tmp_path):
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png")
    run(format="tiff")
    (tmp_path / "out/b_label.tif").unlink()
    before = (tmp_path / "out/a_label.tif").stat().st_mtime_ns
    code, out, err = run(format="tiff")
    assert code == 0 and "images predicted: 1," in out
    assert lines(err) == ["2 of 3 images were finished before"]
    assert (tmp_path / "out/a_label.tif").stat().st_mtime_ns == before
    assert "images predicted: 3," in run()[1]  # outlines were not asked for before


def test_labels_of_other_options_are_never_passed_off_as_these(run, tmp_path):
    write_image(tmp_path / "in/a.png")
    assert run()[0] == 0
    code, _, err = run("--config.eval.threshold=0.3")
    assert code == 2 and "config.eval.threshold (0.5, now 0.3)" in err
    assert run("--config.eval.batch_size=1")[0] == 0  # changes no label


def test_equal_names_never_meet(run, tmp_path):
    for name in ("x/a.png", "y/a.png", "y/a.tif"):
        write_image(tmp_path / "in" / name)
    assert run()[0] == 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.tif"))
    assert found == ["x/a_label.tif", "y/a.png_label.tif", "y/a.tif_label.tif"]


def test_a_pixel_size_that_cannot_be_right_is_a_note_and_ends_nothing(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for name, size in (("good", (20000, 20000)), ("oblong", (20000, 40000)),
                       ("tiny", ((4 * 10**9, 1),) * 2)):
        tifffile.imwrite(tmp_path / f"in/{name}.tif", pixels, resolution=size, resolutionunit=3)
    code, out, err = run(format="tiff,csv,geojson")
    assert code == 0 and "images predicted: 3, bad: 0" in out
    assert "oblong: pixel size of 0.25 x 0.5 um" in err
    assert "tiny: pixel size of 2.5e-06" in err and "good: pixel size" not in err
    for name in ("good", "oblong", "tiny"):
        assert ("area_um2" in (tmp_path / f"out/{name}_objects.csv").read_text()) == (
            name == "good")
        with tifffile.TiffFile(tmp_path / f"out/{name}_label.tif") as file:
            assert file.is_ome == (name == "good")


def test_as_many_outputs_as_images_whatever_their_names(run, tmp_path):
    for n, name in enumerate(("a.tif", "a.png", "a.tif.png", "a.png.tif", "b.tif.png")):
        write_image(tmp_path / "in" / name, size=(30, 40 + n))
    code, out, _ = run(format="tiff")
    found = {p.name: tifffile.imread(p).shape[1] - 40 for p in (tmp_path / "out").glob("*.tif")}
    assert code == 0 and "images predicted: 5," in out
    assert found == {"a.tif_label.tif": 0, "a.png_label.tif": 1, "a.tif.png_label.tif": 2,
                     "a.png.tif_label.tif": 3, "b.tif_label.tif": 4}


def test_a_page_and_a_file_of_the_same_name_are_both_named(run, tmp_path):
    write_image(tmp_path / "in/a_0001.png")
    pages = np.random.default_rng(0).integers(0, 256, (2, 30, 40)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in/a.tif", pages, photometric="minisblack")
    code, out, err = run(format="tiff")
    assert code == 2 and not list((tmp_path / "out").glob("*.tif"))
    assert "a.tif (image 1 of it)" in err and "a_0001.png" in err and "a_0001_label.tif" in err
    (tmp_path / "in/a_0001.png").rename(tmp_path / "in/b.png")
    assert "images predicted: 3," in run(format="tiff")[1]
    assert {p.name for p in (tmp_path / "out").glob("*.tif")} == {
        "a_0000_label.tif", "a_0001_label.tif", "b_label.tif", "a_label.tif"}  # the stack of a


@pytest.mark.parametrize("axes, lengths, imagej", [
    ("ZYX", (3,), True), ("TYX", (3,), True), ("TZYX", (2, 3), True), ("QYX", (3,), False)])
def test_labels_of_a_stack_come_together(run, tmp_path, axes, lengths, imagej):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (*lengths, 33, 40)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    options = dict(imagej=True, metadata={"axes": axes, "unit": "um"}, resolution=(2, 2))
    tifffile.imwrite(tmp_path / "in/s.tif", pixels, photometric="minisblack",
                     **options if imagej else {})
    code, out, err = run(format="tiff")
    count = int(np.prod(lengths))
    assert code == 0 and f"images predicted: {count}," in out
    assert "planes of 1 stacks in one file each, such as s_label.tif" in err
    assert "not linked over planes" in err
    planes = [tifffile.imread(tmp_path / f"out/s_{n:04d}_label.tif") for n in range(count)]
    with tifffile.TiffFile(tmp_path / "out/s_label.tif") as file:
        series = file.series[0]
        assert file.is_ome and series.axes == (axes if imagej else "ZYX")
        np.testing.assert_array_equal(series.asarray().reshape(count, 33, 40), planes)
        assert ('PhysicalSizeX="0.5"' in file.ome_metadata) == imagej
    before = (tmp_path / "out/s_label.tif").stat().st_mtime_ns
    assert "stacks" not in run(format="tiff")[2]
    assert (tmp_path / "out/s_label.tif").stat().st_mtime_ns == before


@pytest.mark.parametrize("axes, shape", [
    ("ZYX", (3,)), ("TYX", (3,)), ("TZYX", (2, 3)), ("ZCYX", (3, 3))])
def test_objects_of_a_stack_come_together_on_their_planes(run, tmp_path, axes, shape):
    pixels = np.zeros((*shape, 33, 40), np.uint8)
    for n, index in enumerate(np.ndindex(*shape)):
        pixels[index][4 + n : 20 + n, 4:20] = 200
        pixels[index][4:12, 30 - n : 38 - n] = 150
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/s.tif", pixels, imagej=True, metadata={"axes": axes})
    assert run(format="tiff,roi,geojson,geojson.gz")[0] == 0
    out, count = tmp_path / "out", shape[0] if "C" in axes else int(np.prod(shape))
    labels = [tifffile.imread(out / f"s_{n:04d}_label.tif") for n in range(count)]
    assert max(label.max() for label in labels) > 0
    features = json.loads((out / "s_objects.geojson").read_text())["features"]
    assert gzip.decompress((out / "s_objects.geojson.gz").read_bytes()) == (
        out / "s_objects.geojson").read_bytes()
    found = collections.Counter()
    for feature in features:
        plane = feature["geometry"]["plane"]
        assert plane["c"] == -1
        found[plane["t"] * shape[-1] + plane["z"] if axes == "TZYX" else
              plane[axes[0].lower()]] += 1
    assert [found[n] for n in range(count)] == [len(np.unique(one)) - 1 for one in labels]
    rois = roifile.roiread(out / "s_rois.zip")
    assert len(rois) == len(features) and {one.name for one in rois} <= {
        str(n) for label in labels for n in np.unique(label)}
    for one in rois:
        simple = axes in ("ZYX", "TYX")
        assert (one.position > 0) == simple
        assert (one.z_position > 0 and one.t_position > 0) == (not simple)
        assert one.z_position <= shape[-1] and one.t_position <= shape[0]
    stack = image_axes(tmp_path / "in/s.tif", AS_IT_IS)  # read back by the importer
    for name, reader in (("s_rois.zip", imagej), ("s_objects.geojson", geojson)):
        for n, label in enumerate(labels):
            drawn = reader.read(out / name, label.shape, Plane(n, stack))
            np.testing.assert_array_equal(drawn.label, label)


def test_the_objects_of_a_folder_come_together_in_one_coco_file(run, tmp_path):
    names = ["in/a.png", "in/b.png", "in/sub/c.png"]
    for n, name in enumerate(names):
        write_image(tmp_path / name, seed=n)
    assert run(format="tiff,coco")[0] == 0
    write_image(tmp_path / "in/d.png", seed=4)  # comes later
    code, out, err = run(format="tiff,coco")
    assert code == 0 and "left out" not in err
    content = json.loads((tmp_path / "out/predict.coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png", "d.png"]
    assert [image["name"] for image in content["images"]] == ["a", "b", "d"]
    ids = [one["id"] for one in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1)) and len(ids) > 3
    assert len(json.loads((tmp_path / "out/sub/predict.coco.json").read_text())["images"]) == 1
    for path in (tmp_path / "in").glob("*.png"):
        path.rename(tmp_path / "out" / path.name)
    found = folder.records(tmp_path / "out", annotations="coco")
    assert [record.name for record in found] == ["a", "b", "d"]
    for record in found:
        np.testing.assert_array_equal(
            record.read().label, tifffile.imread(tmp_path / f"out/{record.name}_label.tif"))


def test_masks_beside_images_are_counted_and_not_segmented(run, tmp_path):
    """A folder of Cellpose, a dataset of images/ and masks/, and names that only resemble these."""
    label = np.zeros((40, 50), np.uint16)
    label[5:20, 5:20], label[22:38, 20:45] = 1, 2
    for name in ("x.png", "y.tif", "z_image.tif", "data/images/a.tif", "data/images/b.tif",
                 "only_masks.png", "y_green.tif", "flat/c.png", "flat/d.png", "flat/masks/e.png"):
        write_image(tmp_path / "in" / name)
    masks = ("x_cp_masks.png", "y_masks.tif", "z_masks.tif", "y_nuclei.tif", "data/masks/a.tif",
             "data/masks/b.tif", "x_cp_output.png", "flat/masks/c.tif", "flat/masks/d_label.tif")
    for name in masks:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        (tifffile.imwrite(path, label) if path.suffix == ".tif"
         else Image.fromarray(label).save(path))
    code, out, err = run(format="tiff")
    assert code == 0 and "images predicted: 10," in out
    assert err.startswith(f"9 files in {tmp_path / 'in'} are masks of other images")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.tif")}
    assert found == {f"{name}_label.tif" for name in (
        "x", "y", "z_image", "data/images/a", "data/images/b", "only_masks", "y_green",
        "flat/c", "flat/d", "flat/masks/e")}
    assert "images predicted: 3," in run(images=tmp_path / "in/*.tif", out=tmp_path / "g")[1]
    code, _, err = run(images=tmp_path / "in/data/masks")
    assert code == 2 and "is a folder of masks" in err and "in/data/images'" in err
    counts = np.zeros((40, 50), np.uint8)  # pictures of few photons look like masks
    counts[::8, :40] = [[1], [2], [3], [4], [5]]
    (tmp_path / "wells").mkdir()
    for name in ("well.png", "well_2.png"):
        Image.fromarray(counts).save(tmp_path / "wells" / name)
    assert "images predicted: 2," in run(images=tmp_path / "wells", out=tmp_path / "w")[1]
    named = run(images=tmp_path / "in/y_masks.tif", out=tmp_path / "named")
    assert "images predicted: 1," in named[1]  # a user who names a file means it


def test_folders_of_labels_of_any_name_are_known_by_content(run, tmp_path):
    label = np.zeros((40, 50), np.uint8)
    label[5:20, 5:20], label[22:38, 20:45] = 1, 2
    for name in ("raw/a.png", "raw/b.png", "day 1/a.png", "day 2/a.png"):
        write_image(tmp_path / "in" / name)
    for name in ("annotated/a.png", "annotated/b.png", "lone/z.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(label).save(tmp_path / "in" / name)
    code, out, err = run(format="tiff")
    assert code == 0 and "images predicted: 5," in out
    assert err.startswith("2 files in ") and "annotated/a.png, annotated/b.png" in err


def test_other_files_are_counted_not_read(run, tmp_path):
    write_image(tmp_path / "in/a.png")
    for name in ("notes.txt", "b.gif", ".DS_Store", ".hidden/c.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("no image")
    code, out, err = run()
    assert code == 0 and "images predicted: 1," in out and err.startswith("2 files in ")


def test_globs_and_outputs_beside_images(run, tmp_path):
    for name in ("x/a.png", "y/a.png", "y/b.tif"):
        write_image(tmp_path / "in" / name)
    assert "images predicted: 2," in run(images=tmp_path / "in/*/*.png")[1]
    assert (tmp_path / "out/y/a_label.tif").exists()
    here = {"images": tmp_path / "in", "out": tmp_path / "in"}
    assert "images predicted: 3," in run(**here)[1]
    assert "images predicted: 0," in run(**here)[1]  # its own outputs are not images
    code, out, err = run(out=tmp_path / "other")  # nor are those of another command
    assert "images predicted: 3," in out and not lines(err)
    assert "images predicted: 3, bad: 0" in run(images=tmp_path / "in/**/*", out=tmp_path / "g")[1]
    assert "images predicted: 1," in run(images=tmp_path / "in/y/b.tif", out=tmp_path / "o")[1]
    assert (tmp_path / "o/b_label.tif").exists()


def test_labels_of_a_person_are_never_replaced(run, tmp_path):
    write_image(tmp_path / "in/a.png")
    (tmp_path / "in/a_label.tif").write_bytes(b"hours of work")
    code, _, err = run(images=tmp_path / "in", out=tmp_path / "in", format="png,tiff")
    assert code == 2 and "a_label.tif would be replaced" in err
    assert (tmp_path / "in/a_label.tif").read_bytes() == b"hours of work"
    assert not (tmp_path / "in/predict.json").exists()
    assert run(images=tmp_path / "in", out=tmp_path / "in", format="png")[0] == 0


def test_many_instances_need_32_bits(run, tmp_path, monkeypatch):
    from cellseg_jax.inference import predictor

    write_image(tmp_path / "in/a.png", (300, 300))
    ids = np.arange(300 * 300, dtype=np.int32).reshape(300, 300)
    monkeypatch.setattr(predictor.Predictor, "decode", lambda self, probs: ids)
    assert run(format="tiff")[0] == 0
    label = tifffile.imread(tmp_path / "out/a_label.tif")
    assert label.dtype == np.uint32
    np.testing.assert_array_equal(label, ids)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0, 1.0])
def test_large_images_in_bands_equal_small_ones(run, tmp_path, scale):
    write_image(tmp_path / "in/a.png", (150, 90))
    formats = "tiff,probability,csv,geojson,uncertainty"
    shared = dict(scale=scale, format=formats, tta="flips")
    words = ["--config.eval.decode=components", "--config.eval.min_size=4"]
    assert run(*words, **shared)[0] == 0
    main = functools.partial(predict.main, in_memory_pixels=1000)
    code, out, err = run(*words, main=main, out=tmp_path / "bands", **shared)
    assert code == 0 and "a: row 150 of 150" in err
    for suffix in ("label", "probability", "uncertainty"):
        whole, bands = (tifffile.imread(tmp_path / folder / f"a_{suffix}.tif")
                        for folder in ("out", "bands"))
        np.testing.assert_allclose(bands, whole, atol=0 if suffix == "label" else 1e-5)
    assert tifffile.imread(tmp_path / "bands/a_label.tif").max() > 1
    assert (tmp_path / "out/a_objects.csv").read_text() == (
        tmp_path / "bands/a_objects.csv").read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "bands").iterdir())  # nothing temporary is left


@pytest.mark.slow
def test_stacks_files_and_folders_together(run, tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, 33, 40)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in/stack.tif", stack, photometric="minisblack")
    write_image(tmp_path / "more/Zelle ä 1.png")
    both = {"images": [tmp_path / "in", tmp_path / "more/Zelle ä 1.png"], "format": "tiff"}
    code, out, _ = run(**both)
    assert code == 0 and "images predicted: 4, bad: 0" in out
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == [
        "Zelle ä 1_label.tif", *(f"stack_000{n}_label.tif" for n in range(3)), "stack_label.tif"]
    (tmp_path / "out/stack_0001_label.tif").unlink()
    assert "images predicted: 1," in run(**both)[1]
    write_image(tmp_path / "in/Zelle ä 1.png")
    code, _, err = run(**both)
    assert code == 2 and "images of the same name" in err


@pytest.mark.slow
def test_several_runs_predict_together(run, workdir, tmp_path):
    write_image(tmp_path / "in/a.png")
    other = shutil.copytree(workdir, tmp_path / "other")
    both = f"{workdir},{other}"
    assert run(workdir=both, format="tiff,uncertainty,probability")[0] == 0
    assert run(out=tmp_path / "one", format="probability")[0] == 0
    assert tifffile.imread(tmp_path / "out/a_uncertainty.tif").max() < 1e-6  # they are the same
    ensemble = cellseg_jax.load([workdir, other])
    image = np.asarray(Image.open(tmp_path / "in/a.png"))
    for name in ("uncertainty", "probability"):
        found = ensemble.uncertainty if name == "uncertainty" else ensemble.probabilities
        np.testing.assert_array_equal(np.squeeze(found(image)), np.squeeze(
            tifffile.imread(tmp_path / f"out/a_{name}.tif")))
    one, two = (tifffile.imread(tmp_path / f"{folder}/a_probability.tif")
                for folder in ("one", "out"))
    np.testing.assert_allclose(one, two, atol=1e-6)
    code, _, err = run(workdir=both, tune="pq")
    assert code == 2 and "--tune: tunes one run" in err


@pytest.mark.slow
def test_tuned_options_are_used_when_asked_for_and_said(run, workdir, tmp_path):
    write_image(tmp_path / "in/a.png")
    code, out, err = run(images=None, out=None, tune="pq")
    assert code == 0 and "tuned for pq on 4 validation images" in err
    assert "tuning.json of the run is not used" in run()[2]
    code, _, err = run("--config.eval.threshold=0.3", out=tmp_path / "tuned", tune="pq")
    assert code == 0 and "eval.threshold=0.3" in err
    (workdir / "tuning.json").unlink()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height_of_an_image(workdir, tmp_path):
    """Under 1 GiB of private memory; the same pixels at once need more."""
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint16, (12000, 4000))
    rng = np.random.default_rng(0)
    for top in range(0, 12000, 500):
        image[top : top + 500] = rng.integers(0, 2**16, (20, 160)).repeat(25, 0).repeat(25, 1)
    tifffile.imwrite(tmp_path / "large.tif", image, tile=(256, 256), compression="zlib")
    words = [f"--workdir={workdir}", f"--images={tmp_path / 'large.tif'}", "--scale=1",
             "--format=tiff", "--config.eval.overlap=0.1", "--config.eval.batch_size=64"]
    for whole, code in ((2**20, 0), (2**30, 1)):
        child = CAPPED.format(limit=2**30, whole=whole)
        done = subprocess.run(
            ["bash", "-c", 'ulimit -s 2048; exec "$@"', "", sys.executable, "-c", child, *words,
             f"--out={tmp_path / str(whole)}"], cwd=ROOT, capture_output=True, text=True,
            env=child_environment() | {"MALLOC_ARENA_MAX": "2"}, timeout=900)
        print(done.stdout.splitlines()[-1:])
        assert (done.returncode != 0) == code, done.stderr[-2000:]
    assert tifffile.imread(tmp_path / f"{2**20}/large_label.tif").shape == (12000, 4000)


@pytest.mark.slow
def test_many_sizes_compile_a_few_programs(run, tmp_path):
    import jax

    rng = np.random.default_rng(0)
    for n in range(60):
        write_image(tmp_path / f"in/{n:02d}.{('png', 'tif')[n % 2]}", rng.integers(20, 90, 2),
                    [None, 3, 4][n % 3])
    wide = rng.integers(0, 60000, (71, 33)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "in/wide.tif", wide)
    for scale in (0, 1.0):
        seen = []

        def heard(event, *_, seen=seen, **__):
            if "backend_compile" in event:
                seen.append(event)

        jax.monitoring.register_event_duration_secs_listener(heard)
        try:
            assert "images predicted: 61, bad: 0" in run(
                scale=scale, out=tmp_path / f"out{scale}", format="tiff")[1]
        finally:
            jax.monitoring.unregister_event_duration_listener(heard)
        assert len(seen) <= 6, len(seen)


@pytest.mark.parametrize("wrong, message", [
    ({"images": None}, "--images: missing"),
    ({"out": None}, "--out: missing"),
    ({"workdir": None}, "--workdir: missing"),
    ({"images": "nowhere"}, "--images: no image in 'nowhere'"),
    ({"images": ""}, "--images: got ''; expected a file, a folder or a quoted glob"),
    ({"workdir": "nowhere"}, "--workdir: no run in nowhere"),
    ({"out": "a_file/out"}, "--out: cannot write"),
    ({"format": "tif"}, "did you mean tiff?"),
    ({"scale": "-1"}, "--scale"),
    ({"halo": "wide"}, "--halo: got 'wide'; expected pixels or auto"),
    ({"halo": "8"}, "--halo: this run sees an image as a whole"),
    ({"tta": "flip"}, "did you mean flips?"),
    ({"tune": "dice"}, "--tune: got 'dice'"),
    ({"format": "uncertainty"}, "a single prediction has no spread"),
    ({"device": "gpu:x"}, "--device: got 'gpu:x'"),
    ({"memory": "2"}, "--memory: got '2'"),
    ({"scale": "nan"}, "--scale"),
    ({"scale": "1000"}, "--scale: got 1000; expected a factor from 1/64 to 64"),
    ({"scale": "0.001"}, "--scale: got 0.001; expected a factor from 1/64 to 64"),
    ({"workdir": ","}, "--workdir: got ','; expected the folder of a trained run"),
    ({"workdir": "a,./a"}, "--workdir: got 'a,./a', with a run twice"),
    ({"checkpoint": "newest"}, "--checkpoint"),
    ({"config": "a.py"}, "--config"),
    ({"config.optimizer.lr": "1"}, "config.optimizer.lr"),
    ({"config.eval.treshold": "0.3"}, "did you mean config.eval.threshold?"),
    ({"imags": "x"}, "imags"),
])
def test_rejects_in_one_line(run, tmp_path, monkeypatch, wrong, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    write_image(tmp_path / "in/a.png")
    code, out, err = run(**wrong)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and message in err
