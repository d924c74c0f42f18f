"""One self-contained HTML page per study: the answer, its noise, and the pictures behind it.

The page says first what can be told apart and what is missing, then shows the table, differences
to the baseline, claims, curves, strata, images. It loads nothing from anywhere.
"""

import base64
import csv
import io
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from html import escape

import numpy as np
from PIL import Image

from cellseg_jax.files import read_json, read_jsonl, write_atomic
from cellseg_jax.report import document, panels
from cellseg_jax.report.document import Html, heading
from cellseg_jax.runs import page
from cellseg_jax.runs.folder import METRICS_LOG, images_file, pictures_folder, scores_file
from cellseg_jax.studies import charts, learning_curve, render, stats
from cellseg_jax.studies.table import RESOURCES, Row, Run, Table

MAX_ROWS = 60  # of a chart: beyond it, those with the largest differences
NAMED = 4  # rows named in a sentence
LISTED = 8  # notes shown before the rest is folded
DISAGREEMENTS, PICTURED = 15, 6  # images listed, and shown
NONE = "\u2013"  # which tables sort last
TILE = 280  # pixels, longer side of a picture
MARKS = {"better": "\u25b2", "worse": "\u25bc", "not distinguishable": "\u25cf",
         "too few repeats": "\u25c7"}
JUDGED = {"supported": "\u2714", "contradicted": "\u2718", "undecided": "?"}
TITLES = {"train_seconds": "minutes", "cpu_seconds": "CPU minutes", "peak_memory_gib": "GiB"}
STYLE = """<style>
.answer{font-size:1.15rem;max-width:52rem}
.notes{border-left:4px solid var(--orange);padding:.1rem 0 .1rem .9rem;margin:1rem 0}
.notes ul{margin:.3rem 0;padding-left:1.1rem}
.v{white-space:nowrap}.v.better,.v.supported{color:var(--blue);font-weight:600}
.v.worse,.v.contradicted{color:var(--orange-text);font-weight:600}
small{color:var(--soft)}
.pinned tr:has(.base) td{background:var(--fill)}
.pinned td:first-child,.pinned th:first-child{position:sticky;left:0;z-index:1;
 border-right:1px solid var(--line)}
.pinned td:first-child{background:var(--paper)}
.name{display:inline-block;width:max-content;max-width:15rem}
.changes{white-space:nowrap}
.meter{display:block;height:.35rem;background:var(--blue);opacity:.6;margin-top:.1rem}
.many{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fill,minmax(min(48%,190px),1fr))}
.many h4{font-size:.8rem;margin:0;font-weight:600}
.pair{display:grid;gap:0 2rem;align-items:start;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.pair>div{min-width:0}
.strip{display:grid;gap:.5rem;margin:.3rem 0 1.4rem;max-width:1000px;
 grid-template-columns:repeat(auto-fill,minmax(min(46%,210px),1fr))}
.strip img{display:block;width:100%;height:auto}
.curve,.curve svg{max-width:46rem}
.key .small{font-size:inherit}
.key{columns:14rem;font-size:.8rem;padding-left:1.4rem;margin:.3rem 0}
@media screen and (max-width:600px){.name{max-width:7rem}}
@media print{.pinned td:first-child,.pinned th:first-child{position:static}
 .pinned table{font-size:6.5pt}.pinned .n,.pinned .v{white-space:normal}
 .pinned td{overflow-wrap:break-word}.name{width:auto}
 .changes{display:block;min-width:6rem;white-space:normal;overflow-wrap:anywhere}}
</style>"""


def write_study_page(table: Table, path) -> None:
    """Write the page of a study's table; runs are read from the folders that it names."""
    images = {row.name: _image_scores(row, _image_column(table)) for row in table.rows}
    results = {row.name: list(filter(None, map(_result, _counted(row)))) for row in table.rows}
    title = table.study.title or table.study.name
    sections = [
        f"{charts.STYLE}{STYLE}<h1>{escape(title)}</h1>"
        f'<p class="answer">{escape(summary_sentence(table))}</p>',
        _remarks(table), _cards(table), document.NAV, _learning_curves(table),
        _pair(_forest(table), _claims(table)), _table(table),
        _published(table), _cost(table), _curves(table), _strata(table, results),
        _distributions(table, images), _disagreements(table, images),
        _definitions(table), _rerun(table),
    ]
    write_atomic(pathlib.Path(path), document.document(title, sections))


# --- the answer in words -------------------------------------------------------------------------


def summary_sentence(table: Table) -> str:
    """What the headline metric says about all rows, in plain words, with the noise beside it."""
    metric, others = _headline(table), [r for r in table.rows if not _is_baseline(table, r)]
    scored = [r for r in others if _is_compared(r, metric)]
    if not scored:
        return (f"No row can be compared with the baseline {table.study.baseline} in {metric} yet: "
                f"{_done(table)}.")
    by_word = {w: [r.name for r in scored if r.verdicts[metric] == w] for w in stats.VERDICTS}
    differ = len(by_word["better"]) + len(by_word["worse"])
    text = (f"In {metric}, {differ or 'none'} of {_count(len(scored), 'row')} "
            f"{'differs' if differ == 1 else 'differ'} from the baseline {table.study.baseline}")
    said = [f"{len(names)} better ({_names(names)})" if word == "better" else
            f"{len(names)} worse ({_names(names)})"
            for word in ("better", "worse") if (names := by_word[word])]
    text += f": {', '.join(said)}." if said else "."
    for word, sentence in (("not distinguishable", "not distinguishable from it"),
                           ("too few repeats", "without a verdict: too few repeats")):
        if count := len(by_word[word]):
            text += f" {_count(count, 'row')} {'is' if count == 1 else 'are'} {sentence}."
    if waiting := len(others) - len(scored):
        text += f" {_count(waiting, 'row')} cannot be compared yet."
    needed = [line for curve in table.curves if curve.fit is not None
              for line in render.curve_sentences(curve)[: len(curve.needed)]]
    return " ".join(filter(None, [*needed, text, _power(table), claims_sentence(table)]))


def claims_sentence(table: Table) -> str:
    """How many of the report's claims the runs support, "" where it claims nothing."""
    count = Counter(word for _, word, _ in table.claims)
    said = ", ".join(f"{count[word]} {word}" for word in stats.JUDGEMENTS if count[word])
    return f"Of {_count(len(table.claims), 'published claim')}: {said}." if said else ""


def _power(table) -> str:
    """What difference could have been seen."""
    noise, said = table.noise.get(_headline(table)), []
    if noise is not None and math.isfinite(noise.sd):
        said.append(f"Runs of one config differ by {noise.sd:.2g} (standard deviation)")
    if table.needed:
        wanted, count = min(table.needed.items(), key=lambda item: abs(item[0] - 0.01))
        said.append(f"to see a difference of {wanted:g} takes {count:.0f} repeats"
                    if math.isfinite(count) else
                    f"a difference of {wanted:g} takes more test images, whatever the repeats")
        repeats = max((len(_counted(row)) for row in table.rows), default=0)
        said[-1] += f" (there {'is' if repeats == 1 else 'are'} {repeats})"
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if said else ""


def _done(table) -> str:
    runs = [run for row in table.rows for run in row.runs]
    done = sum(run.status in ("done", "stopped early") for run in runs)
    return f"{done} of {_count(len(runs), 'run')} {'is' if done == 1 else 'are'} done"


def _names(names) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# --- sections ------------------------------------------------------------------------------------


def _remarks(table) -> str:
    """What is missing and what a reader must know, before any number."""
    out = ""
    for title, lines in ((f"{_done(table)}; missing", table.missing), ("To know", table.notes)):
        if lines:
            items = [f"<li>{escape(line)}</li>" for line in lines]
            rest = (f"<details><summary>{len(items) - LISTED} more</summary><ul>"
                    f"{''.join(items[LISTED:])}</ul></details>" if len(items) > LISTED else "")
            out += f"<b>{title}</b><ul>{''.join(items[:LISTED])}</ul>{rest}"
    return f'<div class="notes" role="note">{out}</div>' if out else ""


def _cards(table) -> str:
    metric = _headline(table)
    shown = []
    if metric in table.best and table.best[metric][0]:
        name, ties = table.best[metric]
        row = next(r for r in table.rows if r.name == name)
        beside = f"; not distinguishable: {_names(list(ties))}" if ties else ""
        shown.append((_score(row.mean[metric]), f"{metric} of {name}, the best mean{beside}"))
    base = [r for r in table.rows if _is_baseline(table, r)]
    if base:
        shown.append((_score(base[0].mean.get(metric)), f"{metric} of the baseline"))
    noise = table.noise.get(metric)
    if noise is not None and math.isfinite(noise.sd):
        low, high = noise.interval
        span = f", 95 % interval {low:.2g} to {high:.2g}" if math.isfinite(high) else ""
        shown.append((f"\u00b1{noise.sd:.4f}", f"noise floor: spread of repeats of the same config"
                                               f"{span}"))
    runs = [run for row in table.rows for run in row.runs]
    spent = float(np.nansum([run.train_seconds for run in runs]))
    shown.append((f"{spent / 3600:.1f} h" if spent > 3600 else f"{spent / 60:.1f} min",
                  f"training in all; {_done(table)}"))
    cards = [f'<div class="card"><b>{escape(value)}</b>{escape(text)}</div>'
             for value, text in shown]
    return f'<div class="cards">{"".join(cards)}</div>'


def _pair(*sections) -> str:
    """Beside each other where there is room."""
    return f'<div class="pair">{"".join(f"<div>{one}</div>" for one in sections if one)}</div>'


def _table(table) -> str:
    head = _headline(table)
    others = [m for m in table.metrics if m != head]
    published = any(head in row.reference for row in table.rows)
    names = ["row", head, *(["published"] if published else []), "difference [95 % interval]",
             "verdict", "p (Holm)", "runs", *(TITLES.get(m, m) for m in others), "what it changes"]
    rows = []
    for row in table.rows:
        p = row.adjusted_p.get(head, math.nan)
        cells = [_name(table, row), _mean_sd(row, head, marked=False)]
        if published:
            cells.append(f"{row.reference[head]:.4g}" if head in row.reference else NONE)
        if _is_baseline(table, row):
            cells += [Html("0 <small>by definition</small>"), NONE, NONE]
        else:
            cells += [_difference(row.compared.get(head)), _verdict(row.verdicts.get(head, "")),
                      f"{p:.3g}" if math.isfinite(p) else NONE]
        cells += [_runs(row), *(_mean_sd(row, m) for m in others)]
        changes = "; ".join(f"{k}={v}" for k, v in row.changes.items()) or "nothing"
        rows.append([*cells, Html(f'<small class="changes">{escape(changes)}</small>')])
    numeric = {n for n, name in enumerate(names) if name not in ("row", "verdict", names[-1])}
    return (heading("The table")
            + f'<p class="small">Mean \u00b1 standard deviation over repeats. Difference and p are '
              f"of {escape(head)}; \u25b2 or \u25bc beside another score is its own verdict "
              "against the baseline. A click on a heading sorts.</p>"
            + _sortable("All rows of the study", names, rows, numeric))


def _forest(table) -> str:
    metric = _headline(table)
    rows = [r for r in table.rows if _is_compared(r, metric)]
    rows = sorted(_strongest(table, rows), key=lambda r: -r.compared[metric].difference)
    if not rows:
        return ""
    noise = table.noise.get(metric)
    floor = noise.sd if noise is not None and math.isfinite(noise.sd) else 0.0
    shown = [charts.Difference(r.name, r.compared[metric].difference, *r.compared[metric].interval,
                               r.verdicts.get(metric, "")) for r in rows]
    lower = metric in stats.LOWER_IS_BETTER
    chart = charts.forest(
        "Differences to the baseline", f"{metric} minus the baseline's; "
        f"{'left' if lower else 'right'} is better", shown, floor)
    legend = ", ".join(f"{MARKS[word]} {word}" for word in stats.VERDICTS)
    strip = ("Grey strip: one standard deviation of runs of the same config. " if floor else "")
    return (heading("Differences to the baseline")
            + f"<figure>{chart}<figcaption>Baseline: {escape(table.study.baseline)}. {legend}. "
            f"Line: 95 % interval, an arrow where it goes on. {strip}"
            f"{_left_out(table, rows)}</figcaption></figure>")


def _claims(table) -> str:
    if not table.claims:
        return ""
    rows = []
    for claim, word, compared in table.claims:
        sides = f"{' + '.join(claim.better)} against {' + '.join(claim.worse)}"
        within = f", equal within {claim.equal_within:g}" if claim.equal_within else ""
        rows.append((
            Html(f'<span class="v {word}">{JUDGED[word]}&nbsp;{word}</span>'),
            Html(f'{escape(claim.text)}<br><span class="small">{_soft(sides)} in '
                 f"{escape(claim.metric or _headline(table))}{within}: {_difference(compared)}"
                 "</span>")))
    return heading("Claims of the report") + document.table(
        ("verdict", "claim"), rows, name="Claims") + (
        '<p class="small">Under each claim: its difference and 95 % interval.</p>')


def _learning_curves(table) -> str:
    """Scores over the number of training images, what was fitted, and what it says."""
    out = ""
    for curve in table.curves:
        band, best = None, 1.0 if curve.metric not in stats.LOWER_IS_BETTER else 0.0
        if curve.fit is not None:
            sizes = render.curve_sizes(curve)
            score, low, high = learning_curve.predict(curve.fit, sizes)
            band = charts.Band(curve.name, sizes, low, score, high)
        chart = charts.learning_curve(
            f"Learning curve of {curve.name}", curve.metric,
            [(n, score) for *_, n, score in curve.points], band,
            last=curve.fit.sizes[-1] if band else 0.0, best=best,
            targets=[(target, n) for target, (n, _) in curve.needed.items()])
        key = ["Circle: a run."] if chart else []
        if band:
            key += ["Line: fitted curve, dashed where it is extrapolated."]
            key += ["Band: its 95 % interval."] if len(curve.fit.draws) else []
        text = " ".join([*key, *render.curve_sentences(curve)])
        out += (f'<figure class="curve"><h3>{escape(curve.name)}</h3>{chart}'
                f"<figcaption>{escape(text)}</figcaption></figure>")
    return heading("Learning curve") + out if out else ""


def _published(table) -> str:
    out = ""
    for metric in table.metrics:
        rows = [r for r in table.rows if metric in r.reference and np.isfinite(r.mean[metric])]
        points = [(r.reference[metric], r.mean[metric], r.sd[metric]) for r in rows]
        chart = charts.scatter(f"{metric}, published and measured", f"published {metric}",
                               "measured", points)
        key = "".join(f"<li>{escape(r.name)} <span class=\"small\">{r.reference[metric]:.4g}, "
                      f"{r.mean[metric]:.4g}</span></li>" for r in rows)
        out += (f"<figure><h3>{escape(metric)}</h3>{chart}<figcaption>published, measured; line "
                f'of equal values<ol class="key">{key}</ol></figcaption></figure>'
                if chart else "")
    return heading("Published beside measured") + f'<div class="grid3">{out}</div>' if out else ""


def _cost(table) -> str:
    """The headline score over the minutes of training, for rows that were trained."""
    metric = _headline(table)
    rows = [r for r in table.rows if (r.mean.get("train_seconds", 0) or 0) > 0
            and math.isfinite(r.mean[metric])]
    points = [(r.mean["train_seconds"] / 60, r.mean[metric], r.sd[metric]) for r in rows]
    if len(rows) < 2:
        return ""
    chart = charts.scatter(f"{metric} over minutes of training", "minutes of training", metric,
                           points, diagonal=False)
    key = "".join(f"<li>{escape(r.name)}</li>" for r in rows)
    return (heading("Score and cost") + f"<figure>{chart}<figcaption>Line: standard deviation over "
            f'repeats.<ol class="key">{key}</ol></figcaption></figure>')


def _curves(table) -> str:
    """Small charts, one per row: validation beside the baseline, and losses."""
    rows = _strongest(table, table.rows)
    logs = {row.name: _logs(row) for row in rows}
    keys = {key for lines in logs.values() for log in lines for line in log for key in line}
    if not keys:
        return ""
    wanted = f"val_{_headline(table)}"
    wanted = wanted if wanted in keys else "val_dice_mean"
    x = "epoch" if all("epoch" in line for lines in logs.values() for log in lines
                       for line in log) else "step"
    band = lambda name, key, text: charts.band(
        text, [([s[x] for s in log], [_finite(s.get(key)) for s in log]) for log in logs[name]])
    score = {row.name: band(row.name, wanted, "validation") for row in rows}
    base = score.get(table.study.baseline)
    known = [one for one in score.values() if one is not None]
    # the first steps, which are poor everywhere, would press all differences flat
    late = [one.low[-max(1, round(0.8 * len(one.low))) :].min() for one in known]
    limits = (min(late), max(one.high.max() for one in known)) if known else None
    small, losses = "", ""
    for row in rows:
        name, is_base = row.name, row.name == table.study.baseline
        chart = charts.bands(f"{wanted} of {name}", x, [score[name]], limits=limits,
                             base=None if is_base else base)
        small += f"<figure><h4>{escape(name)}</h4>{chart}</figure>" if chart else ""
        chart = charts.bands(f"loss of {name}", x, [band(name, "train_loss", "training"),
                                                    band(name, "val_loss", "validation")])
        losses += f"<figure><h4>{escape(name)}</h4>{chart}</figure>" if chart else ""
    opened = " open" if len(rows) <= 12 else ""
    return (heading("Curves")
            + f'<p class="small">{escape(wanted)}: mean of the repeats, band from the '
            f"lowest to the highest; dashed grey: {escape(table.study.baseline)}. All charts have "
            f"one scale, which may leave out the first steps. {_left_out(table, rows)}</p>"
            f'<div class="many">{small}</div>'
            f'<details{opened}><summary>Training and validation loss</summary><p class="small">'
            "Blue: training. Orange, dashed: validation. Scales differ: rows may have other "
            f'losses.</p><div class="many">{losses}</div></details>')


def _strata(table, results) -> str:
    """Scores by stratum and by class, a bar in every cell."""
    metric, out = _headline(table), ""
    for key, title in (("per_stratum", "stratum"), ("per_class", "class")):
        parts = {row: [t[key] for t in tests if key in t] for row, tests in results.items()}
        names = sorted({n for tests in parts.values() for part in tests for n in part})
        if len(names) < 2:
            continue
        one = lambda name, what, row: _mean([part[name][what] for part in parts[row] if name in part
                                             and part[name].get(what) is not None])
        used = metric if any(metric in part[names[0]] for tests in parts.values()
                             for part in tests if names[0] in part) else "dice_mean"
        rows = [(_name(table, row), *(_meter(one(name, used, row.name)) for name in names))
                for row in table.rows]
        sizes = [_mean([one(name, "n", row) for row in parts]) for name in names]
        heads = [f"{name} (n = {size:.0f})" if math.isfinite(size) else name
                 for name, size in zip(names, sizes, strict=True)]
        out += (heading(f"{used} by {title}")
                + '<p class="small">Mean of the repeats; bars run from 0 to 1.</p>'
                + _sortable(f"{used} by {title}", ("row", *heads), rows, range(1, len(heads) + 1)))
    return out


def _distributions(table, images) -> str:
    rows = sorted(_strongest(table, table.rows), key=lambda r: not _is_baseline(table, r))
    column = _image_column(table)
    chart = charts.distributions(
        f"{column} of every test image", column,
        [(r.name, np.asarray([score for score, _ in images[r.name].values()])) for r in rows])
    return (heading("Scores of the images")
            + f'<figure>{chart}<figcaption>One image '
            "is one value, the mean of the repeats that tested it. Shape: how many images; bar: "
            "the middle half; dot and number: median; dashed line: the first row's median; \u25c2: "
            f"images below the axis. {_left_out(table, rows)}</figcaption></figure>"
            + _over_images(table) if chart else "")


def _over_images(table) -> str:
    """The tests over images, folded: they are about these runs, not about the methods."""
    metric = _headline(table)
    rows = [(_name(table, row), _difference(c), f"{c.p:.3g}" if math.isfinite(c.p) else NONE, c.n)
            for row in table.rows if (c := row.per_image.get(metric)) is not None]
    if not rows:
        return ""
    tests = ", ".join(sorted({row.per_image[metric].test for row in table.rows
                              if row.per_image.get(metric) is not None}))
    return ("<details><summary>Tests over images (secondary)</summary>"
            f'<p class="small">{escape(tests)}. They say whether these trained networks differ on '
            "such images. Two runs of one config do, too: the verdicts above are over repeats.</p>"
            + _sortable("Tests over images", ("row", "difference [95 % interval]",
                                              "p (not adjusted)", "images"), rows, {1, 2, 3})
            + "</details>")


def _disagreements(table, images) -> str:
    """The test images whose scores depend most on the row, with the pictures that exist."""
    spread = {}
    for name in sorted({n for scores in images.values() for n in scores}):
        by_row = {row: images[row][name][0] for row in images if name in images[row]
                  and math.isfinite(images[row][name][0])}
        if len(by_row) >= 2:
            spread[name] = (float(np.std(list(by_row.values()), ddof=1)), by_row)
    ranked = sorted(spread, key=lambda name: -spread[name][0])
    if not ranked:
        return ""
    found, strata = _panels(table, set(ranked)), {
        n: s for scores in images.values() for n, (_, s) in scores.items()}
    rows = []
    for name in ranked[:DISAGREEMENTS]:
        sd, by_row = spread[name]
        low, high = min(by_row, key=by_row.get), max(by_row, key=by_row.get)
        rows.append([name, strata[name], f"{sd:.3f}",
                     *(Html(f"{by_row[r]:.3f} <small>{escape(r)}</small>") for r in (low, high))])
    contrast = lambda name: float(np.ptp([spread[name][1][row] for row in found[name]]))
    pictured = sorted((n for n in ranked[: max(DISAGREEMENTS, len(ranked) // 4)] if n in found),
                      key=contrast, reverse=True)[:PICTURED]
    column = _image_column(table)
    shown = "".join(_strip(name, spread[name][1], found[name], column)
                    for name in sorted(pictured, key=ranked.index))
    return (heading("Images on which the rows disagree most")
            + f'<p class="small">By the spread of '
            f"{escape(column)} over the rows, repeats averaged. "
            + ("Pictures are those that the runs kept: their worst and median images." if shown else
               "No run kept a picture of them.")
            + "</p>" + shown
            + _sortable("Images on which the rows disagree",
                        ("image", "stratum", "spread over rows", "lowest", "highest"), rows,
                        {2, 3, 4}))


def _strip(name, by_row, found, column) -> str:
    """image | truth | prediction of the worst row with a picture | of the best one."""
    order = sorted(found, key=lambda row: by_row.get(row, math.inf))
    chosen = list(dict.fromkeys((order[0], order[-1])))
    image, truth, _ = _tiles(found[chosen[0]][1])
    tiles = [("image", "image", image), ("truth", "truth", truth)]
    for row in chosen:
        dice, path = found[row]
        tiles.append((f"prediction of {row}", f"{row}: Dice {dice} in this run, mean {column} "
                      f"{by_row.get(row, math.nan):.3f}", _tiles(path)[2]))
    best, worst = max(by_row, key=by_row.get), min(by_row, key=by_row.get)
    tiles = "".join(
        f'<figure><img alt="{escape(f"{alt}, {name}")}" src="{_jpeg(tile)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>" for alt, text, tile in tiles)
    return (f"<h3>{escape(name)}</h3><p class=\"small\">Lowest {column} {by_row[worst]:.3f} "
            f"({escape(worst)}), highest {by_row[best]:.3f} ({escape(best)}).</p>"
            f'<div class="strip">{tiles}</div>')


def _definitions(table) -> str:
    head = _headline(table)
    tests = {c.test for row in table.rows if (c := row.compared.get(head)) is not None and c.test}
    varies = ", ".join(table.study.varies)
    words = [
        ("repeat", f"The same config with another {varies}; repeat r of two rows shares them, so "
                   "rows are compared repeat by repeat."),
        ("difference", "Mean over repeats of the row minus the baseline, with its 95 % interval"
                       + (f"; test: {', '.join(sorted(tests))}" if tests else "")
                       + (". The repeats' random splits overlap, which the test allows for"
                          if table.test_train_ratio else "") + "."),
        ("p (Holm)", "Chance of a difference this large where there is none, adjusted for the "
                     "number of rows. Intervals are not: of many rows, some miss 0 by luck."),
        ("better, worse", f"Adjusted p below {stats.ALPHA:g}."),
        ("not distinguishable", "The repeats do not tell the row from the baseline. It does not "
                                "mean that they are equal: the interval says what is possible."),
        ("too few repeats", f"Fewer than {stats.MIN_PAIRS} repeats of both."),
        ("noise floor", "Standard deviation of runs that differ by nothing but the repeat."),
    ]
    scores = [(TITLES.get(m, m), table.definitions[m]) for m in table.metrics
              if m in table.definitions]
    return heading("What the words mean") + document.table(
        ("word", "meaning"), [*scores, *words], wide={1})


def _rerun(table) -> str:
    commits = sorted({run.commit for row in table.rows for run in row.runs if run.commit})
    file = table.study.path or f"configs/studies/{table.study.name}.py"
    study = f"--study={file}"
    lines = [f"git checkout {commits[0].rstrip('+')}"] if len(commits) == 1 else []
    lines += [f"python -m cellseg_jax.study {study} --workdir={table.workdir}",
              f"python -m cellseg_jax.study {study} --workdir={table.workdir} --collect"
              "   # this page alone",
              f"python -m cellseg_jax.main --config={file}:"
              f"{table.study.baseline}   # one row"]
    notes = f"<p>Runs of {len(commits)} commits: {escape(', '.join(commits))}.</p>" if len(
        commits) > 1 else ""
    if any(commit.endswith("+") for commit in commits):
        notes += "<p>A tree had changes that are not in its commit.</p>"
    return heading("Run it again") + f"{notes}<pre>{escape(chr(10).join(lines))}</pre>"


# --- cells ---------------------------------------------------------------------------------------


def _sortable(name, head, rows, numeric) -> str:
    """A table that sorts by its heads and keeps its first column in sight."""
    return (f'<div class="pinned">'
            f"{document.table(head, rows, numeric, sortable=True, name=name)}</div>")


def _name(table, row) -> Html:
    mark = ' <small class="base">baseline</small>' if _is_baseline(table, row) else ""
    return Html(f'<span class="name">{_soft(row.name)}</span>{mark}')


def _soft(text) -> str:
    """HTML of a text that may break after an underscore."""
    return escape(text).replace("_", "_<wbr>")


def _mean_sd(row, metric, marked=True) -> Html | str:
    """Mean \u00b1 sd, in the unit that the heading names, with the verdict's mark."""
    mean, sd = row.mean.get(metric, math.nan), row.sd.get(metric, math.nan)
    if not math.isfinite(mean):
        return NONE
    unit = 60 if metric in ("train_seconds", "cpu_seconds") else 1
    digits = ".2f" if metric in TITLES else ".4f"
    text = f"{mean / unit:{digits}}"
    text += f" <small>\u00b1 {sd / unit:{digits}}</small>" if math.isfinite(sd) else ""
    word = row.verdicts.get(metric, "") if marked else ""
    if word in ("better", "worse") and metric not in RESOURCES:
        text += f' <span class="v {word}" title="{word}">{MARKS[word]}</span>'
    return Html(text)


def _difference(compared) -> Html | str:
    if compared is None or not math.isfinite(compared.difference):
        return NONE
    low, high = compared.interval
    span = f" <small>[{low:+.4f}, {high:+.4f}]</small>" if math.isfinite(low) else ""
    return Html(f"{compared.difference:+.4f}{span}")


def _verdict(word) -> Html | str:
    return Html(f'<span class="v {word}">{MARKS[word]}&nbsp;{word}</span>') if word else NONE


def _runs(row) -> Html:
    """How many runs there are, and what became of the others."""
    odd = Counter(run.mark or run.status for run in row.runs
                  if run.mark or run.status in ("non-finite", "unfinished", "missing"))
    said = "".join(f"<br><small>{n} {word}</small>" for word, n in odd.items())
    return Html(f"{len(_counted(row))}/{len(row.runs)}{said}")


def _meter(value) -> Html | str:
    """A number over a bar from 0 to 1."""
    return Html(f'{value:.3f}<span class="meter" style="width:{100 * min(max(value, 0), 1):.0f}%">'
                "</span>") if math.isfinite(value) else NONE


def _score(value) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


# --- what runs hold ------------------------------------------------------------------------------


def _headline(table) -> str:
    return table.metrics[0] if table.metrics else table.study.metrics[0]


def _is_baseline(table, row) -> bool:
    return row.name == table.study.baseline


def _is_compared(row, metric) -> bool:
    """Whether there is a difference to the baseline."""
    compared = row.compared.get(metric)
    return compared is not None and math.isfinite(compared.difference)


def _counted(row) -> list[Run]:
    """Runs whose scores are in the table."""
    return [run for run in row.runs if run.counts]


def _strongest(table, rows) -> list[Row]:
    """At most MAX_ROWS of the rows, in their order: baseline and largest differences."""
    size = lambda row: (not _is_baseline(table, row), -abs(_finite(getattr(
        row.compared.get(_headline(table)), "difference", None)) or 0))
    kept = {row.name for row in sorted(rows, key=size)[:MAX_ROWS]}
    return [row for row in rows if row.name in kept]


def _left_out(table, rows) -> str:
    return (f"The {len(rows)} rows of {len(table.rows)} that differ most." if len(rows) >= MAX_ROWS
            else "")


def _result(run) -> dict | None:
    """eval/test.json of a run."""
    return read_json(scores_file(run.workdir), None)


def _logs(row) -> list[list[dict]]:
    """metrics.jsonl of the row's runs, unfinished ones too."""
    paths = [pathlib.Path(run.workdir) / METRICS_LOG for run in row.runs
             if run.mark in ("", "other code")]
    return [log for path in paths if path.is_file() and (log := read_jsonl(path))]


def _image_column(table) -> str:
    """The column of test_images.csv that the headline metric is the mean of, else dice."""
    name = _headline(table).removesuffix("_mean")
    for row in table.rows:
        for run in _counted(row):
            path = images_file(run.workdir)
            if path.is_file():
                with open(path, newline="") as file:
                    return name if name in next(csv.reader(file), ()) else "dice"
    return "dice"


def _image_scores(row, column: str) -> Mapping[str, tuple[float, str]]:
    """{image: (mean score of the repeats that tested it, stratum)}."""
    scores, strata = {}, {}
    for run in _counted(row):
        path = images_file(run.workdir)
        if not path.is_file():
            continue
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                scores.setdefault(line["name"], []).append(float(line[column] or "nan"))
                strata[line["name"]] = line["stratum"]
    return {name: (_mean(values), strata[name]) for name, values in scores.items()}


def _panels(table, names) -> dict:
    """{image: {row: (Dice in that run, path)}} of the pictures that runs kept.

    A picture's file name holds the first 40 letters of the image's; where two images share
    them, neither is taken.
    """
    full = {}
    for name in names:
        full.setdefault(pathlib.PurePath(name).name[:40], []).append(name)
    found = {}
    for row in table.rows:
        for run in _counted(row):
            for path in sorted(pictures_folder(run.workdir).glob("*.png")):
                match = page.PICTURE_NAME.fullmatch(path.name)
                if match and len(full.get(match[3], ())) == 1:
                    found.setdefault(full[match[3]][0], {}).setdefault(row.name, (match[2], path))
    return found


def _tiles(path) -> list[Image.Image]:
    """Image, truth and prediction out of a picture that panels.panel drew."""
    with Image.open(path) as whole:
        whole = whole.convert("RGB")
    cell = (whole.width - panels.GAP) // 4
    line = round(1.6 * max(15, whole.width // 85))
    box = lambda n: (panels.GAP + n * cell, panels.GAP + line, (n + 1) * cell,
                     whole.height - panels.GAP - line)
    return [whole.crop(box(n)) for n in range(3)]


def _jpeg(tile) -> str:
    """A data URI, at most TILE pixels long."""
    tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    tile.save(data, format="JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _mean(values) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan


def _finite(value):
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
