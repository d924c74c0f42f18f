"""Scores of probabilities, before any threshold: soft overlaps and calibration. On the device."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Shaped

from cellseg_jax.metrics.pixel import ratio

Maps = Shaped[ArrayLike, "n h w k"]  # {0, 1} of any dtype, or probabilities


def _check(target, probs):
    if target.ndim != 4 or target.shape != probs.shape:
        shapes = f"target {target.shape} and probs {probs.shape}"
        raise ValueError(f"{shapes}: expected one shape (N, H, W, K)")


def _soft_sums(target, probs):
    """(sum p g, sum p + sum g), each (N, K)."""
    _check(target, probs)
    return (target * probs).sum((1, 2)), (target + probs).sum((1, 2))


def soft_dice(target: Maps, probs: Maps, *, smooth: float = 1.0) -> Float[ArrayLike, "n k"]:
    """(2 sum p g + s) / (sum p + sum g + s) of each image and channel, in [0, 1].

    Higher than `dice` for uncertain predictions and small objects, and 1 where both are empty, so
    not to be compared with it. Target or prediction empty: s / (sum of the other + s).

    Args:
      target: in [0, 1], g above.
      probs: in [0, 1], p above.
      smooth: s above, in pixels; above 0.
    Raises: ValueError if shapes differ.
    Source: "dice" of report 2's tables, 1 - its Dice loss.
    """
    both, either = _soft_sums(target, probs)
    return (2 * both + smooth) / (either + smooth)


def soft_jaccard(target: Maps, probs: Maps, *, smooth: float = 1.0) -> Float[ArrayLike, "n k"]:
    """(sum p g + s) / (sum p + sum g - sum p g + s) of each image and channel, in [0, 1].

    Empty cases, arguments and errors as `soft_dice`.

    Source: "iou" of report 2's tables.
    """
    both, either = _soft_sums(target, probs)
    return (both + smooth) / (either - both + smooth)


SOFT_SCORES = {"soft_dice": soft_dice, "soft_jaccard": soft_jaccard}


class CalibrationCounts(NamedTuple):
    """Pixels by predicted probability, each (N, K, bins). They add over images."""

    pixels: Float[ArrayLike, "*n bins"]
    probs: Float[ArrayLike, "*n bins"]  # sum of the probabilities of these pixels
    true: Float[ArrayLike, "*n bins"]  # sum of the truth: how many of them are 1 in it


def calibration_counts(target: Maps, probs: Maps, *, bins: int = 15,
                       known: Bool[ArrayLike, "n h w"] | None = None) -> CalibrationCounts:
    """Pixels of each image and channel in bins of their probability, [0, 1/bins), ..., [.., 1].

    Args:
      target: {0, 1}, or shares in [0, 1].
      probs: in [0, 1].
      bins: number of bins of equal width.
      known: the pixels that are counted; None: all.
    Returns: CalibrationCounts of float32.
    Raises: ValueError if shapes differ.
    """
    _check(target, probs)
    bin_ = jnp.clip((probs * bins).astype(jnp.int32), 0, bins - 1)[..., None]
    inside = bin_ == jnp.arange(bins)  # fused into the sums, never stored
    if known is not None:
        inside &= known[..., None, None]
    total = lambda values: jnp.sum(
        jnp.where(inside, jnp.asarray(values)[..., None], 0.0), (1, 2), jnp.float32)
    return CalibrationCounts(
        jnp.sum(inside, (1, 2)).astype(jnp.float32), total(probs), total(target))


def expected_calibration_error(counts: CalibrationCounts) -> Float[ArrayLike, "..."]:
    """Distance of probability from frequency: sum_b n_b / n |mean probability - true fraction|.

    In [0, 1], 0 is calibrated. Of the probability of the channel itself, not of the winning
    class: large backgrounds of probability 0 count as well. Empty images are like others: every
    foreground pixel predicted there is wrong. No pixels: NaN.

    Args:
      counts: (..., bins), jax or numpy; sum many images in float64 numpy.
    Returns: (...), the last axis gone.
    Source: Naeini et al. 2015, AAAI, for binary outcomes.
    """
    return ratio(abs(counts.probs - counts.true).sum(-1), counts.pixels.sum(-1), float("nan"))
