"""Background, nucleus, contour, in three channels: instance ids in, instances out."""

import functools
import operator

import jax
import numpy as np
from jaxtyping import ArrayLike, Float32, Int32, Integer, Num
from skimage import segmentation

from cellseg_jax.errors import pick
from cellseg_jax.targets import classes
from cellseg_jax.targets.geometry import (
    METHODS,
    components,
    decode_each,
    in_reading_order,
    neighbours,
    remove_small,
)
from cellseg_jax.targets.target import Target, not_background, winner


def encode(
    label: Integer[ArrayLike, "*n h w"], *, contour_width: int = 2
) -> Float32[ArrayLike, "*n h w 3"]:
    """1 in the channel of the pixel's kind: background, nucleus, contour.

    Contour is what lies in a cell at a city-block distance of at most contour_width pixels from
    background or another cell, so two cells that touch have contours between them. The border
    of the image makes no contour.

    Raises: ValueError if contour_width is below 1.
    """
    if contour_width < 1:
        raise ValueError(f"contour_width {contour_width}: expected at least 1 pixel")
    band = functools.reduce(operator.or_, [n != label for n in neighbours(label)])
    for _ in range(contour_width - 1):
        band = functools.reduce(operator.or_, neighbours(band), band)
    return classes.encode((label > 0) * (1 + band), num_classes=3)


def decode(
    logits: Num[ArrayLike, "*n h w 3"], *, method: str = "components", min_size: int = 0,
    h: float = 1.0,
) -> Int32[np.ndarray, "*n h w"]:
    """Instance labels of (background, nucleus, contour) logits, or of a 0/1 target.

    The largest logit wins a pixel. Every 4-connected nucleus becomes a cell and takes the contour
    pixels that are nearer to it than to other nuclei, by paths through nucleus and contour. A
    piece of contour with no nucleus in it, as a thin cell has, is a cell of its own.

    A cell comes back whole if its nucleus is in one piece or gone; one with a neck no wider than
    two contours falls apart there, since two cells that touch in so few pixels look the same.

    Args:
      logits: of one image or several, raw; probabilities give the same.
      method: "components", or "watershed" to cut nuclei that touch as well.
      min_size: objects of fewer pixels, contour included, are dropped.
      h: read by watershed, see split_by_distance.
    Returns: 0 is background, cells are numbered in reading order.
    Raises: ValueError for another shape; InputError for an unknown method.
    """
    split_cells = pick(METHODS, method, "method")

    def decode_one(logits):
        kind = np.argmax(logits, -1)
        nucleus, whole = kind == 1, components(kind > 0)
        no_nucleus = ~np.isin(whole, whole[nucleus])
        seeds = split_cells(nucleus | (no_nucleus & (whole > 0)), h)
        # On a flat landscape a watershed grows all seeds at one pace.
        label = segmentation.watershed(
            np.zeros(whole.shape, np.uint8), seeds, mask=whole > 0, connectivity=1)
        return remove_small(in_reading_order(label), min_size)

    return decode_each(decode_one, logits, 3)


CONTOUR = Target(
    names=lambda **_: ("background", "nucleus", "contour"), encode=encode,
    probs=jax.nn.sigmoid, mask=winner, cell_mask=not_background, decode=decode,
    reach=lambda *, contour_width: contour_width)
