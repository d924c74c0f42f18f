"""Instance labels of images of any size: decoded block by block, ids joined across the seams.

Blocks overlap, so that an object on a seam is seen by both sides. Each pixel keeps what its own
block says; two objects that are the same one in the overlap get one id.
"""

import os

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK, MARGIN = 1024, 128  # pixels


def stitched(bands, size, decode, folder, *, touching: bool, min_size: int = 0,
             block: int = BLOCK, margin: int = MARGIN) -> np.memmap:
    """The label of an image from its probabilities in bands.

    Connected components come out as of the whole image, whatever their size and shape. Objects
    that a watershed cuts do as long as the group of touching objects that they are in reaches
    no further than `margin` beyond a seam; else they may be cut in another place.

    Args:
      bands: (n, W, K) probabilities, one after the other; `size` is (H, W).
      decode: (h, w, K) probabilities -> (h, w) label with ids 1, 2, ..., without a least size.
      folder: where the label lies on disk, in a file without a name that goes with the array.
      touching: objects that share a pixel in an overlap are one, as components are. Else their
        IoU in the overlap must be above 0.5.
      min_size: objects of fewer pixels, over all blocks, are dropped.
      block, margin: pixels of a block's own, and of its neighbours' that it sees, on each side.
    Returns: (H, W) uint32, 0 background, ids 1, 2, ... in the order of their first pixels.
    """
    height, width = size
    label = on_disk(size, folder)
    bands, held, first = iter(bands), None, 0
    areas, starts, pairs, count = [[0]], [[-1]], [np.zeros((2, 0), np.int64)], 0
    above = {}
    for top in range(0, height, block):
        bottom = min(top + block, height)
        y0, y1 = max(top - margin, 0), min(bottom + margin, height)
        held = next(bands) if held is None else held
        while first + len(held) < y1:
            held, first = np.concatenate([held[max(y0 - first, 0) :], next(bands)]), max(y0, first)
        before = None
        for left in range(0, width, block):
            right = min(left + block, width)
            x0, x1 = max(left - margin, 0), min(right + margin, width)
            local = decode(held[y0 - first : y1 - first, x0:x1])
            own = local[top - y0 : bottom - y0, left - x0 : right - x0]
            number = int(local.max(initial=0))
            areas.append(np.bincount(own.reshape(-1), minlength=number + 1)[1:])
            starts.append(_first_pixels(own, number, top * width + left, width))
            ids = np.where(local, local + np.int64(count), 0)
            count += number
            label[top:bottom, left:right] = ids[top - y0 : bottom - y0, left - x0 : right - x0]
            if left:  # both have the columns from x0 on to margin behind the seam
                pairs.append(_same(before, ids[:, : before.shape[1]], touching))
            if top:
                pairs.append(_same(above[left], ids[: len(above[left])], touching))
            before = ids[:, max(right - margin, 0) - x0 :]
            above[left] = ids[max(bottom - margin, 0) - y0 :].copy()
    number = _renumbered(np.concatenate(areas), np.concatenate(starts),
                         np.concatenate(pairs, 1), min_size)
    for top in range(0, height, block):
        label[top : top + block] = number[label[top : top + block]]
    return label


def on_disk(size, folder) -> np.memmap:
    """(H, W) uint32 zeros in a file of `folder` that has no name and goes with the array."""
    path = os.path.join(folder, f".label.{os.getpid()}.tmp")
    label = np.memmap(path, np.uint32, "w+", shape=tuple(size))
    os.unlink(path)
    return label


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
