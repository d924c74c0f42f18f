"""Masks that lie beside their cells: by how many pixels borders would have to move.

An annotation that was cropped, padded or drawn at another origin is off by the same few pixels in
all images. Borders of true masks lie on edges of the image, so the mean gradient under all
borders, for each shift of them, has its peak where the masks belong. Of single images that is
uncertain; all images together decide.

Tried on dsb2018 (94 images, every sixth): the peak is at no shift, in 93 % of the images too; with
masks shifted by (1, 1) and (2, 1) it is found there by as many.
"""

from collections.abc import Sequence

import numpy as np

from cellseg_jax.data.records import Finding
from cellseg_jax.report.panels import borders

REACH = 3  # pixels, the largest shift that is looked for
MIN_PIXELS = 50  # of borders, that an image needs
MIN_IMAGES = 10  # with so many, chance does not agree
AGREED = 0.6  # share of the images whose own peak is that of all
CLEAR = 5.0  # standard errors of the mean by which the peak is above no shift
BRIGHTEST = 0.98  # quantile at which gradients are cut: one bright speck decides nothing


def border_gradients(image, label) -> np.ndarray | None:
    """(2 REACH + 1, 2 REACH + 1) mean gradient under the borders, moved by -REACH .. REACH.

    In units of the standard deviation of the image's gradient magnitude.

    Args:
      image: (H, W, C), whose channels are averaged.
      label: (H, W) ids, 0 background.
    Returns: None for too few borders, or an image without a gradient.
    """
    if min(label.shape) <= 2 * REACH + 1:
        return None
    gradient = np.hypot(*np.gradient(image.mean(-1, dtype=np.float32)))
    gradient = np.minimum(gradient, np.quantile(gradient, BRIGHTEST))
    rows, columns = np.nonzero(borders(label)[REACH:-REACH, REACH:-REACH])
    spread = float(gradient.std())
    if len(rows) < MIN_PIXELS or not spread:
        return None
    steps = range(2 * REACH + 1)  # 0 is a shift by -REACH
    found = np.array([[gradient[rows + dy, columns + dx].mean() for dx in steps] for dy in steps])
    return (found - gradient.mean()) / spread


def of_shifts(found: Sequence[np.ndarray | None]) -> list[Finding]:
    """What `border_gradients` of the images say together."""
    maps = [one for one in found if one is not None]
    if len(maps) < MIN_IMAGES:
        return []
    stack = np.stack(maps)
    peak = lambda one: np.unravel_index(one.argmax(), one.shape)
    best = peak(stack.mean(0))
    shift = tuple(int(n) - REACH for n in best)
    gain = stack[:, best[0], best[1]] - stack[:, REACH, REACH]
    agreeing = sum(peak(one) == best for one in maps)
    error = gain.std(ddof=1) / np.sqrt(len(maps))
    if shift == (0, 0) or agreeing < AGREED * len(maps) or gain.mean() <= CLEAR * error:
        return []
    return [Finding(
        "warning", f"{len(maps)} images", "masks seem to lie beside their cells: moved by "
        f"{shift[0]:+d} rows and {shift[1]:+d} columns their borders meet the edges of the images, "
        f"in {agreeing} images each by itself; were masks cropped, padded or exported with another "
        "origin? Microscopes that light from one side (DIC) can look the same")]
