"""Prediction of images larger or smaller than what a network takes: overlapping tiles, blended.

Overlap is the share of a tile, from 0 to below 1, that it has at least in common with the next.
Everything here runs on the host, and tiles of all images have one shape.
"""

import itertools
import math

import numpy as np

from cellseg_jax.crops import mirrored


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin so that they cover 0..length with at least the overlap asked for.

    The fewest tiles that do, spread evenly. An axis no longer than a tile has one tile. With
    overlap 0 tiles lie side by side, so that each pixel is of one tile, as in crops.to_grid; the
    last may reach beyond the length.

    Args:
      length, tile: pixels.
      overlap: share of a tile, in [0, 1).
    Returns: rising starts, the first 0, the last length - tile (or 0); with overlap 0 multiples of
      the tile.
    Raises: ValueError for an overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}; expected a share of the tile, in [0, 1)")
    rest = length - tile
    if rest <= 0:
        return [0]
    if overlap == 0:
        return list(range(0, length, tile))
    stride = max(1, math.floor(tile * (1 - overlap)))
    steps = -(-rest // stride)
    return [i * rest // steps for i in range(steps + 1)]


def _ramp(length: int, overlap: float) -> np.ndarray:
    """How much each pixel of a tile counts along one axis: 1 inside, falling smoothly to its ends.

    sin^2 (pi d / 2 w), d the distance of the pixel's centre from the nearer end and w the width
    of the overlap, 1 beyond w. Above 0 everywhere, so that it can be divided by the sum of all
    tiles on a pixel.
    """
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.sin(np.pi / 2 * np.minimum(distance / max(overlap * length, 0.5), 1)) ** 2


def spread(length: int, tile: int, *, overlap: float = 0.0, halo: int = 0, align: int = 1):
    """Tiles along one axis of an image, and how much each of their pixels counts.

    Blended (halo 0): weights rise smoothly over the overlap, as in `_ramp`. With a halo,
    pixels nearer than that to the edge of a tile count nothing, but at the edges of the image; a
    network that sees no further and whose tiles begin at multiples of its stride (`align`) then
    gives what it gives for the whole image.

    Args:
      length, tile: pixels; with a halo, multiples of align.
      overlap: share of a tile, in [0, 1); not read with a halo.
    Returns: [(start, (tile,) float64 weights)]; on each pixel the weights sum to 1. The last
      tile ends at the image's end, or beyond it where the image is shorter than a tile or tiles
      neither overlap nor have a halo.
    Raises: ValueError for a halo that leaves nothing of a tile.
    """
    if not halo:
        starts = tile_starts(length, tile, overlap)
        ramps = [_ramp(tile, overlap) for _ in starts]
    else:
        stride = (tile - 2 * halo) // align * align
        if stride < 1 or length % align or tile % align:
            raise ValueError(f"tile {tile}, halo {halo}, length {length}: expected a tile above "
                             f"twice the halo, and multiples of {align}")
        steps = max(0, -(-(length - tile) // stride))
        starts = [min(i * stride, length - tile) for i in range(steps)] + [max(0, length - tile)]
        # Between two tiles, in the middle of what they share, one ends and the next begins.
        cuts = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(starts)), starts[-1] + tile]
        place = np.arange(tile)
        ramps = [((a <= y + place) & (y + place < b)).astype(np.float64)
                 for y, (a, b) in zip(starts, itertools.pairwise(cuts), strict=True)]
    total = np.zeros(starts[-1] + tile)
    for y, ramp in zip(starts, ramps, strict=True):
        total[y : y + tile] += ramp
    return [(y, ramp / total[y : y + tile]) for y, ramp in zip(starts, ramps, strict=True)]


def predict_tiled(predict_fn, images, *, tile, overlap: float, batch_size: int) -> list[np.ndarray]:
    """Predictions for every pixel of images of any sizes, from a network that takes tiles.

    Where tiles reach beyond an image, it is reflected at its lower and right edges, and batches
    hold tiles of several images.

    Args:
      predict_fn: (n, h, w, C) tiles, n <= batch_size, and (n,) numbers of their images ->
        (n, h, w, K).
      images: each (H, W, C), any dtype; predict_fn gets it as it is.
      tile: (h, w) pixels.
      overlap: share of a tile, in [0, 1).
      batch_size: tiles per call.
    Returns: of each image (H, W, K) float32.
    Raises: ValueError for an image of another rank, or an overlap outside [0, 1).
    """
    spans, places = [], []
    for n, image in enumerate(images):
        if np.ndim(image) != 3:
            raise ValueError(f"image {np.shape(image)}: expected one image (H, W, C)")
        rows, columns = (spread(length, side, overlap=overlap)
                         for length, side in zip(image.shape[:2], tile, strict=True))
        spans += [(n, row, column) for row in rows for column in columns]
        places.append([mirrored(np.arange(axis[-1][0] + side), length)
                       for axis, side, length in zip((rows, columns), tile, image.shape[:2],
                                                     strict=True)])
    totals = {}
    for first in range(0, len(spans), batch_size):
        batch = spans[first : first + batch_size]
        cut = [images[n][places[n][0][y : y + tile[0], None], places[n][1][x : x + tile[1]]]
               for n, (y, _), (x, _) in batch]
        outputs = np.asarray(predict_fn(np.stack(cut), np.array([n for n, *_ in batch])))
        for (n, (y, down), (x, along)), output in zip(batch, outputs, strict=True):
            if n not in totals:  # float64, so that what all tiles agree on comes back exactly
                totals[n] = np.zeros((*map(len, places[n]), output.shape[-1]))
            totals[n][y : y + tile[0], x : x + tile[1]] += np.outer(down, along)[..., None] * output
    return [totals[n][: image.shape[0], : image.shape[1]].astype(np.float32)
            for n, image in enumerate(images)]


def predict_bands(predict_fn, read_rows, rows, columns, *, batch_size: int):
    """Predictions of one image of any height, from the top, while tiles of one row are in memory.

    Args:
      predict_fn: (n, h, w, C) -> (n, h, w, K), n <= batch_size.
      read_rows: (start, stop) -> (stop - start, W, C), as wide as the columns reach.
      rows, columns: the tiles, as `spread` gives them.
      batch_size: tiles per call.
    Yields: (n, W, K) float32 that follow each other without a gap.
    """
    width = len(columns[0][1])
    total = None
    for number, (y, down) in enumerate(rows):
        height = len(down)
        band = read_rows(y, y + height)
        for first in range(0, len(columns), batch_size):
            batch = columns[first : first + batch_size]
            outputs = predict_fn(np.stack([band[:, x : x + width] for x, _ in batch]))
            if total is None:
                total = np.zeros((height, band.shape[1], outputs.shape[-1]))
            for (x, along), output in zip(batch, outputs, strict=True):
                total[:, x : x + width] += np.outer(down, along)[..., None] * output
        done = rows[number + 1][0] - y if number + 1 < len(rows) else height
        yield total[:done].astype(np.float32)
        total[: height - done] = total[done:].copy()
        total[height - done :] = 0


def turns(image, number: int) -> np.ndarray:
    """One of the eight symmetries of the square, of (..., H, W, C): 4 and above are transposed.

    Bit 0 flips rows, bit 1 columns, bit 2 exchanges rows and columns before that.
    """
    image = np.swapaxes(image, -3, -2) if number & 4 else image
    return image[..., :: -1 if number & 1 else 1, :: -1 if number & 2 else 1, :]


def turns_back(image, number: int) -> np.ndarray:
    """The inverse of `turns`."""
    image = image[..., :: -1 if number & 1 else 1, :: -1 if number & 2 else 1, :]
    return np.swapaxes(image, -3, -2) if number & 4 else image
