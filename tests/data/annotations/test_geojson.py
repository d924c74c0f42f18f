import gzip
import json

import numpy as np
import pytest
import shapely
from golden import qupath

from cellseg_jax.data.annotations import geojson
from cellseg_jax.data.annotations.raster import Plane
from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.errors import InputError

SHAPE = (40, 50)


def square(x, y, side=6):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry, **properties):
    return {"type": "Feature", "id": "0a-1", "geometry": geometry, "properties": properties}


def polygon(*rings, **more):
    return {"type": "Polygon", "coordinates": list(rings), **more}


def read(tmp_path, content, name="a.geojson"):
    data = json.dumps(content).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return geojson.read(tmp_path / name, SHAPE)


@pytest.mark.parametrize("kind", qupath.KINDS)
def test_objects_of_qupath_itself(tmp_path, kind):
    with np.load(qupath.FILE) as golden:
        content, label = golden[f"{kind}_json"], golden[f"{kind}_label"]
    (tmp_path / "a.geojson").write_bytes(content)
    found = geojson.read(tmp_path / "a.geojson", label.shape, part="cell" if kind == "cell" else "")
    count = label.max()
    assert count >= 35 and np.unique(found.label).tolist() == list(range(count + 1))
    outlines = [shapely.geometry.shape(one["geometry"]).boundary
                for one in json.loads(content.tobytes())["features"]]
    differing = np.argwhere(found.label != label)
    assert len(differing) < 10
    for y, x in differing:  # where a centre is on an outline, but for how Java rounds
        assert min(line.distance(shapely.Point(x + 0.5, y + 0.5)) for line in outlines) < 0.02
    assert found.kinds == {n + 1: qupath.CLASSES[n % 3] for n in range(count)}
    assert not found.findings


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.geojson.gz"])
def test_all_forms_of_a_file_are_read(tmp_path, name):
    features = [feature(polygon(square(2, 3), square(4, 5, 2)), objectType="cell")]
    expected = np.zeros(SHAPE, int)
    expected[3:9, 2:8], expected[5:7, 4:6] = 1, 0
    for content in ({"type": "FeatureCollection", "features": features}, features, features[0]):
        np.testing.assert_array_equal(read(tmp_path, content, name).label, expected)
    assert not read(tmp_path, {"type": "FeatureCollection", "features": []}, name).label.any()


def test_pieces_are_one_object_and_classes_are_classifications(tmp_path):
    pieces = {"type": "MultiPolygon", "coordinates": [[square(1, 1)], [square(20, 20)]]}
    mixed = {"type": "GeometryCollection", "geometries": [polygon(square(30, 1))]}
    found = read(tmp_path, [feature(pieces, classification={"name": "Tumor", "color": [1, 2, 3]}),
                            feature(mixed, classification={"names": ["Immune", "CD8"]}),
                            feature(polygon(square(10, 30)))])
    assert found.kinds == {1: "Tumor", 2: "Immune: CD8", 3: ""}
    assert found.label[2, 2] == found.label[22, 22] == 1 and found.label[3, 33] == 2


def test_regions_around_detections_are_no_objects(tmp_path):
    region = feature(polygon(square(0, 0, 39)), objectType="annotation", name="Region 1")
    cells = [feature(polygon(square(4, 4)), objectType="detection"),
             feature(polygon(square(14, 4)), objectType="cell")]
    found = read(tmp_path, [region, *cells])
    assert np.count_nonzero(found.label) == 72
    assert found.findings[0].what == (
        "1 annotations, TMA cores or tiles beside 2 cells are regions and no objects")
    assert np.count_nonzero(read(tmp_path, [region]).label) == 39 * 39


def test_tiles_are_objects_only_without_cells(tmp_path):
    tiles = [feature(polygon(square(x, 0, 12)), objectType="tile") for x in (0, 13)]
    region = feature(polygon(square(0, 0, 39)), objectType="annotation")
    cell = feature(polygon(square(4, 4)), objectType="detection", name="7")
    label = read(tmp_path, [region, *tiles]).label
    assert np.unique(label[label > 0], return_counts=True)[1].tolist() == [144, 144]
    assert np.unique(read(tmp_path, [region, *tiles, cell]).label).tolist() == [0, 7]


@pytest.mark.parametrize("region, cell", [
    ({"id": "PathAnnotationObject"}, {"id": "PathDetectionObject"}),
    ({"id": "TMACoreObject"}, {"id": "PathCellObject"}),
    ({"properties": {"object_type": "tma_core"}}, {"properties": {"object_type": "cell"}}),
    ({"properties": {"objectType": "root"}}, {"properties": {"objectType": "detection"}})])
def test_types_of_all_versions_of_qupath_are_known(tmp_path, region, cell):
    found = read(tmp_path, [feature(polygon(square(1, 1, 30))) | region,
                            feature(polygon(square(2, 3))) | cell])
    assert np.count_nonzero(found.label) == 36 and "regions and no obj" in found.findings[0].what


def test_what_has_no_area_is_named(tmp_path):
    found = read(tmp_path, [
        feature({"type": "Point", "coordinates": [3, 4]}), feature(None),
        feature({"type": "LineString", "coordinates": [[3, 4], [9, 9]]}, name="way"),
        feature(polygon([[1, 1], [2, 2]])), feature(polygon([["a", 1], [2, 2], [3, 3]])),
        feature(polygon(square(90, 90)), name="far"), feature(polygon(square(9, 9)))])
    assert found.findings[0].what == (
        "6 of 7 annotations are left out: 1 (a Point, which has no area), 2 (no geometry), way (a "
        "LineString, which has no area), 4 (a ring of less than three points), 5 (coordinates that "
        "are no numbers), ... (6 in all)")
    assert np.count_nonzero(found.label) == 36


def test_planes_and_other_files_are_refused(tmp_path):
    planes = [feature(polygon(square(2, 2), plane={"c": -1, "z": z, "t": 0})) for z in (0, 3)]
    with pytest.raises(InputError, match="a.geojson: its objects lie on 2 planes of a stack"):
        read(tmp_path, planes)
    found = [geojson.read(tmp_path / "a.geojson", SHAPE, Plane(n, StackAxes({"Z": 5}))).label.any()
             for n in range(5)]
    assert found == [True, False, False, True, False]
    for content in ({"a": 1}, [1, 2], 3, {"features": {}}):
        with pytest.raises(InputError, match="a.geojson: has no list of features; expected"):
            read(tmp_path, content)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(b"[]" * 900)[:20])
    with pytest.raises(InputError, match="a.geojson.gz: is no GeoJSON, truncated or damaged"):
        geojson.read(tmp_path / "a.geojson.gz", SHAPE)


def test_the_nuclei_of_cells_are_not_left_out_silently(tmp_path):
    cell = feature(polygon(square(2, 3, 12)), objectType="cell")
    features = [cell | {"nucleusGeometry": polygon(square(5, 6, 4))},
                feature(polygon(square(30, 3)), objectType="cell"),
                feature(polygon(square(20, 20)), objectType="detection")]
    found = read(tmp_path, features)
    assert [np.count_nonzero(found.label == n) for n in (1, 2, 3)] == [144, 36, 36]
    assert [(f.level, f.what) for f in found.findings] == [("warning", (
        "1 cells hold the outline of their nucleus too; that of the cell is read. Choose one: "
        "config.data.annotations=geojson:cell or geojson:nucleus"))]
    path = tmp_path / "a.geojson"
    chosen = geojson.read(path, SHAPE, part="cell")
    assert not chosen.findings and (chosen.label == found.label).all()
    found = geojson.read(path, SHAPE, part="nucleus")
    assert [np.count_nonzero(found.label == n) for n in (1, 2, 3)] == [16, 0, 36]
    assert found.findings[0].what == "1 of 3 annotations are left out: 2 (no geometry)"
