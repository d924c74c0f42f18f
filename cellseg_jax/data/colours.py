"""Gray, RGB or RGBA: the channels of a network's input."""

import numpy as np

from cellseg_jax.errors import pick
from cellseg_jax.normalize import LUMINANCE

NUM_CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}  # config.data.channels


def to_channels(image: np.ndarray, channels: str) -> np.ndarray:
    """(H, W, 1, 3 or 4) of an (H, W, 1 to 4) image, same dtype.

    gray is the luminance 0.299 R + 0.587 G + 0.114 B, rounded; gray to RGB repeats the channel;
    a missing alpha is opaque (the dtype's maximum).
    """
    num_channels = pick(NUM_CHANNELS, channels, "config.data.channels")
    has_alpha = image.shape[-1] in (2, 4)
    colour = image[..., :-1] if has_alpha else image
    if num_channels == 1:
        if colour.shape[-1] == 3:
            colour = np.rint(colour @ np.array(LUMINANCE))[..., None].astype(image.dtype)
        return colour
    if colour.shape[-1] == 1:
        colour = np.repeat(colour, 3, axis=-1)
    if num_channels == 3:
        return colour
    opaque = np.full(image.shape[:2] + (1,), np.iinfo(image.dtype).max, image.dtype)
    return np.concatenate([colour, image[..., -1:] if has_alpha else opaque], axis=-1)
