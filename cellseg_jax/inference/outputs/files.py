"""Files that appear whole or not at all, and a label taken apart so that it need not fit memory."""

import functools

import numpy as np
from skimage import measure

BLOCK = 2**22  # pixels that are looked at together


def objects(label, classes=()):
    """(label of objects, class of every id or None) of a label that may hold classes.

    Args:
      label: (H, W) integers, 0 background.
      classes: not empty if the label holds classes: each 8-connected piece is an object then, and
        the label has to fit memory.
    Returns: (H, W) integers; (max id + 1,) classes.
    """
    if not classes:
        return label, None
    pieces = measure.label(label, background=0, connectivity=2)
    class_of = np.zeros(pieces.max() + 1, np.int64)
    class_of[pieces] = label
    return pieces, class_of


def blocks(label):
    """Whole objects of a label, block by block, so that a memory map need not be read at once.

    Args:
      label: (H, W) integers of at least 0; memory is used for as many ids as it has, however
        large they are.
    Yields: (top, part): part is (h, W), the label from row `top` on as far as the objects reach
      that begin in a strip of about BLOCK pixels; other objects are 0 in it. No object is in two
      blocks, and there is one block at least.
    """
    height, width = label.shape
    rows = max(1, BLOCK // width)
    if height <= rows:
        yield 0, np.asarray(label)
        return
    place = _places(label, rows)
    first, last = _extents(label, rows, place)
    for top in range(0, height, rows):
        begins = (first >= top) & (first < top + rows)
        if begins.any() or top == 0:
            part = np.asarray(label[top : last[begins].max(initial=top) + 1])
            yield top, np.where(begins[place(part)], part, 0)


def _places(label, rows):
    """The function from ids to numbers below the number of pixels; of 0 it is 0."""
    bands = [slice(top, top + rows) for top in range(0, label.shape[0], rows)]
    if max(int(np.max(label[band])) for band in bands) < label.size:
        return lambda ids: ids
    return functools.partial(np.searchsorted, functools.reduce(
        np.union1d, (label[band] for band in bands), np.zeros(1, label.dtype)))


def _extents(label, rows, place):
    """First and last row of every id, at its `place`; those of 0 and of absent ids are -1."""
    first = last = np.full(1, -1)
    for top in range(0, label.shape[0], rows):
        band = np.asarray(label[top : top + rows])
        y, x = np.nonzero(band)
        ids = place(band[y, x])
        missing = int(ids.max(initial=0)) + 1 - len(first)
        if missing > 0:
            first, last = (np.append(old, np.full(missing, -1)) for old in (first, last))
        here = np.full(len(first), -1)
        here[ids[::-1]] = y[::-1] + top  # of an id's pixels the first comes last
        first = np.where(first < 0, here, first)
        last[ids] = y + top
    return first, last
