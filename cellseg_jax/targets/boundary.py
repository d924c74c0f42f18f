"""As foreground, with gaps between touching cells, and weights that emphasise these gaps."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float32, Integer
from scipy import ndimage

from cellseg_jax.targets.foreground import FOREGROUND
from cellseg_jax.targets.geometry import separated


def encode(label: Integer[ArrayLike, "*n h w"]) -> Float32[ArrayLike, "*n h w 1"]:
    """1 in cells, with a border of background between touching cells: see `separated`."""
    return separated(label)[..., None].astype(jnp.float32)


def unet_weight_map(
    label: Integer[ArrayLike, "h w"], *, w0: float = 10.0, sigma: float = 5.0,
    class_weights: tuple[float, float] | str = (1.0, 1.0),
) -> Float32[np.ndarray, "h w"]:
    """The weight of each pixel in the loss: largest in narrow gaps between cells.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)) in the background, w_c(x) in cells,
    with d1 and d2 the distances to the nearest pixel of the nearest and the second nearest cell.
    Where cells touch, both have lost a pixel to the background first, as in the boundary target.
    Fewer than two cells: w_c alone.

    Cells farther than 5 sigma are not looked for, so w is too small by less than 4e-6 w0.

    Args:
      label: instance ids, 0 background; a cell may be in several pieces. What is not annotated,
        -1, weighs as background does.
      w0: weight that a closed gap would add.
      sigma: width of the gaps that count, pixels of this label.
      class_weights: w_c of (background, cell), or "balanced" for n / (2 n_c) with n_c of the n
        pixels in the class, so that both classes weigh the same; 1 where one class is absent.
    Raises: ValueError if sigma is not above 0.
    Source: Ronneberger et al. 2015, U-Net, equation 2. There it is applied inside cells too,
      where only the size of the own cell would matter, and w_c balances the classes of the whole
      data set: pass those.
    """
    if sigma <= 0:
        raise ValueError(f"sigma {sigma}: expected above 0 pixels")
    label = np.maximum(label, 0)
    cell = separated(label)
    if isinstance(class_weights, str) and class_weights == "balanced":
        class_weights = _balanced(cell)
    nearest, second = _two_nearest(label * cell, math.ceil(5 * sigma))
    gap = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(cell, class_weights[1], class_weights[0] + gap).astype(np.float32)


def _balanced(cell):
    """Weights of (background, cell) that make both count the same; 1 where one is absent."""
    counts = np.bincount(cell.ravel(), minlength=2)
    return cell.size / (2 * counts) if counts.all() else (1.0, 1.0)


def _two_nearest(label, reach):
    """Distances (H, W) to the nearest and the second nearest cell; inf beyond `reach` pixels."""
    # Without gaps: find_objects makes a list as long as the largest id.
    label = np.unique(label, return_inverse=True)[1].reshape(label.shape)
    nearest, second = np.full((2, *label.shape), np.inf, np.float32)
    for i, box in enumerate(ndimage.find_objects(label), 1):
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(label[window] != i)
        near, next_ = nearest[window], second[window]
        np.minimum(next_, np.maximum(near, distance), out=next_)
        np.minimum(near, distance, out=near)
    return nearest, second


BOUNDARY = FOREGROUND._replace(
    names=lambda **_: ("cell, a pixel apart from others",), encode=encode,
    pixel_weight=unet_weight_map, reach=lambda **options: 1)
