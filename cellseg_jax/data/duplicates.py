"""Images that show the same thing: copies, re-saved, brighter, in another depth, turned or flipped.

Such a pair on both sides of a split makes scores too good. An image is compared by its thumbnail
without slow variation (a common vignette or gradient of light is no likeness), in two steps: all
pairs at COARSE x COARSE and in the 8 symmetries of the square, and what is alike there at
FINE x FINE.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

FINE, COARSE = 64, 16  # sides of the thumbnails
SLOW = 8.0  # pixels of the fine thumbnail: variation slower than this Gaussian is left out
CANDIDATE = 0.8  # correlation at COARSE from which a pair is looked at again
THRESHOLD = 0.95
BLOCK = 512  # images whose pairs are compared at once


class Pair(NamedTuple):
    """Images first < second and the correlation of their thumbnails, 1 for copies."""

    first: int
    second: int
    similarity: float


def near_duplicates(images, *, threshold=THRESHOLD, symmetries=True, prints=None) -> list[Pair]:
    """Pairs of images that are near-duplicates, most similar first.

    Args:
      images: (n, H, W, C) integers, indexed one at a time (memory-mapped arrays stay on disk);
        alpha, the fourth channel, is not looked at.
      threshold: of the similarity, in (0, 1].
      symmetries: also find turned (by 90 degrees) and flipped copies.
      prints: fingerprints(images), if they are known already.
    """
    fine = fingerprints(images) if prints is None else prints
    side = FINE // COARSE
    coarse = _unit(fine.reshape(-1, COARSE, side, COARSE, side).mean((2, 4)))
    turned = [_unit(t) for t in _symmetries(coarse, symmetries)]
    pairs = {}
    for start in range(0, len(coarse), BLOCK):
        block = coarse[start : start + BLOCK].reshape(-1, COARSE**2)
        for t, other in enumerate(turned):
            likeness = block @ other[start:].reshape(-1, COARSE**2).T
            for i, j in np.argwhere(likeness >= CANDIDATE):
                if i >= j:
                    continue
                again = _symmetries(fine[start + j][None], symmetries)[t][0]
                similarity = float(np.vdot(fine[start + i], again))
                key = (start + int(i), start + int(j))
                if similarity >= max(threshold, pairs.get(key, -1)):
                    pairs[key] = min(similarity, 1.0)
    return sorted((Pair(*key, value) for key, value in pairs.items()),
                  key=lambda pair: (-pair.similarity, pair))


def fingerprints(images) -> np.ndarray:
    """(n, FINE, FINE) float32 thumbnails of mean 0 and norm 1; 0 for images of one colour."""
    out = np.empty((len(images), FINE, FINE), np.float32)
    for i, image in enumerate(images):
        out[i] = _thumbnail(image)
    return _unit(out)


def _thumbnail(image) -> np.ndarray:
    gray = sum(image[..., c].astype(np.float32) for c in range(min(image.shape[-1], 3)))
    rows, columns = (_area_weights(n) for n in gray.shape)
    return rows @ gray @ columns.T


def _area_weights(size: int) -> np.ndarray:
    """(FINE, size) float32: how much of each thumbnail pixel each image pixel covers."""
    edges = np.linspace(0, size, FINE + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(covered, 0) * FINE / size).astype(np.float32)


def _unit(thumbnails) -> np.ndarray:
    flat = thumbnails - thumbnails.mean((1, 2), keepdims=True)
    norm = np.sqrt(np.square(flat).sum((1, 2), keepdims=True))
    return np.where(norm > 1e-6, flat / np.maximum(norm, 1e-6), 0).astype(np.float32)


def _symmetries(thumbnails, all_of_them) -> list[np.ndarray]:
    if not all_of_them:
        return [thumbnails]
    turned = [np.rot90(thumbnails, k, axes=(1, 2)) for k in range(4)]
    return turned + [t[:, :, ::-1] for t in turned]
