"""GeoJSON for QuPath (File > Import objects, or drop it on the image) and for shapely.

One FeatureCollection, one feature per object: a Polygon, or a MultiPolygon where it has several
pieces, holes as interior rings, rings closed. Coordinates are pixels of the whole image at its full
resolution, x before y, and outlines run along the edges of pixels; QuPath counts from the upper
left corner as well. Objects are detections named by their id in the label file.
"""

import json

import numpy as np

from cellseg_jax.files import atomic_file
from cellseg_jax.inference.outputs.files import blocks, objects
from cellseg_jax.inference.outputs.outlines import outlines
from cellseg_jax.report.panels import PALETTE


def write(path, label, image, probability=None, classes=()) -> None:
    """All objects of (H, W) `label`; see `outputs.write`."""
    label, class_of = objects(label, classes)
    separator = "\n"
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for top, part in blocks(label):
            for number, polygons in outlines(part).items():
                properties = {"objectType": "detection", "name": str(number)}
                if classes:
                    index = int(class_of[number]) - 1
                    properties["classification"] = {
                        "name": classes[index], "color": PALETTE[index % len(PALETTE)].tolist()}
                feature = {"type": "Feature", "geometry": _geometry(polygons, top),
                           "properties": properties}
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]}\n")


def _geometry(polygons, top):
    closed = [[(np.append(ring, ring[:1], 0) + (0, top)).tolist() for ring in polygon]
              for polygon in polygons]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}
