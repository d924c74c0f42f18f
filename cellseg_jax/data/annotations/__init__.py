"""Annotations as masks of the dataset `folder`: a file per format, and what belongs to what.

Label images (masks, arrays, zarr) hold a value per pixel. Outlines (the others) are drawn: each
format's file says by which rule, which is that of the tool it is from, and `raster` what becomes
of objects that lie over each other.

To add a format: a file with `read`, and a line in FORMATS.
"""

import mmap
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from cellseg_jax.data.annotations import arrays, geojson, imagej, labelme, zarr_labels
from cellseg_jax.data.decode import MASK_SUFFIXES
from cellseg_jax.errors import InputError


class Format(NamedTuple):
    """A kind of annotation file; what is in a json file decides whose it is."""

    suffixes: tuple[str, ...]
    read: Callable | None  # (path, (H, W), plane) -> raster.Drawn, of outlines; see raster.Plane
    values: Callable | None = None  # path -> (H, W) numbers, of label images but masks
    stacked: bool = False  # whether `read` knows the planes of a stack apart
    named: str = ""  # the argument of the function that data.annotations=FORMAT:NAME sets


FORMATS = {
    "masks": Format(MASK_SUFFIXES, None),  # label images, read by data.read
    "arrays": Format((".npy",), None, arrays.read),  # NumPy, Cellpose's x_seg.npy
    "zarr": Format((".zarr",), None, zarr_labels.read, named="name"),  # napari, OME-Zarr
    "imagej": Format((".zip", ".roi"), imagej.read, stacked=True),
    "geojson": Format((".geojson", ".json", ".geojson.gz", ".json.gz"), geojson.read,
                      stacked=True, named="part"),
    "labelme": Format((".json",), labelme.read),
    "coco": Format((".json",), None),  # one file for many images: see `pairing`
}
# Keys by which a json file shows whose it is, the first that occurs; classes may be called so too.
JSON_KEYS = ((rb'"shapes"\s*:', "labelme"), (rb'"type"\s*:\s*"Feature', "geojson"),
             (rb'"images"\s*:', "coco"))
REFUSED = {  # suffix -> what it is, and how to get what is read
    ".xml": "an XML file: of CVAT or VOC? Export from CVAT as COCO 1.0 instead",
    ".txt": "a text file: of YOLO? Export as COCO or as masks instead",
    ".gz": "a packed file: of NIfTI? Save its slices as TIFF instead",
    ".ome": "the companion file of an OME set, of which no TIFF is there; copy them beside it",
    ".nii": "a NIfTI volume; save its slices as TIFF instead",
}


def suffix_of(path: pathlib.Path) -> str:
    """The suffix of a file in lower case, of both parts where .gz is the last."""
    last = path.suffix.lower()
    return pathlib.Path(path.stem).suffix.lower() + last if last == ".gz" else last


def format_of(path: pathlib.Path) -> str:
    """The name in FORMATS of an annotation file; "" if it is none."""
    suffix = suffix_of(path)
    if suffix == ".json":
        return _of_json(path)
    if suffix == ".zarr" and not path.is_dir():
        return ""
    return next((name for name, one in FORMATS.items() if suffix in one.suffixes), "")


def _of_json(path) -> str:
    try:
        if not path.stat().st_size:
            raise InputError(f"{path}: is empty (0 bytes)")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            name = next((name for key, name in JSON_KEYS if re.search(key, data)), "")
            if not name and data.find(b'"from_name"') >= 0:
                raise InputError(f"{path}: is an export of Label Studio; export as COCO instead, "
                                 "or as PNG masks")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return name
