"""Augmentations: one sample in, one sample out, on device inside the compiled step.

A sample holds "image" (H, W, C), "label" (H, W) and maybe "pixel_weight" (H, W); all are warped
alike and keep their dtype, other entries pass through. Vmap over a batch with one key per row:
`vmap(lambda key, sample: augment(key, sample, settings))(keys, batch)`.

An augmentation is `(key, place, size, strength) -> place`: from which pixel of its input the
output pixel at place = (y, x) comes. Places compose, so that all augmentations together move the
pixels once. Strength 0 changes nothing.
"""

import zlib

import jax
import jax.numpy as jnp

from cellseg_jax.errors import pick

WARPED = ("image", "label", "pixel_weight")


def _uniform(key):
    """A number in [0, 1); float32 also under x64, so that precision does not change the draw."""
    return jax.random.uniform(key, dtype=jnp.float32)


def flip_horizontal(key, place, size, strength):
    """Left and right exchanged. strength: 1 flips, 0 does not."""
    del key
    y, x = place
    return y, jnp.where(strength >= 1, size[1] - 1 - x, x)


def flip_vertical(key, place, size, strength):
    """Top and bottom exchanged. strength: 1 flips, 0 does not."""
    del key
    y, x = place
    return jnp.where(strength >= 1, size[0] - 1 - y, y), x


def turn(key, place, size, strength):
    """Turned counter-clockwise by whole quarters, uniform in 1..strength, strength 0..3.

    Quarter turns would change the shape of an image that is not square, so there only the half
    turn is left: strength 2 and 3 turn by a half, strength 1 changes nothing.
    """
    (y, x), (height, width) = place, size
    if height == width:
        quarters = jnp.floor(_uniform(key) * strength) + (strength >= 1)
        odd = quarters % 2 == 1
        y, x = jnp.where(odd, x, y), jnp.where(odd, width - 1 - y, x)
        half = quarters >= 2
    else:
        half = strength >= 2
    return jnp.where(half, height - 1 - y, y), jnp.where(half, width - 1 - x, x)


AUGMENTATIONS = {"flip_horizontal": flip_horizontal, "flip_vertical": flip_vertical, "turn": turn}


def strengths(name: str, size) -> tuple:
    """The strengths above 0 that mean something for images of size (H, W)."""
    if name == "turn":
        return (1, 2, 3) if size[0] == size[1] else (2, 3)
    return (1,)


def _off(probability) -> bool:
    """True for a 0 known before tracing."""
    return isinstance(probability, (int, float)) and probability == 0


def augment(key, sample: dict, settings: dict) -> dict:
    """One sample, each augmentation of `settings` applied with its own probability.

    Each has its own key, made from its name: leaving one out does not change the others' draws.

    Args:
      key: JAX key of this sample.
      sample: see above.
      settings: {name of an augmentation: (probability, strength)}, applied in the order of
        AUGMENTATIONS. Both may be traced: probability 0 is then the exact identity. A Python
        0 compiles nothing.
    Returns: the sample, same shapes and dtypes.
    Raises: InputError for an unknown name; ValueError for a Python strength that means nothing,
      such as quarter turns of an image that is not square (see `strengths`).
    """
    for name in settings:
        pick(AUGMENTATIONS, name, "config.augment")
    active = [n for n in AUGMENTATIONS if n in settings and not _off(settings[n][0])]
    if not active:
        return sample
    size = sample["image"].shape[:2]
    place = jnp.meshgrid(jnp.arange(size[0]), jnp.arange(size[1]), indexing="ij")
    for name in reversed(active):  # the last one says where it reads, and so on to the input
        probability, strength = settings[name]
        allowed = (0, *strengths(name, size))
        if isinstance(strength, (int, float)) and strength not in allowed:
            raise ValueError(f"augment {name}: got strength {strength}; expected one of {allowed}")
        key_apply, key_draw = jax.random.split(jax.random.fold_in(key, zlib.crc32(name.encode())))
        # Not applied is strength 0; uniform is below 1, so probability 1 always applies.
        applies = _uniform(key_apply) < probability
        place = AUGMENTATIONS[name](key_draw, place, size, jnp.where(applies, strength, 0))
    rows = (place[0] * size[1] + place[1]).ravel()
    moved = dict(sample)
    for name in [name for name in WARPED if name in sample]:
        pixels = jnp.asarray(sample[name]).reshape(rows.size, -1)
        moved[name] = pixels.at[rows].get(mode="promise_in_bounds").reshape(sample[name].shape)
    return moved
