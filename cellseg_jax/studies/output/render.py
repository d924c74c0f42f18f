"""The table of a study as Markdown, LaTeX and in the terminal; as CSV in table_csv.

A score has its spread beside it, a difference its interval and verdict, and the whole table the
sentences of sentences.py. The best row is bold only if a test distinguishes it from each other row.
"""

import itertools
import math
import re
import sys
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import confounders
from cellseg_jax.studies.confounders import not_named
from cellseg_jax.studies.output.next_step import next_step
from cellseg_jax.studies.output.sentences import (
    CODE_MARK,
    CONFOUNDED_MARK,
    compared_text,
    curve_sentences,
    difference_text,
    gap_text,
    number_text,
    p_text,
    repeats_text,
    sentences,
    verdict_text,
    within_texts,
)
from cellseg_jax.studies.output.summary import is_best

MOST_MISSING = 20  # lines of what is missing
WIDE_TERMINAL = 110  # columns that have room for the differences
NUMBER = re.compile(r"[-+]?\d[\d.]*($|\s*[\[(])")
COMPARED = (
    "Effect size: mean difference of the repeats in units of their spread (Cohen's d_z with "
    "Hedges' correction). Intervals end where a difference of scores from 0 to 1 cannot be; "
    "table.csv has them whole. Over images: secondary, the mean over repeats of the difference on "
    "each test image, with a bootstrap interval over images or their groups and Wilcoxon's p, not "
    "adjusted. It shows how far the images agree and does not see the chance of a seed: two seeds "
    "of one config may differ in it.")
TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", CODE_MARK: r"$^\dagger$",
    CONFOUNDED_MARK: r"$^\ddagger$",
    "\n": " "})


class _Cell(NamedTuple):
    text: str
    bold: bool = False


def markdown(table) -> str:
    """A table.Table as a Markdown document: scores, claims, notes and definitions."""
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
    if table.study.margin:
        head, rows = _margins(table)
        parts += ["## Equal or no worse, within a margin",
                  _md_table(head, [map(_md, row) for row in rows])]
    head, rows = _advice(table)
    parts += ["## What to do next, and what a row changes",
              _md_table(head, [map(_md, row) for row in rows])]
    for title, lines in (("Definitions", _definitions(table, table.metrics)),
                         ("Notes", table.notes), ("Missing", _missing(table))):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {_md(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def latex(table) -> str:
    """A table.Table as LaTeX tables for \\input; they need booktabs and adjustbox."""
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


def show(table, console: Console | None = None) -> None:
    """Print a table.Table to the terminal: all metrics, verdicts, costs, claims and sentences."""
    live = sys.stdout.isatty()
    console = console or Console(force_terminal=live, no_color=not live, markup=False,
                                 highlight=False, emoji=False, width=None if live else 160)
    wide = console.width >= WIDE_TERMINAL
    head, rows = _cells(table, metrics=table.study.metrics[:1], differences=wide,
                        spread=console.width >= WIDE_TERMINAL + 30)
    _print(console, table.study.title, head, rows)
    for head, rows in _other_metrics(table, console.width):
        _print(console, "", head, rows)
    if table.claims:
        head, rows = _claims(table)
        chosen = (4, 0, 2, 3, 5) if wide else (4, 0)
        _print(console, "claims", [head[i] for i in chosen],
               [[_Cell(row[i]) for i in chosen] for row in rows])
    if table.study.margin and wide:
        _print(console, "within the margin", *_as_cells(*_margins(table)))
    head, rows = _advice(table)
    _print(console, "", *_as_cells(head[:2], [row[:2] for row in rows]))
    for line in (*(line for curve in table.curves for line in curve_sentences(curve)),
                 *sentences(table), *_definitions(table, table.study.metrics[:1])):
        console.print(line)
    for word, lines in (("note", table.notes), ("missing", _missing(table))):
        for line in lines:
            console.print(Text.assemble((f"{word}: ", "yellow"), line))


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
    head += [one.title for one in RESOURCES.values()]
    rows = []
    for row in table.rows:
        score = lambda m, row=row: _Cell(_score(row, m), is_best(table, row, m))
        reference = lambda m, row=row: published(m) * [
            _Cell(number_text(row.reference.get(m, math.nan)))]
        marks = (CODE_MARK * any(run.mark == "other code" for run in row.runs)
                 + CONFOUNDED_MARK * bool(not_named(row.differs)))
        cells = [_Cell(row.name + marks), score(headline), *reference(headline)]
        cells += [_Cell(difference_text(row.compared[headline], headline))] * differences
        cells.append(_Cell(verdict_text(table, row, headline)))
        for metric in others:
            cells += [score(metric), *reference(metric)]
        cells += [_Cell(_cost(row, name, one.divisor, spread)) for name, one in RESOURCES.items()]
        rows.append(cells)
    return head, rows


def _other_metrics(table, width: int):
    """(head, cells) of tables of the study's metrics but the first, as wide as the terminal."""
    names = [row.name for row in table.rows]
    column = lambda m: [_Cell(_score(row, m), is_best(table, row, m)) for row in table.rows]
    room = width - min(max(map(len, names)), 30) - 4
    waiting = [(m, column(m)) for m in table.study.metrics[1:]]
    while waiting:
        sizes = [3 + max(len(line) for text in (*(_two_lines(cell.text) for cell in cells),
                                                "\n".join(_words(m))) for line in text.split("\n"))
                 for m, cells in waiting]
        fits = max(1, sum(total <= room for total in itertools.accumulate(sizes)))
        shown, waiting = waiting[:fits], waiting[fits:]
        yield ["row", *(" ".join(_words(m)) for m, _ in shown)], [
            [_Cell(name), *cells] for name, *cells in zip(
                names, *(cells for _, cells in shown), strict=True)]


def _words(metric) -> list[str]:
    """A metric of a stratum or class in the two lines of a heading."""
    return metric.replace("[", " [", 1).split(" ", 1)


def _claims(table):
    """The head and the texts of the table of claims."""
    return ["claim", "compared", "metric", "difference [95 %]", "judged", "repeats to decide"], [
        [one.claim.text, *compared_text(table.study, one), one.judgement, repeats_text(one)]
        for one in table.claims]


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
                    row.name, metric, difference_text(one, metric), number_text(one.effect_size, 2),
                    p_text(row.adjusted_p[metric]), verdict_text(table, row, metric),
                    difference_text(images, metric),
                    p_text(images.p if images else math.nan)])
    return head, rows


def _margins(table):
    """The head and the texts of what is shown within the margins of the study."""
    return ["row", "metric", "difference [95 %]", "within the margin", "p (no worse)", "p (equal)",
            "P(worse / equal / better)"], [
        [row.name, metric, difference_text(row.compared[metric], metric),
         *within_texts(row, metric)] for row in table.rows for metric in row.within]


def _advice(table):
    """The head and the texts of what to do about each row, and the keys in which it differs."""
    return ["row", "next", "differs from the baseline in", "not named by the row"], [
        [row.name, next_step(table, row) or "-",
         "; ".join(confounders.text(one) for one in row.differs
                   if one.why != confounders.NOT_NAMED) or "-",
         f"confounded: {'; '.join(other)}" if (other := not_named(row.differs)) else "-"]
        for row in table.rows]


def _definitions(table, metrics) -> list[str]:
    return [f"{m}: {table.definitions[m]}" for m in metrics if m in table.definitions]


def _score(row, metric) -> str:
    """'0.823 ± 0.004 (2 of 5 diverged)': the mean of those that ended, and what lacks."""
    mean, sd, lacking = row.mean[metric], row.sd[metric], gap_text(row, metric)
    text = number_text(mean) if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"
    return f"{text} ({lacking})" if lacking else text


def _cost(row, metric, per, spread) -> str:
    mean, sd = row.mean[metric] / per, row.sd[metric] / per
    digits = 1 if mean >= 10 else 2
    if spread and not math.isnan(sd):
        return f"{mean:.{digits}f} ± {sd:.{digits}f}"
    return number_text(mean, digits)


def _missing(table) -> list[str]:
    """The lines of table.missing, rows without a run in one, and at most MOST_MISSING of each."""
    without = [line.removesuffix(": no run") for line in table.missing
               if line.endswith(": no run") and "/" not in line]
    lines = [line for line in table.missing if line.removesuffix(": no run") not in without]
    more = lambda items: [f"and {len(items) - MOST_MISSING} more"] * (
        len(items) > MOST_MISSING)
    shown = ", ".join(without[:MOST_MISSING]) + "".join(f" {text}" for text in more(without))
    return [*([f"no run of {shown}"] if without else []), *lines[:MOST_MISSING], *more(lines)]


def _as_cells(head, rows):
    return head, [[_Cell(text) for text in row] for row in rows]


def _print(console, title, head, rows) -> None:
    """One table; texts wrap between words where they must, numbers never."""
    table = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                      show_edge=False, padding=(0, int(console.width >= 100), 0, 0))
    for n, column in enumerate(head):
        texts = [_two_lines(row[n].text) for row in rows]
        numeric = n > 0 and any("±" in t or NUMBER.match(t) for t in texts)
        words = [len(word) for text in texts for word in (
            text.split("\n") if numeric else text.split())] if n else [12]
        table.add_column(column.replace(" ", "\n", 1), justify="right" if numeric else "left",
                         no_wrap=numeric, overflow="fold", min_width=max(words, default=0))
    for row in rows:
        table.add_row(*(Text(_two_lines(cell.text), "bold" if cell.bold else "") for cell in row))
    console.print(table)


def _two_lines(text) -> str:
    """A score over the repeats that lack."""
    return text.replace(" (", "\n(") if re.match(r"[-\d.± ]+ \(", text) else text


def _md(text) -> str:
    """Text with the characters escaped that mean something in Markdown."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")


def _md_table(head, rows) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(map(_md, head)), line(["---"] * len(head)), *map(line, rows)])


def _tex(text) -> str:
    return str(text).translate(TEX)


def _tex_table(head, rows, caption, label) -> str:
    # LaTeX reads an opening bracket or star after the end of a row as its option.
    line = lambda cells: "  " + "{}" * (cells[0][:1] in ("[", "*")) + " & ".join(cells) + r" \\"
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\label{{tab:{label}}}",
        r"\begin{adjustbox}{max width=\textwidth}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"  \toprule", line([*map(_tex, head)]), r"  \midrule", *map(line, rows),
        r"  \bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\end{table}", ""])
