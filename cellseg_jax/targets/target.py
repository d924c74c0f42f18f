"""The type of a target, and the masks that several targets make of probabilities."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float


class Target(NamedTuple):
    """What a network learns.

    All targets are called alike, and each reads the arguments that it needs. num_classes counts
    the background.

    num_outputs(num_classes) -> K.
    encode(label, *, num_classes, contour_width): (..., H, W) int -> (..., H, W, K) float32 in
      {0, 1}.
    probs(logits): (..., H, W, K) -> the same shape, in [0, 1].
    mask(probs, threshold): (..., H, W, K) -> bool of that shape, for pixel metrics.
    cell_mask(probs, threshold): (..., H, W, K) -> (..., H, W, 1) bool, cells of any class: what
      the foreground target learns, so that runs with different targets can be compared.
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


def above(probs: Float[ArrayLike, "... h w k"], threshold=0.5) -> Bool[ArrayLike, "... h w k"]:
    """True where the probability exceeds the threshold."""
    return probs > threshold


def winner(probs: Float[ArrayLike, "... h w k"], threshold=None) -> Bool[ArrayLike, "... h w k"]:
    """True in the channel of the largest probability, the first of equals; no threshold."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] == jnp.arange(probs.shape[-1])


def not_background(
    probs: Float[ArrayLike, "... h w k"], threshold=None
) -> Bool[ArrayLike, "... h w 1"]:
    """True where another channel than the first has the largest probability; no threshold."""
    del threshold
    return jnp.argmax(probs, -1)[..., None] > 0
