import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tifffile
from helpers import ROOT
from PIL import Image
from skimage import draw, measure

from cellseg_jax.data import annotations, lazy
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import files, roi, table, tiff
from cellseg_jax.inference.outputs.outlines import outlines

# Holes that meet each other and the outside at corners, an object inside another, a lone pixel.
TRICKY = np.array([
    [1, 1, 1, 1, 1, 0, 2],
    [1, 0, 1, 3, 1, 0, 0],
    [1, 1, 0, 1, 1, 2, 0],
    [1, 1, 1, 0, 0, 1, 0],
    [0, 0, 1, 1, 1, 1, 4],
], np.int32)
SHAPES = [TRICKY, np.zeros((3, 4), np.int32), np.full((4, 3), 7), np.ones((1, 1), np.int32),
          np.indices((6, 5)).sum(0) % 2, np.eye(5, dtype=np.uint16)[:, ::-1] * 9]


def blobs(rng, shape=(60, 70), count=25):
    """Ellipses over each other: cut, in pieces, touching, with ids that have gaps."""
    label = np.zeros(shape, np.int32)
    for number in rng.permutation(np.arange(1, 2 * count, 2)):
        center, radii = rng.uniform(0, shape), rng.uniform(1, 9, 2)
        y, x = draw.ellipse(*center, *radii, shape=shape, rotation=rng.uniform(0, np.pi))
        label[y, x] = number
    return label


def labels():
    rng = np.random.default_rng(0)
    return [*SHAPES, blobs(rng), rng.integers(0, 3, (13, 11))]


def filled(shape, polygons):
    """Mask of polygons by crossings: inside a pixel has an odd number of edges to its left."""
    mask = np.zeros(shape, bool)
    for ring in (ring for polygon in polygons for ring in polygon):
        for (x, y), (_, y_next) in zip(ring, np.roll(ring, -1, 0), strict=True):
            mask[min(y, y_next) : max(y, y_next), x:] ^= True
    return mask


def opened(label, channels=2, pixel_size=None, name="a"):
    """An image of random pixels for a label."""
    pixels = np.random.default_rng(1).integers(0, 2**16, (*label.shape, channels), np.uint16)
    return lazy.from_array(pixels, name, pixel_size)


@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_outlines_filled_are_the_label(label):
    found = outlines(label)
    assert list(found) == np.unique(label[label > 0]).tolist()
    for number, polygons in found.items():
        np.testing.assert_array_equal(filled(label.shape, polygons), label == number)
        assert len(polygons) == measure.label(label == number, connectivity=1).max()
        for outer, *holes in polygons:
            areas = [np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2
                     for x, y in (ring.T for ring in (outer, *holes))]
            assert areas[0] > 0 and all(area < 0 for area in areas[1:])
            for ring in (outer, *holes):
                assert len(np.unique(ring, axis=0)) == len(ring)  # simple
                steps = np.diff(np.append(ring, ring[:1], 0), axis=0)
                assert ((steps == 0).sum(1) == 1).all()  # along pixels, ...
                assert ((steps != 0) != (np.roll(steps, 1, 0) != 0)).all()  # ... each a turn


def test_outlines_of_one_pixel_are_its_four_corners():
    label = np.zeros((3, 4), int)
    label[1, 2] = 5
    ((ring,),) = outlines(label)[5]
    assert ring.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2]]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_hold_every_object_once_and_whole(monkeypatch, rows):
    monkeypatch.setattr(files, "BLOCK", rows * 70)
    label = blobs(np.random.default_rng(2))
    rebuilt, seen = np.zeros_like(label), []
    for top, part in files.blocks(label):
        ids = np.unique(part[part > 0])
        seen += ids.tolist()
        rebuilt[top : top + len(part)] += part
    np.testing.assert_array_equal(rebuilt, label)
    assert sorted(seen) == np.unique(label[label > 0]).tolist()


def test_blocks_of_an_empty_label_are_one(monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 8)
    assert [part.any() for _, part in files.blocks(np.zeros((9, 4), int))] == [False]


@pytest.mark.parametrize("name", ["geojson", "roi", "coco", "csv"])
def test_formats_do_not_depend_on_blocks(tmp_path, monkeypatch, name):
    label = blobs(np.random.default_rng(3))
    whole = outputs.write(name, tmp_path / "whole", label, opened(label)).read_bytes()
    monkeypatch.setattr(files, "BLOCK", 5 * 70)
    parts = outputs.write(name, tmp_path / "parts", label, opened(label))
    if name == "roi":
        read = lambda path: {info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()}
        assert read(parts) == read(tmp_path / f"whole{outputs.FORMATS[name].suffix}")
    else:
        assert sorted(parts.read_text().replace("},", "}").splitlines()) == sorted(
            whole.decode().replace("},", "}").splitlines())


@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_geojson_is_read_by_shapely_with_the_areas_of_the_label(tmp_path, label):
    shapely = pytest.importorskip("shapely")
    path = outputs.write("geojson", tmp_path / "a", label, opened(label))
    found = json.loads(path.read_text())
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == len(np.unique(label[label > 0]))
    for feature in found["features"]:
        number = int(feature["properties"]["name"])
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid and shape.area == (label == number).sum()
        y, x = np.nonzero(label == number)
        assert shape.equals(shapely.union_all(shapely.box(x, y, x + 1, y + 1)))
        assert feature["properties"]["objectType"] == "detection"
        polygons = feature["geometry"]["coordinates"]
        polygons = [polygons] if feature["geometry"]["type"] == "Polygon" else polygons
        assert all(ring[0] == ring[-1] for polygon in polygons for ring in polygon)


def test_geojson_has_measurements_and_a_classification(tmp_path):
    label = blobs(np.random.default_rng(4))
    image = opened(label, 1, (0.5, 0.25))
    path = outputs.write("geojson", tmp_path / "a", label, image)
    columns = table.own(table.measure(label, image.read(), pixel_size=(0.5, 0.25)))
    features = json.loads(path.read_text(), parse_constant=pytest.fail)["features"]
    assert [int(f["properties"]["name"]) for f in features] == columns["id"]
    for n, feature in enumerate(features):
        measured = feature["properties"]["measurements"]
        # An object, as QuPath has it since 0.4; without what is nan.
        assert set(measured) == {k for k in columns if np.isfinite(columns[k][n])} - {"id"}
        assert "perimeter_um" not in measured
        for name, value in measured.items():
            assert value == pytest.approx(columns[name][n], rel=1e-6)
        assert feature["properties"]["classification"] == {"name": "cell", "color": [230, 159, 0]}
    packed = outputs.write("geojson.gz", tmp_path / "a", label, image)
    assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
    again = outputs.write("geojson.gz", tmp_path / "b", label, image)
    assert again.read_bytes() == packed.read_bytes()
    shape = annotations.geojson.read(packed, label.shape)
    np.testing.assert_array_equal(shape.label, label)


def test_scripts_of_the_docs_open_what_is_written(tmp_path):
    """Neither QuPath nor Fiji is here: that the names of files are ours is what can be tested."""
    qupath = (ROOT / "docs/qupath.groovy").read_text()
    for name in ("geojson", "geojson.gz"):
        assert outputs.FORMATS[name].suffix == f"_objects.{name}"
        assert f"'.{name}'" in qupath and "'_objects'" in qupath
    fiji = (ROOT / "docs/fiji.ijm").read_text()
    for name in ("tiff", "roi"):
        assert f'"{outputs.FORMATS[name].suffix}"' in fiji
    assert max(len(text.splitlines()) for text in (qupath, fiji)) <= 12


def test_geojson_parts_classes_into_objects(tmp_path):
    label = np.array([[1, 0, 2], [1, 0, 0], [0, 1, 2]])  # the corner joins 1 to 1
    path = outputs.write("geojson", tmp_path / "a", label, opened(label), classes=("Öl", "b"))
    features = json.loads(path.read_text(encoding="utf-8"))["features"]
    names = [f["properties"]["classification"]["name"] for f in features]
    assert sorted(names) == ["b", "b", "Öl"]
    assert features[0]["geometry"]["type"] == "MultiPolygon"


def roi_mask(found, shape):
    """Mask of a ROI as ImageJ selects it: pixels whose centres lie inside its path."""
    paths = found.coordinates(multi=True)
    return filled(shape, [[np.rint(path).astype(int) for path in
                           (paths if isinstance(paths, list) else [paths])]])


@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_rois_are_read_by_roifile_with_the_pixels_of_the_label(tmp_path, label):
    roifile = pytest.importorskip("roifile")
    path = outputs.write("roi", tmp_path / "a", label, opened(label))
    found = roifile.roiread(path) if label.any() else []
    assert sorted(int(r.name) for r in found) == np.unique(label[label > 0]).tolist()
    for r in found:
        mask = label == int(r.name)
        np.testing.assert_array_equal(roi_mask(r, label.shape), mask)
        y, x = np.nonzero(mask)
        assert (r.left, r.top, r.right, r.bottom) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        simple = r.roitype == roifile.ROI_TYPE.TRACED
        assert simple or (r.composite and r.roitype == roifile.ROI_TYPE.RECT)


@pytest.mark.parametrize("shift", [0, 32_760, 60_530, 100_000])
def test_rois_keep_their_place_in_large_images(tmp_path, shift):
    roifile = pytest.importorskip("roifile")
    for rings in ([outlines(TRICKY)[3][0][0]], sum(outlines(TRICKY)[1], [])):
        moved = [ring + (shift, 5) for ring in rings]
        made = roi._traced(moved[0]) if len(moved) == 1 else roi._composite(moved)
        read = roifile.ImagejRoi.frombytes(made.tobytes()).coordinates(multi=len(moved) > 1)
        for got, ring in zip(read if len(moved) > 1 else [read], moved, strict=True):
            np.testing.assert_array_equal(np.asarray(got)[: len(ring)], ring)


def as_imagej_decodes(data):
    """Rings of an ROI file by the rules of ImageJ's RoiDecoder: 16-bit fields below -5000 are
    unsigned, others signed; sub-pixel and composite outlines are floats from the image's corner."""
    short = lambda at: (n := int.from_bytes(data[at : at + 2], "big", signed=True)) + (
        65536 if n < -5000 else 0)
    version, left, top, count, options = map(short, (4, 10, 8, 16, 50))
    size = int.from_bytes(data[36:40], "big")
    if size:
        words, rings = np.frombuffer(data, ">f4", size, 64).tolist(), []
        while words:
            word = words.pop(0)
            rings += [[]] if word == 0 else []
            if word != 4:
                rings[-1].append((words.pop(0), words.pop(0)))
        return rings
    if options & 128 and version >= 222:
        return [np.frombuffer(data, ">f4", 2 * count, 64 + 4 * count).reshape(2, -1).T.tolist()]
    x, y = ([max(short(64 + 2 * count * axis + 2 * i), 0) for i in range(count)] for axis in (0, 1))
    return [[(left + a, top + b) for a, b in zip(x, y, strict=True)]]


@pytest.mark.parametrize("shift", [0, 32_760, 60_530, 61_000, 65_530, 70_000])
def test_rois_in_large_images_are_where_imagej_takes_them_to_be(shift):
    for rings in ([outlines(TRICKY)[3][0][0]], sum(outlines(TRICKY)[1], [])):
        moved = [ring + (shift, 61_000) for ring in rings]
        made = roi._traced(moved[0]) if len(moved) == 1 else roi._composite(moved)
        for got, ring in zip(as_imagej_decodes(made.tobytes()), moved, strict=True):
            np.testing.assert_array_equal(got, ring)
        read = roi.roifile.ImagejRoi.frombytes(made.tobytes())
        assert 0 <= read.left < read.right <= 60_535 and read.top < read.bottom == 60_535


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with numpy 2
@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_coco_is_read_by_pycocotools_with_the_pixels_of_the_label(tmp_path, label, capsys):
    from pycocotools.coco import COCO

    path = outputs.write("coco", tmp_path / "a", label, opened(label))
    read = COCO(str(path))
    assert sorted(read.anns) == np.unique(label[label > 0]).tolist()
    assert read.imgs[1] == {"id": 1, "width": label.shape[1], "height": label.shape[0],
                            "file_name": "a"}
    for number, annotation in read.anns.items():
        mask = label == number
        np.testing.assert_array_equal(read.annToMask(annotation), mask)
        y, x = np.nonzero(mask)
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
        assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_table_measures_as_scikit_image(label):
    image = opened(label)
    pixels = image.read()
    columns = table.measure(label, pixels, pixel_size=(0.5, 0.5))
    expected = measure.regionprops(label.astype(int), pixels)
    assert columns["id"] == [one.label for one in expected]
    for n, one in enumerate(expected):
        alone = {name: values[n] for name, values in columns.items()}
        assert alone["area_px"] == one.area
        np.testing.assert_allclose(alone["perimeter_px"], one.perimeter, rtol=1e-9)
        np.testing.assert_allclose(
            [alone["centroid_y_px"] - 0.5, alone["centroid_x_px"] - 0.5], one.centroid, rtol=1e-9)
        np.testing.assert_allclose(
            [alone["major_axis_px"] ** 2 - 4 / 3, alone["minor_axis_px"] ** 2 - 4 / 3],
            [one.axis_major_length ** 2, one.axis_minor_length ** 2], atol=1e-9)
        np.testing.assert_allclose(alone["eccentricity"] ** 2, 1 - (
            alone["minor_axis_px"] / alone["major_axis_px"]) ** 2, atol=1e-9)
        np.testing.assert_allclose(
            [alone["mean_intensity_1"], alone["mean_intensity_2"]], one.intensity_mean)
        assert alone["area_um2"] == one.area / 4
        assert alone["perimeter_um"] == alone["perimeter_px"] / 2
        if one.eccentricity > 0.1:  # scikit-image's angle is from the y axis, downwards
            angle = (np.degrees(one.orientation) + 90) % 180
            assert abs((alone["orientation_deg"] - angle + 90) % 180 - 90) < 1e-6


@pytest.mark.parametrize("label", labels(), ids=lambda a: "x".join(map(str, a.shape)))
def test_columns_named_as_in_scikit_image_are_its_own(label):
    pixels = opened(label).read()
    columns = table.measure(label, pixels)
    expected = measure.regionprops_table(label.astype(int), pixels, properties=(
        "label", "area", "perimeter", "centroid", "bbox", "intensity_mean"))
    theirs = {name: values for name, values in columns.items() if name not in table.own(columns)}
    assert list(theirs) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(theirs[name], values, rtol=1e-9, err_msg=name)
    # Moved down by the rows above a block.
    moved = table.measure(label, pixels, top=7)
    for name in ("centroid-0", "bbox-0", "bbox-2"):
        np.testing.assert_allclose(moved[name], np.add(columns[name], 7))
    assert moved["bbox-1"] == columns["bbox-1"]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_no_intensity(tmp_path, channels):
    label = TRICKY
    image = opened(label, channels)
    for alpha in (False, True):
        one = image._replace(alpha=alpha)
        header = outputs.write("csv", tmp_path / f"{alpha}", label, one).read_text().split("\n")[0]
        features = json.loads(outputs.write("geojson", tmp_path / f"{alpha}", label, one
                                            ).read_text())["features"]
        measured = features[0]["properties"]["measurements"]
        for found in (header.split(","), measured):
            names = [name for name in found if name.startswith("mean_intensity")]
            assert len(names) == channels - alpha


def test_every_column_is_described():
    label = np.eye(3, dtype=int)
    columns = table.columns_of(label, np.zeros((3, 3, 2)), np.array([0, 1]), ("a",),
                               pixel_size=(1, 1))
    text = table.description()
    for name in columns:
        if name.endswith("_um"):
            continue  # "the same in micrometres"
        words = name.replace("-1", "-0").replace("_2", "_1")
        assert words in text or name in text or "bbox" in name, name


@pytest.mark.parametrize("degrees", [0, 30, 90, 120])
def test_table_turns_angles_counterclockwise(degrees):
    label = np.zeros((80, 80), int)
    label[draw.ellipse(40, 40, 10, 30, rotation=np.radians(degrees))] = 1
    angle = table.measure(label, np.zeros((80, 80, 1)))["orientation_deg"][0]
    assert abs((angle - degrees + 90) % 180 - 90) < 1


def test_csv_names_its_units_and_leaves_lengths_of_oblong_pixels_open(tmp_path):
    label = TRICKY
    path = outputs.write("csv", tmp_path / "a", label, opened(label, 1, (0.5, 0.25)))
    rows = list(csv.DictReader(path.open()))
    assert [int(row["id"]) for row in rows] == [1, 2, 3, 4]
    one = rows[1]
    assert float(one["area_um2"]) == 2 * 0.5 * 0.25
    assert float(one["centroid_y_um"]) == (0.5 + 2.5) / 2 * 0.5
    assert float(one["centroid_x_um"]) == (6.5 + 5.5) / 2 * 0.25
    assert one["perimeter_um"] == "nan"
    without = outputs.write("csv", tmp_path / "b", label, opened(label, 1))
    assert "um" not in without.read_text()


def test_csv_of_an_empty_label_has_a_header_alone(tmp_path):
    label = np.zeros((4, 5), int)
    path = outputs.write("csv", tmp_path / "a", label, opened(label), classes=("a", "b"))
    assert path.read_text().startswith("id,class,area_px,") and path.read_text().count("\n") == 1


@pytest.mark.parametrize("highest, dtype", [(3, "uint16"), (65535, "uint16"), (65536, "uint32")])
def test_label_tiff_is_read_by_tifffile(tmp_path, highest, dtype):
    label = np.array([[0, 1, highest], [2, 2, 0]])
    path = outputs.write("tiff", tmp_path / "a b.c", label, opened(label))
    assert path.name == "a b.c_label.tif"
    read = tifffile.imread(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, label)


def test_label_tiff_has_the_pixel_size_for_all_readers(tmp_path):
    label = TRICKY
    path = outputs.write("tiff", tmp_path / "a", label, opened(label, 1, (0.65, 0.5)))
    np.testing.assert_array_equal(tifffile.imread(path), label)
    with tifffile.TiffFile(path) as read:
        assert read.is_ome
        np.testing.assert_allclose(read.pages[0].get_resolution("MICROMETER"), (1 / 0.5, 1 / 0.65))
        text = read.ome_metadata
    assert lazy.open_images(path)[0].pixel_size == (0.65, 0.5)
    ome_types = pytest.importorskip("ome_types")
    pixels = ome_types.from_xml(text).images[0].pixels
    assert (pixels.physical_size_y, pixels.physical_size_x) == (0.65, 0.5)
    assert pixels.physical_size_x_unit.value == "µm" and (pixels.size_x, pixels.size_y) == (7, 5)


@pytest.mark.parametrize("pixel_size", [None, (0.5, 0.5)])
@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("band", [1, 7, 100])
def test_banded_tiff_does_not_depend_on_bands(tmp_path, monkeypatch, band, pages, pixel_size):
    monkeypatch.setattr(tiff, "STRIP", 400)
    array = np.random.default_rng(0).random((37, 20, pages)).astype(np.float32)
    with tiff.BandedTiff(tmp_path / "a.tif", array.shape, np.float32, pixel_size) as out:
        for start in range(0, 37, band):
            out.write_rows(array[start : start + band])
    read = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(read, np.moveaxis(array, -1, 0) if pages > 1 else array[..., 0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_banded_tiff_above_4_gb_is_a_big_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "CLASSIC", 10)
    outputs.write("tiff", tmp_path / "a", TRICKY, opened(TRICKY))
    with tifffile.TiffFile(tmp_path / "a_label.tif") as read:
        assert read.is_bigtiff
        np.testing.assert_array_equal(read.asarray(), TRICKY)


def test_banded_tiff_leaves_nothing_half_written(tmp_path):
    with pytest.raises(ValueError, match="2 rows written, the image has 4"):
        with tiff.BandedTiff(tmp_path / "a.tif", (4, 3), np.uint16) as out:
            out.write_rows(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="5 rows written"):
        with tiff.BandedTiff(tmp_path / "a.tif", (4, 3), np.uint16) as out:
            out.write_rows(np.zeros((5, 3)))
    with pytest.raises(KeyboardInterrupt):
        with tiff.BandedTiff(tmp_path / "a.tif", (4, 3), np.uint16):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(outputs.FORMATS))
def test_formats_leave_the_old_file_where_writing_fails(tmp_path, monkeypatch, name):
    label = TRICKY
    probability = np.random.default_rng(0).random((*label.shape, 1))
    path = outputs.write(name, tmp_path / "new" / "ä b", label, opened(label),
                         probability=probability)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write(name, tmp_path / "new" / "ä b", label * 2, opened(label),
                      probability=probability / 2)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_probabilities_are_kept_to_the_last_bit(tmp_path):
    probability = np.random.default_rng(0).random((*TRICKY.shape, 1)).astype(np.float32)
    path = outputs.write("probability", tmp_path / "a", TRICKY, opened(TRICKY),
                         probability=probability)
    np.testing.assert_array_equal(tifffile.imread(path), probability[..., 0])
    with pytest.raises(ValueError, match="probability: missing"):
        outputs.write("probability", tmp_path / "a", TRICKY, opened(TRICKY))


def test_overlay_of_a_large_image_is_reduced(tmp_path, monkeypatch):
    from cellseg_jax.inference.outputs import overlay

    monkeypatch.setattr(overlay, "LARGEST", 1200)
    label = blobs(np.random.default_rng(0))
    path = outputs.write("png", tmp_path / "a", label, opened(label, 1))
    assert Image.open(path).size == (35, 30)


def test_write_refuses_an_image_of_another_size(tmp_path):
    with pytest.raises(ValueError, match="expected the same size"):
        outputs.write("tiff", tmp_path / "a", TRICKY, opened(TRICKY.T))


BOUNDED = """
import resource
import sys
import numpy as np
import tifffile
from cellseg_jax.data import lazy
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs.tiff import BandedTiff

folder, size = sys.argv[1], 8_000
stripes = np.arange(size, dtype=np.uint16) % 997
with BandedTiff(folder + "/image.tif", (size, size), np.uint16) as out:
    for row in range(0, size, 1000):
        out.write_rows(np.broadcast_to(stripes, (1000, size)))
label = np.memmap(folder + "/label", np.uint32, "w+", shape=(size, size))
numbers = np.arange(1, (size // 50) ** 2 + 1, dtype=np.uint32).reshape(size // 50, -1)
for row in range(size):
    if row % 50 < 30:
        label[row] = np.where(np.arange(size) % 50 < 30, numbers[row // 50].repeat(50), 0)
label.flush()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = used * 1024 + 400 * 2**20  # the label in int64 alone would be 488 MiB
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
[image] = lazy.open_images(folder + "/image.tif")
for name in ("tiff", "csv", "geojson", "roi", "coco"):
    outputs.write(name, folder + "/a", label, image)
"""


@pytest.mark.slow
def test_outputs_of_a_large_label_need_little_memory(tmp_path):
    child = subprocess.run([sys.executable, "-c", BOUNDED, tmp_path], capture_output=True,
                           text=True, timeout=600)
    assert child.returncode == 0, child.stderr[-2000:]
    rows = list(csv.DictReader((tmp_path / "a_objects.csv").open()))
    assert len(rows) == 160**2 and {row["area_px"] for row in rows} == {"900"}
    assert (float(rows[-1]["centroid_x_px"]), float(rows[-1]["centroid_y_px"])) == (7965, 7965)
    features = json.loads((tmp_path / "a_objects.geojson").read_text())["features"]
    assert features[-1]["geometry"]["coordinates"] == [
        [[7950, 7950], [7980, 7950], [7980, 7980], [7950, 7980], [7950, 7950]]]
    annotations = json.loads((tmp_path / "a_coco.json").read_text())["annotations"]
    assert len(annotations) == 160**2 and annotations[-1]["bbox"] == [7950, 7950, 30, 30]
    with zipfile.ZipFile(tmp_path / "a_rois.zip") as archive:
        assert len(archive.namelist()) == 160**2
    with tifffile.TiffFile(tmp_path / "a_label.tif") as read:
        assert read.pages[0].shape == (8000, 8000) and read.pages[0].dtype == np.uint16
