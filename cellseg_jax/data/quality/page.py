"""The page of the doctor: what is wrong, what there is, and how it looks, in one HTML file."""

import base64
import io
import pathlib
from collections import Counter
from html import escape

import numpy as np
from PIL import Image

from cellseg_jax.files import write_atomic
from cellseg_jax.report import document, panels, svg

MAX_WHERE = 200  # files named per finding
BINS = 20
TILE = 224  # pixels, longer side of a picture
STYLE = ("<style>.tiles{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,"
         "minmax(11rem,1fr))}.tiles img{display:block;width:100%;height:auto}"
         ".findings td{overflow-wrap:anywhere;text-align:left}td details{margin-top:.2rem}</style>")
MARKS = {"error": "&#10006;", "warning": "&#9888;", "note": "&#8505;"}


def write(path, report, rows, sheet=None) -> None:
    """Write the page of a doctor.Report.

    Args:
      rows: its facts as (name, text).
      sheet: (h, w, 3) uint8 picture of training samples (samples.preview), or None.
    """
    config, samples = report.config, report.examination.facts
    outlook = ("Training will not start before the errors are gone." if report.count("error") else
               "Nothing here stops training.")
    sections = [
        f"{STYLE}<h1>{escape(config.data.name)}: {report.verdict}</h1><p>{outlook}</p>",
        _findings(report.lines),
        f"<h2>The data</h2>{document.table(('what', 'value'), rows)}",
        _pictures(samples, config.data.get("labels", "instances")), _sheet(sheet),
        _kinds(samples), _strata(samples, report.examination.parts),
        _charts(samples, config.data.get("labels", "instances")),
    ]
    write_atomic(pathlib.Path(path), document.document(f"Doctor: {config.data.name}", sections))


def _findings(lines) -> str:
    if not lines:
        return "<h2>Findings</h2><p>None.</p>"
    rows = "".join(
        f'<tr><td class="n {line.level}"><b>{MARKS[line.level]}&nbsp;{line.level}</b></td>'
        f"<td>{escape(line.what)}<br>{_where(line)}</td></tr>" for line in lines)
    return ('<h2>Findings</h2><div class="scroll"><table class="findings"><thead><tr><th>level</th>'
            f"<th>what and where</th></tr></thead><tbody>{rows}</tbody></table></div>")


def _where(line) -> str:
    """The file of a finding, and all others that share it, folded."""
    first = f'<span class="small">{escape(line.where)}</span>'
    if not line.others:
        return first
    more = len(line.others) - MAX_WHERE
    names = "<br>".join(map(escape, line.others[:MAX_WHERE]))
    rest = f"<br>... and {more} more" if more > 0 else ""
    return (f'{first}<details class="small"><summary>and {len(line.others)} more like it</summary>'
            f"{names}{rest}</details>")


def _pictures(samples, labels) -> str:
    shown = [s for s in samples if s.preview]
    if not shown:
        return ""
    tiles = "".join(_tile(s, labels) for s in shown)
    return (f"<h2>{len(shown)} of {len(samples)} images, labels outlined</h2>"
            '<p class="small">Evenly taken from the list of names. Colours are stretched from the '
            f'darkest to the brightest value.</p><div class="tiles">{tiles}</div>')


def _sheet(sheet) -> str:
    if sheet is None:
        return ""
    return ("<h2>What the network sees</h2><p>Training samples as decoded, each above the same one "
            "as the first step trains on it: window, augmentation, normalisation.</p>"
            '<img style="max-width:100%" alt="training samples before and after augmentation" '
            f'src="{_source(sheet)}">')


def _source(picture) -> str:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _tile(sample, labels) -> str:
    image, label = sample.preview
    factor = max(1, TILE // max(label.shape))
    image, label = (x.repeat(factor, 0).repeat(factor, 1) for x in (image, label))
    objects = f", {sample.num_objects} objects" if labels == "instances" else ""
    name = sample.name if len(sample.name) <= 32 else sample.name[:29] + "..."
    text = f"{name} ({sample.size[0]}x{sample.size[1]}{objects}) {sample.stratum}"
    return (f'<figure><img alt="{escape(sample.name)} with its label outlined" '
            f'src="{_source(panels.overlay(image, label))}">'
            f"<figcaption>{escape(text)}</figcaption></figure>")


def _kinds(samples) -> str:
    """How many files there are of every size, type and number of channels."""
    counts = Counter((f"{s.size[0]}x{s.size[1]}", s.dtype, s.channels,
                      "yes" if s.coloured else "no", s.alpha or "none") for s in samples)
    if not counts:
        return ""
    head = ("height x width", "type", "channels", "coloured", "alpha", "images")
    rows = [(*key, count) for key, count in counts.most_common()]
    return f"<h2>Kinds of files</h2>{document.table(head, rows, numeric={2, 5})}"


def _strata(samples, parts) -> str:
    """Images of every stratum in every part."""
    if len({s.stratum for s in samples}) < 2 and not parts:
        return ""
    part_of = {int(i): part for part, indices in parts.items() for i in indices}
    rows = []
    for stratum in sorted({s.stratum for s in samples}):
        chosen = [i for i, s in enumerate(samples) if s.stratum == stratum]
        count = Counter(part_of.get(i) for i in chosen)
        covered = [1 - samples[i].pixels[0] / samples[i].pixels.sum() for i in chosen]
        rows.append((stratum or "all", len(chosen), len({samples[i].group for i in chosen}),
                     *(count[part] for part in parts), f"{np.median(covered):.1%}"))
    head = ("stratum", "images", "groups", *parts, "foreground, median")
    return f"<h2>Strata and split</h2>{document.table(head, rows, range(1, len(head)))}"


def _charts(samples, labels) -> str:
    if not samples:
        return ""
    covered = [100 * (1 - s.pixels[0] / s.pixels.sum()) for s in samples]
    charts = {"Foreground, % of an image": histogram("foreground, %", covered, (0, 100))}
    if labels == "instances":
        charts["Objects per image"] = histogram("objects", [s.num_objects for s in samples])
    if labels == "classes":
        total = np.sum([s.pixels for s in samples], 0)
        rows = [(c, f"{n / total.sum():.2%}", sum(s.pixels[c] > 0 for s in samples))
                for c, n in enumerate(total[:-1])]
        table = document.table(("class", "pixels", "images with it"), rows, {0, 1, 2})
    figures = "".join(f"<figure><h3>{escape(title)}</h3>{chart}</figure>"
                      for title, chart in charts.items())
    classes = f"<h3>Classes</h3>{table}" if labels == "classes" else ""
    return f'<h2>Labels</h2>{classes}<div class="grid3">{figures}</div>'


def histogram(name: str, values, limits=None) -> str:
    """An SVG of how many of `values` lie in each of at most BINS equal steps."""
    low, high = limits or (0, max(values) or 1)
    counts, edges = np.histogram(values, BINS, (low, high))
    left, bottom = svg.LEFT, svg.HEIGHT - svg.BOTTOM
    to_x = lambda v: left + (v - low) / (high - low) * (svg.WIDTH - left - svg.RIGHT)
    marks = svg.ticks(0, int(counts.max()))
    to_y = lambda n: bottom - n / marks[-1] * (bottom - 10)
    text = lambda x, y, word, anchor: (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
                                       f"{escape(str(word))}</text>")
    parts = [f'<line class="grid" x1="{left}" x2="{svg.WIDTH - svg.RIGHT}" y1="{to_y(n):.1f}" '
             f'y2="{to_y(n):.1f}"/>{text(left - 6, to_y(n) + 4, f"{n:g}", "end")}'
             for n in marks if n == int(n)]
    parts += [f'<rect class="bar" x="{to_x(a) + 0.5:.1f}" y="{to_y(n):.1f}" '
              f'width="{to_x(b) - to_x(a) - 1:.1f}" height="{bottom - to_y(n):.1f}"/>'
              for a, b, n in zip(edges, edges[1:], counts) if n]
    parts += [text(to_x(v), bottom + 16, f"{v:g}", "middle")
              for v in svg.ticks(low, high) if low <= v <= high]
    parts.append(text((left + svg.WIDTH - svg.RIGHT) / 2, svg.HEIGHT - 4, f"{name}; images upwards",
                      "middle"))
    spoken = escape(f"{name} of {len(values)} images: from {min(values):.4g} to "
                    f"{max(values):.4g}, median {np.median(values):.4g}", quote=True)
    return (f'<svg role="img" aria-label="{spoken}" viewBox="0 0 {svg.WIDTH} {svg.HEIGHT}">'
            f"<title>{spoken}</title>{''.join(parts)}</svg>")
