"""One channel per class, background included: semantic maps in, semantic maps out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float32, Int32, Integer, Num

from cellseg_jax.targets.target import Target, not_background, winner


def encode(
    label: Integer[ArrayLike, "*n h w"], *, num_classes: int = 2
) -> Float32[ArrayLike, "*n h w {num_classes}"]:
    """1 in the channel of the pixel's class; background is channel 0."""
    return (label[..., None] == np.arange(num_classes)).astype(jnp.float32)


def decode(logits: Num[ArrayLike, "*n h w k"]) -> Int32[np.ndarray, "*n h w"]:
    """The class of the largest logit, the first of equals."""
    return np.argmax(np.asarray(logits), -1).astype(np.int32)


CLASSES = Target(
    names=lambda *, num_classes=2: (
        "background", *(f"class {n}" for n in range(1, num_classes))),
    encode=encode, probs=jax.nn.sigmoid, mask=winner, cell_mask=not_background, decode=decode)
