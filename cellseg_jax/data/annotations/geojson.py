"""GeoJSON of QuPath: a FeatureCollection, a list of features or a single one; also as .gz.

A polygon is drawn by `raster.filled`, its inner rings are holes; of several polygons each is
drawn, and the object is all of them. Coordinates are pixels of the full resolution from the upper
left corner. Points and lines have no area.

The class of an object is its classification, "" without one. Where a file has detections or cells,
these are the objects, and tiles (superpixels), annotations (regions that were drawn around them)
and TMA cores are none; where it has none of them, tiles are.
Its id is the name where all names are different numbers, as in the files that `predict`
writes.
"""

import gzip
import json
import zlib

import numpy as np

from cellseg_jax.data.annotations.raster import (
    Drawn,
    Plane,
    Shape,
    check_planes,
    drawn,
    filled,
    united,
)
from cellseg_jax.data.records import Finding
from cellseg_jax.errors import InputError

PARTS = ("cell", "nucleus")  # which outline of QuPath's cells is read
NUCLEUS = "nucleusGeometry"
TILE = "tile"
REGIONS = ("annotation", "tmaCore", "root")  # types of QuPath's objects that may lie around others
OLD_TYPES = {  # of QuPath 0.2, which had them as ids of features, and of 0.3
    "PathAnnotationObject": "annotation", "TMACoreObject": "tmaCore", "PathRootObject": "root",
    "PathCellObject": "cell", "PathDetectionObject": "detection", "tma_core": "tmaCore",
    "PathTileObject": TILE}


def read(path, shape: tuple[int, int], plane: Plane | None = None,
         part: str = "") -> Drawn:
    """The objects of a file in an (H, W) image, or in one plane of a stack.

    Args:
      plane: raster.Plane; objects of another z or t are left to that one. None: the image is no
        stack.
      part: of PARTS: the outline that is read of cells that have two; "" is cell, with a warning.
    Raises: InputError if it is no GeoJSON, or if its objects lie on several planes and none is
      given, or on one that the stack does not have.
    """
    features = _features(path)
    planes = [_place(feature) for feature in features]
    if plane is None and len(set(planes)) > 1:
        raise InputError(f"{path}: its objects lie on {len(set(planes))} planes of a stack, its "
                         "image is 2-D; expected those of one plane, or a stack with "
                         "config.data.pages=slices")
    if plane is not None:
        numbers = [plane.axes.number(*place) for place in planes]
        check_planes(path, [f"z {z} t {t}" for (z, t), number in zip(planes, numbers, strict=True)
                            if number is None], plane.axes)
        features = [one for one, at in zip(features, numbers, strict=True) if at == plane.number]
    ranks = [2 if kind in REGIONS else 1 if kind == TILE else 0 for kind in map(_type, features)]
    kept = {n for n, rank in enumerate(ranks) if rank == min(ranks)}
    shapes, problems, around = [], [], []
    for n, feature in enumerate(features):
        name = str(_properties(feature).get("name") or n + 1)
        try:
            parts = [filled(polygon, shape) for polygon in _polygons(_geometry(feature, part))]
            one = Shape(name, _class(feature), *united(parts, shape))
            (shapes if n in kept else around).append(one)
        except ValueError as error:
            if n in kept:
                problems.append(f"{name} ({error})")
    found, notes = drawn(path, shapes, problems, shape), []
    if len(kept) < len(features):
        notes.append(Finding("note", str(path), f"{len(features) - len(kept)} annotations, TMA "
                             f"cores or tiles beside {len(kept)} cells are regions and no objects"))
    double = sum(NUCLEUS in features[n] for n in kept)
    if double and not part:
        notes.append(Finding("warning", str(path), f"{double} cells hold the outline of their "
                             "nucleus too; that of the cell is read. Choose one: "
                             "config.data.annotations=geojson:cell or geojson:nucleus"))
    return found._replace(findings=(*notes, *found.findings), regions=tuple(around))


def _features(path) -> list[dict]:
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: is no GeoJSON, truncated or damaged ({error}); export it "
                         "again (QuPath: File > Export objects as GeoJSON)") from error
    if isinstance(content, dict):
        content = content.get("features", [content])
    if not isinstance(content, list) or not all(
            isinstance(one, dict) and one.get("type") == "Feature" for one in content):
        raise InputError(f"{path}: has no list of features; expected GeoJSON as QuPath exports it "
                         "(File > Export objects as GeoJSON)")
    return content


def _properties(feature) -> dict:
    return feature.get("properties") or {}


def _place(feature) -> tuple[int, int]:
    """z and t from 0, which QuPath leaves out where both are 0."""
    plane = (feature.get("geometry") or {}).get("plane") or {}
    return plane.get("z") or 0, plane.get("t") or 0


def _type(feature) -> str:
    properties = _properties(feature)
    kind = str(properties.get("objectType") or properties.get("object_type") or "")
    return OLD_TYPES.get(kind or str(feature.get("id")), kind)


def _geometry(feature, part) -> dict:
    """The outline of an object; {} where a cell has no nucleus and this is chosen."""
    of_nucleus = part == "nucleus" and _type(feature) == "cell"
    return feature.get(NUCLEUS if of_nucleus else "geometry") or {}


def _class(feature) -> str:
    kind = _properties(feature).get("classification") or {}
    if isinstance(kind, str):
        return kind
    return str(kind.get("name") or ": ".join(kind.get("names") or ()))


def _polygons(geometry) -> list[list[np.ndarray]]:
    """Rings of each polygon; ValueError with the reason where there is no area."""
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        return [polygon for part in geometry.get("geometries", ()) for polygon in _polygons(part)]
    coordinates = geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"a {kind}, which has no area" if kind else "no geometry")
    polygons = []
    for polygon in [coordinates] if kind == "Polygon" else coordinates or ():
        try:
            rings = [np.asarray(ring, np.float64)[:, :2] for ring in polygon]
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError("coordinates that are no numbers") from error
        if not rings or not all(len(ring) > 2 and np.isfinite(ring).all() for ring in rings):
            raise ValueError("a ring of less than three points")
        polygons.append(rings)
    if not polygons:
        raise ValueError("no polygon")
    return polygons
