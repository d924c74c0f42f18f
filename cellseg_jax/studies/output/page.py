"""One self-contained HTML page per study: the answer, its noise, and the pictures behind it.

The page says first what can be told apart and what is missing, then shows the table, differences
to the baseline, claims, curves, strata, images. Words are in page.html.jinja; here its values are
gathered.
"""

import math
import pathlib

import numpy as np

from cellseg_jax.files import read_json, read_jsonl, write_atomic
from cellseg_jax.report import charts, document, row_charts
from cellseg_jax.report.document import Cell, number
from cellseg_jax.runs.folder import METRICS_LOG, scores_file
from cellseg_jax.studies import learning_curve, stats
from cellseg_jax.studies.output import page_rows, sentences, summary
from cellseg_jax.studies.output import table_cells as cells
from cellseg_jax.studies.output.abstract import abstract
from cellseg_jax.studies.output.disagreement import (
    disagreements,
    image_column,
    image_scores,
    mean,
    run_scores,
)
from cellseg_jax.studies.output.methods import methods
from cellseg_jax.studies.output.summary import counted, headline, is_baseline
from cellseg_jax.studies.table import Table

MAX_ROWS = 60  # of a chart: beyond it, those with the largest differences
OPEN_ROWS = 12  # up to which the charts of losses are shown unfolded
MARKERS = {"better": "up", "worse": "down", "not distinguishable": "circle",
           "too few repeats": "diamond", "diverged": "cross", "incomplete": "square"}


def write_study_page(table: Table, path, reload_s: int = 0) -> None:
    """Write the page of a study's table; runs are read from the folders that it names.

    Args:
      reload_s: seconds after which a browser reads it again; 0 = never.
    """
    column = image_column(table)
    by_run = {row.name: run_scores(row, column) for row in table.rows}
    images = {row: image_scores(runs) for row, runs in by_run.items()}
    results = {row.name: [test for run in counted(row)
                          if (test := read_json(scores_file(run.workdir), None))]
               for row in table.rows}
    shown = _strongest(table, table.rows)
    commits = sorted({run.commit for row in table.rows for run in row.runs if run.commit})
    write_atomic(pathlib.Path(path), document.render(
        "studies/output/page.html.jinja", title=table.study.title or table.study.name, table=table,
        reload_s=reload_s,
        study=table.study, metric=headline(table), abstract=abstract(table),
        answer=summary.summary_sentence(table), methods=methods(table),
        done=summary.done_sentence(table), alpha=stats.ALPHA, min_pairs=stats.MIN_PAIRS,
        cards=_cards(table), learning_curves=[_learning_curve(c) for c in table.curves],
        forest=_forest(table), claims=[cells.judged_claim(table, one) for one in table.claims],
        all_rows=_table(table), published=_published(table), fronts=page_rows.fronts(table),
        advice=page_rows.advice(table), margins=page_rows.margins(table),
        won=page_rows.won(table, by_run, column),
        curves=_curves(table, shown), parts_of=_parts(table, results),
        column=column, distributions=_distributions(table, shown, images),
        over_images=_over_images(table), disagreements=disagreements(table, images),
        definitions=[(cells.TITLES.get(m, m), table.definitions[m]) for m in table.metrics
                     if m in table.definitions],
        tests=_tests(row.compared.get(headline(table)) for row in table.rows),
        left_out=len(shown) if len(table.rows) > len(shown) else 0, marks=cells.MARKS,
        commits=commits, dirty=any(commit.endswith("+") for commit in commits)))


# --- sections ------------------------------------------------------------------------------------


def _cards(table) -> dict:
    """The numbers that stand on top."""
    metric, found = headline(table), {row.name: row for row in table.rows}
    name, ties = table.best.get(metric, ("", ()))
    noise, base = _noise(table), found.get(table.study.baseline)
    spent = float(np.nansum([run.train_seconds for row in table.rows for run in row.runs]))
    return {
        "best": (name, number(found[name].mean[metric]),
                 sentences.ties_text(table, metric, summary.NAMED) if ties else "")
        if name else None,
        "baseline": number(base.mean.get(metric)) if base else None,
        "noise": noise, "noise_known": noise is not None and math.isfinite(noise.interval[1]),
        "spent": f"{spent / 3600:.1f} h" if spent > 3600 else f"{spent / 60:.1f} min"}


def _noise(table):
    """Spread of runs of the same config in the headline metric, None where it is not known."""
    noise = table.noise.get(headline(table))
    return noise if noise is not None and math.isfinite(noise.sd) else None


def _learning_curve(curve) -> dict:
    """Scores over the number of training images, what was fitted, and its sentences."""
    band, best = None, 1.0 if stats.larger_is_better(curve.metric) else 0.0
    if curve.fit is not None:
        sizes = sentences.curve_sizes(curve)
        score, low, high = learning_curve.predict(curve.fit, sizes)
        band = charts.Band(curve.name, sizes, *np.clip((low, score, high),
                                                       *stats.bounds(curve.metric)))
    chart = charts.fitted(
        f"Learning curve of {curve.name}", "training images", curve.metric,
        [(n, score) for *_, n, score in curve.points], band,
        last=curve.fit.sizes[-1] if band else 0.0, best=best,
        targets=[charts.Target(f"wanted {target:g}", target, n)
                 for target, (n, _) in curve.needed.items()])
    return {"name": curve.name, "chart": chart, "fitted": band is not None,
            "band": band is not None and len(curve.fit.draws) > 0,
            "sentences": sentences.curve_sentences(curve)}


def _forest(table) -> dict | None:
    metric, noise = headline(table), _noise(table)
    rows = [row for row in table.rows if (one := row.compared.get(metric)) is not None
            and math.isfinite(one.difference)]
    if not rows:
        return None
    rows = sorted(_strongest(table, rows), key=lambda row: -row.compared[metric].difference)
    word = lambda row: row.verdicts.get(metric) or "too few repeats"
    side = "right" if stats.larger_is_better(metric) else "left"
    margin = table.study.margin.get(metric, 0.0)
    return {"strip": noise is not None, "margin": margin, "chart": row_charts.differences(
        "Differences to the baseline", f"{metric} minus the baseline's; {side} is better",
        [row_charts.Difference(row.name, row.compared[metric].difference,
                               *stats.cut(metric, row.compared[metric].interval, difference=True),
                               MARKERS[word(row)], word(row))
         for row in rows], noise.sd if noise else 0.0, margin)}


def _table(table) -> dict:
    """Every row with all its scores."""
    head = headline(table)
    others = [metric for metric in table.metrics if metric != head]
    published = any(head in row.reference for row in table.rows)
    names = ["row", head, *(["published"] if published else []), "difference [95 % interval]",
             "verdict", "p (Holm)", "runs", *(cells.TITLES.get(m, m) for m in others),
             "what it changes"]
    rows = []
    for row in table.rows:
        reference = [number(row.reference.get(head), ".4g")] if published else []
        changes = "; ".join(f"{k}={v}" for k, v in row.changes.items()) or "nothing"
        rows.append([cells.row_name(table, row), cells.mean_sd(row, head, marked=False), *reference,
                     *cells.comparison(table, row, head), cells.run_count(row),
                     *(cells.mean_sd(row, m) for m in others), Cell(changes, kind="changes")])
    return {"head": names, "rows": rows, "numeric": [
        n for n, name in enumerate(names) if name not in ("row", "verdict", names[-1])]}


def _published(table) -> list[dict]:
    """Published beside measured scores, a chart per metric."""
    found = []
    for metric in table.metrics:
        rows = [r for r in table.rows if metric in r.reference and np.isfinite(r.mean[metric])]
        points = [(r.reference[metric], r.mean[metric], r.sd[metric]) for r in rows]
        chart = charts.scatter(f"{metric}, published and measured", f"published {metric}",
                               "measured", points, limits=stats.bounds(metric))
        if chart:
            found.append({"metric": metric, "chart": chart, "key": [
                (r.name, f"{x:.4g}, {y:.4g}") for r, (x, y, _) in zip(rows, points, strict=True)]})
    return found


def _curves(table, rows) -> dict | None:
    """Small charts, one per row: validation beside the baseline, and losses."""
    logs = {row.name: _logs(row) for row in rows}
    lines = [line for of_row in logs.values() for log in of_row for line in log]
    keys = {key for line in lines for key in line}
    if not keys:
        return None
    wanted = f"val_{headline(table)}"
    wanted = wanted if wanted in keys else "val_dice_mean"
    x = "epoch" if all("epoch" in line for line in lines) else "step"
    band = lambda name, key, text: charts.band(
        text, [([s[x] for s in log], [_finite(s.get(key)) for s in log]) for log in logs[name]])
    score = {name: band(name, wanted, "validation") for name in logs}
    base, limits = score.get(table.study.baseline), _late_limits(score.values())
    scores = {name: charts.bands(f"{wanted} of {name}", x, [score[name]], limits=limits,
                                 base=None if name == table.study.baseline else base)
              for name in logs}
    losses = {name: charts.bands(f"loss of {name}", x, [
        band(name, "train_loss", "training"), band(name, "val_loss", "validation")])
        for name in logs}
    return {"wanted": wanted, "scores": scores, "losses": losses, "open": len(rows) <= OPEN_ROWS}


def _late_limits(bands):
    """(low, high) of curves without their first steps, which would press differences flat."""
    known = [one for one in bands if one is not None]
    late = [one.low[-max(1, round(0.8 * len(one.low))) :].min() for one in known]
    return (min(late), max(one.high.max() for one in known)) if known else None


def _parts(table, results) -> list[dict]:
    """Tables of the scores by stratum and by class, a bar in every cell.

    A column of a class is what its outputs mean: class 0 of rows with other targets differs.
    """
    outputs = {row.name: next((run.outputs for run in row.runs if run.outputs), ())
               for row in table.rows}
    strata = {row: [test["per_stratum"] for test in tests if "per_stratum" in test]
              for row, tests in results.items()}
    classes = {row: [_by_meaning(test["per_class"], outputs[row]) for test in tests
                     if "per_class" in test] for row, tests in results.items()}
    several = any(len(part) > 1 for tests in classes.values() for part in tests)
    found = [_part(table, strata, "stratum", sorted),
             _part(table, classes if several else {}, "class", list)]
    return [one for one in found if one]


def _by_meaning(classes, outputs) -> dict:
    """{what a class is: its scores}; its number where that is not known."""
    names = outputs if len(outputs) >= len(classes) else list(classes)
    return dict(zip(names, classes.values(), strict=False))


def _part(table, parts, title, ordered) -> dict | None:
    """The table of {row: [{name: scores} of each repeat]}, None with a single name."""
    metric = headline(table)
    names = ordered({n: None for tests in parts.values() for part in tests for n in part})
    if len(names) < 2:
        return None
    used = metric if any(metric in scores for tests in parts.values() for part in tests
                         for scores in part.values()) else "dice_mean"
    sizes = [mean([_part_mean(tests, name, "n") for tests in parts.values()]) for name in names]
    return {
        "title": f"{used} by {title}",
        "head": ["row", *(f"{name} (n = {size:.0f})" if math.isfinite(size) else name
                          for name, size in zip(names, sizes, strict=True))],
        "rows": [[cells.row_name(table, row),
                  *(cells.meter(_part_mean(parts[row.name], name, used)) for name in names)]
                 for row in table.rows]}


def _part_mean(tests, name, key) -> float:
    """Mean over repeats of a value of one stratum or class."""
    return mean([part[name][key] for part in tests if name in part
                 and part[name].get(key) is not None])


def _distributions(table, rows, images) -> str:
    rows = sorted(rows, key=lambda row: not is_baseline(table, row))
    column = image_column(table)
    return row_charts.distributions(
        f"{column} of every test image", column,
        [(row.name, np.asarray([score for score, _ in images[row.name].values()]))
         for row in rows])


def _over_images(table) -> dict | None:
    """The tests over images; they are about these runs, not about the methods."""
    metric = headline(table)
    rows = [(cells.row_name(table, row), Cell(*cells.difference(c, metric)), number(c.p, ".3g"),
             c.n)
            for row in table.rows if (c := row.per_image.get(metric)) is not None]
    tests = _tests(row.per_image.get(metric) for row in table.rows)
    return {"rows": rows, "tests": tests} if rows else None


def _tests(compared) -> str:
    """Names of the statistical tests of comparisons."""
    return ", ".join(sorted({c.test for c in compared if c is not None and c.test}))


# --- values ---------------------------------------------------------------------------------------


def _strongest(table, rows) -> list:
    """At most MAX_ROWS of the rows, in their order: baseline and largest differences."""
    size = lambda row: (not is_baseline(table, row), -abs(_finite(getattr(
        row.compared.get(headline(table)), "difference", None)) or 0))
    kept = {row.name for row in sorted(rows, key=size)[:MAX_ROWS]}
    return [row for row in rows if row.name in kept]


def _logs(row) -> list[list[dict]]:
    """metrics.jsonl of the row's runs, unfinished ones too."""
    logs = [read_jsonl(pathlib.Path(run.workdir) / METRICS_LOG, []) for run in row.runs
            if run.mark in ("", "other code")]
    return list(filter(None, logs))


def _finite(value):
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
