"""Curves and bars as inline SVG text: no script, no font file, sharp on paper and on a phone."""

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 420, 250  # user units; a chart is about this wide on a phone, so text stays legible
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 36
# Okabe and Ito (2008); lines differ in their dashes too, for grey prints.
STYLES = (("#0072b2", "none"), ("#d55e00", "7 3"), ("#009e73", "2 3"))
MAX_POINTS = 600


class Series(NamedTuple):
    """A named line; `x` and `y` may hold None and non-finite numbers, which leave gaps."""

    name: str
    x: list
    y: list


def curves(title: str, x_name: str, series: list[Series], mark: tuple[float, str] | None = None):
    """An SVG of lines over a common axis, or "" where no series has a point.

    Args:
      mark: (x, text) of a vertical line, such as the step of the best checkpoint; the text
        stands above the plot, where no curve runs.
    """
    series = [s for s in series if any(map(_finite, s.y))]
    if not series:
        return ""
    xs = [x for s in series for x, y in zip(s.x, s.y, strict=True) if _finite(y)]
    ys = [y for s in series for y in s.y if _finite(y)]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    to_x = lambda x: LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
    marked = mark is not None and x_low <= mark[0] <= x_high
    top = TOP + 16 * marked
    to_y = lambda y: HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - top - BOTTOM)
    out = []
    for y in y_ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" '
                   f'y2="{to_y(y):.1f}"/>')
        out.append(text(LEFT - 6, to_y(y) + 4, f"{y:.4g}", "end"))
    for x in x_ticks:
        if x_low <= x <= x_high:
            out.append(text(to_x(x), HEIGHT - BOTTOM + 16, f"{x:.6g}", "middle"))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_name, "middle"))
    if marked:
        x = to_x(mark[0])
        side, shift = ("end", -4) if x > WIDTH / 2 else ("start", 4)
        out.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 12}" '
                   f'y2="{HEIGHT - BOTTOM}"/>')
        out.append(text(x + shift, top - 6, mark[1], side))
    x = LEFT
    for (colour, dash), s in zip(STYLES, series, strict=False):
        style = f'stroke="{colour}" stroke-dasharray="{dash}"'
        out.append(f'<path class="line" {style} d="{_path(s, to_x, to_y)}"/>')
        points = [(x_, y) for x_, y in zip(s.x, s.y, strict=True) if _finite(y)]
        if len(points) == 1:  # a line of one point is invisible
            out.append(f'<circle cx="{to_x(points[0][0]):.1f}" cy="{to_y(points[0][1]):.1f}" '
                       f'r="3.5" fill="{colour}"/>')
        out.append(f'<line class="line" {style} x1="{x}" x2="{x + 24}" y1="14" y2="14"/>')
        out.append(text(x + 30, 18, s.name, "start"))
        x += 48 + 7 * len(s.name)
    final = "; ".join(f"{s.name} ends at {[y for y in s.y if _finite(y)][-1]:.4g}" for s in series)
    return element(f"{title}: {final}", WIDTH, HEIGHT, out)


class Bar(NamedTuple):
    """A value in [0, 1] with its interval, over the points that it is a mean of."""

    label: str
    value: float | None
    points: list = []
    interval: tuple[float, float] | None = None


def bars(title: str, rows: list[Bar]) -> str:
    """An SVG of horizontal bars from 0 to 1, each under its label.

    Points lie in five lanes, neighbours in different ones, so that close values stay apart.
    """
    row, left, right = 51, LEFT // 4, RIGHT + 40
    scale = lambda v: left + v * (WIDTH - left - right)
    out, spoken = [], []
    for n, (label, value, points, interval) in enumerate(rows):
        y = n * row + 6
        out.append(text(left, y + 10, label, "start"))
        for k, point in enumerate(sorted(filter(_finite, points))):
            out.append(f'<circle class="dot" cx="{scale(point):.1f}" r="2.5" '
                       f'cy="{y + 29 + (k * 2 % 5 - 2) * 4:.1f}"/>')
        if _finite(value):
            out.insert(0, f'<rect class="bar" x="{left}" y="{y + 18:.1f}" height="22" '
                          f'width="{scale(value) - left:.1f}"/>')
            out.append(text(scale(1) + 8, y + 33, f"{value:.3f}", "start"))
            spoken.append(f"{label} {value:.3f}")
        if interval:
            low, high = (scale(v) for v in interval)
            out.append(f'<path class="range" d="M{low:.1f} {y + 29}H{high:.1f}'
                       f'M{low:.1f} {y + 23}v12M{high:.1f} {y + 23}v12"/>')
            spoken[-1] += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    height = len(rows) * row + 26
    out.insert(0, f'<line class="grid" x1="{left}" x2="{scale(1):.1f}" y1="{height - 20:.1f}" '
                  f'y2="{height - 20:.1f}"/>')
    out += [text(scale(v), height - 6, f"{v:g}", "middle") for v in (0, 0.25, 0.5, 0.75, 1)]
    return element(f"{title}: {'; '.join(spoken)}", WIDTH, height, out)


def shares(title: str, parts: list[tuple[str, int, str]]) -> str:
    """An SVG of one bar cut into (name, count, colour) parts, over a list of them."""
    total = sum(count for _, count, _ in parts) or 1
    out, spoken, x = [], [], 0.0
    for n, (name, count, colour) in enumerate(parts):
        width, y = WIDTH * count / total, 58 + 22 * n
        out.append(f'<rect x="{x:.1f}" y="6" width="{width:.1f}" height="30" fill="{colour}"/>')
        out.append(f'<rect x="0" y="{y - 11}" width="14" height="14" rx="2" fill="{colour}"/>')
        out.append(text(22, y, name, "start") + text(150, y, f"{count:,}", "end")
                   + text(210, y, f"{count / total:.1%}", "end"))
        spoken.append(f"{name} {count}")
        x += width
    return element(f"{title}: {', '.join(spoken)}", WIDTH, 58 + 22 * len(parts), out)


def reliability(title: str, curves: list[tuple[str, list, list, list]]) -> str:
    """An SVG of how often what has a probability is true; the dashed diagonal is calibrated.

    Args:
      curves: (name, mean probability, share that is true, share of the pixels) of the bins; a
        dot's area follows the logarithm of its pixels.
    """
    side, right = 300, 12
    to_x = lambda v: LEFT + v * (side - LEFT - right)
    to_y = lambda v: side - BOTTOM - v * (side - TOP - BOTTOM)
    out, spoken, x = [], [], LEFT
    for v in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<path class="grid" d="M{to_x(0):.1f} {to_y(v):.1f}H{to_x(1):.1f}'
                   f'M{to_x(v):.1f} {to_y(0):.1f}V{to_y(1):.1f}"/>')
        out.append(text(to_x(v), side - BOTTOM + 16, f"{v:g}", "middle")
                   + text(LEFT - 6, to_y(v) + 4, f"{v:g}", "end"))
    out.append(f'<path class="mark" d="M{to_x(0):.1f} {to_y(0):.1f}L{to_x(1):.1f} {to_y(1):.1f}"/>')
    for (colour, dash), (name, probs, true, pixels) in zip(STYLES, curves, strict=False):
        kept = [n for n in range(len(pixels)) if pixels[n] > 0]
        path = " ".join(f"{to_x(probs[n]):.1f} {to_y(true[n]):.1f}" for n in kept)
        style = f'stroke="{colour}" stroke-dasharray="{dash}"'
        out.append(f'<polyline class="line" {style} points="{path}"/>')
        out += [f'<circle cx="{to_x(probs[n]):.1f}" cy="{to_y(true[n]):.1f}" fill="{colour}" '
                f'r="{max(2.0, 7 + math.log10(pixels[n])):.1f}"/>' for n in kept]
        out.append(f'<line class="line" {style} x1="{x}" x2="{x + 24}" y1="14" y2="14"/>')
        out.append(text(x + 30, 18, name, "start"))
        x += 48 + 7 * len(name)
        spoken.append(f"{name}: " + ", ".join(
            f"{true[n]:.2f} true at {probs[n]:.2f}" for n in kept))
    out.append(text((to_x(0) + to_x(1)) / 2, side - 4, "predicted probability", "middle"))
    out.append(f'<g transform="rotate(-90)">{text(-side / 2, 14, "share that is true", "middle")}'
               "</g>")
    return element(f"{title}: {'; '.join(spoken)}", side, side, out)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` steps of 1, 2 or 5 times a power of ten around [low, high]."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _path(s: Series, to_x, to_y) -> str:
    """Path data; a gap where a value is missing, and every n-th point of a very long log."""
    points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if y is not None]
    points = points[:-1][:: -(-len(points) // MAX_POINTS)] + points[-1:]
    words, drawing = [], False
    for x, y in points:
        if _finite(y):  # h0: a point between two gaps is a dot
            words.append(f"{'L' if drawing else 'M'}{to_x(x):.1f} {to_y(y):.1f}"
                         + ("" if drawing else "h0"))
        drawing = _finite(y)
    return "".join(words)


def _finite(value) -> bool:
    return value is not None and math.isfinite(value)


def text(x, y, text, anchor) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(text))}</text>'


def element(label, width, height, parts) -> str:
    label = escape(label, quote=True)
    return (f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height:.0f}">'
            f"<title>{label}</title>{''.join(parts)}</svg>")
