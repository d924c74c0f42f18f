"""Instance labels of images of any size: decoded block by block, ids joined across the seams.

Blocks overlap, so that an object on a seam is seen by both sides. Each pixel keeps what its own
block found; two objects that are the same one in the overlap get one id.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellseg_jax.files.maps import scratch_map
from cellseg_jax.inference.row_bands import Rows


class Blocks(NamedTuple):
    """How an image is taken apart, in pixels."""

    size: int = 1024  # side of what a block decides about
    margin: int = 128  # of its neighbours' pixels that it sees, on each side

    def spans(self, length: int, values: int = 1):
        """(start, stop, first and last pixel seen + 1) of the blocks along an axis.

        Args:
          values: of maps in each row or column: where they are very many, blocks are shorter.
        """
        size = min(self.size, max(self.margin, MOST_VALUES // values - 2 * self.margin))
        for start in range(0, length, size):
            stop = min(start + size, length)
            yield start, stop, max(start - self.margin, 0), min(stop + self.margin, length)


BLOCKS = Blocks()
MOST_VALUES = 2**28  # of the maps that are in memory at once: 1 GiB


def stitched(bands, size, decode, folder=None, *, touching: bool, min_size: int = 0,
             blocks: Blocks = BLOCKS) -> np.ndarray:
    """The label of an image from its probabilities in bands.

    Connected components come out as of the whole image, whatever their size and shape. Objects
    that a watershed cuts do as long as the group of touching objects that they are in reaches
    no further than the margin beyond a seam; else they may be cut in another place.

    Args:
      bands: (n, W, K) probabilities, one after the other; `size` is (H, W).
      decode: (h, w, K) probabilities -> (h, w) label with ids 1, 2, ..., without a least size.
      folder: as `zeros` takes it.
      touching: objects that share a pixel in an overlap are one, as components are. Else their
        IoU in the overlap must be above 0.5.
      min_size: objects of fewer pixels, over all blocks, are dropped.
    Returns: (H, W) uint32, 0 background, ids 1, 2, ... in the order of their first pixels.
    """
    height, width = size
    label, rows, found = zeros(size, folder), Rows(bands), _Found(width, touching)
    values = width * rows(0, 1).shape[-1]
    above = {}  # of each column of blocks, the lowest rows of ids that the next block sees too
    for top, bottom, y0, y1 in blocks.spans(height, values):
        before = None
        for left, right, x0, x1 in blocks.spans(width):
            local = decode(rows(y0, y1, np.s_[x0:x1]))
            inside = np.s_[top - y0 : bottom - y0, left - x0 : right - x0]
            ids = found.add(local, local[inside], top * width + left)
            label[top:bottom, left:right] = ids[inside]
            if left:  # both have the columns from x0 on to margin behind the seam
                found.join(before, ids[:, : before.shape[1]])
            if top:
                found.join(above[left], ids[: len(above[left])])
            before = ids[:, max(right - blocks.margin, 0) - x0 :]
            above[left] = ids[max(bottom - blocks.margin, 0) - y0 :].copy()
    number = found.numbers(min_size)
    for top, bottom, *_ in blocks.spans(height):
        label[top:bottom] = number[label[top:bottom]]
    return label


class _Found:
    """Objects of all blocks: their areas, first pixels, and which of them are one."""

    def __init__(self, width: int, touching: bool):
        self.width, self.touching, self.count = width, touching, 0
        self.areas, self.starts, self.pairs = [[0]], [[-1]], [np.zeros((2, 0), np.int64)]

    def add(self, local, own, origin: int) -> np.ndarray:
        """Ids, over all blocks, of a block's label; `own` is its part that begins at `origin`."""
        number = int(local.max(initial=0))
        self.areas.append(np.bincount(own.reshape(-1), minlength=number + 1)[1:])
        self.starts.append(_first_pixels(own, number, origin, self.width))
        ids = np.where(local, local + np.int64(self.count), 0)
        self.count += number
        return ids

    def join(self, a, b) -> None:
        """Note the objects of a and b that are one, where both show the same pixels."""
        self.pairs.append(_same(a, b, self.touching))

    def numbers(self, min_size: int) -> np.ndarray:
        """The final id of every id."""
        return _renumbered(np.concatenate(self.areas), np.concatenate(self.starts),
                           np.concatenate(self.pairs, 1), min_size)


def zeros(size, folder=None) -> np.ndarray:
    """(H, W) uint32 zeros; in a file of `folder` that has no name and goes with the array."""
    return np.zeros(size, np.uint32) if folder is None else scratch_map(np.uint32, size, folder)


def _first_pixels(own, number, origin, width) -> np.ndarray:
    """(number,) the first pixel of every id, counted over the whole image."""
    flat = own.reshape(-1)
    place = np.flatnonzero(flat)[::-1]
    out = np.full(number + 1, np.iinfo(np.int64).max)
    out[flat[place]] = origin + place // own.shape[1] * width + place % own.shape[1]
    return out[1:]


def _same(a, b, touching) -> np.ndarray:
    """(2, n) ids of a and of b that are one object, where both show the same pixels."""
    both = (a > 0) & (b > 0)
    keys, shared = np.unique((a[both] << 32) | b[both], return_counts=True)
    pairs = np.stack([keys >> 32, keys & 0xFFFFFFFF])
    if touching:
        return pairs
    union = -shared
    for ids, one in zip(pairs, (a, b), strict=True):
        values, areas = np.unique(one, return_counts=True)
        union = union + areas[np.searchsorted(values, ids)]
    return pairs[:, 2 * shared > union]


def _renumbered(areas, starts, pairs, min_size) -> np.ndarray:
    """New ids of the ids 0, 1, ...: joined, without small ones, in the order of first pixels."""
    count = len(areas)
    graph = coo_array((np.ones(pairs.shape[1], np.int8), tuple(pairs)), shape=(count, count))
    owner = connected_components(graph, directed=False)[1]
    area = np.bincount(owner, areas)
    first = np.full(len(area), np.iinfo(np.int64).max)
    np.minimum.at(first, owner, starts)
    keep = np.flatnonzero((area >= max(min_size, 1)) & (np.arange(len(area)) != owner[0]))
    number = np.zeros(len(area), np.uint32)
    number[keep[np.argsort(first[keep])]] = np.arange(1, len(keep) + 1)
    return number[owner]
