"""Geometry of instance labels that several targets share: neighbours, components, splitting."""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import skimage  # whose modules are imported where they are first used
from jaxtyping import ArrayLike, Bool, Float64, Int32, Integer, Num, Shaped
from scipy import ndimage

try:
    import edt  # of the extra cpu
except ImportError:
    edt = None


def neighbours(x: Shaped[ArrayLike, "... h w"]) -> tuple[Shaped[ArrayLike, "... h w"], ...]:
    """The four arrays of pixels above, below, left and right; x repeats at the borders."""
    xp = jnp if isinstance(x, jax.Array) else np
    x = xp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    return x[..., :-2, 1:-1], x[..., 2:, 1:-1], x[..., 1:-1, :-2], x[..., 1:-1, 2:]


def separated(label: Integer[ArrayLike, "... h w"]) -> Bool[ArrayLike, "... h w"]:
    """True in cells, except where one touches another: at such a border both lose one pixel."""
    touching = [(n != label) & (n > 0) for n in neighbours(label)]
    return (label > 0) & ~functools.reduce(operator.or_, touching)


def far_from_unknown(
    label: Integer[ArrayLike, "... h w"], distance: float = 0
) -> Bool[ArrayLike, "... h w"]:
    """Where what a target makes of a label is known: not at -1, pixels that are not annotated.

    Nor in objects within some steps of them, from pixel to neighbour: whether the object ends
    there is not known. Background is background however near it is.

    Args:
      distance: steps that the target looks around itself; math.inf: see `whole`.
    """
    if distance == math.inf:
        return whole(label)
    unknown = label < 0
    near = unknown
    for _ in range(distance):
        near = functools.reduce(operator.or_, neighbours(near), near)
    return ~(unknown | (near & (label > 0)))


def whole(label: Integer[jax.Array, "n h w"]) -> Bool[jax.Array, "n h w"]:
    """Where what follows from a whole object is known: not at -1, nor in objects that touch that.

    Such an object may go on there, and distances, rays and flows follow from all of it.
    """
    label = label.astype(jnp.int32)  # where -1 is no id
    beside = functools.reduce(operator.or_, [n < 0 for n in neighbours(label)])
    touching = jnp.where(beside & (label > 0), label, -1)
    # By default isin compares all pairs of pixels: 100 times as slow for windows of 128 pixels.
    found = functools.partial(jnp.isin, method="binary_search")
    return (label >= 0) & ~jax.vmap(found)(label, touching)


def components(mask: Shaped[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """Instance label of a mask: its 4-connected components, numbered in reading order.

    Args:
      mask: bool, or any numbers: true where not 0.
    Returns: 0 is background.
    """
    return ndimage.label(mask)[0].astype(np.int32)


def background_distance(mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Pixels from each pixel of a mask to the nearest one outside of it; 0 there.

    Exact, by the package edt where it is installed (a fifth of scipy's time), to 4,096 pixels;
    above these it rounds to float32.

    Args:
      mask: somewhere False.
    """
    if edt is None:
        return ndimage.distance_transform_edt(mask)
    return np.sqrt(edt.edtsq(mask), dtype=np.float64)


def split_by_distance(mask: Bool[np.ndarray, "h w"], h: float = 1.0) -> Int32[np.ndarray, "h w"]:
    """Instance label of a mask: touching round cells cut at their necks.

    Every peak of the distance to the background that rises at least h above the pass to a
    higher peak becomes a cell; a watershed gives it its pixels. A component keeps one peak at
    least, so no pixel of the mask is lost.

    Args:
      h: pixels of distance; larger cuts less, 0 cuts at every bump.
    Returns: 0 is background, cells are numbered in reading order of their peaks.
    """
    label, box = np.zeros(mask.shape, np.int32), _box(mask)
    mask = mask[box]
    if mask.size:
        label[box] = basins(background_distance(mask), mask, h)
    return label


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The smallest rectangle with all of a mask and what lies beside it; an empty one of none."""
    sides = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return tuple(slice(max(found[0] - 1, 0), found[-1] + 2) if found.size else slice(0)
                 for found in sides)


def basins(
    height: Num[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], h: float
) -> Int32[np.ndarray, "h w"]:
    """Instance label of a mask, cut along the valleys between its `peaks`."""
    return skimage.segmentation.watershed(
        -height, peaks(height, mask, h), mask=mask, connectivity=1).astype(np.int32)


def peaks(
    height: Num[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], h: float
) -> Int32[np.ndarray, "h w"]:
    """Labels of the maxima in a mask that rise at least h above the pass to a higher one.

    Every component of the mask keeps one at least. 0 elsewhere.

    Source: h-maxima, Soille 2004, Morphological Image Analysis, section 6.3.4.
    """
    height = np.where(mask, height.astype(np.float64), -np.inf)
    height = np.pad(height, 1, constant_values=-np.inf)
    level = _flooded(height, h)
    found = (level > -np.inf) & skimage.morphology.local_maxima(level, connectivity=1)
    return components(found[1:-1, 1:-1])


def _flooded(height, h):
    """At each pixel p - h of the highest maximum p from which a path leads to it above p - h.

    -inf where there is none. A maximum that another one's flood reaches is lower than that, by less
    than h above the pass; so what is left are maxima of the result. Few pixels are visited, where
    a reconstruction of the image h lower sorts all.
    """
    flat, level = height.ravel(), np.full(height.size, -np.inf)
    active = np.flatnonzero(
        (height > -np.inf) & skimage.morphology.local_maxima(height, connectivity=1))
    level[active] = flat[active] - h
    while active.size:
        reached = []
        for step in (-height.shape[1], -1, 1, height.shape[1]):
            there, new = active + step, level[active]
            higher = (flat[there] >= new) & (level[there] < new)
            level[there[higher]] = new[higher]
            reached.append(there[higher])
        active = np.sort(np.concatenate(reached))  # np.unique takes twice the time of all this
        active = active[np.diff(active, prepend=-1) > 0]
    return level.reshape(height.shape)


# How `decode` makes instances of a mask: (mask, h) -> label.
METHODS = {"components": lambda mask, h: components(mask), "watershed": split_by_distance}


def without_gaps(
    label: Integer[np.ndarray, "h w"]
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, "h w"]]:
    """(ids, dense): each pixel of `dense` holds the place of its id in `ids`, background being 0.

    So that a table with an entry per id needs no more memory than the label, whatever the ids are.
    Where no id is larger than the label has pixels, `dense` is the label itself.

    Args:
      label: integers of at least 0, 0 background.
    """
    highest = int(label.max(initial=0))
    if highest < label.size:
        return np.arange(highest + 1), label
    ids, dense = np.unique(np.append(label.dtype.type(0), label), return_inverse=True)
    return ids, dense[1:].reshape(label.shape)


def remove_small(label: Integer[np.ndarray, "h w"], min_size: int) -> Int32[np.ndarray, "h w"]:
    """The label without objects of fewer than min_size pixels, the others renumbered 1, 2, ..."""
    _, label = without_gaps(label)
    keep = np.bincount(label.ravel()) >= min_size
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(np.int32)[label]


def in_reading_order(label: Integer[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w"]:
    """The label with its ids, 0 and 1, 2, ... without gaps, in the order they first appear."""
    _, label = without_gaps(label)
    ids, first = np.unique(label, return_index=True)
    rank = np.zeros(label.max(initial=0) + 1, np.int32)
    rank[ids[ids > 0][np.argsort(first[ids > 0])]] = np.arange(1, (ids > 0).sum() + 1)
    return rank[label]


def decode_each(
    decode_one: Callable, logits: Num[ArrayLike, "*n h w k"], num_outputs: int
) -> Int32[np.ndarray, "*n h w"]:
    """decode_one of (H, W, K) logits, or of each image of (N, H, W, K).

    Raises: ValueError for another shape.
    """
    logits = np.asarray(logits)
    if logits.ndim not in (3, 4) or logits.shape[-1] != num_outputs:
        raise ValueError(f"logits {logits.shape}: expected (H, W, {num_outputs}) or "
                         f"(N, H, W, {num_outputs})")
    return decode_one(logits) if logits.ndim == 3 else np.stack([decode_one(x) for x in logits])
