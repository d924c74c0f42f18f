"""The page of the doctor: what is wrong, what there is, and how it looks, in one HTML file."""

import pathlib
from collections import Counter

import numpy as np

from cellseg_jax.files import write_atomic
from cellseg_jax.report import charts, document, embedded, panels

MAX_FILES = 200  # named per finding
TILE = 224  # pixels, longer side of a picture


def write(path, report, rows, sheet=None) -> None:
    """Write the page of a doctor.Report.

    Args:
      rows: its facts as (name, text).
      sheet: (h, w, 3) uint8 picture of training samples (preview), or None.
    """
    data, samples = report.config.data, report.examination.facts
    labels = data.get("labels", "instances")
    write_atomic(pathlib.Path(path), document.render(
        "data/quality/page.html.jinja", title=f"Doctor: {data.name}", name=data.name,
        verdict=report.verdict, stops=bool(report.count("error")), findings=report.lines,
        max_files=MAX_FILES, rows=rows, images=len(samples),
        tiles=[_tile(s, labels) for s in samples if s.preview],
        sheet=None if sheet is None else embedded.png(sheet, sheet.shape[1]).src,
        kinds=_kinds(samples), strata=_strata(samples, report.examination.parts),
        classes=_classes(samples) if labels == "classes" else [],
        charts=_charts(samples, labels)))


def _tile(sample, labels) -> dict:
    image, label = sample.preview
    factor = max(1, TILE // max(label.shape))
    image, label = (x.repeat(factor, 0).repeat(factor, 1) for x in (image, label))
    return {"name": sample.name, "size": "{}x{}".format(*sample.size), "stratum": sample.stratum,
            "objects": sample.num_objects if labels == "instances" else None,
            "src": embedded.png(panels.overlay(image, label)).src}


def _kinds(samples) -> list[tuple]:
    """How many files there are of every size, type and number of channels."""
    counts = Counter((f"{s.size[0]}x{s.size[1]}", s.dtype, s.channels,
                      "yes" if s.coloured else "no", s.alpha or "none") for s in samples)
    return [(*key, count) for key, count in counts.most_common()]


def _strata(samples, parts) -> dict:
    """Images of every stratum in every part; no rows where there is one stratum and no part."""
    head = ("stratum", "images", "groups", *parts, "foreground, median")
    names = sorted({s.stratum for s in samples})
    if len(names) < 2 and not parts:
        return {"head": head, "rows": []}
    part_of = {int(i): part for part, indices in parts.items() for i in indices}
    rows = []
    for name in names:
        chosen = [i for i, s in enumerate(samples) if s.stratum == name]
        count = Counter(part_of.get(i) for i in chosen)
        covered = np.median([_foreground(samples[i]) for i in chosen])
        rows.append((name or "all", len(chosen), len({samples[i].group for i in chosen}),
                     *(count[part] for part in parts), f"{covered:.1%}"))
    return {"head": head, "rows": rows}


def _foreground(sample) -> float:
    """Share of the pixels that are not background."""
    return 1 - sample.pixels[0] / sample.pixels.sum()


def _classes(samples) -> list[tuple]:
    """(class, share of the pixels, images with it)."""
    total = np.sum([s.pixels for s in samples], 0) if samples else np.zeros(1)
    return [(c, f"{n / total.sum():.2%}", sum(s.pixels[c] > 0 for s in samples))
            for c, n in enumerate(total[:-1])]


def _charts(samples, labels) -> list[tuple[str, str]]:
    if not samples:
        return []
    covered = [100 * _foreground(s) for s in samples]
    drawn = [("Foreground, % of an image",
              charts.histogram("foreground, %", covered, "images", (0, 100)))]
    if labels == "instances":
        drawn.append(("Objects per image", charts.histogram(
            "objects", [s.num_objects for s in samples], "images")))
    return drawn
