"""Instances of a probability of cells and a flow: every pixel follows the flow to its end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32, Integer, Num
from scipy import ndimage
from scipy.special import logit
from skimage import segmentation

from cellseg_jax.targets.geometry import (
    decode_each,
    in_reading_order,
    neighbours,
    remove_small,
)
from cellseg_jax.targets.heat import object_flows

STEPS = 200  # Euler steps of one pixel where the flow has length 1
SEED_PIXELS = 10  # more than so many pixels must end where an object is begun
GROW_PIXELS = 2  # and more than so many where it is grown to
REACH = 5  # pixels that it is grown by
EIGHT = np.ones((3, 3))  # heat spreads over corners, too


def decode(
    logits: Num[ArrayLike, "*n h w 3"], *, threshold: float = 0.5, min_size: int = 0,
    flow_error: float = 0.4,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of (logit of a cell, dy, dx), or of the target.

    Every pixel of a cell follows the flow for 200 steps. Where many end is an object, to which all
    belong that end within 5 pixels, over places where some do. Objects are 8-connected: parts of
    one in other components of the mask are not its own. Pixels without an object join the nearest
    one in their component; a component without any is an object. Objects whose flow is not that
    of their shape are dropped, unless the component that they are in fits as a whole. Holes where
    the flow goes on, as it does not in the background, are filled.

    Nothing depends on pixels farther away than the path of 200 steps, and the component.

    Args:
      logits: of one image or several.
      threshold: a pixel is a cell where its probability exceeds this.
      min_size: objects of fewer pixels are dropped.
      flow_error: mean squared length of the difference between an object's flow and that of its
        shape, above which it is dropped; 0 keeps all.
    Returns: 0 is background, cells are numbered in reading order.
    Raises: ValueError for another shape.
    Source: Cellpose 3.1, compute_masks with interpolation. There pixels without an object are
      background, cells of up to 10 pixels are lost, all holes are filled, and objects that fill
      more than 0.4 of an image are dropped.
    """

    def decode_one(logits):
        mask, flow = logits[..., 0] > logit(threshold), np.asarray(logits[..., 1:], np.float32)
        if not mask.any():
            return np.zeros(mask.shape, np.int32)
        whole = ndimage.label(mask, EIGHT)[0]
        label = _completed(_converged(mask, _ends(mask, flow)), whole)
        if flow_error:
            label = _consistent(label, whole, flow, flow_error)
        return in_reading_order(remove_small(_filled(label, flow), min_size))

    return decode_each(decode_one, logits, 3)


# --- where pixels end ----------------------------------------------------------------------------


def _ends(mask: Bool[np.ndarray, "h w"], flow: Float32[np.ndarray, "h w 2"]
          ) -> Int32[np.ndarray, "n 2"]:
    """The pixel (y, x) in which each pixel of the mask ends, in reading order.

    Images and lists of pixels are filled up to few lengths, for each of which a program is made.
    """
    start = np.argwhere(mask).astype(np.float32)
    size = 4 ** int(np.ceil(np.log2(max(mask.size, 2**14)) / 2))
    flow = np.moveaxis(flow * mask[..., None], -1, 0).reshape(2, -1)
    down, right = (jnp.asarray(np.pad(x, (0, size - mask.size))) for x in flow)
    # Few points at a time fill a CPU; a GPU needs many.
    count = 2**10 if jax.default_backend() == "cpu" else 2**18
    padded = np.pad(start, ((0, -len(start) % count), (0, 0)))
    shape = np.array(mask.shape, np.int32)
    ends = [follow(down, right, shape, points) for points in np.split(padded, len(padded) // count)]
    return np.concatenate(ends)[: len(start)].astype(np.int32)


@functools.partial(jax.jit, static_argnames="steps")
def follow(down: Float[Array, " m"], right: Float[Array, " m"], shape: Integer[ArrayLike, " 2"],
           points: Float[ArrayLike, "n 2"], steps: int = STEPS) -> Float[Array, "n 2"]:
    """Where points (y, x) are after Euler steps along a flow, interpolated between pixels.

    Args:
      down, right: the flow in reading order, apart, since to take them from one array would copy
        the whole image in each call; what lies beyond the image's pixels is not read.
      shape: height and width of the image, which points do not leave.
    """
    width = shape[1]
    last_y, last_x = shape[0] - 1, shape[1] - 1

    def step(_, place):  # y and x apart, which is much faster on a CPU than one array of both
        y, x = (p.astype(jnp.int32) for p in place)
        fy, fx = place[0] - y, place[1] - x
        row, next_row = y * width, jnp.minimum(y + 1, last_y) * width
        next_x = jnp.minimum(x + 1, last_x)
        weights = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx
        corners = row + x, row + next_x, next_row + x, next_row + next_x
        moved = [p + sum(w * flow.at[corner].get(mode="promise_in_bounds")
                         for w, corner in zip(weights, corners, strict=True))
                 for p, flow in zip(place, (down, right), strict=True)]
        return jnp.clip(moved[0], 0, last_y * 1.0), jnp.clip(moved[1], 0, last_x * 1.0)

    return jnp.stack(jax.lax.fori_loop(0, steps, step, tuple(jnp.asarray(points).T)), -1)


# --- objects -------------------------------------------------------------------------------------


def _converged(mask: Bool[np.ndarray, "h w"], ends: Int32[np.ndarray, "n 2"]
               ) -> Int32[np.ndarray, "h w"]:
    """Objects of where pixels end; 0 too where a pixel ends far from where many do."""
    height, width = mask.shape
    place = ends[:, 0] * width + ends[:, 1]
    hits = np.bincount(place, minlength=mask.size).reshape(mask.shape)
    peaks = np.argwhere((hits > SEED_PIXELS) & (hits == ndimage.maximum_filter(
        hits, 5, mode="constant")))
    # Where two objects are grown to, that of the more pixels wins, written last.
    peaks = peaks[np.argsort(hits[tuple(peaks.T)], kind="stable")]
    grows = np.pad(hits > GROW_PIXELS, REACH)
    window = np.mgrid[: 2 * REACH + 1, : 2 * REACH + 1]
    y, x = (window[k] + peaks[:, k, None, None] for k in (0, 1))
    free = grows[y, x]
    grown = np.zeros(free.shape, bool)
    grown[:, REACH, REACH] = True
    for _ in range(REACH):
        grown = ndimage.maximum_filter(grown, (1, 3, 3), mode="constant") & free
    number, _, _ = np.nonzero(grown)
    objects = np.zeros((height + 2 * REACH, width + 2 * REACH), np.int32)
    objects[y[grown], x[grown]] = number + 1
    label = np.zeros(mask.shape, np.int32)
    label[mask] = objects[REACH:-REACH, REACH:-REACH].reshape(-1)[place]
    return label


def _completed(label: Int32[np.ndarray, "h w"], whole: Integer[np.ndarray, "h w"]
               ) -> Int32[np.ndarray, "h w"]:
    """Objects each in that component of the mask where most of it is, that fill the mask.

    Args:
      whole: the components, 0 background.
    Returns: ids 1, 2, ... without gaps.
    """
    pairs, area = np.unique(np.stack([label, whole])[:, label > 0], axis=1, return_counts=True)
    home = np.zeros(label.max() + 1, whole.dtype)
    order = np.argsort(area, kind="stable")
    home[pairs[0, order]] = pairs[1, order]  # the largest is written last
    label = np.where(home[label] == whole, label, 0)
    label = segmentation.watershed(
        np.zeros(label.shape, np.uint8), label, mask=whole > 0, connectivity=2)
    label = np.where((label == 0) & (whole > 0), label.max() + whole, label)
    return remove_small(label, 1)


def _consistent(label: Int32[np.ndarray, "h w"], whole: Integer[np.ndarray, "h w"],
                flow: Float32[np.ndarray, "h w 2"], limit: float) -> Int32[np.ndarray, "h w"]:
    """The objects whose flow is that of their shape, but for `limit`.

    Objects of one component may be pieces of a cell, in parts of which pixels got stuck. Where the
    flow of one differs by a quarter of the limit, they are one if the whole fits, and fits better.
    """
    errors = _errors(label, flow)
    kept = np.where(errors[label] > limit, 0, label)
    doubtful = np.zeros(whole.max() + 1, bool)
    doubtful[whole[errors[label] > limit / 4]] = True
    component = np.zeros(len(errors), whole.dtype)
    component[label] = whole
    doubtful &= np.bincount(component, minlength=len(doubtful)) > 1
    if doubtful.any():
        joined = np.cumsum(doubtful, dtype=np.int32) * doubtful
        as_one = _errors(joined[whole], flow)[joined]
        apart = np.bincount(whole.ravel(), errors[label].ravel()) / np.bincount(whole.ravel())
        one = (doubtful & (as_one <= limit) & (as_one < apart))[whole]
        kept = np.where(one, label.max() + whole, kept)
    return remove_small(kept, 1)


def _errors(label: Int32[np.ndarray, "h w"], flow: Float32[np.ndarray, "h w 2"]
            ) -> Float[np.ndarray, " n"]:
    """(ids,) mean squared difference of the flow and that of each object; 0 of id 0."""
    inside = label > 0
    squares = ((object_flows(label)[inside] - flow[inside]) ** 2).sum(-1)
    total = np.bincount(label[inside], squares, label.max(initial=0) + 1)
    return total / np.maximum(np.bincount(label[inside], minlength=len(total)), 1)


def _filled(label: Int32[np.ndarray, "h w"], flow: Float32[np.ndarray, "h w 2"]
            ) -> Int32[np.ndarray, "h w"]:
    """The label with holes filled that lie in one object and where flows are longer than 0.5."""
    holes = ndimage.label(np.pad(label == 0, 1, constant_values=True))[0][1:-1, 1:-1]
    inner = holes > 1  # 1 is the background that reaches the border
    if not inner.any():
        return label
    at, around = holes[inner], np.stack(neighbours(label))[:, inner]
    most, least = np.zeros((2, at.max() + 1), np.int32)
    np.maximum.at(most, at, around.max(0))
    least += label.max() + 1
    np.minimum.at(least, at, np.where(around > 0, around, least[0]).min(0))
    length = np.bincount(at, np.sqrt((flow[inner] ** 2).sum(-1))) / np.maximum(np.bincount(at), 1)
    owner = np.where((most == least) & (length > 0.5), most, 0)
    return np.where(inner, owner[holes * inner], label)
