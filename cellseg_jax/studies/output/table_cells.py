"""Cells of a study page's tables: names, scores with their spread, differences and verdicts."""

import math
from collections import Counter

from cellseg_jax.report.document import NONE, Cell, number, soft
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import stats
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.output.sentences import compared_text, gap_text, repeats_text
from cellseg_jax.studies.output.summary import counted, headline, is_baseline

MARKS = {"better": "\u25b2", "worse": "\u25bc", "not distinguishable": "\u25cf",
         "too few repeats": "\u25c7", "diverged": "\u2715", "incomplete": "\u25a1"}
CLAIM_MARKS = {"supported": "\u2714", "contradicted": "\u2718", "undecided": "?"}
TITLES = {name: one.title for name, one in RESOURCES.items()}


def row_name(table, row) -> Cell:
    """The name of a row, whether it is the baseline or confounded, and the repeats that lack."""
    base, lacking = is_baseline(table, row), gap_text(row, headline(table))
    return Cell(soft(row.name), "baseline" * base,
                below=(lacking, "confounded" * bool(not_named(row.differs))),
                kind="name base" if base else "name")


def mean_sd(row, metric, marked=True) -> Cell | str:
    """Mean \u00b1 sd, in the unit that the heading names, with the verdict's mark.

    Args:
      marked: of another column than the headline, which is in the unit it is stored in, as the
        difference beside it.
    """
    average, sd = row.mean.get(metric, math.nan), row.sd.get(metric, math.nan)
    if not math.isfinite(average):
        return Cell(NONE, below=("" if metric in RESOURCES else gap_text(row, metric),))
    cost = metric in RESOURCES and marked
    unit = RESOURCES[metric].divisor if cost else 1
    digits = ".2f" if cost else ".4f"
    word = row.verdicts.get(metric, "") if marked and not cost else ""
    return Cell(f"{average / unit:{digits}}",
                f"\u00b1 {sd / unit:{digits}}" if math.isfinite(sd) else "",
                below=("" if metric in RESOURCES else gap_text(row, metric),),
                mark=(MARKS[word], word) if word in ("better", "worse") else None)


def difference(compared, metric) -> tuple[str, str]:
    """A difference and its interval."""
    if compared is None or not math.isfinite(compared.difference):
        return NONE, ""
    low, high = stats.cut(metric, compared.interval, difference=True)
    return (f"{compared.difference:+.4f}",
            f"[{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else "")


def run_count(row) -> Cell:
    """How many runs count, and the state of the others."""
    odd = Counter(run.mark or run.status for run in row.runs
                  if run.mark or run.status in ("non-finite", "unfinished", "missing"))
    return Cell(f"{len(counted(row))}/{len(row.runs)}",
                below=tuple(f"{n} {word}" for word, n in odd.items()))


def meter(value) -> Cell | str:
    """A number over a bar from 0 to 1."""
    return Cell(f"{value:.3f}", meter=min(max(value, 0), 1)) if math.isfinite(value) else NONE


def comparison(table, row, metric) -> list:
    """Difference, verdict and p of a row."""
    if is_baseline(table, row):
        return [Cell("0", "by definition"), NONE, NONE]
    word, reading = row.verdicts.get(metric), row.by_rank.get(metric)
    ranked = (f"by rank: {reading.verdict}",) if reading else ()
    return [Cell(*difference(row.compared.get(metric), metric)),
            Cell(f"{MARKS[word]}\u00a0{word}", kind=f"v {word}", below=ranked) if word else
            "not compared",
            number(row.adjusted_p.get(metric), ".3g")]


def judged_claim(table, one) -> tuple[Cell, str, Cell]:
    """Verdict of a claims.JudgedClaim, repeats to decide it, its text over what is compared."""
    claim, word = one.claim, one.judgement
    sides, metric, difference = compared_text(table.study, one)
    return (Cell(f"{CLAIM_MARKS[word]}\u00a0{word}", kind=f"v {word}"),
            repeats_text(one) or NONE,
            Cell(claim.text, below=(soft(sides), soft(f"{metric}: {difference}"))))
