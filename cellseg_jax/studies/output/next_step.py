"""What to do next about each row: run repeats, choose the cheaper, mend it, or nothing."""

import math

from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import equivalence, stats
from cellseg_jax.studies.comparable import ORIGINAL
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.course import LOSS_METRICS
from cellseg_jax.studies.gaps import own_gaps
from cellseg_jax.studies.output.sentences import plural

MANY = 100  # repeats beyond which nobody waits for a verdict
CHEAPER = 1.1  # ratio of two costs from which on the difference is worth a word
# The first that differs decides. Memory is that of a process until then, so of earlier rows too.
COSTS = ("train_seconds", "ms_per_image")


def next_step(table, row) -> str:
    """One line about a table.Row in the headline metric; "" for a baseline that lacks nothing."""
    metric = table.study.metrics[0]
    base = next(one for one in table.rows if one.name == table.study.baseline)
    mine, other = own_gaps((row, base), metric) if row is not base else (row.gaps[metric], None)
    lacking = _lacking(row, mine, metric) or (row is not base and _lacking(base, other, metric))
    if lacking or row is base:
        return lacking or ""
    other_keys = not_named(row.differs)
    note = (f"; confounded, since it also differs in {plural(len(other_keys), 'key')} that it does "
            "not name: add a row that differs in its own alone" if other_keys else "")
    return _of_whole_row(table, row, base, metric) + note


def not_compared(metric) -> str:
    """Why a row has no verdict in a metric."""
    name, _, part = metric.partition("[")
    if name in LOSS_METRICS:
        return "not compared: losses differ"
    other = "" if part else f": judge by {name}[{ORIGINAL}], if pixels differ"
    return f"not compared: its {metric} is of other pixels or classes{other}"


def _lacking(row, gaps, metric) -> str:
    if gaps.diverged:
        steps = [run.step for run, bad in zip(row.runs, row.diverged, strict=True) if bad]
        return (f"{row.name}: {gaps.diverged} of {gaps.repeats} runs diverged, the first after "
                f"step {min(steps)}: lower optimizer.lr, or set optimizer.clip, in a new row")
    if gaps.missing:
        return f"run the missing repeats of {row.name}: {gaps.missing} of {gaps.repeats}"
    if gaps.undefined:
        return (f"{row.name} has no {metric} in {gaps.undefined} of {gaps.repeats} repeats that "
                "ended, and further runs do not change that: judge by a metric, or on a split, "
                "that gives all of them a value")
    return ""


def _of_whole_row(table, row, base, metric) -> str:
    one, word = row.compared[metric], row.verdicts[metric]
    if one is None or word == "":
        return not_compared(metric)
    if word == "too few repeats":
        return (f"{plural(stats.MIN_PAIRS - one.n, 'more repeat')} of both rows for a verdict"
                if one.n < stats.MIN_PAIRS else
                "the same difference in all repeats, so that its spread is not known: more "
                "repeats, or let them vary something, such as data.split_seed")
    if word in ("better", "worse"):
        return f"decided: {word}{_price(row, base)}"
    shown = row.within.get(metric)
    if shown and shown.word == "equal":
        return f"equal within {shown.margin:g}: choose the cheaper{_cheaper(row, base)}"
    cost = _cost(row, base)
    if shown and shown.word == "no worse" and cost and cost[0] == row.name:
        return f"no worse than by {shown.margin:g}: choose it, the cheaper ({cost[1]}: {cost[2]})"
    return _undecided(table, row, base, metric)


def _undecided(table, row, base, metric) -> str:
    """More repeats where they decide, the cheaper row where the difference is below the noise."""
    one, ratio = row.compared[metric], table.test_train_ratio
    if one.interval == (0.0, 0.0):
        return (f"equal in all {plural(one.n, 'repeat')} to the last digit: choose the cheaper"
                f"{_cheaper(row, base)}, or see whether anything reads what it changes")
    compared = sum(other.compared[metric] is not None for other in table.rows)
    sd, alpha = stats.sd_of(one, ratio), stats.ALPHA / max(1, compared)
    margin, size = table.study.margin.get(metric), abs(one.difference)
    # Of one run, without what both rows share in a repeat, such as how hard its images are.
    noise = min(table.noise[metric].sd, sd / math.sqrt(2))
    if size < noise:
        low, high = stats.cut(metric, one.interval, difference=True)
        text = (f"{size:.2g} is below the noise floor of {noise:.2g}: choose the cheaper"
                f"{_cheaper(row, base)}, unless a difference from {low:+.2g} to {high:+.2g} "
                "matters")
    else:
        needed = stats.repeats_needed(sd, size, alpha=alpha, test_train_ratio=ratio)
        if needed <= MANY:
            more = max(1, int(needed) - one.n)
            verb = "decides" if more == 1 else "decide"
            return (f"{plural(more, 'more repeat')} of both rows {verb} it 8 times in 10, if "
                    f"{one.difference:+.2g} is the truth")
        text = ("no number of repeats decides it: that takes more images" if math.isinf(needed) else
                f"it takes {needed:.0f} repeats to decide, if {one.difference:+.2g} is the truth")
    if margin:
        equal = equivalence.repeats_to_equal(sd, margin, alpha=alpha, test_train_ratio=ratio)
        if equal <= MANY:
            more = max(1, int(equal) - one.n)
            text += (f"; {plural(more, 'more repeat')} of both {'shows' if more == 1 else 'show'} "
                     f"that they are equal within {margin:g}, if they are")
    return text


def _cost(row, base) -> tuple[str, str, str] | None:
    """(cheaper row, title, 'MINE against BASE') of the first cost that clearly differs."""
    for name in COSTS:
        word, kind = row.verdicts.get(name), RESOURCES[name]
        mine, other = (one.mean[name] / kind.divisor for one in (row, base))
        if word in ("better", "worse") and max(mine, other) >= CHEAPER * min(mine, other):
            return (row.name if word == "better" else base.name, kind.title,
                    f"{mine:.3g} against {other:.3g}")
    return None


def _cheaper(row, base) -> str:
    cost = _cost(row, base)
    return f", {cost[0]} ({cost[1]}: {cost[2]})" if cost else "; their costs do not differ clearly"


def _price(row, base) -> str:
    cost = _cost(row, base)
    return f", with {cost[2]} {cost[1]}" if cost else ""
