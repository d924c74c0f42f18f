"""Random words that cost little: for noise and dropout masks, which need no cryptography."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt32


def random_words(key: Key[Array, ""], count: int) -> UInt32[Array, " count"]:
    """`count` random uint32: a counter hashed with two words of the key.

    The hash is the finaliser of MurmurHash3, twice. On a CPU jax.random.bits and
    jax.random.normal cost several times as much: dropout was a fifth of a U-Net's training step.

    Source: Appleby, MurmurHash3, fmix32.
    """

    def mix(word):
        word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
        word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
        return word ^ (word >> 16)

    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return mix(mix(jax.lax.iota(jnp.uint32, count) ^ first) + second)
