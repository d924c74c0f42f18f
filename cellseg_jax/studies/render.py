"""The table of a study as Markdown, LaTeX, CSV and in the terminal.

A score stands beside its spread, a difference beside its interval and verdict, and all beside the
sentences that say what they mean. The best row is bold only if a test tells it from each other.
"""

import csv
import io
import math
import sys
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cellseg_jax.studies import learning_curve, stats

RESOURCES = (("minutes", "train_seconds", 60), ("CPU minutes", "cpu_seconds", 60),
             ("GiB", "peak_memory_gib", 1))  # column, metric, divisor
FIELDS = ("study", "row", "metric", "n", "mean", "sd", "published", "baseline", "difference",
          "interval_low", "interval_high", "p", "adjusted_p", "effect_size", "verdict", "best",
          "images_difference", "images_low", "images_high", "images_p", "runs_of_other_code")
CURVE_FIELDS = ("study", "curve", "metric", "what", "row", "repeat", "images", "images_low",
                "images_high", "score", "score_low", "score_high")
MARK = "†"  # beside a row with runs of other code
SHOWN = 20  # lines of what is missing
WIDE = 110  # columns of a terminal that has room for the differences
COMPARED = (
    "Effect size: mean difference of the repeats in units of their spread (Cohen's d_z with "
    "Hedges' correction). Over images: secondary, the mean over repeats of the difference on each "
    "test image, with a bootstrap interval over images or their groups and Wilcoxon's p, not "
    "adjusted. It says how far the images agree, and is blind to the luck of a seed: two seeds of "
    "one config may differ in it.")
TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", MARK: r"$^\dagger$", "\n": " "})


class _Cell(NamedTuple):
    text: str
    bold: bool = False


def markdown(table) -> str:
    """A collect.Table as a Markdown document: scores, claims, and what has to be known."""
    head, rows = _cells(table)
    show = lambda cell: f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)
    parts = [f"# {_md(table.study.title)}", _md_table(head, [map(show, row) for row in rows]),
             " ".join(map(_md, sentences(table)))]
    if table.claims:
        head, rows = _claims(table)
        parts += ["## Claims", _md_table(head, [map(_md, row) for row in rows])]
    for curve in table.curves:
        parts += [f"## Learning curve of {_md(curve.name)}",
                  " ".join(map(_md, curve_sentences(curve)))]
    head, rows = _comparisons(table)
    if rows:
        parts += [f"## Compared with {_md(table.study.baseline)}",
                  _md_table(head, [map(_md, row) for row in rows]), COMPARED]
    for title, lines in (("Definitions", _definitions(table, table.metrics)),
                         ("Notes", table.notes), ("Missing", _missing(table))):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {_md(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def latex(table) -> str:
    """A collect.Table as LaTeX tables for \\input; they need booktabs and adjustbox."""
    head, rows = _cells(table)
    show = lambda cell: f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
    caption = " ".join([f"{table.study.title}.", *sentences(table), *table.notes])
    text = _tex_table(head, [[*map(show, row)] for row in rows], caption, table.study.name)
    if table.claims:
        head, rows = _claims(table)
        text += "\n" + _tex_table(head, [[*map(_tex, row)] for row in rows],
                                  f"{table.study.title}: claims of the report, judged.",
                                  f"{table.study.name}-claims")
    return "% \\usepackage{booktabs,adjustbox}\n" + text


def csv_text(table) -> str:
    """A collect.Table as CSV, a line per row and metric: FIELDS, in full precision.

    Unknown numbers are empty. p and interval are of the repeats; images_* of the test images, by
    stats.per_image. pandas: read_csv(...).pivot(index="row", columns="metric", values="mean").
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for metric in table.metrics:
            one, images = row.compared[metric], row.per_image[metric]
            line = {"study": table.study.name, "row": row.name, "metric": metric,
                    "n": _count(row, metric), "mean": row.mean[metric], "sd": row.sd[metric],
                    "published": row.reference.get(metric, math.nan),
                    "baseline": table.study.baseline, "verdict": row.verdicts[metric],
                    "adjusted_p": row.adjusted_p[metric], "best": int(_is_best(table, row, metric)),
                    "runs_of_other_code": sum(run.mark == "other code" for run in row.runs)}
            if one:
                line |= {"difference": one.difference, "interval_low": one.interval[0],
                         "interval_high": one.interval[1], "p": one.p,
                         "effect_size": one.effect_size}
            if images:
                line |= {"images_difference": images.difference, "images_low": images.interval[0],
                         "images_high": images.interval[1], "images_p": images.p}
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v
                             for k, v in line.items()})
    return text.getvalue()


def curves_csv(table) -> str:
    """The learning curves as CSV: CURVE_FIELDS, in full precision; intervals are 95 %.

    what: "run", a run's training images and score; "curve", the fitted curve between them and
    beyond; "asymptote", the score that no number of images exceeds; "target", the images that a
    wanted score takes, inf where none suffice.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_FIELDS, lineterminator="\n")
    writer.writeheader()
    for curve in table.curves:
        def write(what, _about=(table.study.name, curve.name, curve.metric), **values):
            line = dict(zip(CURVE_FIELDS, _about)) | {"what": what} | values
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v
                             for k, v in line.items()})
        for row, repeat, images, score in curve.points:
            write("run", row=row, repeat=repeat, images=images, score=score)
        if curve.fit is None:
            continue
        sizes = curve_sizes(curve)
        for images, *score in zip(sizes, *learning_curve.predict(curve.fit, sizes), strict=True):
            write("curve", images=images, **dict(zip(CURVE_FIELDS[-3:], score)))
        limit, (low, high) = learning_curve.asymptote(curve.fit)
        write("asymptote", score=limit, score_low=low, score_high=high)
        for target, (images, (low, high)) in curve.needed.items():
            write("target", images=images, images_low=low, images_high=high, score=target)
    return text.getvalue()


def curve_sizes(curve) -> np.ndarray:
    """(n,) numbers of training images to draw a collect.Curve at, some of them beyond the runs.

    The last is twice the largest of the runs, or what a target takes, up to 20 times.
    """
    low, high = curve.fit.sizes[0], curve.fit.sizes[-1]
    wanted = [1.1 * n for n, _ in curve.needed.values() if n <= 18 * high]
    return np.geomspace(low, max(2 * high, *wanted, 0), 60)


def curve_sentences(curve) -> list[str]:
    """What a collect.Curve says: the images that each target takes, and what that rests on."""
    if curve.fit is None:
        return [f"{curve.name}: {curve.problem}."]
    out = [_needed_images(curve, target) for target in curve.needed]
    repeats = len({repeat for _, repeat, *_ in curve.points})
    few = "" if len(curve.fit.draws) else (f" No interval: fewer than {learning_curve.MIN_REPEATS} "
                                           "repeats.")
    sizes = curve.fit.sizes
    limit, interval = learning_curve.asymptote(curve.fit)
    limited = math.isclose(limit, 1.0 if curve.fit.sign > 0 else 0.0, abs_tol=1e-6)
    out.append(
        f"Curve of {curve.name}: {curve.metric} = a {'-' if curve.fit.sign > 0 else '+'} b n^-c "
        f"through the means of {_times(repeats, 'repeat')} at {len(sizes)} numbers of training "
        f"images n from {sizes[0]:.0f} to {sizes[-1]:.0f}; it levels off at {limit:.3f}"
        f"{_span(interval, _number)}{', the best there can be' * limited}. Beyond "
        f"{sizes[-1]:.0f} images it is extrapolated. It speaks for more images of the same kind "
        f"and for this training.{few}")
    return out


def _needed_images(curve, target) -> str:
    """'dice_mean 0.90 needs about 340 training images (95 %: 250 to 800), 4.2 times the 81 ...'"""
    images, (low, high) = curve.needed[target]
    sizes, metric = curve.fit.sizes, curve.metric
    name = f"{curve.name}: {metric} {_target(target)}"
    reached = [size for size, mean in zip(sizes, curve.fit.means)
               if curve.fit.sign * (mean - target) >= 0]
    if math.isinf(images) and reached:
        return (f"{name} was reached with {reached[0]:.0f} images already; over all sizes these "
                "runs show no growth with more.")
    if math.isinf(images):
        limit, interval = learning_curve.asymptote(curve.fit)
        least = (" They do not rule it out: the 95 % interval begins at "
                 f"{_images(low, sizes)} images." if low < 1e6 else "")
        return (f"{name} is not reachable with more images alone, as far as these runs tell: the "
                f"curve levels off at {limit:.3f}{_span(interval, _number)}.{least}")
    span = _span((low, high), lambda n: _images(n, sizes))
    if images < sizes[0]:
        span = "" if high < sizes[0] else span
        return f"{name} needs {_images(images, sizes)} training images{span}."
    times = f"{images / curve.available:.2g}" if images < 1e3 * curve.available else "over 1000"
    there = f", {times} times the {curve.available:.0f} that there are"
    more = "; extrapolated" if images > sizes[-1] else ""
    return f"{name} needs about {_images(images, sizes)} training images{span}{there}{more}."


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
    if n >= 1e6:
        return "over a million"
    return f"{round(n, 1 - math.floor(math.log10(n))):,.0f}" if n >= 100 else f"{math.ceil(n)}"


def show(table, console: Console | None = None) -> None:
    """Print a collect.Table to the terminal: headline, verdicts, costs, claims and sentences."""
    live = sys.stdout.isatty()
    console = console or Console(force_terminal=live, no_color=not live, markup=False,
                                 highlight=False, emoji=False, width=None if live else 160)
    wide = console.width >= WIDE
    head, rows = _cells(table, metrics=table.study.metrics[:1], differences=wide,
                        spread=console.width >= WIDE + 30)
    _print(console, table.study.title, head, rows)
    if table.claims:
        head, rows = _claims(table)
        chosen = (3, 0, 1, 2) if wide else (3, 0)
        _print(console, "claims", [head[i] for i in chosen],
               [[_Cell(row[i]) for i in chosen] for row in rows])
    for line in (*(line for curve in table.curves for line in curve_sentences(curve)),
                 *sentences(table), *_definitions(table, table.study.metrics[:1])):
        console.print(line)
    for word, lines in (("note", table.notes), ("missing", _missing(table))):
        for line in lines:
            console.print(Text.assemble((f"{word}: ", "yellow"), line))


def sentences(table) -> list[str]:
    """What a reader needs beside the numbers: how they were compared, their noise, the best row."""
    study, metric = table.study, table.study.metrics[0]
    repeats = len(table.rows[0].runs)
    compared = sum(bool(row.compared[metric]) and row.compared[metric].n >= stats.MIN_PAIRS
                   for row in table.rows)
    out = [f"Mean ± sd over {_times(repeats, 'repeat')}, where fewer count their number in "
           "brackets."]
    if compared:
        test = "corrected resampled t-test (Nadeau and Bengio 2003), because random splits overlap"
        test = test if table.test_train_ratio else "paired t-test"
        out.append(f"Verdicts: {metric} against {study.baseline}, repeat by repeat, two-sided "
                   f"{test}, p < 0.05 after Holm's correction for {_times(compared, 'row')}."
                   + " Intervals are without it: one may leave out 0 beside 'not "
                   "distinguishable'." * (compared > 1))
        if not table.test_train_ratio:
            out.append("They speak for other seeds on these test images, not for other images.")
    elif len(table.rows) > 1:
        out.append(f"Verdicts on {metric} against {study.baseline} need at least "
                   f"{stats.MIN_PAIRS} finished repeats of both.")
    absent = sum(not run.counts for row in table.rows for run in row.runs)
    if absent:
        out.append(f"{absent} of the table's {repeats * len(table.rows)} runs are missing or do "
                   "not count.")
    judged = sum(one is not None and one.n >= stats.MIN_PAIRS for _, _, one in table.claims)
    if judged:
        out.append("Claims are judged by the same test, corrected for the "
                   f"{_times(judged, 'claim')} that have {stats.MIN_PAIRS} repeats; undecided is "
                   "neither shown nor refuted.")
    out += _noise(table, metric) + _best(table, metric) + _needed(table, metric)
    if any(run.mark == "other code" for row in table.rows for run in row.runs):
        out.append(f"{MARK} has runs of other code, see the notes.")
    return out


def _noise(table, metric) -> list[str]:
    noise = table.noise[metric]
    if math.isnan(noise.sd):
        return []
    varied, where = (("seed and split", " on different splits") if table.test_train_ratio else
                     ("seed", ""))
    low, high = noise.interval
    return [f"Noise floor: runs of one config that differ in the {varied} alone have an sd of "
            f"{noise.sd:.4f} (95 % interval {low:.4f} to {high:.4f}, {noise.n} runs), so that two "
            f"single runs{where} differ by up to {1.96 * math.sqrt(2) * noise.sd:.3f} by chance."]


def _best(table, metric) -> list[str]:
    if metric not in table.best or len(table.rows) < 2:
        return []
    name, ties = table.best[metric]
    if not ties:
        return [f"{name} is best, and better than each other row."]
    if len(ties) > 5:
        return [f"No row can be called best: {name} has the best mean, and {len(ties)} rows are "
                "not distinguishable from it."]
    return [f"No row can be called best: {name} has the best mean, and {', '.join(ties)} "
            f"{'is' if len(ties) == 1 else 'are'} not distinguishable from it."]


def _needed(table, metric) -> list[str]:
    if not table.needed:
        return []
    number = lambda n: "no number" if math.isinf(n) else f"{n}"
    what = ", ".join(f"{number(n)} for {wanted:g}" for wanted, n in sorted(table.needed.items()))
    more = (" No number: more images are needed." if any(map(math.isinf, table.needed.values()))
            else "")
    return [f"Repeats that find a true difference in {metric} 8 times in 10: {what}.{more}"]


def _cells(table, metrics=None, differences=True, spread=True):
    """The head and the cells of the main table.

    Args:
      metrics: columns, default the study's; verdicts are on the first.
      differences: with a column of differences from the baseline.
      spread: with the sd of costs.
    """
    headline, *others = metrics or table.study.metrics
    published = lambda m: any(m in row.reference for row in table.rows)
    head = ["row", headline] + ["published"] * published(headline)
    head += ["difference [95 %]"] * differences + ["verdict"]
    for metric in others:
        head += [metric] + ["published"] * published(metric)
    head += [column for column, *_ in RESOURCES]
    rows = []
    for row in table.rows:
        score = lambda m, row=row: _Cell(_score(row, m), _is_best(table, row, m))
        reference = lambda m, row=row: published(m) * [
            _Cell(_number(row.reference.get(m, math.nan)))]
        marked = any(run.mark == "other code" for run in row.runs)
        cells = [_Cell(row.name + MARK * marked), score(headline), *reference(headline)]
        cells += [_Cell(_difference(row.compared[headline]))] * differences
        cells.append(_Cell("(baseline)" if row.name == table.study.baseline else
                           "no result" if not _count(row, headline) else row.verdicts[headline]))
        for metric in others:
            cells += [score(metric), *reference(metric)]
        cells += [_Cell(_cost(row, metric, per, spread)) for _, metric, per in RESOURCES]
        rows.append(cells)
    return head, rows


def _claims(table):
    """The head and the texts of the table of claims."""
    return ["claim", "metric", "difference [95 %]", "judged"], [
        [claim.text, claim.metric or table.study.metrics[0],
         _difference(one), word] for claim, word, one in table.claims]


def _comparisons(table):
    """The head and the texts of all comparisons with the baseline, those over images beside."""
    head = ["row", "metric", "difference [95 %]", "effect size", "p (Holm)", "verdict",
            "over images [95 %]", "p of images"]
    rows = []
    for row in table.rows:
        for metric in table.study.metrics:
            one, images = row.compared[metric], row.per_image[metric]
            if one:
                rows.append([
                    row.name, metric, _difference(one), _number(one.effect_size, 2),
                    _p(row.adjusted_p[metric]), row.verdicts[metric], _difference(images),
                    _p(images.p if images else math.nan)])
    return head, rows


def _definitions(table, metrics) -> list[str]:
    return [f"{m}: {table.definitions[m]}" for m in metrics if m in table.definitions]


def _count(row, metric) -> int:
    return sum(map(math.isfinite, row.values[metric]))


def _is_best(table, row, metric) -> bool:
    """Whether a test tells this row from each other, of at least one."""
    name, ties = table.best.get(metric, ("", ()))
    return name == row.name and not ties and len(table.rows) > 1


def _number(value, digits=3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _score(row, metric) -> str:
    """'0.823 ± 0.004', with the number of repeats where some are not there."""
    mean, sd, n = row.mean[metric], row.sd[metric], _count(row, metric)
    text = _number(mean) if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
    return f"{text} ({n})" if 0 < n < len(row.runs) else text


def _cost(row, metric, per, spread) -> str:
    mean, sd = row.mean[metric] / per, row.sd[metric] / per
    digits = 1 if mean >= 10 else 2
    if spread and not math.isnan(sd):
        return f"{mean:.{digits}f} ± {sd:.{digits}f}"
    return _number(mean, digits)


def _difference(one) -> str:
    """'+0.018 [+0.010, +0.026]'."""
    if one is None or math.isnan(one.difference):
        return "-"
    digits = 3 if max(map(abs, (one.difference, *one.interval))) < 10 else 1
    text, low, high = (f"{x:+.{digits}f}" for x in (one.difference, *one.interval))
    return text if math.isnan(one.interval[0]) else f"{text} [{low}, {high}]"


def _p(value) -> str:
    return "< 0.001" if value < 0.001 else _number(value)


def _times(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def _missing(table) -> list[str]:
    """The lines of table.missing, rows without a run in one, and no more than SHOWN of each."""
    without = [line.removesuffix(": no run") for line in table.missing
               if line.endswith(": no run") and "/" not in line]
    lines = [line for line in table.missing if line.removesuffix(": no run") not in without]
    more = lambda items: [f"and {len(items) - SHOWN} more"] * (len(items) > SHOWN)
    shown = ", ".join(without[:SHOWN]) + "".join(f" {text}" for text in more(without))
    return [*([f"no run of {shown}"] if without else []), *lines[:SHOWN], *more(lines)]


def _print(console, title, head, rows) -> None:
    """One table; texts wrap between words where they must, numbers never."""
    table = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                      show_edge=False, padding=(0, int(console.width >= 100), 0, 0))
    for n, column in enumerate(head):
        texts = [row[n].text for row in rows]
        numeric = any("±" in t or t.lstrip("+-")[:1].isdigit() for t in texts) and n > 0
        words = [len(word) for text in texts for word in text.split()] if n else [12]
        table.add_column(column.replace(" ", "\n", 1), justify="right" if numeric else "left",
                         no_wrap=numeric, overflow="fold", min_width=max(words, default=0))
    for row in rows:
        table.add_row(*(Text(cell.text, "bold" if cell.bold else "") for cell in row))
    console.print(table)


def _md(text) -> str:
    """Text that Markdown takes as it is."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _md_table(head, rows) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(map(_md, head)), line(["---"] * len(head)), *map(line, rows)])


def _tex(text) -> str:
    return str(text).translate(TEX)


def _tex_table(head, rows, caption, label) -> str:
    # An opening bracket or star after the end of a row would be read as its option.
    line = lambda cells: "  " + "{}" * (cells[0][:1] in ("[", "*")) + " & ".join(cells) + r" \\"
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\label{{tab:{label}}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"  \toprule", line([*map(_tex, head)]), r"  \midrule", *map(line, rows),
        r"  \bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\end{table}", ""])
