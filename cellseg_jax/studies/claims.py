"""The published claims of a study, judged: supported, contradicted or undecided.

A claim compares rows repeat by repeat. By default the rows of a side are averaged within each
repeat. "Best" and "worst" are more than above average: with `every`, each pair of rows has to hold
(intersection-union: its p is the largest of the pairs), and such a claim is contradicted where one
pair is significantly the other way round, with Bonferroni's correction for the number of pairs. A
true claim and a false one can then each go wrong in at most half of alpha.

A side of which a repeat diverged or is missing wins no claim, see gaps.

Source: Berger 1982, Multiparameter hypothesis testing and acceptance sampling.
"""

import math
from typing import NamedTuple

import numpy as np

from cellseg_jax.studies import comparable, equivalence, stats
from cellseg_jax.studies.gaps import gaps_of, undefined
from cellseg_jax.studies.runs import values_of
from cellseg_jax.studies.study import Claim, metrics_of


class JudgedClaim(NamedTuple):
    """A claim and what the runs say about it."""

    claim: Claim
    judgement: str  # of stats.JUDGEMENTS
    comparison: stats.Comparison | None  # with several pairs, of the one that decides; None: no run
    pair: tuple[str, str]  # rows of that comparison; "" where rows were averaged
    needed: float  # repeats that decide it with a power of 0.8, if what was seen is the truth;
    #   inf: none do; NaN: judged already, or not known
    lacking: str = ""  # repeats that keep it from being judged: "2 of 5 of unet diverged"
    apart: bool = False  # scores of its rows are of other pixels or classes, see comparable.basis


class _Pairs(NamedTuple):
    """The comparisons of a claim, and its p before Holm's correction."""

    comparisons: list[stats.Comparison]
    names: list[tuple[str, str]]
    holds: np.ndarray  # (pairs,) p that the claim holds for a pair, two-sided; 1: other direction
    fails: np.ndarray  # (pairs,) p that it does not
    larger_is_better: bool
    lacking: tuple[str, str]  # repeats that diverged or are missing, of better and of worse rows


def judge_claims(study, found, ratio: float) -> list[JudgedClaim]:
    """All claims of a Study, with Holm's correction for their number.

    Args:
      found: {row: [runs.Found of each repeat]}.
      ratio: test / training images, see stats.paired.
    """
    pairs = [_pairs(study, claim, found, ratio) for claim in study.claims]
    adjusted = stats.holm([_p(one) for one in pairs]).tolist()
    judged = sum(map(math.isfinite, adjusted))
    return [_judged(claim, one, p, stats.ALPHA / max(1, judged), ratio)._replace(
                apart=_apart(study, claim, found))
            for claim, one, p in zip(study.claims, pairs, adjusted, strict=True)]


def _pairs(study, claim, found, ratio) -> _Pairs | None:
    """None where a row of the claim has no folder, or scores do not compare."""
    if not all(name in found for name in (*claim.better, *claim.worse)) or _apart(
            study, claim, found):
        return None
    ahead, behind = metrics_of(study, claim)
    values = lambda name, metric: values_of(found[name], metric)
    names = claim.pairs or [("", "")]
    if claim.pairs:
        sides = [(values(a, ahead), values(b, behind)) for a, b in names]
    else:
        sides = [(np.mean([values(name, ahead) for name in claim.better], 0),
                  np.mean([values(name, behind) for name in claim.worse], 0))]
    compared = [stats.paired(a, b, test_train_ratio=ratio) for a, b in sides]
    up = stats.larger_is_better(ahead)
    p = np.array([stats.p_of_claim(one, claim.equal_within, up) for one in compared])
    sides = (claim.better, ahead), (claim.worse, behind)
    shared = np.all([undefined(values(row, metric), [one.run for one in found[row]])
                     for rows, metric in sides for row in rows], axis=0).sum()
    lacking = tuple(_lacking(found, *side, int(shared)) for side in sides)
    return _Pairs(compared, names, p[:, 0], p[:, 1], up, lacking)


def _apart(study, claim, found) -> bool:
    """Whether rows of the claim that are compared are of other pixels or classes."""
    if not all(name in found for name in (*claim.better, *claim.worse)):
        return False
    groups = claim.pairs if claim.matched else [(*claim.better, *claim.worse)]
    return not all(comparable.compare(found, rows, metric) for rows in groups
                   for metric in metrics_of(study, claim))


def _lacking(found, rows, metric, shared: int) -> str:
    """'a: 2 of 5 diverged; b: 1 of 5 missing', "" where all repeats have the metric.

    Args:
      shared: repeats in which it is undefined in all rows of the claim, see gaps.
    """
    gaps = {row: gaps_of(found[row], metric) for row in rows}
    gaps = {row: gap._replace(undefined=gap.undefined - shared) for row, gap in gaps.items()}
    return "; ".join(f"{row}: {gap}" for row, gap in gaps.items() if gap)


def _p(pairs) -> float:
    """All pairs hold, or one of them does not: only one can be, so no further correction."""
    if pairs is None or np.isnan(pairs.holds).any():
        return math.nan
    return float(min(pairs.holds.max(), min(1.0, len(pairs.fails) * pairs.fails.min())))


def _judged(claim, pairs, p, alpha, ratio) -> JudgedClaim:
    if pairs is None:
        return JudgedClaim(claim, "undecided", None, ("", ""), math.nan)
    holding = pairs.holds.max() <= len(pairs.fails) * pairs.fails.min()
    decided = np.isfinite(p) and p < stats.ALPHA
    lacking = _which_lack(claim, pairs, holding) if np.isfinite(p) else ""
    word = ("supported" if holding else "contradicted") if decided and not lacking else "undecided"
    weakest = int(np.argmax(pairs.holds) if holding else np.argmin(pairs.fails))
    needed = math.nan if decided or lacking else _repeats_needed(claim, pairs, alpha, ratio)
    return JudgedClaim(claim, word, pairs.comparisons[weakest], pairs.names[weakest], needed,
                       lacking)


def _which_lack(claim, pairs, holding) -> str:
    """The repeats that are lacking on the side which a judgement would favour, see gaps."""
    better, worse = pairs.lacking
    if claim.equal_within:
        return "; ".join(filter(None, dict.fromkeys((better, worse))))
    return better if holding else worse


def _repeats_needed(claim, pairs, alpha, ratio) -> float:
    """Repeats after which every pair holds, or the first one fails, whichever the means say."""
    margin = [stats.margin(one, claim.equal_within, pairs.larger_is_better)
              for one in pairs.comparisons]
    if not np.isfinite(margin).all():
        return math.nan
    failing = [k for k, size in enumerate(margin) if size < 0]
    level = alpha / len(margin) if failing else alpha

    def needed(k):
        one, how = pairs.comparisons[k], {"alpha": level, "test_train_ratio": ratio}
        sd = stats.sd_of(one, ratio)
        if claim.equal_within and not failing:
            return equivalence.repeats_to_equal(
                sd, claim.equal_within, abs(one.difference), **how)
        return stats.repeats_needed(sd, margin[k], **how)

    repeats = [needed(k) for k in failing or range(len(margin))]
    return min(repeats) if failing else max(repeats)
