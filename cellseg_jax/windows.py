"""Windows of images of mixed sizes that lie one after the other in one flat array of pixels.

The device and the host cut the same windows with the same lines: all work on numpy and jax arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np


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
