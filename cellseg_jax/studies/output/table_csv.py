"""The table of a study and its learning curves as CSV, in full precision."""

import math

from cellseg_jax import files
from cellseg_jax.studies import confounders, learning_curve
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.output.next_step import next_step
from cellseg_jax.studies.output.sentences import curve_sizes
from cellseg_jax.studies.output.summary import is_best

FIELDS = ("study", "row", "metric", "n", "mean", "sd", "published", "baseline", "difference",
          "interval_low", "interval_high", "p", "adjusted_p", "effect_size", "verdict", "best",
          "images_difference", "images_low", "images_high", "images_p", "runs_of_other_code",
          "repeats", "diverged", "missing", "undefined", "rank_verdict", "rank_p",
          "rank_adjusted_p",
          "margin", "within", "no_worse_p", "equal_p", "chance_worse", "chance_equal",
          "chance_better", "confounded", "differs", "next_step")
CURVE_FIELDS = ("study", "curve", "metric", "what", "row", "repeat", "images", "images_low",
                "images_high", "score", "score_low", "score_high")


def csv_text(table) -> str:
    """A table.Table as CSV, a line per row and metric: FIELDS, in full precision.

    Unknown numbers are empty. mean, sd and difference are of the n of `repeats` that have a score;
    diverged, missing and undefined count the others. rank_* rank those that diverged last. p and
    interval are of the repeats; images_* of the test images, by stats.per_image.
    pandas: read_csv(...).pivot(index="row", columns="metric", values="mean").
    """
    return _csv(FIELDS, [_csv_line(table, row, metric)
                         for row in table.rows for metric in table.metrics])


def _csv(fields, lines) -> str:
    """Lines {field: value} as CSV; NaN and absent values are empty."""
    return files.csv_text([{k: "" if isinstance(v, float) and math.isnan(v) else v
                            for k, v in line.items()} for line in lines], fields)


def _csv_line(table, row, metric) -> dict:
    one, images = row.compared[metric], row.per_image[metric]
    line = {"study": table.study.name, "row": row.name, "metric": metric,
            "n": _count(row, metric), "mean": row.mean[metric], "sd": row.sd[metric],
            "published": row.reference.get(metric, math.nan),
            "baseline": table.study.baseline, "verdict": row.verdicts[metric],
            "adjusted_p": row.adjusted_p[metric], "best": int(is_best(table, row, metric)),
            "runs_of_other_code": sum(run.mark == "other code" for run in row.runs)}
    if one:
        line |= {"difference": one.difference, "interval_low": one.interval[0],
                 "interval_high": one.interval[1], "p": one.p, "effect_size": one.effect_size}
    gaps, reading = row.gaps[metric], row.by_rank.get(metric)
    line |= gaps._asdict()
    if reading:
        line |= {"rank_verdict": reading.verdict, "rank_p": reading.comparison.p,
                 "rank_adjusted_p": reading.adjusted_p}
    if metric in row.within:
        one = row.within[metric]
        line |= {"margin": one.margin, "within": one.word, "no_worse_p": one.p_no_worse,
                 "equal_p": one.p_equal, "chance_worse": one.posterior.worse,
                 "chance_equal": one.posterior.equal, "chance_better": one.posterior.better}
    line["confounded"] = int(bool(not_named(row.differs)))
    if metric == table.study.metrics[0]:
        line |= {"next_step": next_step(table, row),
                 "differs": "; ".join(map(confounders.text, row.differs))}
    if images:
        line |= {"images_difference": images.difference, "images_low": images.interval[0],
                 "images_high": images.interval[1], "images_p": images.p}
    return line


def curves_csv(table) -> str:
    """The learning curves as CSV: CURVE_FIELDS, in full precision; intervals are 95 %.

    what: "run", a run's training images and score; "curve", the fitted curve between them and
    beyond; "asymptote", the score that no number of images exceeds; "target", the images that a
    wanted score needs, inf where none suffice.
    """
    return _csv(CURVE_FIELDS, [
        {"study": table.study.name, "curve": curve.name, "metric": curve.metric} | line
        for curve in table.curves for line in _curve_lines(curve)])


def _curve_lines(curve) -> list[dict]:
    lines = [{"what": "run", "row": row, "repeat": repeat, "images": images, "score": score}
             for row, repeat, images, score in curve.points]
    if curve.fit is None:
        return lines
    sizes = curve_sizes(curve)
    lines += [{"what": "curve", "images": images, "score": score, "score_low": low,
               "score_high": high} for images, score, low, high in zip(
                   sizes, *learning_curve.predict(curve.fit, sizes), strict=True)]
    limit, (low, high) = learning_curve.asymptote(curve.fit)
    lines.append({"what": "asymptote", "score": limit, "score_low": low, "score_high": high})
    return lines + [
        {"what": "target", "images": images, "images_low": low, "images_high": high,
         "score": target} for target, (images, (low, high)) in curve.needed.items()]


def _count(row, metric) -> int:
    return sum(map(math.isfinite, row.values[metric]))
