"""Surface metrics: how far the outlines of two masks are apart. Host side, scipy.

The outline of a mask consists of its pixels with a 4-neighbour outside it; beyond the image is
outside.
"""

import numpy as np
from jaxtyping import ArrayLike, Shaped
from scipy import ndimage

Mask = Shaped[ArrayLike, "h w"]  # {0, 1}
Spacing = float | tuple[float, float]


def _distances(mask, pred, spacing):
    """Distance of each outline pixel to the other outline: (from truth, from prediction)."""
    mask, pred = np.asarray(mask, bool), np.asarray(pred, bool)
    if mask.shape != pred.shape or mask.ndim != 2:
        raise ValueError(f"mask {mask.shape} and pred {pred.shape}: expected one shape (H, W)")
    box = ndimage.find_objects((mask | pred).astype(np.uint8))
    edges = [m[box[0]] ^ ndimage.binary_erosion(m[box[0]]) if box else m for m in (mask, pred)]
    if not all(e.any() for e in edges):
        return [np.full(e.sum(), np.inf) for e in edges]
    sampling = np.broadcast_to(spacing, 2)
    return [ndimage.distance_transform_edt(~far, sampling)[near]
            for near, far in (edges, edges[::-1])]


def hausdorff95(mask: Mask, pred: Mask, *, spacing: Spacing = 1.0) -> float:
    """95th percentile of the distances between two outlines, the larger of the two directions.

    At least 0, 0 is perfect. Both empty: 0. One empty: inf, so that a mean over images must
    define how it treats it.

    Args:
      mask: the truth.
      spacing: size of a pixel, or (height, width) of it; the result has this unit.
    Raises: ValueError if shapes differ.
    Source: Huttenlocher et al. 1993, IEEE TPAMI 15, with a percentile. Equals MONAI
      HausdorffDistance(percentile=95) where neither is empty; it answers NaN for both empty.
    """
    directions = [d for d in _distances(mask, pred, spacing) if d.size]
    if any(np.isinf(d).any() for d in directions):
        return float("inf")
    return float(max((np.percentile(d, 95) for d in directions), default=0.0))


def surface_dice(
    mask: Mask, pred: Mask, tolerance: float, *, spacing: Spacing = 1.0
) -> float:
    """Fraction of both outlines that lies within `tolerance` of the other.

    In [0, 1]. Both empty: 1. One empty: 0. Outlines are counted in pixels, so a slanted line
    counts less than its length.

    Args:
      mask: the truth.
      tolerance: largest distance that is right, in units of spacing; the disagreement of two
        annotators is a good choice.
      spacing: size of a pixel, or (height, width) of it.
    Returns: float in [0, 1].
    Raises: ValueError if shapes differ or tolerance is negative.
    Source: Nikolov et al. 2021, JMIR 23, which measures lengths of outlines instead. Equals
      MONAI SurfaceDiceMetric where not both are empty; it answers NaN there.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance {tolerance}: expected at least 0")
    distances = np.concatenate(_distances(mask, pred, spacing))
    return float(np.mean(distances <= tolerance)) if distances.size else 1.0
