"""Heat that spreads from the centres of objects, each through its own pixels, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Integer
from scipy import ndimage

NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
# Added at a centre in each round. Heat falls off by up to 8 times a pixel, and must not become 0
# in float32; only its direction counts.
UNIT = 2.0**100
PIXELS = 2**14  # of the objects that `object_flows` handles at a time


def unit_flow(
    label: Integer[Array, "n h w"], centre: Float32[Array, "n h w"], rounds: Int32[Array, "n h w"]
) -> Float32[Array, "n h w 2"]:
    """The normalised gradient (dy, dx) of the heat of each object; 0 where it has none.

    Args:
      centre: 1 where heat is added, 0 elsewhere.
      rounds: in how many rounds, at all pixels of an object.
    """
    same = dict(zip(NEIGHBOURS, _moved(label), strict=True))
    source = centre * UNIT

    def spread(carry):
        number, heat = carry
        heat = heat + source
        total = heat
        for moved, ids in zip(_moved(heat), same.values(), strict=True):
            total = total + jnp.where(ids == label, moved, 0)
        # An object whose rounds are over stays as it is, but for the source.
        return number + 1, jnp.where(number < rounds, total / 9, heat - source)

    last = jnp.max(jnp.where(label > 0, rounds, 0), initial=0)
    # source - source is 0 on the same devices as what `spread` returns, as loops ask for.
    heat = jax.lax.while_loop(lambda c: c[0] < last, spread, (0, source - source))[1]
    at = {step: jnp.where(same[step] == label, moved, 0)
          for step, moved in zip(NEIGHBOURS, _moved(heat), strict=True)}
    gradient = jnp.stack([at[1, 0] - at[-1, 0], at[0, 1] - at[0, -1]], -1)
    largest = jnp.abs(gradient).max(-1, keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1)  # else squares leave float32
    norm = jnp.sqrt((gradient**2).sum(-1, keepdims=True))
    return gradient / jnp.where(norm > 0, norm, 1)


def _moved(x):
    """Of all NEIGHBOURS, what lies there from each pixel; 0 outside of the image."""
    height, width = x.shape[-2:]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)])
    return [x[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in NEIGHBOURS]


_unit_flow = jax.jit(unit_flow)


def object_flows(label: Integer[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 2"]:
    """The flow that flow.encode gives, of ids 1, 2, ... without gaps, made on the device.

    Objects are cut out and put side by side, those of about one size together, so that one large
    object does not cost the rounds of all, and programs are compiled for few shapes.
    """
    out = np.zeros((*label.shape, 2), np.float32)
    boxes = ndimage.find_objects(label)
    sides = np.array([max(16, *(s.stop - s.start for s in box)) for box in boxes], int)
    sides = 2 ** np.ceil(np.log2(sides)).astype(int)
    centres = _nearest_to_mean(label, len(boxes))
    for side in np.unique(sides):
        numbers, batch = np.flatnonzero(sides == side), max(PIXELS // side**2, 1)
        for first in range(0, len(numbers), batch):
            _add_flows(out, label, [(n + 1, boxes[n], centres[n]) for n in
                                    numbers[first : first + batch]], (batch, side, side))
    return out


def _add_flows(out, label, objects, shape) -> None:
    """Write into `out` the flows of objects (id, box, centre), cut out into arrays of a shape."""
    own, centre = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    rounds = np.zeros(shape, np.int32)
    for k, (number, box, (y, x)) in enumerate(objects):
        height, width = (s.stop - s.start for s in box)
        own[k, :height, :width] = label[box] == number
        centre[k, y - box[0].start, x - box[1].start] = 1
        rounds[k] = 2 * (height + width + 4)
    flows = np.asarray(_unit_flow(own, centre, rounds))
    for mask, flow, (_, box, _) in zip(own, flows, objects, strict=False):
        height, width = (s.stop - s.start for s in box)
        mask = mask[:height, :width] > 0
        out[box][mask] = flow[:height, :width][mask]


def _nearest_to_mean(label, number) -> np.ndarray:
    """(number, 2) of each object the pixel nearest to the mean of its pixels, the first of equals.
    """
    y, x = np.nonzero(label)
    rank = label[y, x] - 1
    count = np.bincount(rank, minlength=number)
    distance = sum((p - (np.bincount(rank, p, number) / count)[rank]) ** 2 for p in (y, x))
    order = np.lexsort((distance, rank))  # stable: in reading order among equals
    first = order[np.searchsorted(rank[order], np.arange(number))]
    return np.stack([y[first], x[first]], -1)
