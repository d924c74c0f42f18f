"""Outlines to pixels: one rule for polygons, and one for objects that lie over each other.

A pixel belongs to a polygon if its centre, (x + 0.5, y + 0.5) of the pixel in column x and row y,
lies inside by the even-odd rule: holes, and what a line that crosses itself goes around twice, are
outside. A centre that lies on an edge belongs to what is left of the edge, and below it where the
edge is horizontal. This is the rule of ImageJ's PolygonFiller and, but for horizontal edges
through centres, of GDAL (rasterio.features.rasterize).
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.records import Finding, some
from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.errors import InputError

MAX_ID = 2**31 - 1


class Plane(NamedTuple):
    """The image of a stack whose objects are read."""

    number: int  # from 0
    axes: StackAxes  # of the whole stack


class Shape(NamedTuple):
    """The pixels of one annotation."""

    name: str  # in its file; the id of the object where it is a number
    kind: str  # its class, "" if it has none
    window: tuple[slice, slice]  # rows and columns of the image around it
    mask: np.ndarray  # bool, of the window


class Drawn(NamedTuple):
    """All annotations of an image."""

    label: np.ndarray  # (H, W) int32 ids
    kinds: dict[int, str]  # id -> class, "" if it has none; hidden ones too
    findings: tuple[Finding, ...]
    regions: tuple[Shape, ...] = ()  # drawn around objects, and no objects themselves
    shapes: dict[int, Shape] = MappingProxyType({})  # id -> its pixels


def filled(rings: Sequence[np.ndarray], shape: tuple[int, int]):
    """(window, mask) of the pixels inside the rings together, clipped to an image.

    Args:
      rings: (n, 2) numbers (x, y) each, from the image's upper left corner; closed or not.
      shape: (H, W) of the image.
    Returns: slices of the image, and a bool mask of that window, which may be empty.
    Raises: ValueError for a coordinate that is no number.
    """
    starts = np.concatenate([np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings])
    ends = np.concatenate([np.roll(np.asarray(ring, np.float64).reshape(-1, 2), -1, 0)
                           for ring in rings])
    if not np.isfinite(starts).all():
        raise ValueError("a coordinate that is no number")
    limits = np.array(shape[::-1])
    low = np.clip(np.floor(starts.min(0)), 0, limits).astype(int)
    high = np.clip(np.ceil(starts.max(0)), low, limits).astype(int)
    width, height = high - low
    down = starts[:, 1] <= ends[:, 1]
    (x0, y0), (x1, y1) = (np.where(down[:, None], *pair).T
                          for pair in ((starts, ends), (ends, starts)))
    first, last = (np.clip(np.ceil(y - 0.5), low[1], high[1]).astype(int) for y in (y0, y1))
    edge = np.repeat(np.arange(len(x0)), last - first)
    before = np.cumsum(last - first) - (last - first)
    row = first[edge] + np.arange(len(edge)) - before[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.floor(x + 0.5), low[0], high[0]).astype(int)
    crossed = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(crossed, (row - low[1], column - low[0]), 1)
    mask = np.bitwise_xor.accumulate(crossed, 1)[:, :width].astype(bool)
    return (slice(low[1], high[1]), slice(low[0], high[0])), mask


def united(parts, shape: tuple[int, int]):
    """(window, mask) of the pixels of any of several (window, mask)."""
    if len(parts) == 1:
        return parts[0]
    low = [min(window[axis].start for window, _ in parts) for axis in (0, 1)]
    high = [max(window[axis].stop for window, _ in parts) for axis in (0, 1)]
    out = np.zeros(np.subtract(high, low), bool)
    for (rows, columns), mask in parts:
        out[rows.start - low[0] : rows.stop - low[0],
            columns.start - low[1] : columns.stop - low[1]] |= mask
    return (slice(low[0], high[0]), slice(low[1], high[1])), out


def paint(masks: dict, shape: tuple[int, int]):
    """Masks in one image, small ones over large ones.

    Where they overlap, the one with fewer pixels keeps them (the later of two equals), so that a
    cell that lies on another one is never lost; one that smaller ones cover whole has no pixel
    left.

    Args:
      masks: {position: (window, mask)}.
      shape: (H, W) of the image.
    Returns: ((H, W) int32 of 1 + position, how many pixels belong to two or more).
    """
    label, times = np.zeros((2, *shape), np.int32)
    for position in sorted(masks, key=lambda p: -np.count_nonzero(masks[p][1])):
        window, mask = masks[position]
        label[window][mask] = position + 1
        times[window] += mask
    return label, np.count_nonzero(times > 1)


def drawn(path, shapes: Sequence[Shape], problems: Sequence[str], shape: tuple[int, int]) -> Drawn:
    """The label of an image's annotations, and findings that name each one that is not in it.

    Args:
      path: of the annotation file, for findings.
      shapes: in the order of the file.
      problems: "name (reason)" of annotations that could not be drawn.
      shape: (H, W) of the image.
    Raises: InputError if there are annotations, and none has a pixel, so that the image would be
      empty, or most lie outside of the image: then they were drawn on another one.
    """
    empty = {n for n, one in enumerate(shapes) if not one.mask.any()}
    ids = ids_of([one.name for one in shapes]).tolist()
    by_id = {ids[n]: one for n, one in enumerate(shapes) if n not in empty}
    left_out = [*problems, *(f"{shapes[n].name} (no pixel in the image)" for n in sorted(empty))]
    findings = []
    if left_out and not by_id:
        raise InputError(f"{path}: none of its {len(left_out)} annotations can be drawn: "
                         f"{some(left_out)}; expected areas in pixels of an image of "
                         f"{shape[0]}x{shape[1]}; remove the file's annotations if there is no "
                         "object")
    outside = sum(0 in shapes[n].mask.shape for n in empty)
    count = len(shapes) + len(problems)
    if outside > count / 2:
        raise InputError(f"{path}: {outside} of its {count} annotations lie outside of the image "
                         f"of {shape[0]}x{shape[1]}; were they drawn on it at another scale, or on "
                         "a larger one that it was cut from? Export image and outlines alike")
    if left_out:
        findings.append(Finding("warning", str(path), f"{len(left_out)} of "
                                f"{count} annotations are left out: "
                                f"{some(left_out)}"))
    label, overlaps = painted(path, by_id, shape)
    kinds = {i: one.kind for i, one in by_id.items()}
    return Drawn(label, kinds, (*findings, *overlaps), shapes=by_id)


def painted(path, shapes: dict[int, Shape], shape: tuple[int, int]):
    """((H, W) int32 ids, a note if objects overlap) of objects, small ones over large ones.

    Args:
      path: of the annotation file, for the note.
      shapes: by their ids.
      shape: (H, W) of the image.
    """
    label, overlap = paint({i - 1: one[2:] for i, one in shapes.items()}, shape)
    if not overlap:
        return label, ()
    hidden = sorted(shapes.keys() - set(np.unique(label).tolist()))
    covered = some(shapes[i].name for i in hidden)
    return label, (Finding("note", str(path), (
        f"{overlap} pixels ({overlap / label.size:.2%}) belong to two or more objects; the "
        "smaller one keeps them" + (
            f", {len(hidden)} objects keep none: {covered}" if hidden else ""))),)


def check_planes(path, places, axes: StackAxes) -> None:
    """InputError where objects lie on planes that the stack does not have, and would be lost.

    Args:
      path: of the annotation file.
      places: how the file calls these planes, a text for each object.
      axes: of the stack.
    """
    if places:
        has = " x ".join(f"{axis} {length}" for axis, length in axes.lengths.items())
        raise InputError(f"{path}: {len(places)} of its objects lie on planes that the stack "
                         f"({has}) does not have: {some(dict.fromkeys(places))}; were they drawn "
                         "on a longer stack, or one whose channels are counted too? Export image "
                         "and outlines alike")


def ids_of(names: Sequence[str]) -> np.ndarray:
    """(n,) ids of annotations: their names where all are different numbers, else 1, 2, 3, ..."""
    numbers = [int(name) if name.isascii() and name.isdigit() and len(name) < 11 else 0
               for name in names]
    fit = len(set(numbers)) == len(numbers) and all(0 < n <= MAX_ID for n in numbers)
    return np.array(numbers if fit else range(1, len(names) + 1), np.int64)
