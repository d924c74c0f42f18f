"""How a score grows with the number of training images, and how many a wanted score needs.

score(n) = a - b n^-c, the inverse power law: a is the score that no number of images exceeds, as
far as the law holds. It is fitted to the mean score of each size by least squares. Only runs at
three sizes or more determine a, and what lies beyond the largest size is extrapolated.

Source: Cortes et al. 1994, Learning curves: asymptotic values and rate of convergence; Mukherjee
et al. 2003, Estimating dataset size requirements for classifying DNA microarray data.
"""

import math
from typing import NamedTuple

import numpy as np

from cellseg_jax.errors import InputError

MIN_SIZES = 3  # as many as the law has parameters
MIN_REPEATS = 3  # two give no usable spread, see stats.MIN_PAIRS
EXPONENTS = (0.01, 2.0)  # of c; at the lower end the curve is a logarithm over any usual range
GRID, ZOOMS = 20, 6  # exponents tried at once; refinements around the best one
ALPHA = 0.05


class Fit(NamedTuple):
    """A fitted curve; see `predict` and `images_needed`."""

    parameters: np.ndarray  # (3,) a, b, c of score(n) = a - sign b n^-c
    draws: np.ndarray  # (D, 3) the same of redrawn repeats; (0, 3) with fewer than MIN_REPEATS
    sizes: np.ndarray  # (K,) ascending, those with a score
    means: np.ndarray  # (K,) of the scores
    sign: float  # 1 where a larger score is better, -1 where a smaller one is


def fit(sizes, scores, *, larger_is_better: bool = True, best: float | None = None,
        test_train_ratio: float = 0.0, draws: int = 1000, seed: int = 0) -> Fit:
    """The inverse power law through the mean scores of several sizes.

    a is no better than `best`, b >= 0 (more images never hurt), 0.01 <= c <= 2. For each c, a and
    b have a closed form; c is searched on a grid that is refined, without a starting value.

    The interval is a bootstrap over repeats: a repeat shares its split and seed over all sizes,
    so whole repeats are weighted at random, m + sum_r g_r (y_r - m) / sqrt(R (R - 1)) for scores
    y_r (K,) with mean m, g_r normal, all divided by the root of a chi-square over R - 1. For a
    mean this is Student's t interval, where drawing 3 repeats with replacement covers the truth 3
    times in 4 at best.

    Args:
      sizes: (K,) numbers of training images.
      scores: (R, K), a row per repeat; NaN = no score.
      best: the best possible score, such as 1 for Dice and 0 for a distance; None: unbounded.
      test_train_ratio: as in stats.paired, where repeats draw overlapping splits.
      draws, seed: of the bootstrap.
    Raises: InputError with fewer than 3 different sizes that have a score.
    """
    sizes, scores = np.asarray(sizes, np.float64), np.asarray(scores, np.float64)
    if scores.shape[1:] != sizes.shape or sizes.ndim != 1:
        raise ValueError(f"sizes {sizes.shape}, scores {scores.shape}: expected (K,) and (R, K)")
    order = np.argsort(sizes)
    order = order[np.isfinite(scores[:, order]).any(0)]
    if len(np.unique(sizes[order])) < MIN_SIZES:
        raise InputError(f"a learning curve needs scores at {MIN_SIZES} numbers of training images "
                         f"or more; there are {len(np.unique(sizes[order]))}")
    sizes, scores = sizes[order], scores[:, order]
    sign = 1.0 if larger_is_better else -1.0
    known = np.isfinite(scores)
    count = known.sum(0)
    means = np.where(known, scores, 0).sum(0) / count
    limit = math.inf if best is None else sign * best
    solve = lambda y: _solve(sizes, sign * y, count, limit) * (sign, 1, 1)
    return Fit(solve(means[None])[0],
               solve(_redrawn(scores, means, count, test_train_ratio, draws, seed)),
               sizes, means, sign)


def predict(curve: Fit, sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score, low, high), each (n,), at numbers of training images; 95 %, NaN without draws."""
    sizes = np.asarray(sizes, np.float64)
    at = lambda p: p[:, :1] - curve.sign * p[:, 1:2] * sizes ** -p[:, 2:]
    low, high = np.full((2, len(sizes)), np.nan)
    if len(curve.draws):
        low, high = np.quantile(at(curve.draws), (ALPHA / 2, 1 - ALPHA / 2), axis=0)
    return at(curve.parameters[None])[0], low, high


def asymptote(curve: Fit) -> tuple[float, tuple[float, float]]:
    """a and its 95 % interval: the score that no number of images exceeds, if the law holds."""
    return float(curve.parameters[0]), _interval(curve.draws[:, 0])


def images_needed(curve: Fit, target: float) -> tuple[float, tuple[float, float]]:
    """The number of training images at which the curve meets a target, and its 95 % interval.

    inf where the target lies above the asymptote; such draws are infinite in the interval, too.
    A target below the whole curve gives 1. Ends of the interval are NaN without draws.
    """
    n = _meets(np.concatenate([curve.parameters[None], curve.draws]), target, curve.sign)
    return float(n[0]), _interval(n[1:])


def _meets(parameters, target, sign):
    a, b, c = parameters.T
    room = sign * (a - target)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        n = (b / room) ** (1 / c)
    return np.where(room > 0, np.maximum(n, 1.0), np.inf)


def _interval(values) -> tuple[float, float]:
    """Quantiles of draws, some of which may be infinite."""
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, (ALPHA / 2, 1 - ALPHA / 2), method="inverted_cdf")
    return float(low), float(high)


def _redrawn(scores, means, count, ratio, draws, seed) -> np.ndarray:
    """(D, K) bootstrap draws of the means."""
    repeats = int((np.isfinite(scores)).any(1).sum())
    if repeats < MIN_REPEATS:
        return np.zeros((0, len(means)))
    random = np.random.Generator(np.random.Philox(seed))
    rest = np.nan_to_num(scores - means)
    spread = np.sqrt((1 / count + ratio) / np.maximum(count - 1, 1))
    weights = random.normal(size=(draws, len(scores)))
    chi = np.sqrt(random.chisquare(repeats - 1, (draws, 1)) / (repeats - 1))
    return means + weights @ rest * spread / chi


def _solve(sizes, y, weights, limit) -> np.ndarray:
    """(D, 3) a, b, c of the best curves a - b n^-c through y (D, K), with a <= limit and b >= 0."""
    low, high = (np.full(len(y), math.log(end)) for end in EXPONENTS)
    for _ in range(ZOOMS):
        c = np.exp(np.linspace(low, high, GRID, axis=1))  # (D, GRID)
        # Sizes in units of the largest keep b of the order of the scores.
        x = (sizes / sizes[-1]) ** -c[..., None]  # (D, GRID, K)
        a, b, loss = _linear(x, y[:, None], weights, limit)
        best = loss.argmin(1)
        pick = lambda v, best=best: np.take_along_axis(v, best[:, None], 1)[:, 0]
        step = (high - low) / (GRID - 1)
        centre = np.log(pick(c))
        found = np.stack([pick(a), pick(b) * sizes[-1] ** pick(c), pick(c)], 1)
        low, high = np.maximum(low, centre - step), np.minimum(high, centre + step)
    return found


def _linear(x, y, weights, limit):
    """a, b and loss of the weighted least squares y ~ a - b x, with a <= limit and b >= 0."""
    w = weights / weights.sum()
    mean_x, mean_y = (x * w).sum(-1), (y * w).sum(-1)
    dx, dy = x - mean_x[..., None], y - mean_y[..., None]
    b = np.maximum(-(dx * dy * w).sum(-1) / (dx**2 * w).sum(-1), 0)  # at b = 0 a is the mean
    a = mean_y + b * mean_x
    if math.isfinite(limit):
        # The loss is convex: where its minimum is out of bounds, the edge has the best point.
        at_limit = np.maximum(((limit - y) * x * w).sum(-1) / (x**2 * w).sum(-1), 0)
        over = a > limit
        a, b = np.where(over, limit, a), np.where(over, at_limit, b)
    return a, b, ((y - a[..., None] + b[..., None] * x) ** 2 * w).sum(-1)
