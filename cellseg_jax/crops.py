"""Windows of images of mixed sizes that lie one after the other in one flat array of pixels.

The device and the host cut the same windows with the same lines: all work on numpy and jax arrays.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below the number."""
    return -(-number // multiple) * multiple


def to_grid(image, patches: int) -> np.ndarray:
    """(p * p, H / p, W / p, ...) of an (H, W, ...) image: its patches, column after column.

    Source: the order of report 1, whose predictions are put together again by `from_grid`.
    """
    height, width = image.shape[0] // patches, image.shape[1] // patches
    cells = np.asarray(image).reshape(patches, height, patches, width, *image.shape[2:])
    return np.moveaxis(cells, 2, 0).reshape(-1, height, width, *image.shape[2:])


def from_grid(cells) -> np.ndarray:
    """The inverse of to_grid: (p * p, h, w, ...) -> (p * h, p * w, ...)."""
    patches = math.isqrt(len(cells))
    height, width = cells.shape[1:3]
    image = np.moveaxis(cells.reshape(patches, patches, *cells.shape[1:]), 0, 2)
    return image.reshape(patches * height, patches * width, *cells.shape[3:])


def mirrored(place, length):
    """Places beyond 0 .. length - 1 reflected at the edge pixels, as numpy pads with "reflect"."""
    xp = jnp if isinstance(place, jax.Array) else np
    period = xp.maximum(2 * (length - 1), 1)
    place = place % period
    return xp.minimum(place, period - place)


def rows(top, left, window, size, offset):
    """Flat pixel numbers of a window, mirrored where it leaves its image.

    Args:
      top, left: of the window in the image, may be negative.
      window: (h, w) pixels, Python ints.
      size: (height, width) of the image.
      offset: flat number of its first pixel.
    Returns: (h, w) integers.
    """
    y = mirrored(top + np.arange(window[0], dtype=np.int32), size[0])
    x = mirrored(left + np.arange(window[1], dtype=np.int32), size[1])
    return offset + y[:, None] * size[1] + x
