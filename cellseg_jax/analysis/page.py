"""What was found inside a trained run: a folder per analysis, and analysis.html of all.

An analysis leaves its pictures and tables in `analysis/<name>/` of the run, and findings.json
with what they show in words.
"""

import contextlib
import csv
import io
import json
import pathlib
import shutil
from html import escape
from typing import NamedTuple

from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, write_atomic
from cellseg_jax.report import document
from cellseg_jax.runs import page
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
    """Keep the findings; last, because their presence says that the analysis is whole."""
    write_atomic(folder / FINDINGS, json.dumps(findings._asdict(), indent=1) + "\n")


def write_page(workdir) -> pathlib.Path:
    """Write analysis.html from what lies in `analysis/` of the run; returns its path."""
    workdir = pathlib.Path(workdir)
    title = f"Inside {workdir.resolve().name}"
    sections = [f"<h1>{escape(title)}</h1><p>{escape(_about(workdir))}</p>", document.NAV]
    found = {file.parent.name: file for file in (workdir / ANALYSIS).glob(f"*/{FINDINGS}")}
    for file in [found[name] for name in ORDER if name in found]:
        sections.append(_section(file.parent, Findings(**json.loads(file.read_text()))))
    path = workdir / ANALYSIS_PAGE
    write_atomic(path, document.document(title, sections))
    return path


def _about(workdir) -> str:
    """The run in a sentence: what it learned, from what, how well."""
    config = read_config(workdir)
    scores = scores_file(workdir)
    dice = (f"; Dice {read_json(scores)['metrics']['dice_mean']:.3f} on its test images"
            if scores.exists() else "")
    return (f"{config.model.name} trained with {config.optimizer.name} on {config.data.name}, "
            f"{'x'.join(map(str, config.data.size))} pixels{dice}.")


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
