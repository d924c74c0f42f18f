"""Annotations in a file are those in the label and those that findings count, in every format."""

import json
import re
import zipfile

import numpy as np
import pytest
import roifile

from cellseg_jax.data.annotations import coco, geojson, imagej, labelme

SHAPE = (60, 70)
T = roifile.ROI_TYPE


def corners(rng):
    """Of a polygon that may be tiny, cross itself, lie over others or outside of the image."""
    centre, size = rng.uniform(-10, 80, 2), rng.choice([0.3, 4, 9, 30])
    return (centre + rng.uniform(-size, size, (rng.integers(1, 7), 2))).round(2)


def as_geojson(path, polygons, rng):
    kinds = rng.choice(["Polygon", "Point", "LineString", ""], len(polygons), p=[.8, .1, .05, .05])
    path.write_text(json.dumps([
        {"type": "Feature", "properties": {}, "geometry": kind and {
            "type": str(kind), "coordinates": [points.tolist()]} or None}
        for kind, points in zip(kinds, polygons, strict=True)]))
    return geojson.read(path, SHAPE)


def as_labelme(path, polygons, rng):
    kinds = rng.choice(["polygon", "circle", "rectangle", "point", "line"], len(polygons))
    path.write_text(json.dumps({"shapes": [
        {"label": "a", "points": points.tolist(), "shape_type": str(kind), "group_id": None}
        for kind, points in zip(kinds, polygons, strict=True)]}))
    return labelme.read(path, SHAPE)


def as_rois(path, polygons, rng):
    kinds = rng.choice([T.POLYGON, T.OVAL, T.RECT, T.POINT, T.FREEHAND, T.ANGLE], len(polygons))
    with zipfile.ZipFile(path, "w") as archive:
        for n, (kind, points) in enumerate(zip(kinds, polygons, strict=True)):
            roi = roifile.ImagejRoi.frompoints(points)
            roi.roitype = T(kind)
            if kind in (T.OVAL, T.RECT):
                roi = roifile.ImagejRoi(roitype=T(kind), left=roi.left, top=roi.top,
                                        right=roi.right, bottom=roi.bottom)
            archive.writestr(f"{n}.roi", roi.tobytes())
    return imagej.read(path, SHAPE)


def as_coco(path, polygons, rng):
    image = {"id": 1, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1]}
    path.write_text(json.dumps({"images": [image], "annotations": [
        {"id": n, "image_id": 1, "segmentation": [points.ravel().tolist()]}
        for n, points in enumerate(polygons)]}))
    index = coco.index(path)
    return coco.draw(path, coco.annotations(path, index.of(image)), {}, SHAPE)


@pytest.mark.parametrize("read", [as_geojson, as_labelme, as_rois, as_coco])
def test_every_annotation_is_in_the_label_or_counted(tmp_path, read):
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(12):
        polygons = [corners(rng) for _ in range(40)]
        found = read(tmp_path / "a.zip", polygons, rng)
        text = " ".join(finding.what for finding in found.findings)
        left_out, hidden = (int(match[1]) if match else 0 for match in (
            re.search("([0-9]+) of 40 annotations", text),
            re.search("([0-9]+) objects keep", text)))
        assert len(np.unique(found.label[found.label > 0])) + left_out + hidden == 40
        lost += left_out + hidden
    assert 0 < lost < 12 * 40
