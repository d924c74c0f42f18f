"""Prediction of images larger or smaller than what a network takes: overlapping tiles, blended.

Overlap is the share of a tile, from 0 to below 1, that it has at least in common with the next.
Everything here runs on the host; the network sees batches of one shape only.
"""

import math

import numpy as np


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin so that they cover 0..length with at least the overlap asked for.

    The fewest tiles that do, spread evenly. An axis no longer than a tile has one tile.

    Args:
      length, tile: pixels.
      overlap: share of a tile, in [0, 1).
    Returns: rising starts, the first 0, the last length - tile (or 0).
    Raises: ValueError for an overlap outside [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}; expected a share of the tile, in [0, 1)")
    rest = length - tile
    if rest <= 0:
        return [0]
    stride = max(1, math.floor(tile * (1 - overlap)))
    steps = -(-rest // stride)
    return [i * rest // steps for i in range(steps + 1)]


def blend_window(tile, overlap: float) -> np.ndarray:
    """How much each pixel of a tile counts: 1 inside, falling smoothly to its edges.

    The product over both axes of sin^2 (pi d / 2 w), d the distance of the pixel's centre from
    the nearer edge and w the width of the overlap, 1 beyond w. Above 0 everywhere: divided by
    the sum of all tiles on a pixel, the weights are a partition of unity.

    Args:
      tile: (h, w) pixels.
      overlap: share of a tile, in [0, 1); 0 weighs all pixels by 1.
    Returns: (h, w) float32.
    """
    ramps = []
    for length in tile:
        distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
        part = np.minimum(distance / max(overlap * length, 0.5), 1)
        ramps.append(np.sin(np.pi / 2 * part) ** 2)
    return np.outer(*ramps).astype(np.float32)


def predict_tiled(predict_fn, image, *, tile, overlap: float, batch_size: int) -> np.ndarray:
    """Predictions for every pixel of an image of any size, from a network that takes tiles.

    Images smaller than a tile are reflected at their lower and right edges, and the last batch
    is filled up with its last tile, so that predict_fn meets one shape and compiles once.

    Args:
      predict_fn: (batch_size, h, w, C) -> (batch_size, h, w, K).
      image: (H, W, C), any dtype; predict_fn gets it as it is.
      tile: (h, w) pixels.
      overlap: share of a tile, in [0, 1).
      batch_size: tiles per call.
    Returns: (H, W, K) float32.
    Raises: ValueError for an image of another rank, or an overlap outside [0, 1).
    """
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"image {image.shape}: expected one image (H, W, C)")
    (height, width), (h, w) = image.shape[:2], tile
    short = (0, max(0, h - height)), (0, max(0, w - width)), (0, 0)
    image = np.pad(image, short, mode="reflect")
    # float64, so that what all tiles agree on comes back exactly after rounding to float32.
    window = blend_window(tile, overlap)[..., None].astype(np.float64)
    total, weight = None, np.zeros((*image.shape[:2], 1))
    spans = [
        (slice(y, y + h), slice(x, x + w))
        for y in tile_starts(height, h, overlap)
        for x in tile_starts(width, w, overlap)
    ]
    for first in range(0, len(spans), batch_size):
        batch = spans[first : first + batch_size]
        filled = batch + batch[-1:] * (batch_size - len(batch))
        outputs = np.asarray(predict_fn(np.stack([image[span] for span in filled])))
        if total is None:
            total = np.zeros((*image.shape[:2], outputs.shape[-1]))
        for span, output in zip(batch, outputs):
            total[span] += window * output
            weight[span] += window
    return (total / weight)[:height, :width].astype(np.float32)


def to_grid(image, patches: int) -> np.ndarray:
    """(p * p, H / p, W / p, ...) of an (H, W, ...) image: its patches, column after column.

    Source: the order of report 1, whose predictions are put together again by `from_grid`.
    """
    height, width = image.shape[0] // patches, image.shape[1] // patches
    cells = np.asarray(image).reshape(patches, height, patches, width, *image.shape[2:])
    return np.moveaxis(cells, 2, 0).reshape(-1, height, width, *image.shape[2:])


def from_grid(cells) -> np.ndarray:
    """The inverse of to_grid: (p * p, h, w, ...) -> (p * h, p * w, ...)."""
    patches = math.isqrt(len(cells))
    height, width = cells.shape[1:3]
    image = np.moveaxis(cells.reshape(patches, patches, *cells.shape[1:]), 0, 2)
    return image.reshape(patches * height, patches * width, *cells.shape[3:])
