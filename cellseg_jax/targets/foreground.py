"""Cell or not, in one channel: instance ids of any number in, instances out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float32, Int32, Integer, Num
from scipy.special import logit

from cellseg_jax.errors import pick
from cellseg_jax.targets.geometry import METHODS, decode_each, remove_small
from cellseg_jax.targets.target import Target, above


def encode(label: Integer[ArrayLike, "*n h w"]) -> Float32[ArrayLike, "*n h w 1"]:
    """1 where there is a cell of any class."""
    return (label > 0)[..., None].astype(jnp.float32)


def decode(
    logits: Num[ArrayLike, "*n h w 1"], *, threshold: float = 0.5, method: str = "components",
    min_size: int = 0, h: float = 1.0,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of logits, or of a 0/1 target.

    Args:
      logits: of one image or several, raw; probabilities go through `logit` first.
      threshold: a pixel is a cell where its probability exceeds this.
      method: "components", or "watershed" to cut touching cells apart.
      min_size: objects of fewer pixels are dropped.
      h: read by watershed, see split_by_distance.
    Returns: 0 is background, ids are 1, 2, ...
    Raises: ValueError for another shape; InputError for an unknown method.
    """
    split_cells = pick(METHODS, method, "method")

    def decode_one(logits):
        return remove_small(split_cells(logits[..., 0] > logit(threshold), h), min_size)

    return decode_each(decode_one, logits, 1)


FOREGROUND = Target(
    names=lambda **_: ("cell",), encode=encode, probs=jax.nn.sigmoid, mask=above,
    cell_mask=above, decode=decode)
