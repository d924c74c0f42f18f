"""Targets: what a network learns of an instance label, and labels back from what it says.

Each target is a pair, encode and decode, that agree: decode(encode(label), ...) is the label
where its cells are apart. Probabilities are sigmoids per output, as the losses take them. encode,
probs, mask and cell_mask are traceable; decode and pixel_weight run on the host.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from scipy.special import logit
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from cellseg_jax.errors import pick


class Target(NamedTuple):
    """What a network learns.

    All targets are called alike, and each reads the arguments that mean something to it.
    num_classes counts the background.

    num_outputs(num_classes) -> K.
    encode(label, *, num_classes, contour_width): (..., H, W) int -> (..., H, W, K) float32 in
      {0, 1}.
    probs(logits): (..., H, W, K) -> the same shape, in [0, 1].
    mask(probs, threshold): (..., H, W, K) -> bool of that shape, for pixel metrics.
    cell_mask(probs, threshold): (..., H, W, K) -> (..., H, W, 1) bool, cells of whatever kind:
      what the foreground target learns, so that runs with different targets can be compared.
    decode(logits, *, threshold, method, min_size, h): (H, W, K) or (N, H, W, K) -> int32 label
      without K; a target is taken too.
    pixel_weight(label, *, w0, sigma): (H, W) int -> (H, W) float32 for the losses' pixel_weight;
      None where all pixels weigh the same.
    """

    num_outputs: Callable
    encode: Callable
    probs: Callable
    mask: Callable
    cell_mask: Callable
    decode: Callable
    pixel_weight: Callable | None = None


def _above(probs, threshold=0.5):
    """True where the probability exceeds the threshold."""
    return probs > threshold


def _winner(probs, threshold=None):
    """True in the channel of the largest probability, the first of equals, however large."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] == jnp.arange(probs.shape[-1])


def _not_background(probs, threshold=None):
    """True where another channel than the first wins."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] > 0


def _neighbours(x):
    """The four arrays (..., H, W) of pixels above, below, left and right; x repeats at borders."""
    xp = jnp if isinstance(x, jax.Array) else np
    x = xp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    return x[..., :-2, 1:-1], x[..., 2:, 1:-1], x[..., 1:-1, :-2], x[..., 1:-1, 2:]


# --- encode: labels to what a network learns -----------------------------------------------------


def _foreground(label, *, num_classes=2, contour_width=2):
    """1 where there is a cell of whatever class, in one channel."""
    del num_classes, contour_width
    return (label > 0)[..., None].astype(jnp.float32)


def _apart(label):
    """True in cells but where one touches another: at such a border both lose one pixel."""
    touching = [(n != label) & (n > 0) for n in _neighbours(label)]
    return (label > 0) & ~functools.reduce(operator.or_, touching)


def _boundary(label, *, num_classes=2, contour_width=2):
    """As foreground, with a border of background between touching cells: see `_apart`."""
    del num_classes, contour_width
    return _apart(label)[..., None].astype(jnp.float32)


def _one_hot(label, *, num_classes=2, contour_width=2):
    """1 in the channel of the pixel's class; background is channel 0."""
    del contour_width
    return (label[..., None] == np.arange(num_classes)).astype(jnp.float32)


def _contour(label, *, num_classes=2, contour_width=2):
    """1 in the channel of the pixel's kind: background, nucleus, contour.

    Contour is what lies in a cell at a city-block distance of at most contour_width pixels from
    background or another cell, so two cells that touch have contours between them. The border
    of the image makes no contour.
    """
    del num_classes
    if contour_width < 1:
        raise ValueError(f"contour_width {contour_width}: expected at least 1 pixel")
    band = functools.reduce(operator.or_, [n != label for n in _neighbours(label)])
    for _ in range(contour_width - 1):
        band = functools.reduce(operator.or_, _neighbours(band), band)
    return _one_hot((label > 0) * (1 + band), num_classes=3)


# --- decode: what a network says to labels -------------------------------------------------------


def components(mask):
    """Instance label of a mask: its 4-connected components, numbered in reading order.

    Args:
      mask: (H, W) bool.
    Returns: (H, W) int32, 0 background.
    """
    return ndimage.label(mask)[0].astype(np.int32)


def split_by_distance(mask, h=1.0):
    """Instance label of a mask: touching round cells cut at their necks.

    Every peak of the distance to the background that rises at least h above the pass to a
    higher peak becomes a cell; a watershed gives it its pixels. A component keeps one peak at
    least, so no pixel of the mask is lost.

    Args:
      mask: (H, W) bool.
      h: pixels of distance; larger cuts less, 0 cuts at every bump.
    Returns: (H, W) int32, 0 background, cells numbered in reading order of their peaks.
    Source: h-maxima, Soille 2004, Morphological Image Analysis, section 6.3.4.
    """
    cross = ndimage.generate_binary_structure(2, 1)
    # The background lies h below the lowest pixel of a cell, so that thin cells keep a peak.
    distance = np.where(mask, ndimage.distance_transform_edt(mask), -h)
    levelled = reconstruction(distance - h, distance, footprint=cross)
    peaks = ndimage.label(local_maxima(levelled, connectivity=1) & mask)[0]
    return watershed(-distance, peaks, mask=mask, connectivity=1).astype(np.int32)


METHODS = {"components": lambda mask, h: components(mask), "watershed": split_by_distance}


def remove_small(label, min_size):
    """The label without objects of fewer than min_size pixels, the others renumbered 1, 2, ..."""
    keep = np.bincount(label.ravel()) >= min_size
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[label]


def _per_image(segment, logits, num_outputs):
    """segment of (H, W, K) logits, or of each of (N, H, W, K); ValueError for another shape."""
    logits = np.asarray(logits)
    if logits.ndim not in (3, 4) or logits.shape[-1] != num_outputs:
        raise ValueError(f"logits {logits.shape}: expected (H, W, {num_outputs}) or "
                         f"(N, H, W, {num_outputs})")
    return segment(logits) if logits.ndim == 3 else np.stack([segment(one) for one in logits])


def _cells(logits, *, threshold=0.5, method="components", min_size=0, h=1.0):
    """Instance labels of logits, or of a 0/1 target.

    Args:
      logits: (H, W, 1) or (N, H, W, 1), raw; probabilities go through `logit` first.
      threshold: a pixel is a cell where its probability exceeds this.
      method: "components", or "watershed" to cut touching cells apart.
      min_size: objects of fewer pixels are dropped.
      h: read by watershed, see split_by_distance.
    Returns: (H, W) or (N, H, W) int32, 0 background, ids 1, 2, ...
    Raises: ValueError for another shape; InputError for an unknown method.
    """
    split_cells = pick(METHODS, method, "method")

    def segment(logits):
        return remove_small(split_cells(logits[..., 0] > logit(threshold), h), min_size)

    return _per_image(segment, logits, 1)


def _grown_nuclei(logits, *, threshold=0.5, method="components", min_size=0, h=1.0):
    """Instance labels of (background, nucleus, contour) logits, or of a 0/1 target.

    The largest logit wins a pixel. Every 4-connected nucleus becomes a cell and takes the contour
    pixels that are nearer to it than to other nuclei, by paths through nucleus and contour. A
    piece of contour with no nucleus in it, as a thin cell has, is a cell of its own.

    A cell comes back whole if its nucleus is in one piece or gone; one with a neck no wider than
    two contours falls apart there, since two cells that touch in so few pixels look the same.

    Args:
      logits: (H, W, 3) or (N, H, W, 3), raw; probabilities do as well.
      threshold: not read.
      method: "components", or "watershed" to cut nuclei that touch as well.
      min_size: objects of fewer pixels, contour included, are dropped.
      h: read by watershed, see split_by_distance.
    Returns: (H, W) or (N, H, W) int32, 0 background, cells numbered in reading order.
    Raises: ValueError for another shape; InputError for an unknown method.
    """
    del threshold
    split_cells = pick(METHODS, method, "method")

    def segment(logits):
        winner = np.argmax(logits, -1)
        nucleus, whole = winner == 1, components(winner > 0)
        no_nucleus = ~np.isin(whole, whole[nucleus])
        seeds = split_cells(nucleus | (no_nucleus & (whole > 0)), h)
        # On a flat landscape a watershed grows all seeds at one pace.
        label = watershed(np.zeros(whole.shape, np.uint8), seeds, mask=whole > 0, connectivity=1)
        return remove_small(_in_reading_order(label), min_size)

    return _per_image(segment, logits, 3)


def _in_reading_order(label):
    """The label with its ids, 0 and 1, 2, ... without gaps, in the order they first appear."""
    ids, first = np.unique(label, return_index=True)
    rank = np.zeros(label.max(initial=0) + 1, np.int32)
    rank[ids[ids > 0][np.argsort(first[ids > 0])]] = np.arange(1, (ids > 0).sum() + 1)
    return rank[label]


def _classes(logits, *, threshold=0.5, method="components", min_size=0, h=1.0):
    """Semantic maps: (..., H, W, K) -> (..., H, W) int32, the first class of equals."""
    del threshold, method, min_size, h
    return np.argmax(np.asarray(logits), -1).astype(np.int32)


# --- pixel weights -------------------------------------------------------------------------------


def unet_weight_map(label, *, w0=10.0, sigma=5.0, class_weights=(1.0, 1.0)):
    """How much each pixel counts: most in narrow gaps between cells.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)) in the background, w_c(x) in cells,
    with d1 and d2 the distances to the nearest pixel of the nearest and the second nearest cell.
    Where cells touch, both have lost a pixel to the background first, as in the boundary target.
    Fewer than two cells: w_c alone.

    Cells farther than 5 sigma are not looked for, so w is too small by less than 4e-6 w0.

    Args:
      label: (H, W) int, instance ids, 0 background; a cell may be in several pieces.
      w0: weight that a closed gap would add.
      sigma: width of the gaps that count, pixels of this label.
      class_weights: w_c of (background, cell), or "balanced" for n / (2 n_c) with n_c of the n
        pixels in the class, so that both classes weigh the same; 1 where one class is absent.
    Returns: (H, W) float32.
    Raises: ValueError if sigma is not above 0.
    Source: Ronneberger et al. 2015, U-Net, equation 2, which is also applied inside cells; there
      only the own cell's size would tell. It balances the classes of the data set: pass those.
    """
    if sigma <= 0:
        raise ValueError(f"sigma {sigma}: expected above 0 pixels")
    label = np.asarray(label)
    cell = _apart(label)
    if class_weights == "balanced":
        counts = np.bincount(cell.ravel(), minlength=2)
        class_weights = cell.size / (2 * counts) if counts.all() else (1.0, 1.0)
    # Without gaps: find_objects makes a list as long as the largest id.
    label = np.unique(label * cell, return_inverse=True)[1].reshape(label.shape)
    reach = math.ceil(5 * sigma)
    nearest, second = np.full((2, *label.shape), np.inf, np.float32)
    for i, box in enumerate(ndimage.find_objects(label), 1):
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(label[window] != i)
        near, next_ = nearest[window], second[window]
        np.minimum(next_, np.maximum(near, distance), out=next_)
        np.minimum(near, distance, out=near)
    gap = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(cell, class_weights[1], class_weights[0] + gap).astype(np.float32)


TARGETS = {
    # Cell or not: instance ids of any number in, instances out.
    "foreground": Target(
        lambda num_classes: 1, _foreground, jax.nn.sigmoid, _above, _above, _cells),
    # The same with gaps between touching cells, and weights that insist on them.
    "boundary": Target(
        lambda num_classes: 1, _boundary, jax.nn.sigmoid, _above, _above, _cells, unet_weight_map),
    # Background, nucleus, contour: instance ids in, instances out.
    "contour": Target(
        lambda num_classes: 3, _contour, jax.nn.sigmoid, _winner, _not_background, _grown_nuclei),
    # One channel per class, background included: classes in, classes out.
    "classes": Target(
        lambda num_classes: num_classes, _one_hot, jax.nn.sigmoid, _winner, _not_background,
        _classes),
}
