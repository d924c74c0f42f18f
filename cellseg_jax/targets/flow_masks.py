"""Instances of a probability of cells and a flow: every pixel follows the flow to its end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int32, Integer, Num
from scipy import ndimage
from scipy.special import logit
from skimage.segmentation import watershed

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
    size = 4 ** int(np.ceil(np.log2(max(mask.size, 2**12)) / 2))
    table = np.zeros((size, 2), np.float32)
    table[: mask.size] = (flow * mask[..., None]).reshape(-1, 2)
    table = jnp.asarray(table)
    # A program of few points stays in the caches of a CPU; a GPU needs many at a time.
    count = 2**12 if jax.default_backend() == "cpu" else 2**18
    padded = np.pad(start, ((0, -len(start) % count), (0, 0)))
    shape = np.array(mask.shape, np.int32)
    ends = [follow(table, shape, points) for points in np.split(padded, len(padded) // count)]
    return np.concatenate(ends)[: len(start)].astype(np.int32)


@functools.partial(jax.jit, static_argnames="steps")
def follow(table: Float[Array, "m 2"], shape: Integer[ArrayLike, " 2"],
           points: Float[ArrayLike, "n 2"], steps: int = STEPS) -> Float[Array, "n 2"]:
    """Where points (y, x) are after Euler steps along a flow, interpolated between pixels.

    Args:
      table: the flow (dy, dx) in reading order; rows beyond those of the image are not read.
      shape: height and width of the image, which points do not leave.
    """
    last, width = jnp.asarray(shape) - 1, shape[1]
    packed = jax.lax.complex(table[:, 0], table[:, 1])  # one look-up for both

    def step(_, points):
        low = points.astype(jnp.int32)
        (y, x), (fy, fx) = low.T, (points - low).T
        next_y, next_x = jnp.minimum(y + 1, last[0]) * width, jnp.minimum(x + 1, last[1])
        at = lambda place: packed.at[place].get(mode="promise_in_bounds")
        flow = ((at(y * width + x) * (1 - fx) + at(y * width + next_x) * fx) * (1 - fy)
                + (at(next_y + x) * (1 - fx) + at(next_y + next_x) * fx) * fy)
        moved = points + jnp.stack([flow.real, flow.imag], -1)
        return jnp.clip(moved, 0, last.astype(moved.dtype))

    return jax.lax.fori_loop(0, steps, step, jnp.asarray(points))


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
    label = watershed(np.zeros(label.shape, np.uint8), label, mask=whole > 0, connectivity=2)
    label = np.where((label == 0) & (whole > 0), label.max() + whole, label)
    return remove_small(label, 1)


def _consistent(label: Int32[np.ndarray, "h w"], whole: Integer[np.ndarray, "h w"],
                flow: Float32[np.ndarray, "h w 2"], limit: float) -> Int32[np.ndarray, "h w"]:
    """The objects whose flow is that of their shape, but for `limit`.

    Where one is not that shares its component with others, they may be pieces of a cell in which
    pixels got stuck. They are one if the flow is that of the whole component, and better so.
    """
    errors = _errors(label, flow)
    bad = errors[label] > limit
    component = np.zeros(len(errors), whole.dtype)
    component[label] = whole
    shared = np.bincount(component[1:], minlength=whole.max() + 1) > 1
    doubtful = shared & (np.bincount(whole[bad], minlength=len(shared)) > 0)
    if doubtful.any():
        joined = np.cumsum(doubtful) * doubtful
        as_one = _errors(joined[whole].astype(np.int32), flow)[joined]
        apart = np.bincount(whole.ravel(), errors[label].ravel()) / np.bincount(whole.ravel())
        one = (doubtful & (as_one <= limit) & (as_one < apart))[whole]
        label = np.where(one, label.max() + whole, np.where(bad, 0, label))
    else:
        label = np.where(bad, 0, label)
    return remove_small(label, 1)


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
    holes, number = ndimage.label(np.pad(label == 0, 1, constant_values=True))
    holes = holes[1:-1, 1:-1]
    index = np.arange(number + 1)
    around = np.stack(neighbours(label))
    most = ndimage.maximum(around.max(0), holes, index)
    none = label.max(initial=0) + 1
    least = ndimage.minimum(np.where(around > 0, around, none).min(0), holes, index)
    length = ndimage.mean(np.sqrt((flow**2).sum(-1)), holes, index)
    owner = np.where((most == least) & (length > 0.5), most, 0).astype(np.int32)
    owner[:2] = 0  # of objects, and of the background that reaches the border
    return np.where(label > 0, label, owner[holes])
