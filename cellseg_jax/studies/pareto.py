"""Which rows are worth their cost: the Pareto front of a score against a cost.

A row is on the front if no other one has a better mean score for less; costs within 5 % of one
another count as equal, since they vary by as much from run to run. Means are uncertain, so that a
row off the front counts as dominated only where a test shows another one to be better in the score
and cheaper, each by itself and not adjusted.
"""

import math
from typing import NamedTuple

from cellseg_jax.studies import stats
from cellseg_jax.studies.gaps import own_gaps, word_between

FRONT, DOMINATED, UNSURE, NOT_WHOLE = "on the front", "dominated", "not shown", "lacks repeats"
SAME_COST = 1.05  # ratio of two costs that counts as none
COSTS = ("train_seconds", "peak_memory_gib", "ms_per_image")


class Point(NamedTuple):
    """A row in the plane of cost and score."""

    name: str
    cost: float  # mean, in the unit it is stored in
    score: float  # mean
    sd: float  # of the score
    kind: str  # FRONT | DOMINATED | UNSURE (off the front by means alone) | NOT_WHOLE


def points(table, metric: str, cost: str) -> list[Point]:
    """Of the rows of a table.Table that compare and have a score and a cost, in their order."""
    rows = [row for row in table.rows
            if (row.compared[metric] or row.name == table.study.baseline)
            and math.isfinite(row.mean[metric]) and math.isfinite(row.mean[cost])]
    whole = [row for row, gap in zip(rows, own_gaps(rows, metric), strict=True) if not gap]
    ratio = table.test_train_ratio
    return [Point(row.name, row.mean[cost], row.mean[metric], row.sd[metric],
                  _kind(row, whole, metric, cost, ratio)) for row in rows]


def _kind(row, whole, metric, cost, ratio) -> str:
    if not any(row is one for one in whole):
        return NOT_WHOLE
    better = [other for other in whole if _dominates(other, row, metric, cost)]
    if not better:
        return FRONT
    shown = lambda other: all(word_between(other, row, m, ratio) == "better"
                              for m in (metric, cost))
    return DOMINATED if any(map(shown, better)) else UNSURE


def _dominates(other, row, metric, cost) -> bool:
    """By means: nowhere behind, and ahead in one."""
    up = 1 if stats.larger_is_better(metric) else -1
    gain, (mine, theirs) = up * (other.mean[metric] - row.mean[metric]), (
        one.mean[cost] for one in (row, other))
    return gain > 0 and theirs <= SAME_COST * mine or gain >= 0 and SAME_COST * theirs < mine
