"""Charts of a study as inline SVG text: differences, curves with bands, distributions, scatter.

A verdict is told by shape, side and word as well as by colour (Okabe and Ito, 2008), so charts
survive colour blindness and grey prints. Every chart carries its numbers as its spoken label.
"""

from typing import NamedTuple

import numpy as np

from cellseg_jax.report import svg

# A shape for each verdict, around (0, 0).
SHAPES = {
    "better": '<path class="better" d="M0-6L6 5H-6Z"/>',
    "worse": '<path class="worse" d="M0 6L6-5H-6Z"/>',
    "not distinguishable": '<circle class="same" r="4.5"/>',
    "too few repeats": '<path class="few" d="M0-6L6 0L0 6L-6 0Z"/>',
}
STYLE = """<style>
:root{--blue:#0072b2;--orange:#d55e00;--orange-text:#b84e00;--grey:#7d858d}
@media screen and (prefers-color-scheme:dark){
 :root{--blue:#56b4e9;--orange:#f0803a;--orange-text:#f0803a;--grey:#98a1aa}}
svg text{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
svg .better{fill:var(--blue);stroke:var(--blue)}svg .worse{fill:var(--orange);stroke:var(--orange)}
svg .same{fill:var(--grey);stroke:var(--grey)}
svg .few{fill:var(--paper);stroke:var(--grey);stroke-width:1.5}
svg .span{stroke-width:2.5}svg .floor{fill:var(--grey);fill-opacity:.2}
svg .zero{stroke:var(--grey);stroke-width:1.5}svg .base{stroke:var(--grey);stroke-dasharray:5 3}
svg .band{fill-opacity:.22;stroke:none}svg .violin{fill:var(--blue);fill-opacity:.3}
svg .box{stroke:var(--blue);stroke-width:4}
svg .open{fill:none}
svg .target{stroke:var(--orange);stroke-width:1.5;stroke-dasharray:2 3;fill:none}
svg .fitted{stroke:var(--blue)}svg .run{fill:var(--paper);stroke:var(--blue);stroke-width:2}
svg .median{fill:var(--paper);stroke:var(--blue);stroke-width:2}
</style>"""
MAX_POINTS = 120  # of a band: small charts show no more, and a page has many
CLIPPED = 4  # differences beyond this many times the median reach end in an arrow


class Difference(NamedTuple):
    """A row beside the baseline; `low` and `high` may be nan."""

    label: str
    value: float
    low: float
    high: float
    verdict: str


class Band(NamedTuple):
    """A line through `mean` within `low` to `high`; numpy arrays over x, nan leaves a gap."""

    name: str
    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def band(name: str, curves) -> Band | None:
    """The mean of (x, y) curves and their lowest and highest value, at the x that any of them has.

    A curve is interpolated inside its range and has no say outside of it. None without a point.
    """
    kept = []
    for x, y in curves:
        points = np.asarray([(a, b) for a, b in zip(x, y, strict=True)
                             if None not in (a, b) and np.isfinite(b)], float)
        kept += [points] if len(points) else []
    if not kept:
        return None
    x = np.unique(np.concatenate([points[:, 0] for points in kept]))
    if len(x) > MAX_POINTS:
        x = x[np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))]
    y = np.stack([np.interp(x, *points.T, left=np.nan, right=np.nan) for points in kept])
    return Band(name, x, np.nanmin(y, 0), np.nanmean(y, 0), np.nanmax(y, 0))


def forest(title: str, x_name: str, rows: list[Difference], floor: float = 0.0) -> str:
    """Differences to a baseline with their intervals, one under the other, "" without rows.

    Args:
      floor: half the width of the shaded strip around zero: what repeats alone do.
    """
    if not rows:
        return ""
    long = max(len(r.label) for r in rows) > 22  # then the label has a line of its own
    left, right, height = (14, 66, 38) if long else (158, 66, 24)
    ends = lambda r: [v for v in (r.value, r.low, r.high) if np.isfinite(v)] or [0.0]
    reach = [max(map(abs, ends(r))) for r in rows]
    limit = min(max(reach), CLIPPED * float(np.median(reach))) or max(reach)
    limit = max(limit, 1.5 * floor) or 1e-3
    low = max(min(0, -floor, *(v for r in rows for v in ends(r))), -limit)
    high = min(max(0, floor, *(v for r in rows for v in ends(r))), limit)
    pad = 0.04 * (high - low)
    scale = _scale(low - pad, high + pad, left, svg.WIDTH - right)
    bottom = len(rows) * height + 12
    parts = [f'<rect class="floor" x="{scale(-floor):.1f}" y="6" height="{bottom - 6}" '
             f'width="{scale(floor) - scale(-floor):.1f}"/>' if floor else "",
             f'<line class="zero" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="6" y2="{bottom}"/>']
    for n, r in enumerate(rows):
        y = n * height + (30 if long else 22)
        parts.append(svg.text(left if long else left - 10, y - 14 if long else y + 4, r.label,
                           "start" if long else "end"))
        parts.append(svg.text(svg.WIDTH - right + 8, y + 4, f"{r.value:+.4f}", "start"))
        a, b = (np.clip(v, low, high) for v in (r.low, r.high))
        kind = next((k for k in ("better", "worse") if k == r.verdict), "same")
        if np.isfinite(a) and np.isfinite(b):
            parts.append(f'<line class="span {kind}" x1="{scale(a):.1f}" x2="{scale(b):.1f}" '
                         f'y1="{y}" y2="{y}"/>')
        for end, edge, way in ((min(ends(r)), low, -1), (max(ends(r)), high, 1)):
            if end * way > edge * way + 1e-12:  # goes on beyond the chart
                x = scale(edge) + 8 * way * (r.value * way > edge * way)  # beside the marker
                parts.append(f'<path class="span open {kind}" d="M{x:.1f} {y - 5}'
                             f'l{5 * way} 5l{-5 * way} 5"/>')
        parts.append(f'<g transform="translate({scale(np.clip(r.value, low, high)):.1f} {y})">'
                     f"{SHAPES.get(r.verdict, SHAPES['too few repeats'])}</g>")
    parts += [svg.text(scale(v), bottom + 16, f"{v:g}" if v else "0", "middle")
              for v in _few(svg.ticks(low, high), low - pad, high + pad)]
    parts.append(svg.text((scale(low) + scale(high)) / 2, bottom + 34, x_name, "middle"))
    spoken = "; ".join(f"{r.label} {r.value:+.4f}, {r.verdict}" for r in rows)
    return svg.element(f"{title}: {spoken}", svg.WIDTH, bottom + 40, parts)


def bands(title: str, x_name: str, shown: list[Band], *, base: Band | None = None, limits=None,
          size=(210, 140)) -> str:
    """A small chart of curves with bands, "" without any.

    Args:
      base: drawn as a dashed grey line, to compare with.
      limits: (low, high) of y, when charts beside each other share them; what lies below is
        left out.
      size: width and height in user units.
    """
    shown = [one for one in shown if one is not None]
    if not shown:
        return ""
    (width, height), left, bottom, right = size, 40, 30, 8
    everything = [*shown, *([base] if base else [])]
    low, high = limits or (min(np.nanmin(one.low) for one in everything),
                           max(np.nanmax(one.high) for one in everything))
    y_ticks = svg.ticks(low, high, 3)
    low, high = y_ticks[0], y_ticks[-1]
    shown = [_above(low, one) for one in shown]
    base = _above(low, base) if base else None
    first, last = (f(one.x[0 if f is min else -1] for one in everything) for f in (min, max))
    to_x = _scale(first, last, left, width - right)
    to_y = _scale(low, high, height - bottom, 8)
    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{to_y(y):.1f}" '
                     f'y2="{to_y(y):.1f}"/>')
        parts.append(svg.text(left - 5, to_y(y) + 4, f"{y:.4g}", "end"))
    x_ticks = [x for x in svg.ticks(first, last, 3) if first <= x <= last][-3:]
    parts += [svg.text(to_x(x), height - bottom + 14, f"{x:g}", "middle" if x < last else "end")
              for x in x_ticks]
    parts.append(svg.text((left + width - right) / 2, height - 3, x_name, "middle"))
    if base:
        parts.append(f'<path class="line base" d="{_line(base.x, base.mean, to_x, to_y)}"/>')
    for (colour, dash), one in zip(svg.STYLES, shown, strict=False):
        if len(one.x) > 1:
            back = slice(None, None, -1)
            parts.append(f'<path class="band" fill="{colour}" d="'
                         f"{_line(one.x, one.high, to_x, to_y)}"
                         f'{_line(one.x[back], one.low[back], to_x, to_y).replace("M", "L")}Z"/>')
            parts.append(f'<path class="line" stroke="{colour}" stroke-dasharray="{dash}" '
                         f'd="{_line(one.x, one.mean, to_x, to_y)}"/>')
        else:  # a line of one point is invisible
            parts.append(f'<circle cx="{to_x(one.x[0]):.1f}" cy="{to_y(one.mean[0]):.1f}" r="3.5" '
                         f'fill="{colour}"/>')
    spoken = "; ".join(f"{one.name} ends at {one.mean[-1]:.4g}" for one in shown)
    return svg.element(f"{title}: {spoken}", width, height, parts)


def distributions(title: str, x_name: str, rows: list[tuple[str, np.ndarray]]) -> str:
    """How values spread, row under row: density, quartiles (bar) and median (dot).

    The axis leaves out the lowest 2 % of the worst row; how many lie below it is written there.
    """
    rows = [(label, v[np.isfinite(v)]) for label, v in rows]
    rows = [(label, v) for label, v in rows if len(v)]
    if not rows:
        return ""
    long = max(len(label) for label, _ in rows) > 22
    left, right, height = (14, 50, 46) if long else (158, 50, 30)
    ticks = svg.ticks(min(np.percentile(v, 2) for _, v in rows), max(v.max() for _, v in rows))
    low, high = ticks[0], ticks[-1]
    scale = _scale(low, high, left + 22, svg.WIDTH - right)
    bottom, parts, spoken = len(rows) * height + 10, [], []
    parts += [f'<line class="grid" x1="{scale(v):.1f}" x2="{scale(v):.1f}" y1="6" y2="{bottom}"/>'
              + svg.text(scale(v), bottom + 16, f"{v:g}", "middle") for v in ticks]
    middle = np.median(rows[0][1])
    parts.append(f'<line class="base" x1="{scale(middle):.1f}" x2="{scale(middle):.1f}" y1="6" '
                 f'y2="{bottom}"/>')
    for n, (label, values) in enumerate(rows):
        y = n * height + (34 if long else 22)
        parts.append(svg.text(left if long else left - 4, y - 18 if long else y + 4, label,
                           "start" if long else "end"))
        count, edges = np.histogram(values, 48, (low, high))
        wide = np.convolve(count, np.array([1, 4, 6, 4, 1]) / 16, "same")
        wide = 11 * wide / max(wide.max(), 1e-9)
        middles = (edges[1:] + edges[:-1]) / 2
        outline = [f"{scale(x):.0f} {y + way * w:.1f}" for way in (-1, 1)
                   for x, w in list(zip(middles, wide, strict=True))[::-way]]
        parts.append(f'<path class="violin" d="M{"L".join(outline)}Z"/>')
        a, median, b = np.percentile(values, (25, 50, 75))
        cut = lambda v: scale(max(v, low))
        parts.append(f'<line class="box" x1="{cut(a):.1f}" x2="{cut(b):.1f}" y1="{y}" y2="{y}"/>'
                     f'<circle class="median" cx="{cut(median):.1f}" cy="{y}" r="4"/>')
        below = int((values < low).sum())
        parts.append(svg.text(left + 1, y + 4, f"\u25c2{below}", "start") if below else "")
        parts.append(svg.text(svg.WIDTH - right + 8, y + 4, f"{median:.3f}", "start"))
        spoken.append(f"{label} median {median:.3f}")
    parts.append(svg.text((scale(low) + scale(high)) / 2, bottom + 34, x_name, "middle"))
    return svg.element(f"{title}: {'; '.join(spoken)}", svg.WIDTH, bottom + 40, parts)


def scatter(title: str, x_name: str, y_name: str, points, *, diagonal: bool = True) -> str:
    """Numbered (x, y, spread of y) points, "" without any.

    Points of one place carry one text, their numbers joined by commas.

    Args:
      diagonal: x and y are of one kind: they share a scale, and a line shows equal values. Else
        x begins at 0.
    """
    points = [(n, *p) for n, p in enumerate(points, 1) if all(np.isfinite(p[:2]))]
    if not points:
        return ""
    ys = [v for _, _, y, spread in points
          for v in (y, *((y - spread, y + spread) if np.isfinite(spread) else ()))]
    xs = [x for _, x, _, _ in points]
    both = svg.ticks(min(*xs, *ys), max(*xs, *ys))
    x_ticks, y_ticks = (both, both) if diagonal else (svg.ticks(0, max(xs)),
                                                      svg.ticks(min(ys), max(ys)))
    bottom = 320 - svg.BOTTOM
    to_x = _scale(x_ticks[0], x_ticks[-1], svg.LEFT, svg.WIDTH - svg.RIGHT)
    to_y = _scale(y_ticks[0], y_ticks[-1], bottom, 8)
    parts = [f'<line class="grid" x1="{svg.LEFT}" x2="{svg.WIDTH - svg.RIGHT}" y1="{to_y(v):.1f}" '
             f'y2="{to_y(v):.1f}"/>{svg.text(svg.LEFT - 6, to_y(v) + 4, f"{v:.4g}", "end")}'
             for v in y_ticks]
    parts += [svg.text(to_x(v), bottom + 16, f"{v:.4g}", "middle") for v in x_ticks]
    if diagonal:
        ends = both[0], both[-1]
        parts.append(f'<line class="zero" x1="{to_x(ends[0]):.1f}" y1="{to_y(ends[0]):.1f}" '
                     f'x2="{to_x(ends[1]):.1f}" y2="{to_y(ends[1]):.1f}"/>')
    names = f"{x_name}; upwards: {y_name}"
    parts.append(svg.text((svg.LEFT + svg.WIDTH) / 2, 316, names, "middle"))
    named = {}
    for n, x, y, spread in points:
        if np.isfinite(spread):
            ends = [to_y(y + s) for s in (-spread, spread)]
            parts.append(f'<line class="span better" style="stroke-width:1.5" x1="{to_x(x):.1f}" '
                         f'x2="{to_x(x):.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
        parts.append(f'<circle class="better" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="4"/>')
        place = next((p for p in named if abs(p[0] - to_x(x)) < 14 and abs(p[1] - to_y(y)) < 12),
                     (to_x(x), to_y(y)))
        named.setdefault(place, []).append(str(n))
    for (x, y), numbers in named.items():
        side, shift = ("end", -8) if x > svg.WIDTH - 60 else ("start", 8)
        parts.append(svg.text(x + shift, y + 4, ",".join(numbers), side))
    spoken = "; ".join(f"{n}: {x_name} {x:.4g}, {y_name} {y:.4g}" for n, x, y, _ in points)
    return svg.element(f"{title}: {spoken}", svg.WIDTH, 320, parts)


def learning_curve(title: str, y_name: str, points, curve: Band | None, *, last: float = 0.0,
                   targets=(), best: float | None = None) -> str:
    """Scores of runs over the number of training images (a logarithmic axis), "" without points.

    Args:
      points: (images, score) of the runs.
      curve: the fitted one with its band; drawn dashed beyond `last` images.
      targets: (score, images or inf) that are wanted; where the chart reaches the images, a line
        leads down to them. Those that fewer images than all runs had would meet are left out.
      best: the best possible score; the axis does not go beyond it.
    """
    points = [(n, score) for n, score in points if n > 0 and np.isfinite(score)]
    if not points:
        return ""
    first = min(n for n, _ in points) / 1.15
    targets = [(target, images) for target, images in targets if images >= first]
    (width, height), left, bottom = (640, 400), 56, 44
    right = 104 if targets else 14
    floor = height - bottom
    ys = [*(score for _, score in points), *(target for target, _ in targets),
          *(curve.mean if curve else ())]
    y_ticks = [t for t in svg.ticks(min(ys), max(ys), 5)
               if best is None or (t <= best + 1e-9 if best else t >= -1e-9)]
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    end = max(*(n for n, _ in points), *(curve.x if curve else ()), 2 * first) * 1.04
    to_log, to_y = _scale(np.log(first), np.log(end), left, width - right), _scale(
        low, high, floor, 30)
    to_x = lambda n: to_log(np.log(n))
    parts = [f'<line class="grid" x1="{left}" x2="{width - right}" y1="{to_y(v):.1f}" '
             f'y2="{to_y(v):.1f}"/>{svg.text(left - 6, to_y(v) + 4, f"{v:.4g}", "end")}'
             for v in y_ticks]
    parts += [f'<line class="grid" x1="{to_x(n):.1f}" x2="{to_x(n):.1f}" y1="{floor}" '
              f'y2="{floor + 5}"/>{svg.text(to_x(n), floor + 19, f"{n:,}", "middle")}'
              for n in _round_numbers(first, end)]
    parts.append(svg.text((left + width - right) / 2, height - 6,
                          "training images (logarithmic)", "middle"))
    if curve:
        back, cut = slice(None, None, -1), lambda v: np.clip(v, low, high)
        outline = (_line(curve.x, cut(curve.low), to_x, to_y)
                   + _line(curve.x[back], cut(curve.high[back]), to_x, to_y).replace("M", "L"))
        parts.append(f'<path class="band" fill="var(--blue)" d="{outline}Z"/>' if outline else "")
    for target, images in targets:
        y, x = to_y(target), to_x(images) if first <= images <= end else width - right
        parts.append(f'<path class="target" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(svg.text(width - right + 6, y + 4, f"wanted {target:g}", "start"))
        if first <= images <= end:
            parts.append(f'<path class="target" d="M{x:.1f} {y:.1f}V{floor}"/>'
                         f'<circle class="worse" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    if curve:
        middle = np.interp(np.log(last), np.log(curve.x), curve.mean)
        tried = curve.x < last
        for dash, x, y in (
                ("none", np.append(curve.x[tried], last), np.append(curve.mean[tried], middle)),
                ("7 4", np.append(last, curve.x[~tried]),
                 np.append(middle, curve.mean[~tried]))):
            parts.append(f'<path class="line fitted" stroke-dasharray="{dash}" '
                         f'd="{_line(x, y, to_x, to_y)}"/>')
    parts += [f'<circle class="run" cx="{to_x(n):.1f}" cy="{to_y(score):.1f}" r="4"/>'
              for n, score in points]
    parts.append(svg.text(8, 16, y_name, "start"))
    spoken = "; ".join(f"{n} images {score:.4g}" for n, score in points)
    return svg.element(f"{title}: {spoken}", width, height, parts)


def _round_numbers(low, high) -> list[int]:
    """1, 2 or 5 times powers of ten within [low, high]; powers alone where they would crowd."""
    powers = range(int(np.floor(np.log10(max(low, 1)))), int(np.log10(high)) + 1)
    found = [m * 10**p for p in powers for m in (1, 2, 5) if low <= m * 10**p <= high]
    return found if len(found) <= 9 else [n for n in found if str(n)[0] == "1"]


def _scale(low, high, start, end):
    """v -> start + (v - low) / (high - low) * (end - start), also where low is high."""
    span = high - low or 1e-9
    return lambda v: start + (v - low) / span * (end - start)


def _above(low, one):
    """The band without points whose mean lies below `low`."""
    keep = np.where(one.mean >= low - 1e-12, 0.0, np.nan)
    return one._replace(low=np.maximum(one.low, low) + keep, mean=one.mean + keep,
                        high=one.high + keep)


def _few(ticks, low, high):
    """Those in [low, high], every second one where they would crowd."""
    inside = [v for v in ticks if low <= v <= high]
    return [v for v in inside if len(inside) < 6 or round(v / (ticks[1] - ticks[0])) % 2 == 0]


def _line(x, y, to_x, to_y) -> str:
    """Path data through the finite points."""
    return "".join(f"{'L' if n else 'M'}{to_x(a):.1f} {to_y(b):.1f}" for n, (a, b) in enumerate(
        (a, b) for a, b in zip(x, y, strict=True) if np.isfinite(b)))
