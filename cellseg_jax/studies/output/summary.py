"""The answer of a study in sentences: verdicts, noise, claims, and what is done of it."""

import math
from collections import Counter

from cellseg_jax.report.document import count
from cellseg_jax.studies import stats
from cellseg_jax.studies.output.sentences import curve_sentences, repeats_sentence

NAMED = 4  # rows named in a sentence


def headline(table) -> str:
    """The metric that a study is decided by."""
    return table.metrics[0] if table.metrics else table.study.metrics[0]


def is_baseline(table, row) -> bool:
    """Whether the other rows are compared with this one."""
    return row.name == table.study.baseline


def is_compared(row, metric) -> bool:
    """Whether there is a difference to the baseline, or a repeat that diverged keeps it away."""
    compared = row.compared.get(metric)
    return compared is not None and (math.isfinite(compared.difference)
                                     or row.verdicts.get(metric) == "diverged")


def is_best(table, row, metric) -> bool:
    """Whether a test distinguishes this row from each other one, and there is one."""
    name, ties = table.best.get(metric, ("", ()))
    return name == row.name and not ties and len(table.rows) > 1


def counted(row) -> list:
    """Runs whose scores are in the table."""
    return [run for run in row.runs if run.counts]


def summary_sentence(table) -> str:
    """What the headline metric shows about all rows, with the noise beside it."""
    metric = headline(table)
    others = [row for row in table.rows if not is_baseline(table, row)]
    compared = [row for row in others if is_compared(row, metric)]
    if others and all(row.compared.get(metric) is None for row in others):
        return (f"No row is compared with the baseline {table.study.baseline} in {metric}, see the "
                "notes.")
    if not compared:
        return (f"No row can be compared with the baseline {table.study.baseline} in {metric} yet: "
                f"{done_sentence(table)}.")
    needed = [line for curve in table.curves if curve.fit is not None
              for line in curve_sentences(curve)[: len(curve.needed)]]
    sentences = [*needed, *_verdicts(table, metric, compared)]
    apart = sum(row.compared.get(metric) is None for row in others)
    if waiting := len(others) - len(compared) - apart:
        sentences.append(f"{count(waiting, 'row')} cannot be compared yet.")
    if apart:
        sentences.append(f"{count(apart, 'row')} {'is' if apart == 1 else 'are'} not compared, "
                         "see the notes.")
    return " ".join(filter(None, [*sentences, _noise(table), repeats_sentence(table),
                                  claims_sentence(table)]))


def _verdicts(table, metric, compared) -> list[str]:
    """How many of the rows with a verdict are shown to differ from the baseline, and which."""
    by_word = {w: [r.name for r in compared if r.verdicts[metric] == w] for w in stats.VERDICTS}
    few, lost, waiting = (by_word.pop(word) for word in (
        "too few repeats", "diverged", "incomplete"))
    out = [f"{count(len(lost), 'row')} cannot be better, since repeats diverged "
           f"({listed_names(lost)})."] if lost else []
    out += [f"{count(len(waiting), 'row')} cannot be better while repeats are missing or have no "
            f"score ({listed_names(waiting)})."] if waiting else []
    unjudged = len(few) + len(lost) + len(waiting)
    if unjudged == len(compared) and out:
        return out + ([f"{count(len(few), 'row')} without a verdict: too few repeats."]
                      if few else [])
    if len(few) == len(compared):
        return [f"In {metric}, no row can be told from the baseline {table.study.baseline} yet: "
                f"too few repeats for a verdict, which takes {stats.MIN_PAIRS} of both rows, with "
                "differences that vary."]
    judged, differ = len(compared) - unjudged, len(by_word["better"]) + len(by_word["worse"])
    which = ", ".join(f"{len(by_word[word])} {word} ({listed_names(by_word[word])})"
                      for word in ("better", "worse") if by_word[word])
    sentences = [f"In {metric}, {differ or 'none'} of {count(judged, 'row')} "
                 f"{'is' if differ < 2 else 'are'} shown to differ from the baseline "
                 f"{table.study.baseline}{': ' if which else ''}{which}."]
    for n, text in ((len(by_word["not distinguishable"]), "not distinguishable from it"),
                    (len(few), "without a verdict: too few repeats")):
        sentences += [f"{count(n, 'row')} {'is' if n == 1 else 'are'} {text}."] if n else []
    return sentences + out


def claims_sentence(table) -> str:
    """How many of the published claims the runs support, "" where there is none."""
    judged = Counter(one.judgement for one in table.claims)
    numbers = ", ".join(f"{judged[word]} {word}" for word in stats.JUDGEMENTS if judged[word])
    return f"Of {count(len(table.claims), 'published claim')}: {numbers}." if numbers else ""


def _noise(table) -> str:
    """How far runs of one config lie apart."""
    noise = table.noise.get(headline(table))
    if noise is None or not math.isfinite(noise.sd):
        return ""
    return f"Runs of one config differ by {noise.sd:.2g} (standard deviation)."


def done_sentence(table) -> str:
    """How many runs have ended, of how many."""
    runs = [run for row in table.rows for run in row.runs]
    done = sum(run.status in ("done", "stopped early") for run in runs)
    return f"{done} of {count(len(runs), 'run')} {'is' if done == 1 else 'are'} done"


def listed_names(names) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
