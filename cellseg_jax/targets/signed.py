"""Cell or not, and the distance to the edge, negative in background: ids in, instances out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float32, Int32, Integer, Num
from scipy.special import logit

from cellseg_jax.errors import pick
from cellseg_jax.targets.geometry import (
    basins,
    components,
    decode_each,
    remove_small,
    whole,
)
from cellseg_jax.targets.object_distance import edge_distance
from cellseg_jax.targets.target import Target, first_above, first_sigmoid

LIMIT = 20.0  # pixels; what lies farther from an edge counts as far as this

# (distance, mask, h) -> label
METHODS = {"components": lambda distance, mask, h: components(mask), "watershed": basins}


@jax.jit
def encode(label: Integer[ArrayLike, "*n h w"]) -> Float32[ArrayLike, "*n h w 2"]:
    """Cell or not, then pixels to the nearest pixel of another id: at least 1, at most LIMIT.

    The distance is negative in background.
    """
    label = jnp.asarray(label)
    cell = label > 0
    distance = jnp.minimum(edge_distance(_one_more(jnp.maximum(label, 0)), LIMIT), LIMIT)
    return jnp.stack([cell.astype(jnp.float32), jnp.where(cell, distance, -distance)], -1)


def decode(
    logits: Num[ArrayLike, "*n h w 2"], *, threshold: float = 0.5, method: str = "watershed",
    min_size: int = 0, h: float = 1.0,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of (logit of cell, distance), or of a target.

    Args:
      logits: of one image or several.
      threshold: a pixel is a cell where its probability exceeds this.
      method: "components", or "watershed" to cut along the valleys of the distance.
      min_size: objects of fewer pixels are dropped.
      h: pixels by which the distance must rise above a valley on both sides; larger cuts less.
    Returns: 0 is background.
    Raises: ValueError for another shape; InputError for an unknown method.
    """
    split_cells = pick(METHODS, method, "method")

    def decode_one(logits):
        mask = logits[..., 0] > logit(threshold)
        return remove_small(split_cells(logits[..., 1], mask, h), min_size)

    return decode_each(decode_one, logits, 2)


def known(label: Integer[ArrayLike, "n h w"]) -> Bool[ArrayLike, "n h w"]:
    """Where the distance is the same whatever lies in the pixels at -1, which may hold cells.

    In whole objects, and in background that is nearer to a known cell than to such a pixel, or
    farther than LIMIT from both.
    """
    label = jnp.asarray(label)
    nearest = jnp.minimum(edge_distance(_one_more(label), LIMIT), LIMIT)
    distance = jnp.abs(encode(jnp.maximum(label, 0))[..., 1])
    return whole(label) & ((label > 0) | (nearest == distance))


def _one_more(label):
    """Ids + 1: background, 1, is an object too, and what is not annotated, -1, is 0.

    In a type that holds the largest id + 1: decoded labels have the narrowest that holds the ids.
    """
    return label.astype(jnp.uint32) + 1


SIGNED = Target(
    names=lambda **_: ("cell", "signed distance to the edge, pixels"), encode=encode,
    probs=first_sigmoid, mask=first_above, cell_mask=first_above, decode=decode, num_binary=1,
    regression_known=known,
    # The distance shrinks and grows with the image, on the average of both directions.
    rescaled=lambda maps, factors: maps * np.array([1, np.prod(factors) ** 0.5], maps.dtype),
    losses={"dice": 1.0, "mae": 0.1})
