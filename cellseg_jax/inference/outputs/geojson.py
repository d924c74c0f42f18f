"""GeoJSON for QuPath (File > Import objects, or drop it on the image) and for shapely.

One FeatureCollection, one feature per object: a Polygon, or a MultiPolygon where it has several
pieces, holes as interior rings, rings closed. Coordinates are pixels of the whole image at its full
resolution, x before y, and outlines run along the edges of pixels; QuPath counts from the upper
left corner as well. Objects are detections named by their id in the label file, with a
classification (that of runs of classes, else "cell") and the measurements of the table, which
QuPath shows and sorts by.

QuPath opens .geojson and .json; of the packed file docs/qupath.groovy makes objects.
"""

import contextlib
import gzip
import io
import json
import math

import numpy as np

from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.files import atomic_file
from cellseg_jax.inference.outputs.files import blocks, objects
from cellseg_jax.inference.outputs.outlines import outlines
from cellseg_jax.inference.outputs.table import columns_of, intensities, own
from cellseg_jax.report.panels import PALETTE


def write(path, label, image, probability=None, classes=()) -> None:
    """All objects of (H, W) `label`; see `outputs.write`."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        _write(file, label, image, classes)


def write_gzip(path, label, image, probability=None, classes=()) -> None:
    """The same, packed; equal objects make equal files."""
    with atomic_file(path) as temporary, _packed(temporary) as file:
        _write(file, label, image, classes)


def write_stack(path, planes, axes: StackAxes, pixel_size=None) -> None:
    """The files of the planes of a stack as one, each object on its plane."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        _join(file, planes, axes)


def write_stack_gzip(path, planes, axes: StackAxes, pixel_size=None) -> None:
    """The same of packed files."""
    with atomic_file(path) as temporary, _packed(temporary) as file:
        _join(file, planes, axes)


def _join(file, planes, axes) -> None:
    separator = "\n"
    file.write('{"type": "FeatureCollection", "features": [')
    for number, path in enumerate(planes):
        data = path.read_bytes()
        found = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        place = axes.place(number)
        for feature in found["features"]:
            feature["geometry"]["plane"] = {"c": -1, "z": place.get("Z", 0), "t": place.get("T", 0)}
            file.write(separator + json.dumps(feature, ensure_ascii=False))
            separator = ",\n"
    file.write("\n]}\n")


@contextlib.contextmanager
def _packed(path):
    """A text file that is packed; equal texts make equal files."""
    with (open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
          io.TextIOWrapper(packed, encoding="utf-8") as file):
        yield file


def _write(file, label, image, classes) -> None:
    label, class_of = objects(label, classes)
    separator = "\n"
    file.write('{"type": "FeatureCollection", "features": [')
    for top, part in blocks(label):
        pixels = intensities(image, top, top + len(part))
        table = own(columns_of(part, pixels, class_of, (), top=top, pixel_size=image.pixel_size))
        rows = zip(*table.values(), strict=True)
        for (number, polygons), row in zip(outlines(part).items(), rows, strict=True):
            index = int(class_of[number]) - 1 if classes else 0
            feature = {"type": "Feature", "geometry": _geometry(polygons, top), "properties": {
                "objectType": "detection", "name": str(number),
                "classification": {"name": classes[index] if classes else "cell",
                                   "color": PALETTE[index % len(PALETTE)].tolist()},
                "measurements": _measurements(dict(zip(table, row, strict=True)))}}
            file.write(separator + json.dumps(feature, ensure_ascii=False))
            separator = ",\n"
    file.write("\n]}\n")


def _measurements(row: dict) -> dict:
    """Without the id, and without what is nan: JSON has no such number."""
    return {name: float(f"{value:.7g}") for name, value in row.items()
            if name != "id" and math.isfinite(value)}


def _geometry(polygons, top):
    closed = [[(np.append(ring, ring[:1], 0) + (0, top)).tolist() for ring in polygon]
              for polygon in polygons]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}
