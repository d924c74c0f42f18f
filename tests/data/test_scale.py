"""The scale of images: diameters, factors, and rescaled caches."""

import dataclasses
import json

import numpy as np
import pytest
import tifffile

from cellseg_jax import config as config_lib
from cellseg_jax.crops import rows as window_rows
from cellseg_jax.data import cache, lazy, micrometres, pipeline, records_of, resize, scale
from cellseg_jax.data.datasets import folder
from cellseg_jax.data.order import Crops, Order, Sampling
from cellseg_jax.errors import InputError
from cellseg_jax.normalize import image_ranges

RADII = (6, 8, 12, 16)


def discs(radius, size=(120, 150)):
    """(image (H, W) uint8, label): bright discs apart from one another."""
    y, x = np.mgrid[: size[0], : size[1]]
    label, step = np.zeros(size, np.int32), 3 * radius
    for n, (cy, cx) in enumerate(np.ndindex(size[0] // step, size[1] // step), 1):
        centre = step * np.array([cy, cx]) + step // 2
        label[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] = n
    return (20 + 150 * (label > 0)).astype(np.uint8), label


def write(root, radii=RADII, pixel_size=lambda radius: 6 / radius):
    """A folder of one image per radius, whose pixels are smaller where cells are larger."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for n, radius in enumerate(radii):
        image, label = discs(radius)
        um = pixel_size(radius)
        calibrated = {} if um is None else {
            "resolution": (1e4 / um, 1e4 / um), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(root / f"images/{n}.tif", image, **calibrated)
        tifffile.imwrite(root / f"masks/{n}.tif", label.astype(np.uint16))
    return root


def open_(root, directory, fit="random_crop", size=(48, 40), **changes):
    options = cache.CacheOptions(dataset="folder", options={}, size=size, fit=fit, channels="gray",
                                 scale=scale.ScaleOptions(**changes))
    return cache.open_cache(folder.records(root), options, directory)


def cellpose_diameter(label):
    """What Cellpose's utils.diameters computes."""
    counts = np.unique(label.astype(np.int32), return_counts=True)[1][1:]
    return np.median(counts**0.5) / (np.pi**0.5 / 2)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_median_diameter_equals_cellposes_whatever_the_ids(dtype, monkeypatch):
    label = discs(7)[1].astype(dtype)
    label[:9, :30] = 7000  # one id far above the others, another shape
    found = scale.median_diameter(label)
    assert found == pytest.approx(cellpose_diameter(label), rel=1e-6)
    assert scale.median_diameter(discs(7)[1]) == pytest.approx(14, abs=0.3)
    monkeypatch.setattr(scale, "ROWS_OF", 300)  # counted in bands
    assert scale.median_diameter(label) == found
    huge = np.where(label > 0, label.astype(np.int64) * 70_000, 0)  # sorted instead of counted
    assert scale.median_diameter(huge) == found
    ignored = np.where(label == 0, -1, label.astype(np.int32))
    assert scale.median_diameter(ignored) == found
    assert scale.median_diameter(np.zeros((4, 5), dtype)) == 0
    assert scale.median_diameter(np.full((4, 5), -1, np.int32)) == 0
    assert scale.median_diameter(label, label) == found


def test_weighted_median_counts_each_cell_by_its_diameter():
    """A brute-force twin; specks weigh less than in the plain median."""
    sides = [1] * 9 + [2, 7, 8, 9]
    label = np.zeros((10, 200), np.int32)
    for n, side in enumerate(sides, 1):
        label[:side, 12 * n : 12 * n + side] = n
    wide = 2 / np.sqrt(np.pi)  # of a pixel
    repeated = np.sort(np.repeat(sides, sides))  # every cell as often as it is wide
    assert scale.weighted_median_diameter(label) == pytest.approx(
        wide * repeated[len(repeated) // 2])
    assert scale.weighted_median_diameter(label, label) == scale.weighted_median_diameter(label)
    assert scale.median_diameter(label) == pytest.approx(wide)
    assert scale.weighted_median_diameter(label * 0) == 0


@pytest.mark.parametrize("fit", ["random_crop", "center_crop", "pad"])
@pytest.mark.parametrize("options, factors", [
    ({"diameter": 12.0}, [1, 12 / 16, 12 / 24, 12 / 32]),
    ({"pixel_size": 2.0}, [1 / 2, 6 / 16, 6 / 24, 6 / 32])])
def test_images_and_labels_are_rescaled_before_they_are_fitted(tmp_path, fit, options, factors):
    root = write(tmp_path / "data")
    size = {"random_crop": (48, 40), "center_crop": (20, 24), "pad": (130, 160)}[fit]
    arrays = open_(root, tmp_path / "cache", fit, size, **options)
    np.testing.assert_allclose(arrays.scales, factors, rtol=0.04)
    for i, record in enumerate(folder.records(root)):
        sample = record.read()
        small, label = scale.rescaled(sample.image, sample.label, arrays.scales[i])
        assert tuple(arrays.flat_sizes[i]) == label.shape == small.shape[:2]
        image, fitted = resize.FITS[fit](small, label, size, "")
        np.testing.assert_array_equal(arrays.image[i], image)
        np.testing.assert_array_equal(arrays.label[i], fitted)
        np.testing.assert_array_equal(arrays.original_label(i), sample.label)
        np.testing.assert_array_equal(
            arrays.range("minmax")[i], image_ranges(sample.image, "minmax"))
    if fit == "pad":  # whole cells of all images have one size
        expected = options.get("diameter", 6.0)
        for label, (height, width) in zip(arrays.label, arrays.flat_sizes, strict=True):
            found = scale.median_diameter(label[:height, :width])
            assert found == pytest.approx(expected, rel=0.06)


def test_training_windows_are_those_of_rescaled_images(tmp_path):
    root = write(tmp_path / "data")
    arrays = open_(root, tmp_path / "cache", diameter=12.0)
    size, records = (48, 40), folder.records(root)
    rows = {"id": np.array([2, 3], np.int32), "place": np.array([[5, 3], [2, -1]], np.int32)}
    batch = pipeline.take(arrays, rows, "minmax", size)
    for n, i in enumerate(rows["id"]):
        sample = records[i].read()
        image, label = scale.rescaled(sample.image, sample.label, arrays.scales[i])
        where = window_rows(*rows["place"][n], size, label.shape, 0)
        np.testing.assert_array_equal(batch["image"][n], image.reshape(-1, 1)[where])
        np.testing.assert_array_equal(batch["label"][n], label.reshape(-1)[where])
    order = Order(np.arange(4), 0, 4, Sampling(oversample=1.0, crops=Crops(
        size, arrays.flat_sizes, arrays.tables["anchors"])))
    for step in range(5):  # windows around anchors hold cells
        label = pipeline.take(arrays, order.rows(step), "minmax", size)["label"]
        assert (label > 0).any((1, 2)).all()


def test_caches_of_the_past_keep_their_key():
    options = cache.CacheOptions("folder", {"labels": "instances"}, (16, 24), "resize", "rgb")
    assert options.key("0" * 64) == "e52f2a8527ade4811bf61575"
    keys = {dataclasses.replace(options, **changes).key("0" * 64) for changes in (
        {}, {"scale": scale.ScaleOptions(12.0)}, {"scale": scale.ScaleOptions(0.0, 12.0)},
        {"scale": scale.ScaleOptions(13.0)}, {"percentiles": (1.0, 99.0)})}
    assert len(keys) == 5


@pytest.mark.parametrize("um, words", [
    (None, "0.tif: has no pixel size to bring to config.data.pixel_size=1 um.*and 3 more bad"),
    (30.0, "0.tif: its pixels of 30 um would be rescaled by 30 .*from 1/8 to 8"),
    (3e5, "0.tif: has no pixel size")])
def test_a_file_without_a_usable_pixel_size_is_one_line(tmp_path, um, words):
    root = write(tmp_path / "data", pixel_size=lambda radius: um)
    with pytest.raises(InputError, match=words):
        open_(root, tmp_path / "cache", pixel_size=1.0)


def test_pixels_that_are_not_annotated_stay_so_and_are_no_cells(tmp_path):
    root = write(tmp_path / "data", radii=(8, 8))
    mask = tifffile.imread(root / "masks/1.tif")
    mask[60:] = 65535
    tifffile.imwrite(root / "masks/1.tif", mask)
    records = folder.records(root, ignore="65535")
    arrays = cache.open_cache(records, cache.CacheOptions(
        "folder", {"ignore": "65535"}, (48, 40), "random_crop", "gray",
        scale=scale.ScaleOptions(8.0)), tmp_path / "cache")
    np.testing.assert_allclose(arrays.scales, 0.5, rtol=0.04)
    height, width = arrays.flat_sizes[1]
    label = arrays.flat["label"][arrays.offsets[1]:].reshape(height, width)
    below = (np.arange(height) + 0.5) * (120 / height) >= 60
    assert (label[below] == -1).all() and (label[~below] >= 0).all()
    assert (arrays.original_label(1)[60:] == -1).all()
    assert scale.facts_of(arrays, lambda: records)["diameter"] == pytest.approx(16, rel=0.04)


def test_an_image_that_rescaling_makes_too_small_is_named_so(tmp_path):
    root = write(tmp_path / "data", radii=(12,))
    with pytest.raises(InputError, match=r"larger than image 0 \(rescaled by 0.33\d\) of 41x51"):
        open_(root, tmp_path / "cache", "center_crop", (64, 64), diameter=8.0)


def test_factors_have_limits_and_images_without_cells_stay(tmp_path):
    root = write(tmp_path / "data", radii=(6, 6))
    empty = tifffile.imread(root / "masks/0.tif") * 0
    tifffile.imwrite(root / "masks/0.tif", empty)
    speck = empty.copy()
    speck[3, 3] = 1
    tifffile.imwrite(root / "masks/1.tif", speck)
    assert open_(root, tmp_path / "cache", diameter=30.0).scales.tolist() == [1, scale.LARGEST]


@pytest.mark.parametrize("changes, words", [
    ({"data.diameter": -1.0}, "data.diameter: got -1.0; expected 0"),
    ({"data.pixel_size": -1.0}, "data.pixel_size: got -1.0"),
    ({"data.diameter": 9.0, "data.fit": "resize"}, "data.diameter.*data.fit='resize'"),
    ({"data.pixel_size": 9.0, "data.fit": "resize"}, "data.pixel_size.*data.fit='resize'"),
    ({"data.diameter": 9.0, "data.pixel_size": 1.0}, "data.diameter.*one of the two"),
    ({"data.diameter": 9.0, "data.name": "folder", "data.labels": "binary"},
     "data.diameter.*labels are binary")])
def test_rules_of_the_scale(changes, words):
    config = config_lib.changed(config_lib.default(), {"data.fit": "random_crop"})
    with pytest.raises(InputError, match=words):
        config_lib.changed(config, changes)


def test_facts_of_images_are_found_once_and_kept(tmp_path):
    root = write(tmp_path / "data", pixel_size=lambda radius: None if radius == 6 else 1 / radius)
    arrays = open_(root, tmp_path / "cache")
    facts = scale.facts_of(arrays, lambda: folder.records(root))
    np.testing.assert_allclose(facts["diameter"], [2 * r for r in RADII], rtol=0.04)
    np.testing.assert_allclose(facts["pixel_size"], [np.nan, *(1 / r for r in RADII[1:])])
    again = scale.facts_of(arrays, None)  # from the cache's folder
    for key, values in facts.items():
        np.testing.assert_array_equal(again[key], values)
    kept = arrays.folder / scale.FACTS_FILE
    assert json.loads(kept.read_text())["pixel_size"][0] is None
    kept.write_text("{")
    np.testing.assert_array_equal(
        scale.facts_of(arrays, lambda: folder.records(root))["diameter"], facts["diameter"])


def test_pixel_sizes_of_files_are_read_from_their_headers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8), resolution=(4e4, 2e4),
                     resolutionunit="CENTIMETER")
    assert lazy.pixel_size_of(tmp_path / "a.tif") == (0.5, 0.25)
    (tmp_path / "a.png").write_bytes(b"")
    assert lazy.pixel_size_of(tmp_path / "a.png") is None
    config = config_lib.changed(config_lib.default(), {
        "data.name": "folder", "data.root": str(write(tmp_path / "data")), "data.size": (32, 32)})
    image = scale.as_image(records_of(config.data)[1])
    assert micrometres.believed(image.pixel_size) == pytest.approx(6 / 8)
    assert image.shape == (120, 150, 1)
