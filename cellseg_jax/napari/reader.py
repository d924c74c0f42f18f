"""Opens what `predict` wrote: label TIFFs with their measurements, probabilities, uncertainties.

Pixel sizes become the scale of the layer, in micrometres. The table beside a label (`predict
--format=csv`) becomes its features, which napari shows under the pointer.
"""

import csv
import pathlib

import numpy as np
import tifffile

from cellseg_jax.data.lazy import pixel_size_of
from cellseg_jax.errors import InputError
from cellseg_jax.inference.outputs import FORMATS, output_path
from cellseg_jax.inference.outputs.files import objects

LIMITS = {"probability": (0, 1), "uncertainty": (0, 0.5)}  # of the values, for display
IMAGES = tuple(LIMITS)


def get_reader(path):
    """napari's reader of a file, or of a list of files; None for what `predict` did not write."""
    paths = [path] if isinstance(path, str) else list(path)
    return read if all(_format_of(one) for one in paths) else None


def read(path) -> list[tuple]:
    """Layer tuples of a file, or of a list of files.

    Raises: InputError where a file cannot be read.
    """
    paths = [path] if isinstance(path, str) else list(path)
    return [layer for one in paths for layer in _layers(pathlib.Path(one), _format_of(one))]


def _format_of(path) -> str:
    """Which of outputs.FORMATS a file has by its name; "" if none that is read here."""
    return next((name for name in ("tiff", *IMAGES)
                 if str(path).endswith(FORMATS[name].suffix)), "")


def _layers(path: pathlib.Path, format_: str) -> list[tuple]:
    axes, values = _read(path)
    channel = axes.find("C") if format_ in IMAGES else -1
    options = {"name": path.name.removesuffix(path.suffix)}
    pixel_size = pixel_size_of(path)
    if pixel_size:
        leading = values.ndim - 2 - (channel >= 0)
        options |= {"scale": (1.0,) * leading + pixel_size,
                    "units": ("pixel",) * leading + ("micrometer",) * 2}
    if format_ in IMAGES:
        options |= {"channel_axis": channel} if channel >= 0 else {}
        return [(values, options | {"contrast_limits": LIMITS[format_]}, "image")]
    if values.dtype.kind not in "ui":
        raise InputError(f"{path}: holds {values.dtype}; expected a label image of integers")
    table = output_path("csv", path.with_name(path.name.removesuffix(FORMATS["tiff"].suffix)))
    if not table.exists():
        return [(values, options, "labels")]
    features = _features(table)
    if "class" not in features:
        return [(values, options | {"features": features}, "labels")]
    # The label holds classes; the rows of the table are the pieces of these.
    pieces, _ = objects(values, ("any",))
    return [(values, options, "labels"),
            (pieces, options | {"name": f"{options['name']} objects", "features": features},
             "labels")]


def _read(path) -> tuple[str, np.ndarray]:
    """(axes, values) of a TIFF."""
    try:
        with tifffile.TiffFile(path) as file:
            return file.series[0].axes, file.series[0].asarray()
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: cannot be read as a TIFF ({error}); predict it again") from error


def _features(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a table of measurements, and `index`, by which napari finds a label's row."""
    with open(path, newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    columns = {}
    for n, name in enumerate(names):
        values = np.array([row[n] for row in rows])
        columns[name] = values if name == "class" else values.astype(np.float64)
    ids = columns["id"].astype(np.int64)
    return {"index": ids, **columns, "id": ids, "label": ids}
