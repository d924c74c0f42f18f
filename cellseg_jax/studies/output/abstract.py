"""Five plain sentences on a study, made from its verdicts and never more certain than they are.

What was compared; what is better; what became of the other rows; how far it can be trusted; what to
choose. A row is called better, worse or equal only if its verdict in the table is that word.
"""

import math

from cellseg_jax.report.document import count
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import stats
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.gaps import word_between
from cellseg_jax.studies.output.summary import done_sentence, headline, is_baseline, listed_names

PLAIN = {  # what a score means, by its name or by what is before "_"
    "ap_coco": "COCO's average precision over IoUs of 0.5 to 0.95, from 0 to 1",
    "ap50_coco": "COCO's average precision at an IoU of 0.5, from 0 to 1",
    "ap75_coco": "COCO's average precision at an IoU of 0.75, from 0 to 1",
    "dice": "overlap with the annotation, from 0 to 1",
    "iou": "overlap with the annotation, from 0 to 1",
    "ap50": "cells found against cells missed or invented, from 0 to 1",
    "pq": "how many cells are found and how well they are outlined, from 0 to 1",
    "seg": "overlap of each annotated cell with its own outline, from 0 to 1",
    "aji": "overlap of cells, from 0 to 1",
}


def abstract(table) -> list[str]:
    """The five sentences of a table.Table."""
    metric = headline(table)
    others = [row for row in table.rows if not is_baseline(table, row)]
    return [_compared(table, metric, others), _better(table, metric, others),
            _rest(table, metric, others), _trust(table, metric, others),
            _choice(table, metric)]


def _compared(table, metric, others) -> str:
    study = table.study
    repeats = max((len(row.runs) for row in table.rows), default=0)
    seeds = "seeds and " * (study.varies != ("data.split_seed",))
    varies = (("in folds of the images" if study.folds else f"with other {seeds}splits")
              if table.test_train_ratio else "with other seeds on the same images")
    name = metric.partition("[")[0]
    plain = PLAIN.get(name) or PLAIN.get(name.removesuffix("_mean").partition("_")[0])
    way = "more" if stats.larger_is_better(metric) else "less"
    what = f"{metric}, {plain}, {way} is better" if plain else f"{metric}, {way} is better"
    times = "once" if repeats == 1 else f"{repeats} times, {varies}"
    verb = "was" if len(others) == 1 else "were"
    return (f"{count(len(others), 'setting')} {verb} compared with {study.baseline}, each to be "
            f"trained {times}; they are judged by {what}.")


def _better(table, metric, others) -> str:
    better = [row for row in others if row.verdicts[metric] == "better"]
    if better:
        better.sort(key=lambda row: -abs(row.compared[metric].difference))
        named = ", ".join(_difference(row, metric) for row in better[:2])
        more = f" and {len(better) - 2} more" if len(better) > 2 else ""
        return f"Shown to be better than {table.study.baseline}: {named}{more}."
    if not others:
        return "With one setting alone nothing is judged."
    if all(row.compared[metric] is None for row in others):
        return "No setting can be judged."
    if not any(row.verdicts[metric] in ("worse", "not distinguishable") for row in others):
        if any(row.verdicts[metric] in ("diverged", "incomplete") for row in others):
            return (f"No setting can be judged: {done_sentence(table)}, and some repeats of the "
                    f"settings or of {table.study.baseline} have no score.")
        return (f"No setting can be judged yet: {done_sentence(table)}, and a verdict takes "
                f"{stats.MIN_PAIRS} repeats of both that have a score, with differences that vary.")
    return f"No setting is shown to be better than {table.study.baseline}."


def _difference(row, metric) -> str:
    one = row.compared[metric]
    low, high = stats.cut(metric, one.interval, difference=True)
    return (f"{row.name} ({one.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})")


def _rest(table, metric, others) -> str:
    """The rows that are not better, by their verdict and what is shown within the margin."""
    level = "not distinguishable"
    shown = lambda word: [row.name for row in others if row.verdicts[metric] == level
                          and metric in row.within and row.within[metric].word == word]
    equal, no_worse, margin = shown("equal"), shown("no worse"), table.study.margin.get(metric, 0)
    of = lambda word: [row.name for row in others if row.verdicts[metric] == word
                       and row.name not in (*equal, *no_worse)]
    parts = [(of("worse"), "worse than it", ""),
             (equal, f"equal to it within {margin:g}", ""),
             (no_worse, f"not told apart from it and no worse than by {margin:g}", ""),
             (of(level), "not told apart from it", "which shows no equality"),
             (of("diverged"), "not to be called better, since trainings diverged", ""),
             (of("incomplete") + of("too few repeats"), "without enough repeats to be judged", ""),
             ([row.name for row in others if row.compared[metric] is None],
              "not compared, since the score is of another loss, other pixels or classes", "")]
    texts = [f"{count(len(names), 'setting')} {'is' if len(names) == 1 else 'are'} {text} "
             f"({listed_names(names)}{', ' + note if note else ''})"
             for names, text, note in parts if names]
    better = len(of("better"))
    if not texts:
        return "There is no other setting."
    return f"{'Of the others, ' * bool(better)}{'; '.join(texts)}."


def _trust(table, metric, others) -> str:
    noise = table.noise[metric].sd
    parts = []
    if math.isfinite(noise):
        chance = stats.cut(metric, (0, 1.96 * math.sqrt(2) * noise), difference=True)[1]
        parts.append(f"two trainings of one setting differ by up to {chance:.3f} by chance, 19 "
                     "times in 20")
    parts.append("verdicts hold for other trainings and other images of this kind"
                 if table.test_train_ratio else
                 "verdicts hold for other trainings, not for other images")
    confounded = [row.name for row in others if not_named(row.differs)]
    if confounded:
        parts.append(f"{listed_names(confounded)} {'differs' if len(confounded) == 1 else 'differ'}"
                     " from the baseline in more than is named, so that the reason stays open")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _choice(table, metric) -> str:
    others = [row for row in table.rows if not is_baseline(table, row)]
    apart = [row for row in others if row.compared[metric] is None]
    if others and len(apart) == len(others):
        return "No setting can be recommended, since none is compared."
    if metric not in table.best:
        return "No setting can be recommended before all repeats of one have a score."
    name, ties = table.best[metric]
    if len(table.rows) == 1:
        return f"There is one setting, {name}, so that nothing is to be chosen."
    if not ties:
        return (f"The choice is {name}, which is better than each other setting"
                f"{' that is compared' * bool(apart)}.")
    rows = {row.name: row for row in table.rows}
    best = rows[name]
    level = [best, *(rows[tie] for tie in ties if word_between(
        best, rows[tie], metric, table.test_train_ratio) == "not distinguishable")]
    cost = "train_seconds"
    priced = [row for row in level if math.isfinite(row.mean.get(cost, math.nan))]
    text = f"No setting is shown to be best; {name} has the best mean"
    if len(priced) < 2:
        return text + "."
    cheap = min(priced, key=lambda row: row.mean[cost])
    minutes = cheap.mean[cost] / RESOURCES[cost].divisor
    among = f"{len(priced)} of known cost among the " * (len(priced) < len(level))
    return (f"{text}, and of {among or 'the '}{len(level)} that are not told apart from it "
            f"{cheap.name} took the least training ({minutes:.3g} minutes a run).")
