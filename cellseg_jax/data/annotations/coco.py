"""COCO annotation files of any size: listed without decoding them, painted image by image.

A polygon covers the pixels that pycocotools gives it, and where annotations overlap, the one with
fewer pixels keeps them.

LIVECell's files have a gigabyte and 1.7 million polygons; decoding them at every start would take
most of a minute and five times that memory. `index` only looks for each `"image_id": 7`, twenty
times faster: it finds how many annotations an image has and near which byte each of them is.
`annotations` decodes those of one image. Ids may be numbers of any size or texts; 7, 7.0 and "7"
are one id, since tools write one for the other.

Format: https://cocodataset.org/#format-data. A segmentation is a list of polygons
[x1, y1, x2, y2, ...], or a run-length code {"size": [height, width], "counts": ...} with counts
a list of runs or the same compressed to a string. Runs go down the columns, background first.
"""

import contextlib
import json
import mmap
import pathlib
import re
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from cellseg_jax.data.annotations import raster
from cellseg_jax.data.records import Finding, some
from cellseg_jax.errors import InputError

# Our own: of the objects of an image, and of all images of a folder.
OF_IMAGE, OF_FOLDER = "_coco.json", "predict.coco.json"
IMAGE_ID = re.compile(rb'"image_id"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}\]]+)')
SEGMENTATION = re.compile(rb'"segmentation"\s*:')
IMAGES = re.compile(rb'"images"\s*:\s*(?=\[)')
CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
DECODE = json.JSONDecoder().raw_decode


class Index(NamedTuple):
    """The images of an annotation file, and where their annotations are."""

    images: list[dict]  # as in the file: id, file_name, height, width
    places: dict[str, np.ndarray]  # image id as `id_text` -> (n, 3) int64, see `annotations`
    without_id: int = 0  # annotations that name no image at all

    def of(self, image: dict) -> np.ndarray:
        """The places of an image's annotations."""
        return self.places.get(id_text(image["id"]), np.zeros((0, 3), np.int64))

    def strays(self) -> dict[str, int]:
        """{id: number of annotations} of ids that no image has."""
        known = {id_text(image["id"]) for image in self.images}
        strays = {i: len(where) for i, where in self.places.items() if i not in known}
        return strays | ({"none": self.without_id} if self.without_id else {})


def id_text(value) -> str:
    """The text that stands for an id: equal for 7, 7.0 and "7"."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def index(path: pathlib.Path) -> Index:
    """What an annotation file holds; InputError if it is no COCO file or its end is missing."""
    with _mapped(path) as data:
        start = IMAGES.search(data)
        if not start:
            raise InputError(f"{path}: has no list \"images\"; expected a COCO annotation file")
        if not data[-64:].rstrip().endswith(b"}"):
            raise InputError(f"{path}: is truncated, the last }} is missing; get it again")
        stop = data.find(b'"annotations"', start.end())
        images = _decode(path, data[start.end() : len(data) if stop < 0 else stop])
        numbers = {}  # of each id as it is written, in order
        found = np.fromiter(((match.start(), numbers.setdefault(match[1], len(numbers)))
                             for match in IMAGE_ID.finditer(data)), np.dtype((np.int64, 2)))
        at, ids = found[:, 0], found[:, 1]
        places = np.stack([np.r_[0, at][:-1], at, np.r_[at, len(data)][1:]], axis=1)
        without = sum(1 for _ in SEGMENTATION.finditer(data)) - len(at)
    if not all(isinstance(image, dict) for image in images):
        raise InputError(f"{path}: its list \"images\" holds other than objects; expected a COCO "
                         "annotation file")
    for image in images:
        lacks = {"id", "file_name", "height", "width"} - set(image)
        if lacks:
            raise InputError(f"{path}: image {image} lacks {', '.join(sorted(lacks))}")
    order = np.argsort(ids, kind="stable")
    unique, starts = np.unique(ids[order], return_index=True)
    split = np.split(places[order], starts[1:])
    by_id = {}
    for written, rows in zip(numbers, split[: len(unique)], strict=True):
        by_id.setdefault(id_text(_decode(path, written)), []).append(rows)
    joined = {i: rows[0] if len(rows) == 1 else np.sort(np.concatenate(rows), 0)
              for i, rows in by_id.items()}
    return Index(images, joined, max(without, 0))


def annotations(path: pathlib.Path, places: np.ndarray) -> list[dict]:
    """The annotations at `places`, in the order of the file.

    Args:
      path: of the annotation file.
      places: (n, 3) int64, the bytes at which the "image_id" of the annotation before, of this
        one and of the one after stand: this one lies between the first and the last.
    """
    found = []
    with _mapped(path) as data:
        for before, at, after in places.tolist():
            text, start = data[before:after], at - before
            while True:  # the brace before "image_id" may open a run-length code of its own
                start = text.rfind(b"{", 0, start)
                if start < 0:
                    raise InputError(f"{path}: no annotation around byte {at}; is it COCO json?")
                annotation = _decode(path, text[start:])
                if "image_id" in annotation:
                    break
            found.append(annotation)
    return found


def paint(annotations, height: int, width: int):
    """Instances in one label image, small ones over large ones.

    The mask of a polygon is that of pycocotools, pixel by pixel. Where annotations overlap, the
    one with fewer pixels keeps them (the later of two equals), so that a cell that lies on
    another one is never lost; a cell that smaller ones cover whole has no pixel left. An
    annotation that cannot be drawn is skipped: less than three points, no pixel, wholly outside
    the image or further out than the image is large, a run-length code of another size. What
    lies partly outside is clipped.

    Args:
      annotations: dicts with "segmentation", as in a COCO file.
      height, width: of the image.
    Returns: (label, overlap, hidden, problems): (H, W) int32 with 1 + the position in
      `annotations`, the number of pixels of two or more of them, the number of those without a
      pixel left, and {position: why it was skipped}.
    """
    masks, problems = _masks(annotations, height, width)
    label, overlap = raster.paint(masks, (height, width))
    hidden = len(masks) - np.count_nonzero(np.unique(label))
    return label, overlap, hidden, problems


def draw(path, annotations, categories: dict[str, str], shape: tuple[int, int]) -> raster.Drawn:
    """The label of an image's annotations, as other formats give it.

    An object's id is that of its annotation where all are different numbers from 1 on; its class
    is the name of its category.

    Args:
      path: of the file, for findings.
      annotations: as in a COCO file.
      categories: {id as `id_text`: name}.
      shape: (H, W) of the image.
    """
    masks, problems = _masks(annotations, *shape)
    # label_id: of our own files, which number the objects of a folder anew in id.
    names = [id_text(one.get("label_id", one.get("id", n + 1)))
             for n, one in enumerate(annotations)]
    kinds = [categories.get(id_text(one.get("category_id", "")), "") for one in annotations]
    shapes = [raster.Shape(names[n], kinds[n], *masks[n]) for n in sorted(masks)]
    drawn = raster.drawn(path, shapes, [f"{names[n]} ({why})" for n, why in problems.items()],
                         shape)
    crowds = [names[n] for n, one in enumerate(annotations) if one.get("iscrowd") in (1, True)]
    if crowds:
        drawn = drawn._replace(findings=(*drawn.findings, Finding("warning", str(path), (
            f"{len(crowds)} annotations are crowds (iscrowd=1), each is one object here: "
            f"{some(crowds)}"))))
    return drawn


def categories(path) -> dict[str, str]:
    """{id as `id_text`: name} of the categories of a file; {} where it lists none."""
    with _mapped(path) as data:
        start = CATEGORIES.search(data)
        found = _decode(path, data[start.end() :]) if start else []
    return {id_text(one.get("id")): str(one.get("name", "")) for one in found
            if isinstance(one, dict)}


def _masks(annotations, height, width) -> tuple[dict, dict]:
    """({position: (window, mask)}, {position: why there is none})."""
    masks, problems = {}, {}
    for position, annotation in enumerate(annotations):
        try:
            masks[position] = _mask(annotation.get("segmentation"), height, width)
        except ValueError as error:
            problems[position] = str(error)
    return masks, problems


def _mask(segmentation, height, width):
    """((rows, columns), mask): slices of the image around a mask and the (h, w) bool in there.

    Raises: ValueError with the reason if there is none.
    """
    if isinstance(segmentation, dict):
        runs = _checked_runs(segmentation, height, width)
        code = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    elif isinstance(segmentation, list) and segmentation:
        polygons = [_checked(polygon, height, width) for polygon in segmentation]
        code = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    else:
        raise ValueError("no polygon and no run-length code")
    if not coco_mask.area(code):
        raise ValueError("covers no pixel")
    x, y, w, h = coco_mask.toBbox(code).astype(int)
    window = slice(y, y + h), slice(x, x + w)
    return window, coco_mask.decode(code)[window].astype(bool)


def _checked(polygon, height, width) -> list:
    if not isinstance(polygon, list) or not all(isinstance(x, (int, float)) for x in polygon):
        raise ValueError("polygon is no list of numbers")
    if len(polygon) % 2:
        raise ValueError(f"polygon of {len(polygon)} coordinates, x or y is missing")
    if len(polygon) < 6:
        raise ValueError(f"{len(polygon) // 2}-point polygon")
    points = np.array(polygon, float).reshape(-1, 2)
    size = np.array([width, height])
    if not np.isfinite(points).all():
        raise ValueError("polygon with a coordinate that is no number")
    if ((points.max(0) <= 0) | (points.min(0) >= size)
            | (points.min(0) < -size) | (points.max(0) > 2 * size)).any():
        raise ValueError("polygon outside the image")
    return polygon


def _checked_runs(code, height, width) -> list[int]:
    # pycocotools does not compare runs with the size: short ones give what memory held before.
    counts, size = code.get("counts"), code.get("size")
    if size != [height, width]:
        raise ValueError(f"run-length code of size {size} in an image of {[height, width]}")
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("run-length code with runs that are no lengths")
    if sum(runs) != height * width:
        raise ValueError(f"run-length code of {sum(runs)} pixels, the image has {height * width}")
    return runs


def _decompressed(counts: str) -> list[int]:
    """Runs of a compressed code: five bits per character from "0" on, low ones first, bit 6 means
    more follow; from the fourth run on it is the difference to the run two before."""
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run-length code with the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def _decode(path, text: bytes):
    """The value that `text` starts with; what follows is not looked at."""
    try:
        return DECODE(text.decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no json, truncated or damaged ({error})") from error


@contextlib.contextmanager
def _mapped(path):
    try:
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty (0 bytes)")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
