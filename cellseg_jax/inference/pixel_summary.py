"""Pixel scores of some images: means, means of strata, pooled scores, and their intervals."""

from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference.measure import summarize
from cellseg_jax.inference.score_definitions import MEAN_SCORES, POOLED_SCORES


class PixelScores(NamedTuple):
    """Counts and soft overlaps of n images with K outputs, and what the images belong to."""

    counts: metrics.Counts  # (n, K)
    soft: dict[str, np.ndarray]  # {metrics.SOFT_SCORES: (n, K)}, empty where not measured
    groups: np.ndarray  # (n,) case of each image
    strata: np.ndarray  # (n,)

    def of_images(self, chosen) -> "PixelScores":
        """Those of chosen images: indices or a mask."""
        return PixelScores(metrics.Counts(*(c[chosen] for c in self.counts)),
                           {name: soft[chosen] for name, soft in self.soft.items()},
                           self.groups[chosen], self.strata[chosen])

    def of_outputs(self, chosen) -> "PixelScores":
        """Those of chosen outputs: a slice."""
        return self._replace(counts=metrics.Counts(*(c[:, chosen] for c in self.counts)),
                             soft={name: soft[:, chosen] for name, soft in self.soft.items()})

    def per_image(self) -> dict[str, np.ndarray]:
        """{score: (n,)}, means over the outputs."""
        hard = {name: score(self.counts).mean(-1) for name, score in MEAN_SCORES.items()}
        return hard | {name: soft.mean(-1) for name, soft in self.soft.items()}

    def scores(self, macro: bool = False) -> dict[str, float]:
        """{score: value}; `macro` adds the means of strata."""
        out = summarize(self.counts)
        out |= {f"{name}_mean": float(np.mean(soft)) for name, soft in self.soft.items()}
        if macro:
            out |= {f"{name}_macro": float(macro_mean(values, self.strata))
                    for name, values in self.per_image().items()}
        return out

    def intervals(self, macro: bool = False) -> dict:
        """{score: (low, high)} of `scores`; {} with too few groups."""
        out = mean_intervals({f"{name}_mean": values for name, values in self.per_image().items()},
                             self.groups)
        sums = metrics.resampled(self.counts._asdict(), self.groups)
        if sums is None:
            return out
        out |= {f"{name}_pooled": metrics.interval(score(metrics.Counts(**sums)).mean(-1))
                for name, score in POOLED_SCORES.items()}
        return out | (self._macro_intervals() if macro else {})

    def _macro_intervals(self) -> dict:
        member = (self.strata[:, None] == np.unique(self.strata)).astype(np.float64)
        values = self.per_image()
        sums = metrics.resampled(
            {name: x[:, None] * member for name, x in values.items()} | {"n": member}, self.groups)
        drawn = sums["n"] > 0
        means = lambda x: np.where(drawn, x / np.where(drawn, sums["n"], 1), 0).sum(1)
        return {f"{name}_macro": metrics.interval(means(sums[name]) / drawn.sum(1))
                for name in values}


def macro_mean(values, strata) -> float:
    """The mean over strata of the mean of their images.

    Args:
      values, strata: (n,).
    """
    return np.mean([np.mean(values[strata == stratum]) for stratum in np.unique(strata)])


def mean_intervals(columns: dict, groups) -> dict:
    """{name: (low, high)} of the means of (n,) scores over the images in which they are finite."""
    out = {}
    for name, values in columns.items():
        finite = np.isfinite(values)
        sums = metrics.resampled({"sum": np.where(finite, values, 0), "n": finite}, groups)
        if sums is not None:
            with np.errstate(invalid="ignore"):  # no image drawn has a finite score
                out[name] = metrics.interval(sums["sum"] / sums["n"])
    return out
