"""Bootstrap intervals of scores: how much they vary between samples of such images."""

import functools

import numpy as np
from jaxtyping import Float64

DRAWS = 1000
MIN_GROUPS = 3  # fewer groups give no interval


def resampled(columns: dict, groups, *, draws: int = DRAWS, seed: int = 0) -> dict | None:
    """Sums over images, of bootstrap samples that draw whole groups with replacement.

    Any score of sums follows from these: a mean is the sum over the sum of ones.

    Args:
      columns: {name: (n, ...)} of n images.
      groups: (n,) names of the independent units (cases, plates).
      draws, seed: of the bootstrap; groups are drawn as often as there are groups.
    Returns: {name: (draws, ...)} float64, or None with fewer than MIN_GROUPS groups.
    Source: Davison and Hinkley 1997, Bootstrap Methods, section 3.8, strategy 1.
    """
    names, group = np.unique(groups, return_inverse=True)
    count = len(names)
    if count < MIN_GROUPS:
        return None
    drawn = group_counts(count, draws, seed)

    def sums(values):
        values = np.asarray(values, np.float64)
        of_group = np.zeros((count, *values.shape[1:]))
        np.add.at(of_group, group, values)
        return np.tensordot(drawn, of_group, 1)

    return {name: sums(values) for name, values in columns.items()}


@functools.lru_cache(maxsize=4)  # all scores of an evaluation, all rows of a table, draw alike
def group_counts(count: int, draws: int, seed: int) -> Float64[np.ndarray, "draws count"]:
    """How often each group is in each bootstrap sample."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return drawn.astype(np.float64)


def interval(values) -> tuple[float, float] | None:
    """The 95 % percentile interval of (draws,) scores, NaN left out; None where there is none."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
