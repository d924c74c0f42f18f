"""Cell or not, and the way to the centre of the cell: instance ids in, instances out.

The target of Cellpose (Stringer et al. 2021; version 3 of its library). Three outputs: the
probability of a cell, and the flow (dy, dx), a vector of length 1 in cells and 0 elsewhere. It
follows the heat that diffuses from the centre of a cell through its own pixels, so that it leads
from every pixel of a cell of any shape to one place. `decode` is in flow_masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float32, Integer, Num

from cellseg_jax.targets.flow_masks import decode
from cellseg_jax.targets.heat import unit_flow
from cellseg_jax.targets.object_distance import centres
from cellseg_jax.targets.target import Target, first_above

SCALE = 5.0  # what the network puts out is the flow times this, as in Cellpose


def encode(label: Integer[ArrayLike, "*n h w"]) -> Float32[Array, "*n h w 3"]:
    """1 in cells, and the unit flow (dy, dx) to the centre of the cell; 0 in the background.

    The centre is the pixel nearest to the mean of the object's pixels, the first of equals. There
    a unit of heat is added in each of 2 (h + w + 4) rounds, for an object of h x w pixels, and
    each pixel becomes the mean of its 3x3 neighbours, where other objects and what is outside of
    the image are 0. The flow is the gradient of the heat, normalised. So an object's flow depends
    on that object alone. Pieces that do not hold the centre, of an object that was cut apart, have
    no flow; so has the far end of a line one pixel wide, more than 80 pixels from the centre.

    Args:
      label: instance ids of any size, 0 background.
    Source: Cellpose 3.1, masks_to_flows on a CPU: without the logarithm of the first version, and
      with the mean for a centre where that had the median.
    """
    label = jnp.asarray(label)
    flow = _flow(label.reshape(-1, *label.shape[-2:])).reshape(*label.shape, 2)
    return jnp.concatenate([(label > 0)[..., None], flow], -1, dtype=jnp.float32)


@jax.jit  # one program where nothing around is compiled
def _flow(label):
    centre, extent = jax.vmap(centres)(label)
    return unit_flow(label, centre.astype(jnp.float32), 2 * (extent + 2).sum(-1))


def maps_of(logits: Float[ArrayLike, "... h w 3"]) -> Float[Array, "... h w 3"]:
    """The probability and the flow of what a network puts out, which is 5 times the flow.

    So mse of the maps times 12.5, and bce, are what Cellpose minimises:
    mean (5 flow - output)^2 / 2 + bce.
    """
    logits = jnp.asarray(logits)
    return jnp.concatenate([jax.nn.sigmoid(logits[..., :1]), logits[..., 1:] / SCALE], -1)


def turned(maps: Num[np.ndarray, "n h w 3"], view: int) -> Num[np.ndarray, "n h w 3"]:
    """Maps of a view that was turned back, their vectors turned back too: see turns_back."""
    maps = maps * np.array([1, -1 if view & 1 else 1, -1 if view & 2 else 1], maps.dtype)
    return maps[..., [0, 2, 1]] if view & 4 else maps


def rescaled(
    maps: Num[np.ndarray, "*n h w 3"], factors: tuple[float, float]
) -> Num[np.ndarray, "*n h w 3"]:
    """Maps of a resized image: lengths of vectors stay, which are 1 whatever a pixel is.

    Directions stay where both factors are equal; else vectors lean to the longer side, as the
    way to the centre does.
    """
    flow = maps[..., 1:]
    moved = flow * np.array(factors, maps.dtype)
    before, after = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (flow, moved))
    moved = moved * before / np.where(after > 0, after, 1)
    return np.concatenate([maps[..., :1], moved.astype(maps.dtype)], -1)


FLOW = Target(
    names=lambda **_: ("cell", "flow down, of length 1", "flow to the right, of length 1"),
    encode=encode, probs=maps_of, mask=first_above, cell_mask=first_above, decode=decode,
    num_binary=1, turned=turned, rescaled=rescaled, of_objects=True,
    losses={"bce": 1.0, "mse": SCALE**2 / 2})
