"""Intensity augmentations: (draw, strength, image) -> image, of the channels without alpha.

strength is a number, which may be traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from cellseg_jax.augment.draws import Draw, between
from cellseg_jax.augment.smoothing import smooth
from cellseg_jax.random_bits import random_words

Image = Float[ArrayLike, "h w c"]


def brightness(draw: Draw, strength, image: Image) -> Image:
    """Times a factor uniform in 1 +- strength."""
    return image * between(1 - strength, 1 + strength, draw.u[0])


def contrast(draw: Draw, strength, image: Image) -> Image:
    """Distances from the mean of the image times a factor uniform in 1 +- strength."""
    mean = image.mean()
    return mean + (image - mean) * between(1 - strength, 1 + strength, draw.u[0])


def gamma(draw: Draw, strength, image: Image) -> Image:
    """To a power log-uniform in [1 / (1 + strength), 1 + strength]; values below 0 become 0."""
    return jnp.maximum(image, 0) ** jnp.exp(between(-1, 1, draw.u[0]) * jnp.log1p(strength))


def colour_jitter(draw: Draw, strength, image: Image) -> Image:
    """Brightness, contrast, saturation and hue, in this order, each by its own draw.

    Brightness, contrast and saturation change by factors uniform in 1 +- strength, hue by an
    angle uniform in +-strength turns of the colour circle. Gray images have neither saturation
    nor hue: there the two do nothing.

    Source: torchvision's ColorJitter, with one strength for its four; but saturation is that of
      HSV (Smith 1978), like hue, and nothing is clipped in between.
    """
    image = brightness(draw, strength, image)
    image = contrast(Draw(draw.key, draw.u[1:]), strength, image)
    if image.shape[-1] != 3:
        return image
    factor = between(1 - strength, 1 + strength, draw.u[2])
    return _saturation_hue(image, factor, between(-strength, strength, draw.u[3]))


def _saturation_hue(image, factor, turns):
    """(H, W, 3) with HSV saturation times factor, at most 1, and hue moved by turns of a circle."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = image.max(-1)
    chroma = value - image.min(-1)
    per = 1 / jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red, (green - blue) * per,
        jnp.where(value == green, 2 + (blue - red) * per, 4 + (red - green) * per))
    chroma = jnp.minimum(chroma * factor, jnp.maximum(value, chroma))
    k = (sextant + 6 * turns)[..., None] + jnp.array([5, 3, 1], image.dtype)
    k = k - 6 * jnp.floor(k / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def rgb_shift(draw: Draw, strength, image: Image) -> Image:
    """To each channel its own number added, uniform in +-strength."""
    count = image.shape[-1]
    u = draw.u[:count]
    if count > len(u):  # of another key: draw.key gave the number that decides whether to apply
        u = jax.random.uniform(jax.random.fold_in(draw.key, 1), (count,), jnp.float32)
    return image + between(-strength, strength, u)


def blur(draw: Draw, strength, image: Image) -> Image:
    """Smoothed by a Gaussian of a sigma uniform in [0, strength] pixels, mirrored at the border."""
    smoothed = smooth(jnp.moveaxis(image, -1, 0), strength * draw.u[0], image.shape[:2])
    return jnp.moveaxis(smoothed, 0, -1)


def noise(draw: Draw, strength, image: Image) -> Image:
    """Plus independent Gaussian noise of a standard deviation uniform in [0, strength]."""
    words = random_words(jax.random.fold_in(draw.key, 1), image.size)
    # 23 bits, in the middle of their intervals: never -1 or 1, where erf_inv is infinite.
    uniform = ((words >> 9).astype(jnp.float32) + 0.5) * 2**-22 - 1
    normal = 2**0.5 * jax.lax.erf_inv(uniform).reshape(image.shape)
    return image + strength * draw.u[0] * normal

INTENSITY = {
    "brightness": brightness,
    "contrast": contrast,
    "gamma": gamma,
    "colour_jitter": colour_jitter,
    "rgb_shift": rgb_shift,
    "blur": blur,
    "noise": noise,
}
