"""What was found inside a trained run: a folder per analysis, and analysis.html of all.

An analysis leaves its pictures and tables in `analysis/<name>/` of the run, and findings.json
with what they show in words.
"""

import contextlib
import csv
import json
import pathlib
import shutil
from typing import NamedTuple

from cellseg_jax.errors import InputError
from cellseg_jax.files import csv_value, interpreting, read_json, write_atomic
from cellseg_jax.report import document, embedded
from cellseg_jax.runs.folder import ANALYSIS, ANALYSIS_PAGE, read_config, scores_file

FINDINGS = "findings.json"
ORDER = ("pruning", "weights", "gradients", "filters")  # of sections
MAX_ROWS = 60  # of a table on the page; the file has all


class Findings(NamedTuple):
    """What an analysis found; files lie in its folder."""

    title: str
    text: list[str]  # paragraphs: the answer first, then how it was measured
    figures: list[tuple[str, str]]  # (PNG file, what it shows)
    tables: list[tuple[str, str]]  # (CSV file, what its rows are)


@contextlib.contextmanager
def replacing(workdir, name: str):
    """A new folder that takes the place of `analysis/<name>` once findings are written into it.

    What was there stays until then, whatever ends the analysis.
    Raises: InputError where it cannot be made.
    """
    final = pathlib.Path(workdir) / ANALYSIS / name
    new = final.with_name(f".{name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--workdir: cannot make {new} ({error.strerror}); expected a run's "
                         "folder that can be written, whose analysis/ is a folder") from error
    try:
        yield new
        if (new / FINDINGS).exists():
            shutil.rmtree(final, ignore_errors=True)
            new.rename(final)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write(folder: pathlib.Path, findings: Findings) -> None:
    """Keep the findings; last, because their presence shows that the analysis is complete."""
    write_atomic(folder / FINDINGS, json.dumps(findings._asdict(), indent=1) + "\n")


def write_page(workdir) -> pathlib.Path:
    """Write analysis.html from what lies in `analysis/` of the run; returns its path."""
    workdir = pathlib.Path(workdir)
    with interpreting(workdir):
        page = _page(workdir)
    path = workdir / ANALYSIS_PAGE
    write_atomic(path, page)
    return path


def _page(workdir: pathlib.Path) -> str:
    found = {file.parent.name: file for file in (workdir / ANALYSIS).glob(f"*/{FINDINGS}")}
    scores = read_json(scores_file(workdir), None)
    return document.render(
        "analysis/page.html.jinja", title=f"Inside {workdir.resolve().name}",
        config=read_config(workdir), dice=scores and scores["metrics"]["dice_mean"],
        analyses=[_analysis(found[name]) for name in ORDER if name in found])


def _analysis(file) -> dict:
    """The findings of one analysis with its figures and tables."""
    findings, folder = Findings(**read_json(file)), file.parent
    for name, _ in (*findings.figures, *findings.tables):
        if pathlib.PurePath(name).name != name:
            raise InputError(f"{file}: names {name!r}; expected a file beside it")
    return {"title": findings.title, "text": findings.text,
            "figures": [(embedded.png(folder / name), text) for name, text in findings.figures],
            "tables": [_table(folder / name, text) for name, text in findings.tables]}


def _table(path, caption) -> dict:
    """A CSV file as the table of a page, cut to MAX_ROWS."""
    with open(path, newline="") as file:
        head, *rows = ([csv_value(cell) for cell in row] for row in csv.reader(file))
    numeric = [n for n in range(len(head)) if rows and all(_is_number(row[n]) for row in rows)]
    shown = [[_short(cell) if n in numeric else cell for n, cell in enumerate(row)]
             for row in rows[:MAX_ROWS]]
    return {"caption": caption, "file": f"{path.parent.name}/{path.name}", "head": head,
            "rows": shown, "numeric": numeric, "total": len(rows)}


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    """A number to four digits, a dash where there is none."""
    if text in ("", "nan"):
        return document.NONE
    return f"{float(text):.4g}" if "." in text or "e" in text else text
