"""Charts with a row per thing as inline SVG: bars, shares of a whole, differences, distributions.

A function returns Markup for a template, or "" where there is nothing to draw. The accessible name
of a chart holds its numbers.
"""

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from cellseg_jax.report import svg
from cellseg_jax.report.svg import WIDTH, is_finite

LONG = 22  # letters; where a label is longer, labels stand above their rows
CLIPPED = 4  # differences beyond this many times the median one end in an arrow
# Markers around (0, 0): they differ by shape as well as by colour.
MARKERS = {
    "up": Markup('<path class="up" d="M0-6L6 5H-6Z"/>'),
    "down": Markup('<path class="down" d="M0 6L6-5H-6Z"/>'),
    "circle": Markup('<circle class="circle" r="4.5"/>'),
    "diamond": Markup('<path class="diamond" d="M0-6L6 0L0 6L-6 0Z"/>'),
    "cross": Markup('<path class="cross" d="M-5-5L5 5M-5 5L5-5"/>'),
    "square": Markup('<path class="square" d="M-4.5-4.5H4.5V4.5H-4.5Z"/>'),
}


class Bar(NamedTuple):
    """A value in [0, 1] with its interval, over the points that it is a mean of."""

    label: str
    value: float | None
    points: list = []
    interval: tuple[float, float] | None = None


class Difference(NamedTuple):
    """A row beside zero; `low` and `high` may be nan."""

    label: str
    value: float
    low: float
    high: float
    marker: str  # of MARKERS
    meaning: str  # of the marker


def bars(title: str, rows: list[Bar]) -> str:
    """Horizontal bars from 0 to 1, each under its label.

    Points lie in five lanes, neighbours in different ones, so that close values stay apart.
    """
    height, left, right = len(rows) * 51 + 26, 13, WIDTH - 52
    to_x = svg.scale(0, 1, left, right)
    parts = [svg.line(left, height - 20, right, height - 20, class_="grid")]
    for n, row in enumerate(rows):
        parts += _bar(row, n * 51 + 6, left, to_x)
    parts += [svg.text(to_x(v), height - 6, f"{v:g}", "middle") for v in (0, 0.25, 0.5, 0.75, 1)]
    numbers = "; ".join(f"{r.label} {r.value:.3f}" + (
        f" ({r.interval[0]:.3f} to {r.interval[1]:.3f})" if r.interval else "")
        for r in rows if is_finite(r.value))
    return svg.element(f"{title}: {numbers}", WIDTH, height, parts)


def _bar(row, y, left, to_x):
    """The parts of one bar, the bar itself below what lies over it."""
    parts = [svg.text(left, y + 10, row.label)]
    if is_finite(row.value):
        parts += [svg.tag("rect", class_="bar", x=left, y=y + 18, height=22,
                          width=float(to_x(row.value) - left)),
                  svg.text(to_x(1) + 8, y + 33, f"{row.value:.3f}")]
    parts += [svg.circle(to_x(point), y + 29 + (k * 2 % 5 - 2) * 4, 2.5, class_="dot")
              for k, point in enumerate(sorted(filter(is_finite, row.points)))]
    if row.interval:
        low, high = map(to_x, row.interval)
        parts.append(svg.tag("path", class_="range", d=f"M{low:.1f} {y + 29}H{high:.1f}"
                             f"M{low:.1f} {y + 23}v12M{high:.1f} {y + 23}v12"))
    return parts


def shares(title: str, rows: list[tuple[str, int, str]]) -> str:
    """One bar cut into (name, count, colour) parts, over a list of them."""
    total = sum(count for _, count, _ in rows) or 1
    parts, x = [], 0.0
    for n, (name, count, colour) in enumerate(rows):
        width, y = WIDTH * count / total, 58 + 22 * n
        parts += [svg.tag("rect", x=x, y=6, width=width, height=30, fill=colour),
                  svg.tag("rect", x=0, y=y - 11, width=14, height=14, rx=2, fill=colour),
                  svg.text(22, y, name), svg.text(150, y, f"{count:,}", "end"),
                  svg.text(210, y, f"{count / total:.1%}", "end")]
        x += width
    numbers = ", ".join(f"{name} {count}" for name, count, _ in rows)
    return svg.element(f"{title}: {numbers}", WIDTH, 58 + 22 * len(rows), parts)


def differences(title: str, x_name: str, rows: list[Difference], strip: float = 0.0,
                margin: float = 0.0) -> str:
    """Differences with their intervals, one under the other: a forest plot.

    Args:
      strip: half the width of the shaded strip around zero, such as the noise of a repetition.
      margin: a difference that does not matter; dotted lines on both sides of zero, if above 0.
    """
    if not rows:
        return ""
    layout = _Layout.of([r.label for r in rows], right=66, heights=(24, 38))
    low, high = _limits(rows, max(strip, margin))
    pad = 0.04 * (high - low)
    to_x = svg.scale(low - pad, high + pad, layout.left, WIDTH - layout.right)
    bottom = len(rows) * layout.height + 12
    parts = [svg.tag("rect", class_="strip", x=float(to_x(-strip)), y=6, height=bottom - 6,
                     width=float(to_x(strip) - to_x(-strip)))] if strip else []
    parts.append(svg.line(to_x(0), 6, to_x(0), bottom, class_="zero"))
    parts += [svg.line(to_x(end), 6, to_x(end), bottom, class_="target")
              for end in ((-margin, margin) if margin else ())]
    for n, row in enumerate(rows):
        y = layout.middle(n)
        parts += [layout.label(n, row.label),
                  svg.text(WIDTH - layout.right + 8, y + 4, f"{row.value:+.4f}"),
                  *_difference(row, y, to_x, low, high)]
    parts += [svg.text(to_x(v), bottom + 16, f"{v:g}" if v else "0", "middle")
              for v in _some(svg.ticks(low, high), low - pad, high + pad)]
    parts.append(svg.text((to_x(low) + to_x(high)) / 2, bottom + 34, x_name, "middle"))
    numbers = "; ".join(f"{r.label} {r.value:+.4f}, {r.meaning}" for r in rows)
    return svg.element(f"{title}: {numbers}", WIDTH, bottom + 40, parts)


class _Layout(NamedTuple):
    """Where rows and their labels stand; long labels have a line of their own."""

    left: float
    right: float
    height: int
    above: bool  # labels above their rows

    @classmethod
    def of(cls, labels, right, heights):
        above = max(map(len, labels)) > LONG
        return cls(14 if above else 158, right, heights[above], above)

    def middle(self, n):
        return n * self.height + (self.height - 8 if self.above else 22)

    def label(self, n, words):
        y = self.middle(n)
        return svg.text(self.left, y - 14, words) if self.above else svg.text(
            self.left - 10, y + 4, words, "end")


def _ends(row) -> list[float]:
    return [v for v in (row.value, row.low, row.high) if np.isfinite(v)] or [0.0]


def _limits(rows, strip):
    """(low, high) of the axis: a row far beyond the others does not set it."""
    reach = [max(map(abs, _ends(r))) for r in rows]
    limit = min(max(reach), CLIPPED * float(np.median(reach))) or max(reach)
    limit = max(limit, 1.5 * strip) or 1e-3
    every = [v for r in rows for v in _ends(r)]
    return max(min(0, -strip, *every), -limit), min(max(0, strip, *every), limit)


def _difference(row, y, to_x, low, high):
    """Interval, arrows where it goes on beyond the chart, and marker."""
    a, b, value = (np.clip(v, low, high) for v in (row.low, row.high, row.value))
    kind = row.marker if row.marker in ("up", "down") else "circle"
    if np.isfinite(a) and np.isfinite(b):
        yield svg.line(to_x(a), y, to_x(b), y, class_=f"span {kind}")
    for end, edge, way in ((min(_ends(row)), low, -1), (max(_ends(row)), high, 1)):
        if end * way > edge * way + 1e-12:
            x = to_x(edge) + 8 * way * (row.value * way > edge * way)  # beside the marker
            yield svg.tag("path", class_=f"span open {kind}",
                          d=f"M{x:.1f} {y - 5}l{5 * way} 5l{-5 * way} 5")
    yield svg.tag("g", MARKERS[row.marker], transform=f"translate({to_x(value):.1f} {y})")


def _some(ticks, low, high):
    """Those in [low, high], every second one where they would crowd."""
    inside = [v for v in ticks if low <= v <= high]
    return [v for v in inside if len(inside) < 6 or round(v / (ticks[1] - ticks[0])) % 2 == 0]


def distributions(title: str, x_name: str, rows: list[tuple[str, np.ndarray]]) -> str:
    """How values spread, row under row: density, quartiles (bar) and median (dot).

    The axis leaves out the lowest 2 % of the worst row; how many lie below it is written there.
    """
    rows = [(label, v[np.isfinite(v)]) for label, v in rows]
    rows = [(label, v) for label, v in rows if len(v)]
    if not rows:
        return ""
    layout = _Layout.of([label for label, _ in rows], right=50, heights=(30, 42))
    ticks = svg.ticks(min(np.percentile(v, 2) for _, v in rows), max(v.max() for _, v in rows))
    to_x = svg.scale(ticks[0], ticks[-1], layout.left + 22, WIDTH - layout.right)
    bottom, first = len(rows) * layout.height + 10, np.median(rows[0][1])
    parts = []
    for v in ticks:
        parts += [svg.line(to_x(v), 6, to_x(v), bottom, class_="grid"),
                  svg.text(to_x(v), bottom + 16, f"{v:g}", "middle")]
    parts.append(svg.line(to_x(first), 6, to_x(first), bottom, class_="base"))
    for n, (label, values) in enumerate(rows):
        y, below = layout.middle(n), int((values < ticks[0]).sum())
        parts += [layout.label(n, label), *_distribution(values, y, to_x, ticks[0], ticks[-1]),
                  svg.text(WIDTH - layout.right + 8, y + 4, f"{np.median(values):.3f}")]
        parts += [svg.text(layout.left + 1, y + 4, f"\u25c2{below}")] if below else []
    parts.append(svg.text((layout.left + 22 + WIDTH - layout.right) / 2, bottom + 34, x_name,
                          "middle"))
    numbers = "; ".join(f"{label} median {np.median(v):.3f}" for label, v in rows)
    return svg.element(f"{title}: {numbers}", WIDTH, bottom + 40, parts)


def _distribution(values, y, to_x, low, high):
    """The outline of a smoothed histogram, the middle half, and the median."""
    count, edges = np.histogram(values, 48, (low, high))
    wide = np.convolve(count, np.array([1, 4, 6, 4, 1]) / 16, "same")
    wide = 11 * wide / max(wide.max(), 1e-9)
    middles = (edges[1:] + edges[:-1]) / 2
    outline = [f"{to_x(x):.0f} {y + way * w:.1f}" for way in (-1, 1)
               for x, w in list(zip(middles, wide, strict=True))[::-way]]
    yield svg.tag("path", class_="violin", d=f"M{'L'.join(outline)}Z")
    a, median, b = (to_x(max(v, low)) for v in np.percentile(values, (25, 50, 75)))
    yield svg.line(a, y, b, y, class_="box")
    yield svg.circle(median, y, 4, class_="median")
