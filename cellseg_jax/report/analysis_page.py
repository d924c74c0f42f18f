"""The page of what was found inside a trained run: analysis.html, one section per analysis.

An analysis leaves its pictures and tables in `analysis/<name>/` of the run, and findings.json
with what they show in words.
"""

import csv
import io
import json
import pathlib
from html import escape
from typing import NamedTuple

from cellseg_jax.report import document, page
from cellseg_jax.rundir import write_atomic

FINDINGS = "findings.json"
MAX_ROWS = 60  # of a table on the page; the file has all


class Findings(NamedTuple):
    """What an analysis found; files lie in its folder."""

    title: str
    text: list[str]  # paragraphs: the answer first, then how it was measured
    figures: list[tuple[str, str]]  # (PNG file, what it shows)
    tables: list[tuple[str, str]]  # (CSV file, what its rows are)


def write_table(path, rows: list[dict]) -> None:
    """A CSV file with a column per key of the rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write(folder: pathlib.Path, findings: Findings) -> None:
    """Keep the findings; last, because their presence says that the analysis is whole."""
    write_atomic(folder / FINDINGS, json.dumps(findings._asdict(), indent=1) + "\n")


def write_page(workdir) -> pathlib.Path:
    """Write analysis.html from what lies in `analysis/` of the run; returns its path."""
    workdir = pathlib.Path(workdir)
    title = f"Inside {workdir.resolve().name}"
    sections = [f"<h1>{escape(title)}</h1>", document.NAV]
    for file in sorted(workdir.glob(f"analysis/*/{FINDINGS}")):
        sections.append(_section(file.parent, Findings(**json.loads(file.read_text()))))
    path = workdir / "analysis.html"
    write_atomic(path, document.document(title, sections))
    return path


def _section(folder, findings) -> str:
    parts = [document.heading(findings.title)]
    parts += [f"<p>{escape(text)}</p>" for text in findings.text]
    for file, caption in findings.figures:
        png, width = page.encoded(folder / file)
        parts.append(f'<figure class="picture"><img alt="{escape(caption, quote=True)}" '
                     f'style="max-width:{width}px" src="data:image/png;base64,{png}">'
                     f"<figcaption>{escape(caption)}</figcaption></figure>")
    for file, caption in findings.tables:
        parts.append(_table(folder / file, caption))
    return "\n".join(parts)


def _table(path, caption) -> str:
    """A CSV file as a folded, sortable table."""
    head, *rows = csv.reader(io.StringIO(path.read_text()))
    numeric = [n for n in range(len(head)) if rows and all(_is_number(row[n]) for row in rows)]
    shown = [[_short(cell) if n in numeric else cell for n, cell in enumerate(row)]
             for row in rows[:MAX_ROWS]]
    more = f" The first {MAX_ROWS} of {len(rows)} rows; all are in the file." * (
        len(rows) > MAX_ROWS)
    return (f"<details><summary>{escape(caption)}</summary>"
            f'<p class="small">{escape(f"{path.parent.name}/{path.name}")}.{more}</p>'
            f"{document.table(head, shown, numeric, sortable=True, name=caption)}</details>")


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    """A number to four digits, a dash where there is none."""
    if text in ("", "nan"):
        return "–"
    return f"{float(text):.4g}" if "." in text or "e" in text else text
