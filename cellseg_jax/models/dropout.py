"""Dropout whose rate may be traced, with a key for each row of the global batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import ArrayLike, Float

from cellseg_jax.random_bits import random_words


class Dropout(nn.Module):
    """Zero entries with probability `rate` and scale the others to keep the expectation.

    Every row of the global batch has its own key, so that a mask does not depend on how many
    devices share the batch. The rate, in [0, 1), may be traced; 0 is then the exact identity,
    and as a Python number compiles to nothing. It acts in steps of 2**-16: two entries share
    one random word, and the scale is taken from the rounded rate.
    """

    rate: Any
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, inputs: Float[ArrayLike, " n *shape"], *, train: bool
    ) -> Float[ArrayLike, " n *shape"]:
        """Some entries zero, in training; the first axis of the inputs is the batch."""
        if not train or (isinstance(self.rate, (int, float)) and self.rate == 0):
            return inputs
        n, *shape = inputs.shape
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * n
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(n))
        entries = math.prod(shape)
        words = jax.vmap(lambda key: random_words(key, (entries + 1) // 2))(keys)
        halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(n, -1)[:, :entries]
        kept = jnp.round((1 - jnp.asarray(self.rate, jnp.float32)) * 2**16)
        # 2**16, for rate 0, is no uint16: compare with one less.
        keep = halves.reshape(inputs.shape) <= (kept - 1).astype(jnp.uint16)
        scaled = inputs * (2**16 / kept).astype(inputs.dtype)
        return jnp.where(keep, scaled, jnp.zeros_like(inputs))
