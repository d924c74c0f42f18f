"""Targets: what a network learns of an instance label, and labels back from what it says.

Each target is a pair, encode and decode, that agree: decode(encode(label), ...) is the label
where its cells are apart. Probabilities are sigmoids per output, as the losses take them. encode,
probs and mask are traceable; decode runs on the host.
"""

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
    encode(label, num_classes): (..., H, W) int -> (..., H, W, K) float32 in {0, 1}.
    probs(logits): (..., H, W, K) -> the same shape, in [0, 1].
    mask(probs, threshold): (..., H, W, K) -> bool of that shape, for pixel metrics.
    decode(logits, **options): (..., H, W, K) -> (..., H, W) int32 label; a target is taken too.
    """

    num_outputs: Callable
    encode: Callable
    probs: Callable
    mask: Callable
    decode: Callable


def _foreground(label, num_classes=2):
    """1 where there is a cell of whatever class, in one channel."""
    del num_classes
    return (label > 0)[..., None].astype(jnp.float32)


def _above(probs, threshold=0.5):
    """True where the probability exceeds the threshold."""
    return probs > threshold


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
    logits = np.asarray(logits)
    if logits.ndim not in (3, 4) or logits.shape[-1] != 1:
        raise ValueError(f"logits {logits.shape}: expected (H, W, 1) or (N, H, W, 1)")
    split_cells = pick(METHODS, method, "method")
    if logits.ndim == 4:
        options = dict(threshold=threshold, method=method, min_size=min_size, h=h)
        return np.stack([_cells(one, **options) for one in logits])
    label = split_cells(logits[..., 0] > logit(threshold), h)
    return remove_small(label, min_size) if min_size > 1 else label


def _one_hot(label, num_classes):
    """1 in the channel of the pixel's class; background is channel 0."""
    return (label[..., None] == jnp.arange(num_classes)).astype(jnp.float32)


def _winner(probs, threshold=None):
    """True in the channel of the largest probability, the first of equals, however large."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] == jnp.arange(probs.shape[-1])


def _classes(logits, **_):
    """Semantic maps: (..., H, W, K) -> (..., H, W) int32, the first class of equals."""
    return np.argmax(np.asarray(logits), -1).astype(np.int32)


TARGETS = {
    # Cell or not: instance ids of any number in, instances out.
    "foreground": Target(lambda num_classes: 1, _foreground, jax.nn.sigmoid, _above, _cells),
    # One channel per class, background included: classes in, classes out.
    "classes": Target(lambda num_classes: num_classes, _one_hot, jax.nn.sigmoid, _winner, _classes),
}
