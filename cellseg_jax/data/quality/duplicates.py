"""Near-duplicates: copies, re-saved, brighter, in another bit depth, rotated or flipped.

Such a pair on both sides of a split makes scores too good. Images are compared by thumbnails
without the mean, slow variation (light, vignettes) and what all images have in common (a dark
frame, a round field of view). All pairs
are compared at COARSE x COARSE in the 8 symmetries of a square, and what is alike there at
FINE x FINE. A scaled copy is found too; a shifted one only up to about 1% of the side.

Measured on dsb2018 (564 images), EBHI-SEG (232), LIVECell (23), ISBI 2012 (30) and Cell Tracking
Challenge frames (28): two images that look different reach 0.58 (the next frame of a
movie; 0.51 neighbouring slices; 0.4 otherwise), the four true pairs (two of EBHI-SEG, two focal
planes in dsb2018, two frames of resting cells) 0.90 and more, an image and its copy as JPEG of
quality 30, with a gamma of 0.6 or 1.6, or at half size 0.88 and more.
"""

import contextlib
import functools
import itertools
import json
from typing import NamedTuple

import numpy as np
from scipy import sparse

from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, write_atomic

FINE, COARSE = 64, 16  # sides of the thumbnails
DEGREE = 4  # of the polynomial in y and x that counts as slow variation
CANDIDATE = 0.5  # correlation at COARSE from which a pair is compared at FINE
THRESHOLD = 0.8
MIN_COMMON = 16  # images; of fewer, a common look cannot be separated from a pair's
SAME_REST = 0.01  # norm of a print less the common look, below which it is only that look
BLOCK = 512  # images compared with as many others at once
MAX_PAIRS = 100_000  # images of one scene would give nearly all pairs
MAX_IMAGES = 10_000  # to compare all pairs of more takes too long for every start of a run
# Pairs that were found by another method are searched again; first its version.
METHOD = [2, FINE, COARSE, DEGREE, CANDIDATE, THRESHOLD, MIN_COMMON, SAME_REST, MAX_PAIRS]
KEPT_FILE = "near_duplicates.json"  # in the folder of decoded arrays


class Pair(NamedTuple):
    """Images first < second and the correlation of their thumbnails, 1 for copies."""

    first: int
    second: int
    similarity: float


class Pairs(list):
    """Every Pair, most similar first, and how much `common` look was left out, 0 to 1."""

    def __init__(self, pairs, common):
        super().__init__(pairs)
        self.common = common


def pairs_of(arrays, *, alpha=False) -> Pairs | None:
    """The near-duplicates among decoded images, searched once and kept in their cache folder.

    Args:
      arrays: data.Arrays; patches count as their whole image.
      alpha: as of fingerprints.
    Returns: None for more than MAX_IMAGES images.
    """
    if len(arrays.image_names) > MAX_IMAGES:
        return None
    file = arrays.folder and arrays.folder / KEPT_FILE
    if file:
        with contextlib.suppress(InputError, KeyError, TypeError):  # damaged: searched again
            kept = read_json(file, {"method": None})
            if kept["method"] == METHOD:
                return Pairs([Pair(*pair) for pair in kept["pairs"]], kept["common"])
    pairs = near_duplicates(arrays.whole_images(), alpha=alpha)
    if file:
        with contextlib.suppress(OSError):  # a read-only cache: searched again at the next start
            write_atomic(file, json.dumps(
                {"method": METHOD, "common": pairs.common, "pairs": pairs}))
    return pairs


def near_duplicates(
    images, *, threshold=THRESHOLD, symmetries=True, prints=None, alpha=False
) -> Pairs:
    """The near-duplicates among images; at most MAX_PAIRS pairs, then the search ends.

    `common` is the median correlation of an image with the median thumbnail. Near 1, all images
    show one scene or one frame, and only what changes between them was compared.

    Args:
      images: (n, H, W, C) integers, indexed one at a time, so memory-mapped arrays may be large.
        Images of one colour have no duplicates.
      threshold: of the similarity, in (0, 1].
      symmetries: find turned (by 90 degrees) and flipped copies too.
      prints: fingerprints(images), if known; the images are not looked at then.
      alpha: as of fingerprints.
    """
    fine, common = _without_common(
        fingerprints(images, alpha=alpha) if prints is None else prints.copy())
    coarse = _unit(_pool(fine))
    best = {}
    starts = range(0, len(fine), BLOCK)
    for top, left in itertools.combinations_with_replacement(starts, 2):
        rows, columns = slice(top, top + BLOCK), slice(left, left + BLOCK)
        turns = _symmetries(coarse[columns]) if symmetries else [coarse[columns]]
        for turn, turned in enumerate(turns):
            i, j = np.nonzero(_products(coarse[rows], turned) >= CANDIDATE)
            earlier = top + i < left + j
            if not earlier.any():
                continue
            i, j = np.unique(i[earlier]), np.unique(j[earlier])
            similarity = _products(fine[rows][i], _symmetries(fine[columns][j])[turn])
            for a, b in np.argwhere(similarity >= threshold):
                key = top + int(i[a]), left + int(j[b])
                if key[0] < key[1]:
                    best[key] = max(best.get(key, 0), min(float(similarity[a, b]), 1.0))
        if len(best) >= MAX_PAIRS:
            break
    pairs = sorted((Pair(*key, value) for key, value in best.items()),
                   key=lambda pair: (-pair.similarity, pair))
    return Pairs(pairs[:MAX_PAIRS], common)


def fingerprints(images, *, alpha=False) -> np.ndarray:
    """(n, FINE, FINE) float32: thumbnails without slow variation, of norm 1, or 0 if flat.

    Args:
      alpha: whether the last channel is alpha, which is not looked at.
    """
    out = np.empty((len(images), FINE * FINE), np.float32)
    for i in range(len(images)):
        out[i] = _thumbnail(images[i][..., : -1 if alpha else None]).reshape(-1)
    slow = _slow()
    out -= (out @ slow) @ slow.T
    return _unit(out.reshape(-1, FINE, FINE))


def _thumbnail(image) -> np.ndarray:
    """(FINE, FINE) float32 sums over channels of area averages, less the first pixel's value."""
    gray = image[..., 0].astype(np.float32)
    for channel in range(1, image.shape[-1]):
        gray += image[..., channel]
    gray -= gray[0, 0]  # so that an image of one colour is 0 without rounding
    height, width = gray.shape
    return (_area_weights(width) @ (_area_weights(height) @ gray).T).T


@functools.lru_cache(64)
def _area_weights(size: int) -> sparse.csr_array:
    """(FINE, size) float32: the share of every thumbnail pixel that an image pixel covers.

    Sparse, because thousands of small dense products are slow where threads compete.
    """
    edges = np.linspace(0, size, FINE + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return sparse.csr_array((np.maximum(covered, 0) * FINE / size).astype(np.float32))


@functools.cache
def _slow() -> np.ndarray:
    """(FINE * FINE, terms) float32, orthonormal: the polynomials of degree up to DEGREE."""
    one = np.polynomial.legendre.legvander(np.linspace(-1, 1, FINE), DEGREE)
    terms = [np.outer(one[:, a], one[:, b]).reshape(-1)
             for a in range(DEGREE + 1) for b in range(DEGREE + 1 - a)]
    return np.linalg.qr(np.stack(terms, 1))[0].astype(np.float32)


def _without_common(prints):
    """The prints, changed in place, without their component along the median print; its size.

    A print that is hardly more than the median stays as it is: these are copies.
    """
    if len(prints) < MIN_COMMON:
        return prints, 0.0
    some = prints[:: max(1, len(prints) // BLOCK)]
    common = _unit(np.median(some, axis=0)[None])[0]
    share = np.tensordot(prints, common, 2)
    for start in range(0, len(prints), BLOCK):
        block = prints[start : start + BLOCK]  # a view
        rest = block - share[start : start + BLOCK, None, None] * common
        some_rest = np.einsum("nhw,nhw->n", rest, rest) > SAME_REST**2
        block[some_rest] = _unit(rest[some_rest])
    return prints, float(np.median(share))


def _pool(fine) -> np.ndarray:
    side = FINE // COARSE
    return fine.reshape(-1, COARSE, side, COARSE, side).mean((2, 4))


def _unit(thumbnails) -> np.ndarray:
    """Thumbnails of norm 1; those that are rounding noise become 0."""
    norm = np.sqrt(np.einsum("nhw,nhw->n", thumbnails, thumbnails))[:, None, None]
    return np.divide(thumbnails, norm, out=np.zeros_like(thumbnails), where=norm > 1e-4)


def _products(a, b) -> np.ndarray:
    return a.reshape(len(a), -1) @ b.reshape(len(b), -1).T


def _symmetries(thumbnails) -> list[np.ndarray]:
    turned = [np.rot90(thumbnails, k, axes=(1, 2)) for k in range(4)]
    return turned + [t[:, :, ::-1] for t in turned]
