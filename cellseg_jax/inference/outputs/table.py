"""A CSV of measurements, one row per object, in pixels and, where known, micrometres.

Column names end in their unit. Behind them the same is given once more by the names and
conventions of skimage.measure.regionprops_table, where its properties mean the same. COLUMNS says
what each is; `predict` writes that as columns.txt beside the tables.
"""

import csv

import numpy as np

from cellseg_jax.files import atomic_file, csv_cell
from cellseg_jax.inference.outputs.files import blocks, objects

COLUMNS_FILE = "columns.txt"
COLUMNS = {
    "id": "number of the object in the label image",
    "class": "of runs of classes: name of the class",
    "area_px": "number of pixels",
    "perimeter_px": "length of the line through the centres of the border pixels (Benkrid and "
                    "Crookes 2000)",
    "major_axis_px, minor_axis_px": "whole axes of the ellipse of the same second moments, pixels "
                                    "being squares, as MATLAB's regionprops; squared, they are 4/3 "
                                    "above axis_major_length and axis_minor_length of scikit-image,"
                                    " to which pixels are points",
    "centroid_x_px, centroid_y_px": "from the upper left corner of the image, as in Fiji and "
                                    "QuPath: the centre of the first pixel is (0.5, 0.5)",
    "orientation_deg": "of the major axis, degrees counterclockwise from the x axis, 0 to below "
                       "180, as ImageJ's Angle; not scikit-image's orientation",
    "eccentricity": "of that ellipse: 0 of a circle, towards 1 of a line; scikit-image's differs "
                    "as the axes do",
    "area_um2, ..._um": "the same in micrometres, where the pixel size is known; lengths are nan "
                        "where pixels are not square to 1 %",
    "mean_intensity_1, ...": "mean of the pixels in each channel but alpha, as they are read: what "
                             "is not 8 or 16 bit may have been stretched to 16 bit",
    "label, area, perimeter": "id, area_px and perimeter_px, as in skimage.measure."
                              "regionprops_table",
    "centroid-0, centroid-1": "row and column, as there: the centre of the first pixel is (0, 0), "
                              "half a pixel less than centroid_y_px and centroid_x_px",
    "bbox-0 to bbox-3": "first row, first column, last row + 1, last column + 1, as there",
    "intensity_mean-0, ...": "mean_intensity_1, ..., as there",
}
SKIMAGE = ("label", "area", "perimeter", "centroid-", "bbox-", "intensity_mean-")
NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


def write(path, label, image, probability=None, classes=()) -> None:
    """All objects of (H, W) `label`; see `outputs.write`."""
    label, class_of = objects(label, classes)
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = None
        for top, part in blocks(label):
            pixels = intensities(image, top, top + len(part))
            columns = columns_of(part, pixels, class_of, classes, top=top,
                                 pixel_size=image.pixel_size)
            if writer is None:
                writer = csv.writer(file)
                writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow(f"{value:.7g}" if isinstance(value, float) else csv_cell(value)
                                for value in row)


def intensities(image, start: int, stop: int) -> np.ndarray:
    """Rows of a data.lazy.Image, (stop - start, W, C), without alpha."""
    pixels = image.rows(start, stop)
    return pixels[..., :-1] if image.alpha else pixels


def columns_of(label, pixels, class_of, classes, *, top=0, pixel_size=None) -> dict[str, list]:
    """`measure`, and where there are classes the column "class" with their names.

    Args:
      class_of: of every id, as `files.objects` gives it; None without classes.
      classes: names of classes 1, 2, ...
    """
    columns = measure(label, pixels, top=top, pixel_size=pixel_size)
    if not classes:
        return columns
    names = [classes[n - 1] for n in class_of[columns["id"]]]
    return {"id": columns.pop("id"), "class": names} | columns


def own(columns: dict) -> dict:
    """The columns without those that are there a second time, by the names of scikit-image."""
    return {name: values for name, values in columns.items()
            if name not in SKIMAGE and not name.startswith(SKIMAGE[3:])}


def description() -> str:
    """COLUMNS as the text of COLUMNS_FILE."""
    return "".join(f"{name}: {what}\n" for name, what in COLUMNS.items())


def measure(label, pixels, *, top=0, pixel_size=None) -> dict[str, list]:
    """COLUMNS of the objects of a label, ids rising.

    Args:
      label: (H, W) integers, 0 background; objects must not be cut by its edges.
      pixels: (H, W, C).
      top: row of the whole image that the label begins in.
      pixel_size: (height, width) in micrometres; lengths need square pixels, and are nan where
        height and width differ by more than 1 %.
    """
    from cellseg_jax.targets.geometry import without_gaps  # JAX: --help lists formats without it

    known, label = without_gaps(np.asarray(label))
    y, x = np.nonzero(label)
    area = np.bincount(label[y, x])
    ids = np.flatnonzero(area)
    area = area[ids]
    place = np.zeros(int(label.max(initial=0)) + 1, np.int64)
    place[ids] = np.arange(len(ids))
    number = place[label[y, x]]
    mean = lambda values: np.bincount(number, values, len(ids)) / area
    center_y, center_x = mean(y), mean(x)
    major, minor, angle = _ellipses(mean, y - center_y[number], x - center_x[number])
    border, parts = _perimeter_parts(label)
    lengths = {
        "perimeter": np.bincount(place[border], parts, len(ids)),
        "major_axis": 4 * np.sqrt(major),
        "minor_axis": 4 * np.sqrt(minor),
    }
    columns = {
        "id": known[ids],
        "area_px": area,
        **{f"{name}_px": value for name, value in lengths.items()},
        "centroid_x_px": center_x + 0.5,
        "centroid_y_px": center_y + 0.5 + top,
        "orientation_deg": angle,
        "eccentricity": np.sqrt(1 - minor / major),
    }
    if pixel_size:
        columns |= _in_micrometres(columns, lengths, pixel_size)
    intensities = [mean(pixels[y, x, channel]) for channel in range(pixels.shape[-1])]
    columns |= {f"mean_intensity_{n}": values for n, values in enumerate(intensities, 1)}
    columns |= {"label": columns["id"], "area": area, "perimeter": lengths["perimeter"],
                "centroid-0": center_y + top, "centroid-1": center_x}
    first, last = _extremes(number, y, x, len(ids))
    columns |= {f"bbox-{n}": values for n, values in enumerate(
        (first[0] + top, first[1], last[0] + 1 + top, last[1] + 1))}
    columns |= {f"intensity_mean-{n}": values for n, values in enumerate(intensities)}
    return {name: value.tolist() for name, value in columns.items()}


def _extremes(number, y, x, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(2, n) first and last row and column of each object; `number` is that of each pixel."""
    first, last = np.full((2, count), np.iinfo(np.int64).max), np.full((2, count), -1)
    for axis, place in enumerate((y, x)):
        np.minimum.at(first[axis], number, place)
        np.maximum.at(last[axis], number, place)
    return first, last


def _ellipses(mean, dy, dx) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(larger, smaller variance, angle of the larger) of objects, pixels being squares.

    Args:
      mean: values of all pixels -> their mean over each object.
      dy, dx: of all pixels, from the centroid of their object.
    """
    yy, xx, xy = mean(dy**2) + 1 / 12, mean(dx**2) + 1 / 12, mean(dy * dx)
    spread = np.hypot(yy - xx, 2 * xy)
    major, minor = (yy + xx + spread) / 2, np.maximum((yy + xx - spread) / 2, 0)
    return major, minor, np.degrees(np.arctan2(-2 * xy, xx - yy)) / 2 % 180


def _in_micrometres(columns: dict, lengths: dict, pixel_size) -> dict:
    """Columns of areas, lengths and places, by the (height, width) of a pixel in micrometres."""
    height, width = pixel_size
    square = width if abs(height / width - 1) <= 0.01 else np.nan
    return {
        "area_um2": columns["area_px"] * (height * width),
        **{f"{name}_um": value * square for name, value in lengths.items()},
        "centroid_x_um": columns["centroid_x_px"] * width,
        "centroid_y_um": columns["centroid_y_px"] * height,
    }


def _perimeter_parts(label):
    """Ids of border pixels, and what each adds by the border of its object around it."""
    padded = np.pad(label, 1)
    above, below = padded[:-2, 1:-1], padded[2:, 1:-1]
    left, right = padded[1:-1, :-2], padded[1:-1, 2:]
    inner = (above == label) & (below == label) & (left == label) & (right == label)
    border = np.pad(np.where(inner, 0, label), 1)
    y, x = np.nonzero(border)
    ids = border[y, x]
    code = np.ones(len(y), np.int64)
    for down, across in NEIGHBOURS:
        code += (border[y + down, x + across] == ids) * (10 if down and across else 2)
    weight = np.zeros(50)
    weight[[5, 7, 15, 17, 25, 27]] = 1
    weight[[21, 33]] = np.sqrt(2)
    weight[[13, 23]] = (1 + np.sqrt(2)) / 2
    return ids, weight[code]
