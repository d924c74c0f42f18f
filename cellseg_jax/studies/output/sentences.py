"""The sentences beside a study's numbers: how they were compared, and what they rest on."""

import math

import numpy as np

from cellseg_jax.studies import learning_curve, stats
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.gaps import word_between
from cellseg_jax.studies.study import metrics_of

CODE_MARK = "†"  # beside a row with runs of other code
CONFOUNDED_MARK = "‡"  # beside a row that differs from the baseline in keys that it does not name
MOST_TIES = 5  # rows that are named as not distinguishable from the best
MOST_IMAGES = 1e6  # beyond it a number of images is "over a million"


def sentences(table) -> list[str]:
    """How a Table's rows were compared, their noise, and the best row, a sentence each."""
    study, metric = table.study, table.study.metrics[0]
    repeats = len(table.rows[0].runs)
    compared = sum(math.isfinite(row.adjusted_p[metric]) for row in table.rows)
    out = [f"Mean ± sd over {plural(repeats, 'repeat')}; repeats named in brackets have no score "
           "and are not in the mean."] + _gap_rule(table, metric)
    if compared:
        test = ("corrected resampled t-test (Nadeau and Bengio 2003), because "
                f"{'training images of folds' if study.folds else 'random splits'} overlap")
        test = test if table.test_train_ratio else "paired t-test"
        out.append(f"Verdicts: {metric} against {study.baseline}, repeat by repeat, two-sided "
                   f"{test}, p < 0.05 after Holm's correction for {plural(compared, 'row')}."
                   + " Intervals are without it: one may leave out 0 beside 'not "
                   "distinguishable'." * (compared > 1))
        if not table.test_train_ratio:
            out.append("They hold for other seeds on these test images, not for other images.")
    elif len(table.rows) > 1:
        out.append(f"Verdicts on {metric} against {study.baseline} need at least "
                   f"{stats.MIN_PAIRS} finished repeats of both.")
    if table.study.margin:
        margins = ", ".join(f"{m} {size:g}" for m, size in table.study.margin.items())
        out.append(f"Within the margin ({margins}): two one-sided tests at 5 % with the same error "
                   "and correction; not shown is neither equal nor different. P(worse / equal / "
                   "better): a Bayesian reading of the same differences, not adjusted.")
    absent = sum(not run.counts for row in table.rows for run in row.runs)
    if absent:
        out.append(f"{absent} of the table's {repeats * len(table.rows)} runs are missing or do "
                   "not count.")
    judged = sum(one.comparison is not None and one.comparison.n >= stats.MIN_PAIRS
                 and math.isfinite(one.comparison.p) for one in table.claims)
    if judged:
        out.append("Claims are judged by the same test, corrected for the "
                   f"{plural(judged, 'claim')} with {stats.MIN_PAIRS} repeats; undecided is "
                   "neither shown nor refuted. Repeats to decide: so many decide a claim 8 times "
                   "in 10, if what was seen is the truth.")
        if any(one.claim.pairs for one in table.claims):
            out.append("Claims over several pairs of rows hold if every pair does; shown is the "
                       "pair that decides.")
    out += _noise(table, metric) + _best(table, metric) + _needed(table, metric)
    if any(run.mark == "other code" for row in table.rows for run in row.runs):
        out.append(f"{CODE_MARK} marks rows with runs of other code, see the notes.")
    if any(not_named(row.differs) for row in table.rows):
        out.append(f"{CONFOUNDED_MARK} marks confounded rows: they differ from the baseline in "
                   "keys that the study file does not name for them, so that a difference may come "
                   "from these.")
    return out


def _gap_rule(table, metric) -> list[str]:
    """What becomes of rows that lack repeats, where there is one."""
    if not any(row.gaps[metric] for row in table.rows if not _nothing(row, metric)):
        return []
    ranks = any(row.by_rank for row in table.rows)
    return ["A row of which a repeat diverged (its loss or gradient became non-finite), is "
            "missing, or is undefined where another row has a score, cannot be better nor best: "
            "the others may be the lucky ones."
            + " By rank: a rank-sum test of all repeats in which those that diverged come last, "
              "with Holm's correction; beside the verdict, not part of it." * ranks]


def _nothing(row, metric) -> bool:
    """Whether no repeat has ended, well or badly."""
    return row.gaps[metric].missing == row.gaps[metric].repeats


def gap_text(row, metric) -> str:
    """'2 of 5 diverged', "" where all repeats have a score, and where none has been run."""
    return "" if _nothing(row, metric) else str(row.gaps[metric])


def verdict_text(table, row, metric) -> str:
    """The verdict with what keeps it from being better, and the reading by rank beside it."""
    base = next(one for one in table.rows if one.name == table.study.baseline)
    if row is base:
        return "(baseline)"
    if _nothing(row, metric):
        return "no result"
    if row.compared[metric] is None:
        return "not compared"
    word, mine, other = row.verdicts[metric], gap_text(row, metric), gap_text(base, metric)
    said = [mine] if mine else []
    if other and word in ("diverged", "incomplete"):
        said.append(f"{base.name}: {other}")
    if said and word:
        word = mine if word == "diverged" and said == [mine] else f"{word} ({', '.join(said)})"
    reading = row.by_rank.get(metric)
    return f"{word}; by rank {reading.verdict}" if reading else word


def _noise(table, metric) -> list[str]:
    noise = table.noise[metric]
    if math.isnan(noise.sd):
        return []
    split = table.test_train_ratio > 0
    seed = table.study.varies != ("data.split_seed",)
    varied = " and ".join(["seed"] * seed + ["split"] * split)
    where = " on different splits" * split
    low, high = noise.interval
    return [f"Noise floor: runs of one config that differ in the {varied} alone have an sd of "
            f"{noise.sd:.4f} (95 % interval {low:.4f} to {high:.4f}, {noise.n} runs), so that two "
            f"single runs{where} differ by up to {_chance(metric, noise.sd):.3f} by chance, 19 "
            "times in 20."]


def _chance(metric, sd) -> float:
    """The largest difference of two runs of one config, in 95 of 100 pairs."""
    return stats.cut(metric, (0, 1.96 * math.sqrt(2) * sd), difference=True)[1]


def _best(table, metric) -> list[str]:
    if len(table.rows) < 2:
        return []
    if metric not in table.best:
        scored = any(math.isfinite(row.mean[metric]) for row in table.rows)
        return ["No row can be called best: none has a score of all its repeats."] * (
            scored and all(row.gaps[metric] for row in table.rows))
    name, ties = table.best[metric]
    if not ties:
        apart = sum(row.compared[metric] is None for row in table.rows) > 1
        return [f"{name} is best, and better than each other row{' that is compared' * apart}."]
    return [f"No row can be called best: {name} has the best mean, and {ties_text(table, metric)}."]


def ties_text(table, metric, most: int = MOST_TIES) -> str:
    """'a, b are not distinguishable from it', by the verdicts; "" where none is.

    Args:
      most: rows that are named.
    """
    name, ties = table.best[metric]
    rows = {row.name: row for row in table.rows}
    words = {tie: word_between(rows[name], rows[tie], metric, table.test_train_ratio)
             for tie in ties}
    def listed(names, what):
        text = ", ".join(names) if len(names) <= most else plural(len(names), "row")
        return f"{text} {'is' if len(names) == 1 else 'are'} {what}" if names else ""
    few, lacking = "too few repeats", ("diverged", "incomplete")
    of = lambda *chosen: [tie for tie in ties if words[tie] in chosen]
    return " and ".join(filter(None, (
        listed([tie for tie in ties if words[tie] not in (few, *lacking)],
               "not distinguishable from it"),
        listed(of(few), f"not to be compared with it: {few}"),
        listed(of(*lacking), "not shown to be worse: repeats have no score"))))


def _needed(table, metric) -> list[str]:
    if not table.needed:
        return []
    some = {wanted: n for wanted, n in table.needed.items() if math.isfinite(n)}
    never = [wanted for wanted, n in table.needed.items() if math.isinf(n)]
    if not some:
        return [f"No number of repeats finds a true difference of {max(never):g} or less in "
                f"{metric} 8 times in 10: that takes more images."]
    what = ", ".join(f"{n} for a difference of {wanted:g}" for wanted, n in sorted(some.items()))
    more = (f"; for {max(never):g} no number is enough, that takes more images" if never else "")
    return [f"Repeats that find a true difference in {metric} 8 times in 10: {what}{more}."]


def repeats_sentence(table) -> str:
    """The repeats that a small difference in the headline metric takes, "" where unknown."""
    if not table.needed:
        return ""
    metric = table.study.metrics[0]
    wanted, repeats = min(table.needed.items(), key=lambda item: abs(item[0] - 0.01))
    there = max(sum(run.counts for run in row.runs) for row in table.rows)
    if math.isinf(repeats):
        return (f"No number of repeats would find a difference of {wanted:g} in {metric} reliably: "
                "that takes more images.")
    have = "there is 1" if there == 1 else f"there are {there}"
    return (f"To find a difference of {wanted:g} in {metric} in 8 of 10 such studies, "
            f"{repeats} repeats of each row are needed; {have}.")


def curve_sentences(curve) -> list[str]:
    """Of a table.Curve: the images that each target needs, and what that rests on."""
    if curve.fit is None:
        return [f"{curve.name}: {curve.problem}."]
    out = [_needed_images(curve, target) for target in curve.needed]
    repeats = len({repeat for _, repeat, *_ in curve.points})
    few = "" if len(curve.fit.draws) else (f" No interval: fewer than {learning_curve.MIN_REPEATS} "
                                           "repeats.")
    sizes = curve.fit.sizes
    limit, interval = _asymptote(curve)
    lacking = f" Not in it: {curve.lacking}." if curve.lacking else ""
    limited = math.isclose(limit, 1.0 if curve.fit.sign > 0 else 0.0, abs_tol=1e-6)
    out.append(
        f"Curve of {curve.name}: {curve.metric} = a {'-' if curve.fit.sign > 0 else '+'} b n^-c "
        f"through the means of {plural(repeats, 'repeat')} at {len(sizes)} numbers of training "
        f"images n from {sizes[0]:.0f} to {sizes[-1]:.0f}; it levels off at {limit:.3f}"
        f"{_span(interval, number_text)}{', the best there can be' * limited}. Beyond "
        f"{sizes[-1]:.0f} images it is extrapolated. It holds for more images of the same kind "
        f"and for this training.{few}{lacking}")
    return out


def _asymptote(curve):
    """Where the curve levels off, and its interval within what the metric can be."""
    limit, interval = learning_curve.asymptote(curve.fit)
    return limit, stats.cut(curve.metric, interval)


def _needed_images(curve, target) -> str:
    """'dice_mean 0.90 needs about 340 training images (95 %: 250 to 800), 4.2 times the 81 ...'"""
    images, (low, high) = curve.needed[target]
    sizes, metric = curve.fit.sizes, curve.metric
    name = f"{curve.name}: {metric} {_target(target)}"
    reached = [size for size, mean in zip(sizes, curve.fit.means, strict=True)
               if curve.fit.sign * (mean - target) >= 0]
    if math.isinf(images) and reached:
        return (f"{name} was reached with {reached[0]:.0f} images already; over all sizes these "
                "runs show no growth with more.")
    if math.isinf(images):
        limit, interval = _asymptote(curve)
        least = (" They do not rule it out: the 95 % interval begins at "
                 f"{_images(low, sizes)} images." if low < MOST_IMAGES else "")
        return (f"{name} is not reachable with more images alone, as far as these runs show: the "
                f"curve levels off at {limit:.3f}{_span(interval, number_text)}.{least}")
    span = _span((low, high), lambda n: _images(n, sizes))
    if images < sizes[0]:
        span = "" if high < sizes[0] else span
        return f"{name} needs {_images(images, sizes)} training images{span}."
    times = f"{images / curve.available:.2g}" if images < 1e3 * curve.available else "over 1000"
    there = f", {times} times the {curve.available:.0f} that there are"
    more = "; extrapolated" if images > sizes[-1] else ""
    return f"{name} needs about {_images(images, sizes)} training images{span}{there}{more}."


def curve_sizes(curve) -> np.ndarray:
    """(n,) numbers of training images to draw a table.Curve at, some of them beyond the runs.

    The last is twice the largest of the runs, or the number that a target needs, up to 20 times.
    """
    low, high = curve.fit.sizes[0], curve.fit.sizes[-1]
    wanted = [1.1 * n for n, _ in curve.needed.values() if n <= 18 * high]
    return np.geomspace(low, max(2 * high, *wanted, 0), 60)


def _target(target) -> str:
    return f"{target:.2f}" if round(target, 2) == target else f"{target:g}"


def _span(interval, show) -> str:
    """' (95 %: 250 to 800)', "" without an interval."""
    low, high = interval
    if math.isnan(low):
        return ""
    if math.isinf(high):
        return " (95 %: out of reach)" if math.isinf(low) else f" (95 %: {show(low)} to no limit)"
    return f" (95 %: {show(low)} to {show(high)})"


def _images(n, sizes) -> str:
    """A number of images, to two digits; below the smallest that was tried nothing is known."""
    if n < sizes[0]:
        return f"fewer than {sizes[0]:.0f}"
    if n >= MOST_IMAGES:
        return "over a million"
    return f"{round(n, 1 - math.floor(math.log10(n))):,.0f}" if n >= 100 else f"{math.ceil(n)}"


def number_text(value: float, digits: int = 3) -> str:
    """The number with so many decimals, "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def plural(n: int, what: str) -> str:
    """"1 row", "3 rows"."""
    return f"{n} {what}" + "s" * (n != 1)


def compared_text(study, one) -> tuple[str, str, str]:
    """What a claims.JudgedClaim compares, in which measure, and the difference."""
    claim, (metric, worse) = one.claim, metrics_of(study, one.claim)
    sides = one.pair if one.pair[0] else (" + ".join(claim.better), " + ".join(claim.worse))
    how = f", the deciding of {plural(len(claim.pairs), 'pair')}" if one.pair[0] else ""
    within = f", equal within {claim.equal_within:g}" if claim.equal_within else ""
    by = metric if worse == metric else f"{metric} against {worse}"
    return (f"{sides[0]} against {sides[1]}{how}", by + within,
            difference_text(one.comparison, metric))


def within_texts(row, metric) -> tuple[str, ...]:
    """Within a margin: the word, p of no worse, p of equal, and P(worse / equal / better)."""
    reading, lacking = row.within[metric], gap_text(row, metric)
    word = {"equal": f"equal within {reading.margin:g}",
            "no worse": f"no worse than by {reading.margin:g}"}.get(
                reading.word, f"not shown within {reading.margin:g}")
    word += f" ({lacking})" if lacking else ""
    chances = reading.posterior
    return (word, p_text(reading.p_no_worse), p_text(reading.p_equal),
            " / ".join(number_text(chance, 2) for chance in chances)
            if math.isfinite(chances.equal) else "-")


def p_text(value) -> str:
    """A p-value with three decimals, "-" for NaN."""
    return "< 0.001" if value < 0.001 else number_text(value)


def repeats_text(one) -> str:
    """The repeats that decide a claims.JudgedClaim, "" where it is decided or nothing is known."""
    needed = one.needed
    if one.apart:
        return "not compared: scores of other pixels or classes"
    if math.isnan(needed):
        return f"not before all have a score ({one.lacking})" if one.lacking else ""
    return "no number is enough" if math.isinf(needed) else f"{needed}"


def difference_text(one, metric) -> str:
    """'+0.018 [+0.010, +0.026]' of a stats.Comparison, "-" where it is not known."""
    if one is None or math.isnan(one.difference):
        return "-"
    interval = stats.cut(metric, one.interval, difference=True)
    digits = 3 if max(map(abs, (one.difference, *interval))) < 10 else 1
    text, low, high = (f"{x:+.{digits}f}" for x in (one.difference, *interval))
    return text if math.isnan(interval[0]) else f"{text} [{low}, {high}]"
