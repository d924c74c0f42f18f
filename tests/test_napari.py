"""The napari plugin: what needs no napari, and, marked slow, the widget in a real viewer."""

import ast
import fnmatch
import importlib
import os
import pathlib
import sys
import time
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from helpers import tiny_config
from skimage import measure

import cellseg_jax
from cellseg_jax import config as config_lib
from cellseg_jax.data import lazy
from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.errors import InputError
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import table, tiff
from cellseg_jax.inference.trained_run import TrainedRun
from cellseg_jax.napari import layers, planes, reader, samples

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cellseg_jax"
MANIFEST = yaml.safe_load((PACKAGE / "napari/napari.yaml").read_text())
CONTRIBUTIONS = MANIFEST["contributions"]


# --- the manifest ---------------------------------------------------------------------------------


def test_commands_of_the_manifest_are_functions_that_exist():
    for command in CONTRIBUTIONS["commands"]:
        module, name = command["python_name"].split(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert command["id"].startswith(f"{MANIFEST['name']}.")


def test_contributions_use_every_command_once():
    used = [one["command"] for kind in ("widgets", "readers", "sample_data")
            for one in CONTRIBUTIONS[kind]]
    assert sorted(used) == sorted(command["id"] for command in CONTRIBUTIONS["commands"])


def test_manifest_is_where_the_installed_package_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [(name, place)] = project["project"]["entry-points"]["napari.manifest"].items()
    module, file = place.split(":")
    assert (ROOT / module.replace(".", "/") / file).exists()
    assert name == MANIFEST["name"] == project["project"]["name"]
    assert file in project["tool"]["setuptools"]["package-data"]["*"]


def test_manifest_is_valid_to_npe2():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(PACKAGE / "napari/napari.yaml")
    manifest.validate_imports()


def test_only_the_room_imports_napari_and_only_inside_functions():
    def imported(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield (node.module or "").split(".")[0]
    viewers = {"napari", "magicgui", "qtpy", "superqt", "npe2"}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if not any(name in text for name in viewers):
            continue
        tree = ast.parse(text)
        nodes = tree.body if path.parent.name == "napari" else ast.walk(tree)
        assert not viewers & set(imported(nodes)), path


# --- layers ---------------------------------------------------------------------------------------


def layer_of(data, *, rgb=False, labels=None, **given):
    """A stand-in for napari's image layer."""
    ndim = np.ndim(data[0]) + (not given.get("multiscale")) - rgb
    values = {"name": "cells", "multiscale": False, "scale": np.arange(1.0, ndim + 1),
              "translate": np.arange(ndim) * 10.0, "rotate": np.eye(ndim),
              "shear": np.zeros(ndim * (ndim - 1) // 2), "affine": np.eye(ndim + 1),
              "units": ("pixel",) * ndim,
              "axis_labels": labels or tuple(f"-{n}" for n in range(ndim, 0, -1))}
    return SimpleNamespace(data=data, rgb=rgb, **(values | given))


def numbers(*shape):
    return np.arange(np.prod(shape)).reshape(shape)


def test_one_gray_image():
    data = numbers(5, 7)
    picture = layers.picture_of([layer_of(data)])
    assert (picture.shape, picture.channels, picture.kind) == ((5, 7), 1, "gray")
    np.testing.assert_array_equal(picture.read(()), data[..., None])


def test_leading_axes_are_planes():
    data = numbers(2, 3, 5, 7)
    picture = layers.picture_of([layer_of(data)])
    assert (picture.shape, picture.channels) == ((2, 3, 5, 7), 1)
    np.testing.assert_array_equal(picture.read((1, 2)), data[1, 2, :, :, None])
    assert picture.name_of((1, 2)) == "cells, plane 1, 2"


def test_rgb_keeps_its_channels_and_planes():
    data = numbers(2, 5, 7, 3)
    picture = layers.picture_of([layer_of(data, rgb=True)])
    assert (picture.shape, picture.channels, picture.kind) == ((2, 5, 7), 3, "rgb")
    np.testing.assert_array_equal(picture.read((1,)), data[1])
    assert picture.place["scale"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("axis, chosen", [(0, "0"), (1, "1"), (2, "2"), (3, "last")])
def test_channel_axis_by_number_and_by_name(axis, chosen):
    image = numbers(2, 5, 7, 4)  # planes, height, width, channels
    data = np.moveaxis(image, -1, axis)
    names = [*"zyx"]
    names.insert(axis, "Channel")
    for layer, how in ((layer_of(data), chosen), (layer_of(data, labels=names), layers.BY_NAME)):
        picture = layers.picture_of([layer], how)
        assert (picture.shape, picture.channels, picture.kind) == ((2, 5, 7), 4, "channels")
        np.testing.assert_array_equal(picture.read((1,)), image[1])
        kept = [n for n in range(4) if n != axis]
        assert picture.place["scale"].tolist() == [n + 1 for n in kept]
        assert picture.place["translate"].tolist() == [n * 10 for n in kept]


def test_several_layers_are_channels_in_their_order():
    one, two = layer_of(numbers(3, 5, 7)), layer_of(numbers(3, 5, 7) + 1000, name="second")
    picture = layers.picture_of([one, two])
    assert (picture.shape, picture.channels, picture.name) == ((3, 5, 7), 2, "cells + second")
    np.testing.assert_array_equal(picture.read((2,)), np.stack([one.data[2], two.data[2]], -1))


def test_pyramids_are_read_at_full_resolution():
    levels = [numbers(8, 6), numbers(4, 3)]
    picture = layers.picture_of([layer_of(levels, multiscale=True)])
    np.testing.assert_array_equal(picture.read(()), levels[0][..., None])


def test_place_drops_the_channel_axis_of_every_transform():
    shear = np.array([0, 0, 0.25])  # above the diagonal: (0, 1), (0, 2), (1, 2)
    affine = np.diag([9.0, 1, 2, 1])
    place = layers.picture_of([layer_of(numbers(2, 5, 7), shear=shear, affine=affine)],
                              "0").place
    np.testing.assert_array_equal(place["shear"], [[1, 0.25], [0, 1]])
    np.testing.assert_array_equal(place["affine"], np.diag([1, 2, 1]))
    assert place["rotate"].shape == (2, 2) and len(place["units"]) == 2


@pytest.mark.parametrize("chosen, axis, text", [
    ([], layers.BY_NAME, "no layer is chosen"),
    ([layer_of(numbers(5, 7))], "2", "has axes 0 to 1"),
    ([layer_of(numbers(5, 7))], "0", "expected height and width too"),
    ([layer_of(numbers(5, 7)), layer_of(numbers(5, 8), name="b")], "none",
     "cells and b have sizes (5, 7) and (5, 8)"),
    ([layer_of(numbers(5, 7)), layer_of(numbers(5, 7), name="b", scale=np.ones(2))], "none",
     "different scales"),
    ([layer_of(numbers(5, 7)), layer_of(numbers(5, 7, 3), name="b", rgb=True,
                                        scale=np.array([1.0, 2]))], "none", "b is rgb"),
])
def test_layers_that_make_no_image_are_refused(chosen, axis, text):
    with pytest.raises(InputError) as error:
        layers.picture_of(chosen, axis)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_channels_that_nobody_chose_are_refused(count):
    """Four are not taken for RGBA, of which the last would be dropped."""
    stack = layers.picture_of([layer_of(numbers(count, 5, 7))], "0")
    several = layers.picture_of([layer_of(numbers(5, 7))] * count)
    for picture in (stack, several):
        with pytest.raises(InputError, match=f"has {count} channels; the run takes gray or RGB"):
            layers.check_channels(picture, "")
        layers.check_channels(picture, "1")


@pytest.mark.parametrize("layer, axis", [
    (layer_of(numbers(5, 7)), "none"), (layer_of(numbers(3, 5, 7)), "0"),
    (layer_of(numbers(5, 7, 3), rgb=True), "none"), (layer_of(numbers(5, 7, 4), rgb=True), "none")])
def test_gray_rgb_and_rgba_need_no_choice(layer, axis):
    layers.check_channels(layers.picture_of([layer], axis), "")


# --- planes ---------------------------------------------------------------------------------------


def otsu_run(folder, **data):
    """The folder of a run that needs no training; `data` are keys of config.data."""
    config = config_lib.default()
    config.data = {"name": "folder", "root": "images", "size": (64, 64)} | data
    config.model = {"name": "otsu"}
    folder.mkdir()
    (folder / "config.json").write_text(config_lib.to_json(config_lib.complete(config)))
    return folder


@pytest.fixture
def workdir(tmp_path):
    return otsu_run(tmp_path / "otsu")


def run_of(config, found):
    """A TrainedRun whose `predict` is the function `found` of pixels."""
    run = TrainedRun(SimpleNamespace(predictor=SimpleNamespace(config=config)))
    run.calls = []

    def predict(pixels, **options):
        run.calls.append((pixels, options))
        return found(pixels)

    run.predict = predict
    return run


def bright(pixels):
    return measure.label(pixels[..., 0] > 100).astype(np.int32)


def spots(*places, size=(20, 30)):
    """An image with a bright square of 3 by 3 pixels at each of some (row, column)."""
    image = np.zeros(size, np.uint8)
    for y, x in places:
        image[y : y + 3, x : x + 3] = 200
    return image


def finished(generator):
    """(what it yielded, what it returned)."""
    yielded = []
    while True:
        try:
            yielded.append(next(generator))
        except StopIteration as end:
            return yielded, end.value


def test_ids_of_planes_follow_one_another_and_the_table_has_them():
    stack = np.stack([spots((2, 2), (10, 20)), spots(), spots((5, 5))])
    run = run_of(tiny_config(), bright)
    done, found = finished(planes.segmented(run, layers.picture_of([layer_of(stack)]), {}))
    assert done == [1, 2, 3] and found.classes is None
    np.testing.assert_array_equal(np.unique(found.label[0]), [0, 1, 2])
    assert not found.label[1].any() and set(found.label[2][5:8, 5:8].ravel()) == {3}
    features = found.features
    for name in ("index", "id", "label"):
        assert features[name].tolist() == [1, 2, 3]
    assert features["axis-0"].tolist() == [0, 0, 2]
    assert features["centroid-0"].tolist() == [3, 11, 6]
    assert features["mean_intensity_1"].tolist() == [200] * 3
    columns = [name for name in features if name not in ("index", "axis-0")]
    assert columns == list(run.measure(bright(stack[0][..., None]), stack[0]))


def test_an_image_without_cells_has_an_empty_table():
    run = run_of(tiny_config(), bright)
    _, found = finished(planes.segmented(run, layers.picture_of([layer_of(spots())]), {}))
    assert not found.label.any() and all(len(column) == 0 for column in found.features.values())


def test_classes_stay_beside_the_objects_that_the_table_describes():
    config = tiny_config()
    config.data.target, config.data.num_classes = "classes", 3
    run = run_of(config, lambda pixels: (pixels[..., 0] // 100).astype(np.int32))
    image = spots((2, 2), (10, 20)) // 2 + spots((5, 25))
    _, found = finished(planes.segmented(run, layers.picture_of([layer_of(image)]), {}))
    np.testing.assert_array_equal(found.classes, image // 100)
    assert found.label.max() == 3 and found.features["index"].tolist() == [1, 2, 3]
    for n, name in zip(found.features["index"], found.features["class"], strict=True):
        assert {f"class {c}" for c in found.classes[found.label == n]} == {name}


@pytest.mark.parametrize("trained, units, options, wanted", [
    (0.0, ("micrometer",) * 2, {}, {}),
    (0.5, ("micrometer",) * 2, {}, {"pixel_size": 0.25}),
    (0.5, ("nanometer",) * 2, {}, {"pixel_size": 0.00025}),
    (0.5, ("pixel",) * 2, {}, {}),
    (0.5, ("micrometer",) * 2, {"scale": 2.0}, {"scale": 2.0}),
    (0.5, ("micrometer",) * 2, {"diameter": 9.0}, {"diameter": 9.0}),
])
def test_the_layers_pixel_size_counts_as_that_of_a_file(trained, units, options, wanted):
    config = tiny_config(data__pixel_size=trained, data__fit="random_crop")
    run = run_of(config, bright)
    layer = layer_of(spots((2, 2)), scale=np.array([0.25, 0.25]), units=units)
    _, found = finished(planes.segmented(run, layers.picture_of([layer]), options))
    assert run.calls[0][1] == pytest.approx(wanted)
    assert ("area_um2" in found.features) == (units[0] != "pixel")


@pytest.mark.parametrize("trained, given, wanted", [("", "2", 2), ("2", "", 2), ("0", "3", 3)])
def test_channels_are_chosen_as_the_run_chooses_them(tmp_path, trained, given, wanted):
    run = cellseg_jax.load(otsu_run(tmp_path / "otsu", channel_index=trained))
    stack = np.stack([spots(), spots((2, 2)), spots((10, 20), (5, 5)), spots((3, 3))])
    picture = layers.picture_of([layer_of(stack)], "0")
    _, found = finished(planes.segmented(run, picture, {"channels": given} if given else {}))
    np.testing.assert_array_equal(found.label > 0, stack[wanted] > 0)
    assert set(found.features["mean_intensity_1"]) == {200}
    assert "mean_intensity_2" not in found.features


def test_an_error_names_layer_and_plane():
    def fails(pixels):
        raise InputError("image: pixels are float64 with NaN; replace them")
    stack = layers.picture_of([layer_of(numbers(2, 5, 7))])
    with pytest.raises(InputError, match="^cells, plane 0: pixels are float64"):
        finished(planes.segmented(run_of(tiny_config(), fails), stack, {}))


def test_notes_of_many_planes_are_one_line():
    run = run_of(tiny_config(), bright)
    run.notes = ["cells are small"]
    _, found = finished(planes.segmented(run, layers.picture_of([layer_of(numbers(3, 5, 7))]), {}))
    assert found.notes == ("cells, plane 0 (and 2 other planes): cells are small",)


# --- reader ---------------------------------------------------------------------------------------


def written(folder, formats, *, pixel_size=None, classes=(), **values):
    """The files of a label with two objects and a gap in its ids; (label, image)."""
    image = lazy.from_array(spots((2, 2), (10, 20))[..., None], "a", pixel_size)
    label = bright(image.read()) * 3
    for name in formats:
        outputs.write(name, folder / "a", label, image, classes=classes, **values)
    return label, image


def test_reader_opens_labels_with_scale_and_features(tmp_path):
    label, image = written(tmp_path, ("tiff", "csv"), pixel_size=(0.5, 0.5))
    path = str(tmp_path / "a_label.tif")
    [(values, options, kind)] = reader.get_reader(path)(path)
    np.testing.assert_array_equal(values, label)
    assert kind == "labels" and options["name"] == "a_label"
    assert options["scale"] == pytest.approx((0.5, 0.5))
    assert options["units"] == ("micrometer",) * 2
    expected = table.measure(label, image.read(), pixel_size=(0.5, 0.5))
    features = options["features"]
    assert list(features) == ["index", *expected]
    assert features["index"].tolist() == [3, 6] and features["index"].dtype.kind == "i"
    for name, column in expected.items():
        np.testing.assert_allclose(features[name], column, rtol=1e-6)


def test_reader_opens_a_label_alone(tmp_path):
    label, _ = written(tmp_path, ("tiff",))
    [(values, options, _)] = reader.read([str(tmp_path / "a_label.tif")])
    np.testing.assert_array_equal(values, label)
    assert options == {"name": "a_label"}


def test_reader_gives_classes_and_the_objects_of_the_table(tmp_path):
    label, _ = written(tmp_path, ("tiff", "csv"), classes=[f"class {n}" for n in range(1, 7)])
    (classes, _, _), (objects, options, _) = reader.read(str(tmp_path / "a_label.tif"))
    np.testing.assert_array_equal(classes, label)
    np.testing.assert_array_equal(objects, label // 3)
    assert options["features"]["index"].tolist() == [1, 2]
    assert options["features"]["class"].tolist() == ["class 3", "class 6"]


def test_reader_opens_the_labels_of_a_stack(tmp_path):
    stack = np.stack([spots((2, 2)), spots((5, 5))])
    for n, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"{n}.tif", plane)
    tiff.write_stack(tmp_path / "s_label.tif", [tmp_path / "0.tif", tmp_path / "1.tif"],
                             StackAxes({"T": 2}), (0.5, 0.5))
    [(values, options, kind)] = reader.read(str(tmp_path / "s_label.tif"))
    np.testing.assert_array_equal(values, stack)
    assert options["scale"] == pytest.approx((1, 0.5, 0.5)) and kind == "labels"
    assert options["units"] == ("pixel", "micrometer", "micrometer")


def test_reader_opens_probabilities_as_channels(tmp_path):
    probability = np.random.default_rng(0).random((20, 30, 2)).astype(np.float32)
    written(tmp_path, ("probability",), pixel_size=(0.5, 0.5), probability=probability)
    [(values, options, kind)] = reader.read(str(tmp_path / "a_probability.tif"))
    np.testing.assert_array_equal(np.moveaxis(values, options["channel_axis"], -1), probability)
    assert kind == "image" and len(options["scale"]) == 2


def test_reader_leaves_other_files_to_others(tmp_path):
    assert reader.get_reader("a.tif") is None
    assert reader.get_reader(["a_label.tif", "b.tif"]) is None
    patterns = CONTRIBUTIONS["readers"][0]["filename_patterns"]
    for name in ("tiff", *reader.IMAGES):
        assert any(fnmatch.fnmatch(f"x{outputs.FORMATS[name].suffix}", one) for one in patterns)
    assert len(patterns) == 1 + len(reader.IMAGES)


def test_reader_says_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "a_label.tif"
    path.write_bytes(b"no TIFF at all")
    with pytest.raises(InputError, match="a_label.tif: cannot be read as a TIFF"):
        reader.read(str(path))
    tifffile.imwrite(path, np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match="holds float32; expected a label image of integers"):
        reader.read(str(path))


@pytest.mark.parametrize("make, channels", [(samples.fluorescence, ()), (samples.stained, (3,))])
def test_samples_are_an_image_and_its_labels(make, channels):
    (image, options, kind), (label, _, other) = make()
    assert (kind, other) == ("image", "labels") and options["rgb"] == bool(channels)
    assert image.shape == (*samples.SIZE, *channels) and image.dtype == np.uint8
    assert label.shape == samples.SIZE and label.max() > 8
    gray = image if not channels else 255 - image.mean(-1)
    assert gray[label > 0].mean() > gray[label == 0].mean()


# --- a real viewer --------------------------------------------------------------------------------


@pytest.fixture
def viewer():
    napari = pytest.importorskip("napari", reason="the extra napari is not installed")
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        pytest.skip("no display for napari's window: run under xvfb-run")
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


def opened(viewer):
    """The plugin's widget, as the menu opens it: its container and fields."""
    from cellseg_jax.napari.widget import Fields

    _, container = viewer.window.add_plugin_dock_widget("cellseg_jax", "Segment cells")
    return container, Fields(*container)


def waited(fields, until=lambda: False):
    """Let the window work until the run has ended, or earlier; (longest s without it, its text)."""
    from qtpy.QtWidgets import QApplication

    start = last = time.monotonic()
    longest = 0.0
    while not (fields.start.enabled or until()):
        assert time.monotonic() - start < 120
        QApplication.processEvents()
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        time.sleep(0.01)
    return longest, fields.status.value


@pytest.mark.slow
def test_widget_segments_sample_data(viewer, workdir):
    viewer.open_sample("cellseg_jax", "fluorescence")
    image, _ = viewer.layers
    image.scale, image.units, image.translate = (0.5, 0.5), ("um", "um"), (3, 4)
    _, fields = opened(viewer)
    assert fields.images.value == [image]
    fields.run.value = workdir
    fields.start.native.click()
    assert fields.cancel.enabled
    longest, text = waited(fields)
    assert longest < 5 and text.endswith("objects; image of 1 channel")
    found, run = viewer.layers[-1], cellseg_jax.load(workdir)
    label = run.predict(image.data)
    np.testing.assert_array_equal(found.data, label)
    assert found.scale.tolist() == [0.5, 0.5] and found.translate.tolist() == [3, 4]
    assert found.units == image.units
    table = run.measure(label, image.data, pixel_size=0.5)
    assert found.features.columns.tolist() == ["index", *table]
    for name, column in table.items():
        np.testing.assert_allclose(found.features[name], column)
    y, x = np.argwhere(label == 2)[0]
    shown = found._get_properties((y * 0.5 + 3, x * 0.5 + 4), world=True)
    assert "id: 2" in shown


@pytest.mark.slow
def test_widget_segments_stacks_and_stops_between_planes(viewer, workdir):
    image = samples.fluorescence()[0][0]
    stack = viewer.add_image(np.stack([image, image.T, 0 * image] * 10), name="stack")
    _, fields = opened(viewer)
    fields.run.value = workdir
    fields.images.value = [stack]
    fields.start.native.click()
    waited(fields, until=lambda: "segmented" in fields.status.value)
    fields.cancel.native.click()
    assert waited(fields)[1] == "cancelled: no labels are added" and len(viewer.layers) == 1
    fields.start.native.click()
    assert "in 30 planes, not linked over planes" in waited(fields)[1]
    found = viewer.layers[-1]
    assert found.data.shape == stack.data.shape
    label = cellseg_jax.load(workdir).predict(image)
    np.testing.assert_array_equal(found.data[0], label)
    np.testing.assert_array_equal(found.data[1] > 0, label.T > 0)
    assert found.data.max() == len(found.features) == found.features["index"].max()


@pytest.mark.slow
@pytest.mark.parametrize("run, names, text", [
    ("", ["gray"], "run: no folder is chosen"),
    ("elsewhere", ["gray"], "no run in"),
    ("otsu", [], "image: no layer is chosen"),
    ("otsu", ["gray", "other"], "gray + other: has 2 channels; the run takes gray or RGB"),
    ("otsu", ["four"], "four: has 4 channels; the run takes gray or RGB"),
    ("otsu", ["nan"], "nan: pixels are float64 with NaN"),
])
def test_widget_says_in_one_line_what_is_wrong(viewer, workdir, run, names, text):
    from napari.utils.notifications import notification_manager

    gray = np.zeros((32, 32), np.uint8)
    viewer.add_image(gray, name="gray")
    viewer.add_image(gray, name="other")
    viewer.add_image(np.stack([gray] * 4), name="four", axis_labels=("c", "y", "x"))
    viewer.add_image(np.full((32, 32), np.nan), name="nan", contrast_limits=(0, 1))
    _, fields = opened(viewer)
    if run:
        fields.run.value = workdir.with_name(run)
    fields.images.value = [viewer.layers[name] for name in names]
    notification_manager.records.clear()
    fields.start.native.click()
    assert waited(fields)[1].startswith(text) and "\n" not in fields.status.value
    shown, = [note for note in notification_manager.records if note.severity == "error"]
    assert shown.message == fields.status.value and not hasattr(shown, "exception")
    assert len(viewer.layers) == 4


@pytest.mark.slow
def test_widget_can_be_closed_while_it_works(viewer, workdir):
    from qtpy.QtWidgets import QApplication

    image = samples.fluorescence()[0][0]
    viewer.add_image(np.stack([image] * 100))
    container, fields = opened(viewer)
    fields.run.value = workdir
    fields.start.native.click()
    waited(fields, until=lambda: "segmented" in fields.status.value)
    viewer.window.remove_dock_widget("all")
    container.native.deleteLater()
    for _ in range(100):
        QApplication.processEvents()
        time.sleep(0.02)
    assert len(viewer.layers) == 1


@pytest.mark.slow
def test_reader_in_the_viewer(viewer, tmp_path):
    label, _ = written(tmp_path, ("tiff", "csv"), pixel_size=(0.5, 0.5))
    [layer] = viewer.open(tmp_path / "a_label.tif", plugin="cellseg_jax")
    np.testing.assert_array_equal(layer.data, label)
    assert layer.scale == pytest.approx((0.5, 0.5))
    assert "area_px: 9" in " ".join(layer._get_properties((1.5, 1.5), world=True))
