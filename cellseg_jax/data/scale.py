"""The scale of images: how large their cells and pixels are, and the factor to the network's scale.

A factor above 1 enlarges. It is one number per image, for height and width, and is found from
config.data.diameter or config.data.pixel_size; see `ScaleOptions`.
"""

import contextlib
import json
import math
from typing import NamedTuple

import numpy as np

from cellseg_jax.data import lazy
from cellseg_jax.data.micrometres import believed
from cellseg_jax.data.resize import resize_image, resize_label
from cellseg_jax.data.select import BLANK
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, write_atomic

LARGEST = 8.0  # factor; the smallest is 1 / LARGEST. Beyond, a few specks would fill the memory
# Of the area of the smallest cells: below it there are pieces. For dsb2018 it gives 10 pixels, as
# validation images chose, see configs/nuclei_instances.py.
LEAST_SHARE = 0.5
ROWS_OF = 2**22  # pixels, that are counted at once
FACTS_FILE = "cells.json"  # in the folder of decoded arrays


class ScaleOptions(NamedTuple):
    """What scale images are brought to before training; at most one of the two is above 0."""

    diameter: float = 0.0  # pixels: the median cell of each image becomes so large
    pixel_size: float = 0.0  # micrometres: each pixel becomes so large

    @property
    def used(self) -> bool:
        """Whether images are rescaled at all."""
        return bool(self.diameter or self.pixel_size)

    def factor(self, record, label) -> float:
        """Of an image with its true label; 1 where it has no cells, and for blank images.

        Args:
          record: data.records.Record.
          label: (H, W) int, instances, at the image's own size.
        Raises: InputError where data.pixel_size is set and the file has no pixel size, or one
          that is more than LARGEST times another.
        """
        if not self.used or record.name.startswith(BLANK):
            return 1.0
        if self.diameter:
            return limited(self.diameter / (median_diameter(label) or self.diameter))
        own = pixel_size_of(record)
        where = record.files[0] if record.files else record.name
        if own is None:
            raise InputError(f"{where}: has no pixel size to bring to config.data.pixel_size="
                             f"{self.pixel_size:g} um; save it with one, or set "
                             "config.data.pixel_size=0 or config.data.diameter")
        factor = own / self.pixel_size
        if limited(factor) != factor:
            raise InputError(f"{where}: its pixels of {own:g} um would be rescaled by {factor:.3g} "
                             f"to config.data.pixel_size={self.pixel_size:g} um; expected a factor "
                             f"from 1/{LARGEST:g} to {LARGEST:g}")
        return factor


def limited(factor: float) -> float:
    """The factor, at least 1 / LARGEST and at most LARGEST."""
    return min(max(factor, 1 / LARGEST), LARGEST)


def scaled_size(shape, factor: float) -> tuple[int, int]:
    """Height and width of an image of `shape` after rescaling; 0 is its own scale."""
    return tuple(max(1, round(length * (factor or 1.0))) for length in shape[:2])


def rescaled(image, label, factor: float):
    """Image and label by a factor: linear, and the nearest pixel's id."""
    size = scaled_size(label.shape, factor)
    if size == label.shape:
        return image, label
    return resize_image(image, size), resize_label(label, size)


# --- the size of cells and pixels -----------------------------------------------------------------


def cell_areas(label) -> tuple[np.ndarray, np.ndarray]:
    """(ids, areas), both (n,), of the cells of an (H, W) label, in pixels, by ascending id.

    Ids need not be consecutive; values of 0 and below are no cells.
    """
    highest = label.max(initial=0)
    if highest > 4 * label.size:
        return np.unique(label[label > 0], return_counts=True)
    # Counting is many times faster than sorting; some rows at a time.
    areas = np.zeros(highest + 1, np.int64)
    step = max(1, ROWS_OF // label.shape[1])
    for start in range(0, label.shape[0], step):
        ids = np.maximum(label[start : start + step], 0)
        areas += np.bincount(ids.reshape(-1), minlength=len(areas))
    ids = np.flatnonzero(areas[1:]) + 1
    return ids, areas[ids]


def cell_diameters(label) -> np.ndarray:
    """(n,) 2 sqrt(area / pi) of each of `cell_areas`."""
    return 2 * np.sqrt(cell_areas(label)[1] / math.pi)


def least_area(labels) -> int:
    """A least size for predicted cells: LEAST_SHARE of the 1st percentile of true areas, pixels.

    So pieces of half of the smallest true cells are dropped, and cells are not. Cells at the
    border of their image, which it cuts, do not count where others do.

    Args:
      labels: an iterable of (H, W).
    Returns: at least 1; 1 without cells.
    """
    inside, cut = [], []
    for label in labels:
        ids, areas = cell_areas(label)
        border = np.isin(ids, np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]]))
        inside.append(areas[~border])
        cut.append(areas[border])
    known = np.concatenate(inside or [np.zeros(0)])
    known = known if len(known) else np.concatenate(cut or [np.zeros(0)])
    return max(1, round(LEAST_SHARE * float(np.percentile(known, 1)))) if len(known) else 1


def median_diameter(*labels) -> float:
    """The median of `cell_diameters` over the cells of all labels; 0.0 without cells.

    Source: Cellpose, utils.diameters.
    """
    diameters = np.concatenate([cell_diameters(label) for label in labels])
    return float(np.median(diameters)) if len(diameters) else 0.0


def weighted_median_diameter(*labels) -> float:
    """The median of `cell_diameters` where each cell counts by its diameter; 0.0 without cells.

    For labels that a network found: specks count little. Of the true nuclei of dsb2018 it is 5 %
    above the plain median (2 to 10 % in half of the images).
    """
    diameters = np.sort(np.concatenate([cell_diameters(label) for label in labels]))
    below = np.cumsum(diameters)
    return float(diameters[np.searchsorted(below, below[-1] / 2)]) if len(diameters) else 0.0


def pixel_size_of(record) -> float | None:
    """`believed` of the image of a record."""
    return believed(_said_size(record))


def _said_size(record):
    if record.pixel_size:
        return record.pixel_size()
    return lazy.pixel_size_of(record.files[0]) if record.files else None


def as_image(record) -> lazy.Image:
    """The image of a record with its pixel size, as prediction gets it from a file."""
    image = record.read().image  # whose second or fourth channel is alpha, or all are chosen
    return lazy.from_array(image, record.name, _said_size(record), alpha=image.shape[-1] in (2, 4))


# --- of all images of a dataset -------------------------------------------------------------------


def facts_of(arrays, records) -> dict[str, np.ndarray]:
    """Median diameter of the true cells and pixel size of each image, found once and kept.

    Args:
      arrays: data.Arrays of labels that hold instances.
      records: () -> their data.records.Records; called where nothing is kept yet.
    Returns: {"diameter": (m,) pixels of the image's own, "pixel_size": (m,) micrometres}; nan
      where there are no cells, or the file has no pixel size to believe.
    """
    file = arrays.folder and arrays.folder / FACTS_FILE
    if file and file.exists():
        with contextlib.suppress(InputError, KeyError, TypeError):  # damaged: made again
            kept = read_json(file)
            return {key: np.array(kept[key], float) for key in ("diameter", "pixel_size")}
    diameters = [median_diameter(arrays.original_label(i)) or math.nan
                 for i in range(len(arrays.image_names))]
    facts = {"diameter": np.array(diameters),
             "pixel_size": np.array([pixel_size_of(record) for record in records()], float)}
    if file:
        with contextlib.suppress(OSError):  # a cache of somebody else: found again next time
            write_atomic(file, json.dumps({  # None for nan: JSON has no such number
                key: [None if math.isnan(v) else v for v in values]
                for key, values in facts.items()}))
    return facts
