"""The random numbers of augmentations, and the keys that they come from."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

COPY_FOLD = 2**32 - 1  # folded into the seed for stored variants; no step is that late


def variant_key(seed: ArrayLike, sample: ArrayLike, copy: ArrayLike) -> Key[Array, ""]:
    """The key of a stored variant: of the run's seed, a sample (or image), and the copy."""
    variants = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), COPY_FOLD)
    return jax.random.fold_in(jax.random.fold_in(variants, sample), copy)


class Draw(NamedTuple):
    """The random numbers of one augmentation of one sample."""

    key: Key[Array, ""]  # made `u`; others are drawn of what is folded into it
    u: Float[Array, "4"]  # uniform in [0, 1)


def draws(key, names, settings) -> dict:
    """{name: (its strength, 0 where it is not applied, its Draw)}, all names drawn at once."""
    hashes = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (5,), jnp.float32))(keys)
    drawn = {}
    for name, key, u in zip(names, keys, numbers, strict=True):
        probability, strength = (jnp.asarray(number, jnp.float32) for number in settings[name])
        # A uniform number is below 1, so that probability 1 always applies.
        drawn[name] = jnp.where(u[0] < probability, strength, 0), Draw(key, u[1:])
    return drawn


def between(low, high, u):
    """A number of [low, high), by u of [0, 1)."""
    return low + (high - low) * u
