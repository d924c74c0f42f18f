"""What a segmentation is written as: one file per format, each opened by the tools it is for.

    outputs.write("geojson", stem, label, image)    # stem + FORMATS["geojson"].suffix, or nothing

Coordinates of every format count from the upper left corner of the upper left pixel: the pixel of
row y and column x is the square from (x, y) to (x + 1, y + 1), its centre (x + 0.5, y + 0.5). So
do ImageJ, Fiji and QuPath, and outlines run along the edges of pixels: filled again they are the
label, and their areas are the numbers of pixels. Centroids in the table follow the same rule;
subtract 0.5 for scikit-image's and Napari's, where (0, 0) is the centre of a pixel.
"""

import importlib
import pathlib
from typing import NamedTuple

from cellseg_jax.errors import pick


class Format(NamedTuple):
    """One way to write a segmentation."""

    suffix: str  # of the file, after the name of the image
    # MODULE.FUNCTION of this folder, (path, label, image, probability, classes); see `write`. By
    # name: `predict --help` needs none of the libraries that they write with.
    writer: str
    what: str  # for the help text of predict


FORMATS = {
    "tiff": Format("_label.tif", "tiff.write_label", "labels"),
    "probability": Format("_probability.tif", "tiff.write_probability", "probabilities as float32"),
    "png": Format("_overlay.png", "overlay.write", "outlines over the image"),
    "roi": Format("_rois.zip", "roi.write", "ROIs for ImageJ and Fiji"),
    "geojson": Format("_objects.geojson", "geojson.write", "polygons for QuPath"),
    "geojson.gz": Format("_objects.geojson.gz", "geojson.write_gzip", "the same, packed"),
    "coco": Format("_coco.json", "coco.write", "COCO annotations"),
    "csv": Format("_objects.csv", "table.write", "a row of measurements per object"),
    "uncertainty": Format("_uncertainty.tif", "tiff.write_probability",
                          "standard deviation of the probability over runs and views"),
}
SUFFIXES = tuple(format_.suffix for format_ in FORMATS.values())


def output_path(name: str, stem) -> pathlib.Path:
    """Where `write` puts format `name` of an image: stem is its path without suffix."""
    stem = pathlib.Path(stem)
    return stem.with_name(stem.name + pick(FORMATS, name, "--format").suffix)


def write(name: str, stem, label, image, *, probability=None, classes=()) -> pathlib.Path:
    """Write one format, all of it or nothing; returns the path.

    Nothing is held in memory for the whole of a large image but its objects' outlines: `label`
    and `probability` may be memory maps, and the image is read in bands.

    Args:
      name: of FORMATS.
      stem: path without suffix; its folder is made.
      label: (H, W) integers; instance ids, or classes where `classes` names them. 0 is background.
      image: data.lazy.Image, which has the name, the pixel size and the pixels.
      probability: (H, W, K) floats; format "probability" needs it, and "uncertainty" its
        standard deviation here.
      classes: names of classes 1, 2, ...; every 8-connected piece of a class is an object then,
        and formats of objects (not tiff and png) need memory for the whole label.
    """
    if label.shape != image.shape[:2]:
        raise ValueError(f"label {label.shape}, image {image.shape}: expected the same size")
    path = output_path(name, stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    module, _, function = FORMATS[name].writer.partition(".")
    writers = importlib.import_module(f"{__name__}.{module}")
    getattr(writers, function)(path, label, image, probability, classes)
    return path
