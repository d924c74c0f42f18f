"""Crops: grids of patches, and windows of images that lie one after the other in a flat array.

Host and device cut the same windows with the same functions: `mirrored` and `rows` take numpy and
jax arrays.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Integer, Shaped


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below the number."""
    return -(-number // multiple) * multiple


def to_grid(
    image: Shaped[ArrayLike, "h w *c"], patches: int
) -> Shaped[np.ndarray, "{patches**2} _ _ *c"]:
    """The patches of an image, column after column, as many along each side as `patches`.

    Rows and columns must divide by it. Source: the order of report 1.
    """
    height, width = image.shape[0] // patches, image.shape[1] // patches
    cells = np.asarray(image).reshape(patches, height, patches, width, *image.shape[2:])
    return np.moveaxis(cells, 2, 0).reshape(-1, height, width, *image.shape[2:])


def from_grid(cells: Shaped[ArrayLike, "cells h w *c"]) -> Shaped[np.ndarray, "_ _ *c"]:
    """The image whose patches are the cells: the inverse of `to_grid`."""
    patches = math.isqrt(len(cells))
    height, width = cells.shape[1:3]
    image = np.moveaxis(cells.reshape(patches, patches, *cells.shape[1:]), 0, 2)
    return image.reshape(patches * height, patches * width, *cells.shape[3:])


def mirrored(place: Integer[ArrayLike, "*shape"], length) -> Integer[ArrayLike, "*shape"]:
    """Places beyond 0 .. length - 1 reflected at the edge pixels, as numpy pads with "reflect"."""
    xp = jnp if isinstance(place, jax.Array) else np
    period = xp.maximum(2 * (length - 1), 1)
    place = place % period
    return xp.minimum(place, period - place)


def rows(top, left, window: tuple[int, int], size, offset) -> Integer[ArrayLike, "h w"]:
    """Flat pixel numbers of a window, mirrored where it leaves its image.

    Args:
      top, left: of the window in the image, may be negative.
      window: (h, w), pixels.
      size: (height, width) of the image.
      offset: flat number of its first pixel.
    """
    y = mirrored(top + np.arange(window[0], dtype=np.int32), size[0])
    x = mirrored(left + np.arange(window[1], dtype=np.int32), size[1])
    return offset + y[:, None] * size[1] + x
