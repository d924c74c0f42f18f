"""The answer of a study in sentences: verdicts, noise, claims, and what is done of it."""

import math
from collections import Counter

from cellseg_jax.report.document import count
from cellseg_jax.studies import render, stats

NAMED = 4  # rows named in a sentence


def headline(table) -> str:
    """The metric that a study is decided by."""
    return table.metrics[0] if table.metrics else table.study.metrics[0]


def is_baseline(table, row) -> bool:
    """Whether the other rows are compared with this one."""
    return row.name == table.study.baseline


def is_compared(row, metric) -> bool:
    """Whether there is a difference to the baseline."""
    compared = row.compared.get(metric)
    return compared is not None and math.isfinite(compared.difference)


def counted(row) -> list:
    """Runs whose scores are in the table."""
    return [run for run in row.runs if run.counts]


def summary_sentence(table) -> str:
    """What the headline metric shows about all rows, with the noise beside it."""
    metric = headline(table)
    others = [row for row in table.rows if not is_baseline(table, row)]
    compared = [row for row in others if is_compared(row, metric)]
    if not compared:
        return (f"No row can be compared with the baseline {table.study.baseline} in {metric} yet: "
                f"{done_sentence(table)}.")
    needed = [line for curve in table.curves if curve.fit is not None
              for line in render.curve_sentences(curve)[: len(curve.needed)]]
    sentences = [*needed, *_verdicts(table, metric, compared)]
    if waiting := len(others) - len(compared):
        sentences.append(f"{count(waiting, 'row')} cannot be compared yet.")
    return " ".join(filter(None, [*sentences, _power(table), claims_sentence(table)]))


def _verdicts(table, metric, compared) -> list[str]:
    """How many rows differ from the baseline, and which."""
    by_word = {w: [r.name for r in compared if r.verdicts[metric] == w] for w in stats.VERDICTS}
    differ = len(by_word["better"]) + len(by_word["worse"])
    which = ", ".join(f"{len(by_word[word])} {word} ({listed_names(by_word[word])})"
                      for word in ("better", "worse") if by_word[word])
    first = (f"In {metric}, {differ or 'none'} of {count(len(compared), 'row')} "
             f"{'differs' if 1 in (differ, len(compared)) else 'differ'} from the baseline "
             f"{table.study.baseline}{': ' if which else ''}{which}.")
    meaning = {"not distinguishable": "not distinguishable from it",
               "too few repeats": "without a verdict: too few repeats"}
    return [first, *(f"{count(n, 'row')} {'is' if n == 1 else 'are'} {text}."
                     for word, text in meaning.items() if (n := len(by_word[word])))]


def claims_sentence(table) -> str:
    """How many of the published claims the runs support, "" where there is none."""
    judged = Counter(one.judgement for one in table.claims)
    numbers = ", ".join(f"{judged[word]} {word}" for word in stats.JUDGEMENTS if judged[word])
    return f"Of {count(len(table.claims), 'published claim')}: {numbers}." if numbers else ""


def _power(table) -> str:
    """What difference could have been seen."""
    noise, parts = table.noise.get(headline(table)), []
    if noise is not None and math.isfinite(noise.sd):
        parts.append(f"runs of one config differ by {noise.sd:.2g} (standard deviation)")
    if table.needed:
        wanted, repeats = min(table.needed.items(), key=lambda item: abs(item[0] - 0.01))
        there = max((len(counted(row)) for row in table.rows), default=0)
        parts.append((f"to see a difference of {wanted:g} takes {repeats:.0f} repeats"
                      if math.isfinite(repeats) else
                      f"a difference of {wanted:g} takes more test images, whatever the repeats")
                     + f" (there {'is' if there == 1 else 'are'} {there})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def done_sentence(table) -> str:
    """How many runs have ended, of how many."""
    runs = [run for row in table.rows for run in row.runs]
    done = sum(run.status in ("done", "stopped early") for run in runs)
    return f"{done} of {count(len(runs), 'run')} {'is' if done == 1 else 'are'} done"


def listed_names(names) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
