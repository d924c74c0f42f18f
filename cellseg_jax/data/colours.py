"""Gray, RGB, RGBA or chosen channels: the input of a network."""

import numpy as np

from cellseg_jax.data.stacks import chosen_channels
from cellseg_jax.errors import InputError, pick
from cellseg_jax.normalize import LUMINANCE

NUM_CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}  # config.data.channels


def num_channels(channels: str, channel_index: str = "") -> int:
    """Channels of a network's input, by the two keys of config.data."""
    return len(chosen_channels(channel_index)) or pick(NUM_CHANNELS, channels,
                                                       "config.data.channels")


def has_alpha(channels: str, channel_index: str = "") -> bool:
    """Whether the last of these channels is alpha: the fourth of four chosen ones is not."""
    return channels == "rgba" and not channel_index


def to_channels(image: np.ndarray, channels: str, channel_index: str = "") -> np.ndarray:
    """The channels that a network takes of an (H, W, C) image, same dtype.

    Chosen channels (config.data.channel_index) are taken as they are: the image has these and no
    others. Else (H, W, 1, 3 or 4) of one to four, of which the second or fourth is alpha: gray is
    the luminance 0.299 R + 0.587 G + 0.114 B, rounded; gray to RGB repeats the channel; a missing
    alpha is opaque (the dtype's maximum).

    Raises: InputError for an image of another number of channels.
    """
    wanted, found = num_channels(channels, channel_index), image.shape[-1]
    if channel_index and found != wanted:
        raise InputError(f"image has {found} channels; expected {wanted}, which are "
                         f"config.data.channel_index={channel_index}")
    if channel_index:
        return image
    if found > 4:
        raise InputError(f"image has {found} channels; expected 1 to 4, or a choice of them with "
                         "config.data.channel_index (predict: --channels)")
    with_alpha = found in (2, 4)
    colour = image[..., :-1] if with_alpha else image
    if wanted == 1:
        if colour.shape[-1] == 3:
            colour = np.rint(colour @ np.array(LUMINANCE))[..., None].astype(image.dtype)
        return colour
    if colour.shape[-1] == 1:
        colour = np.repeat(colour, 3, axis=-1)
    if wanted == 3:
        return colour
    opaque = np.full(image.shape[:2] + (1,), np.iinfo(image.dtype).max, image.dtype)
    return np.concatenate([colour, image[..., -1:] if with_alpha else opaque], axis=-1)
