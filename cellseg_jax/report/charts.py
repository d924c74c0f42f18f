"""Charts with two axes as inline SVG: curves, bands, scatter, fitted curves, histograms.

A function returns Markup for a template, or "" where there is nothing to draw. The accessible name
of a chart holds its numbers.
"""

import math
from typing import NamedTuple

import numpy as np

from cellseg_jax.report import svg
from cellseg_jax.report.svg import STYLES, Margins, Plot, is_finite, ticks

BAND_POINTS = 120  # of a band: small charts show no more, and a page has many
BINS = 20  # of a histogram
SMALL = (210, 140)  # size of a chart among many
NEAR = (14, 12)  # user units within which numbered points share one text


class Series(NamedTuple):
    """A named line; `x` and `y` may hold None and non-finite numbers, which leave gaps."""

    name: str
    x: list
    y: list


class Band(NamedTuple):
    """A line through `mean` within `low` to `high`; numpy arrays over x, nan leaves a gap."""

    name: str
    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


class Target(NamedTuple):
    """A value that is aimed at, and the x at which a fitted curve reaches it (or inf)."""

    label: str
    y: float
    x: float


def curves(title: str, x_name: str, series: list[Series],
           mark: tuple[float, str] | None = None) -> str:
    """Lines over a common axis.

    Args:
      mark: (x, text) of a vertical line, such as the step of the best checkpoint; the text
        stands above the plot, where no curve runs.
    """
    series = [s for s in series if any(map(is_finite, s.y))]
    if not series:
        return ""
    points = [[(x, y) for x, y in zip(s.x, s.y, strict=True) if is_finite(y)] for s in series]
    xs, ys = zip(*(point for one in points for point in one), strict=True)
    y_ticks = ticks(min(ys), max(ys))
    marked = mark is not None and min(xs) <= mark[0] <= max(xs)
    further = svg.LEGEND_LINE * (svg.legend_lines([s.name for s in series], svg.WIDTH) - 1 + marked)
    plot = Plot((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]),
                margins=Margins(top=Margins().top + further))
    plot.y_axis(y_ticks)
    plot.x_axis([x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)], x_name)
    if marked:
        _mark(plot, *mark)
    plot.legend([s.name for s in series])
    for (colour, dash), s, own in zip(STYLES, series, points, strict=False):
        plot.curve(s.x, s.y, class_="line", stroke=colour, stroke_dasharray=dash)
        if len(own) == 1:  # a line of one point is invisible
            plot.dot(*own[0], 3.5, fill=colour)
    last = "; ".join(f"{s.name} ends at {own[-1][1]:.4g}"
                     for s, own in zip(series, points, strict=True))
    return plot.draw(f"{title}: {last}")


def _mark(plot, value, words) -> None:
    x = plot.to_x(value)
    side, shift = ("end", -4) if x > plot.size[0] / 2 else ("start", 4)
    plot.parts += [svg.line(x, plot.top - 12, x, plot.bottom, class_="mark"),
                   svg.text(x + shift, plot.top - 6, words, side)]


def band(name: str, curves) -> Band | None:
    """The mean of (x, y) curves and their lowest and highest value, at the x that any of them has.

    A curve is interpolated inside its range and left out outside of it. None without a point.
    """
    kept = []
    for x, y in curves:
        points = np.asarray([(a, b) for a, b in zip(x, y, strict=True)
                             if None not in (a, b) and np.isfinite(b)], float)
        kept += [points] if len(points) else []
    if not kept:
        return None
    x = np.unique(np.concatenate([points[:, 0] for points in kept]))
    if len(x) > BAND_POINTS:
        x = x[np.unique(np.linspace(0, len(x) - 1, BAND_POINTS).astype(int))]
    y = np.stack([np.interp(x, *points.T, left=np.nan, right=np.nan) for points in kept])
    return Band(name, x, np.nanmin(y, 0), np.nanmean(y, 0), np.nanmax(y, 0))


def bands(title: str, x_name: str, shown: list[Band | None], *, base: Band | None = None,
          limits=None) -> str:
    """A small chart of curves with bands.

    Args:
      base: drawn as a dashed grey line, to compare with.
      limits: (low, high) of y, when charts beside each other share them; what lies below is
        left out.
    """
    shown = [one for one in shown if one is not None]
    if not shown:
        return ""
    everything = [*shown, *([base] if base else [])]
    y_ticks = ticks(*(limits or (min(np.nanmin(one.low) for one in everything),
                                 max(np.nanmax(one.high) for one in everything))), 3)
    x = min(one.x[0] for one in everything), max(one.x[-1] for one in everything)
    plot = Plot(x, (y_ticks[0], y_ticks[-1]), SMALL, Margins(42, 8, 8, 34))
    plot.y_axis(y_ticks)
    plot.x_axis([v for v in ticks(*x, 3) if x[0] <= v <= x[1]][-3:], x_name)
    if base:
        base = _above(y_ticks[0], base)
        plot.curve(base.x, base.mean, class_="line base")
    for (colour, dash), one in zip(STYLES, shown, strict=False):
        one = _above(y_ticks[0], one)
        if len(one.x) > 1:
            plot.area(one.x, one.low, one.high, class_="band", fill=colour)
            plot.curve(one.x, one.mean, class_="line", stroke=colour, stroke_dasharray=dash)
        else:  # a line of one point is invisible
            plot.dot(one.x[0], one.mean[0], 3.5, fill=colour)
    last = "; ".join(f"{one.name} ends at {one.mean[-1]:.4g}" for one in shown)
    return plot.draw(f"{title}: {last}")


def _above(low, one):
    """The band without points whose mean lies below `low`."""
    keep = np.where(one.mean >= low - 1e-12, 0.0, np.nan)
    return one._replace(low=np.maximum(one.low, low) + keep, mean=one.mean + keep,
                        high=one.high + keep)


def scatter(title: str, x_name: str, y_name: str, points, *, diagonal: bool = True,
            limits=(-math.inf, math.inf)) -> str:
    """Numbered (x, y, spread of y) points; close ones share a text, their numbers by commas.

    Args:
      diagonal: x and y are of one kind: they share a scale, and a line shows equal values. Else
        x begins at 0.
      limits: (low, high) that y can be, at which spreads are cut.
    """
    points = [(n, *p) for n, p in enumerate(points, 1) if all(np.isfinite(p[:2]))]
    if not points:
        return ""
    xs = [x for _, x, _, _ in points]
    ends = lambda y, spread: np.clip((y - spread, y + spread), *limits).tolist()
    ys = [v for _, _, y, spread in points
          for v in (y, *(ends(y, spread) if np.isfinite(spread) else ()))]
    both = ticks(min(*xs, *ys), max(*xs, *ys))
    x_ticks, y_ticks = (both, both) if diagonal else (ticks(0, max(xs)), ticks(min(ys), max(ys)))
    plot = Plot((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]), (svg.WIDTH, 320),
                Margins(top=8))
    plot.y_axis(y_ticks)
    plot.x_axis(x_ticks, f"{x_name}; upwards: {y_name}", ".4g")
    if diagonal:
        corners = [(plot.to_x(v), plot.to_y(v)) for v in (both[0], both[-1])]
        plot.parts.append(svg.line(*corners[0], *corners[1], class_="zero"))
    for _, x, y, spread in points:
        if np.isfinite(spread):
            low, high = map(plot.to_y, ends(y, spread))
            plot.parts.append(svg.line(plot.to_x(x), low, plot.to_x(x), high, class_="spread"))
        plot.dot(x, y, 4, class_="up")
    number_points(plot, points)
    return plot.draw(f"{title}: " + "; ".join(
        f"{n}: {x_name} {x:.4g}, {y_name} {y:.4g}" for n, x, y, _ in points))


def number_points(plot, points) -> None:
    """The numbers of (number, x, y, ...) points beside them."""
    named = {}
    for n, x, y, _ in points:
        x, y = plot.to_x(x), plot.to_y(y)
        place = next((p for p in named if abs(p[0] - x) < NEAR[0] and abs(p[1] - y) < NEAR[1]),
                     (x, y))
        named.setdefault(place, []).append(str(n))
    for (x, y), numbers in named.items():
        side, shift = ("end", -8) if x > plot.size[0] - 60 else ("start", 8)
        plot.parts.append(svg.text(x + shift, y + 4, ",".join(numbers), side))


def fitted(title: str, x_name: str, y_name: str, points, curve: Band | None, *,
           last: float = 0.0, targets=(), best: float | None = None) -> str:
    """(x, y) points over a logarithmic axis, with the curve that was fitted to them.

    Args:
      curve: the fitted one with its band; drawn dashed beyond x = `last`, the largest one tried.
      targets: Targets; where the chart reaches their x, a line leads down to it. Those left of
        all points are left out.
      best: the best possible y; the axis does not go beyond it.
    """
    points = [(x, y) for x, y in points if x > 0 and np.isfinite(y)]
    if not points:
        return ""
    first = min(x for x, _ in points) / 1.15
    end = max(*(x for x, _ in points), *(curve.x if curve else ()), 2 * first) * 1.04
    targets = [target for target in targets if target.x >= first]
    ys = [*(y for _, y in points), *(t.y for t in targets), *(curve.mean if curve else ())]
    y_ticks = [t for t in ticks(min(ys), max(ys), 5)
               if best is None or (t <= best + 1e-9 if best else t >= -1e-9)]
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    plot = Plot((first, end), (low, high), (640, 400),
                Margins(56, 104 if targets else 14, 30, 44), log_x=True)
    plot.y_axis(y_ticks)
    plot.x_axis(_round_numbers(first, end), f"{x_name} (logarithmic)", ",")
    if curve:
        plot.area(curve.x, np.clip(curve.low, low, high), np.clip(curve.high, low, high),
                  class_="band fitted")
    for target in targets:
        _aim(plot, target)
    if curve:
        _fitted_line(plot, curve, last)
    for x, y in points:
        plot.dot(x, y, 4, class_="run")
    plot.parts.append(svg.text(8, 16, y_name))
    return plot.draw(f"{title}: " + "; ".join(f"{y:.4g} at {x:g}" for x, y in points))


def _aim(plot, target) -> None:
    """A line at the height of a target, and down to the x where the curve reaches it."""
    y = plot.to_y(target.y)
    plot.parts += [svg.line(plot.left, y, plot.right, y, class_="target"),
                   svg.text(plot.right + 6, y + 4, target.label)]
    if target.x <= plot.x[1]:
        x = plot.to_x(target.x)
        plot.parts += [svg.line(x, y, x, plot.bottom, class_="target"),
                       svg.circle(x, y, 4, class_="down")]


def _fitted_line(plot, curve, last) -> None:
    """Solid up to `last`, dashed beyond."""
    middle, tried = np.interp(np.log(last), np.log(curve.x), curve.mean), curve.x < last
    plot.curve(np.append(curve.x[tried], last), np.append(curve.mean[tried], middle),
               class_="line fitted", stroke_dasharray="none")
    plot.curve(np.append(last, curve.x[~tried]), np.append(middle, curve.mean[~tried]),
               class_="line fitted", stroke_dasharray="7 4")


def _round_numbers(low, high) -> list[int]:
    """1, 2 or 5 times powers of ten within [low, high]; powers alone where they would crowd."""
    powers = range(int(np.floor(np.log10(max(low, 1)))), int(np.log10(high)) + 1)
    found = [m * 10**p for p in powers for m in (1, 2, 5) if low <= m * 10**p <= high]
    return found if len(found) <= 9 else [n for n in found if str(n)[0] == "1"]


def reliability(title: str, curves: list[tuple[str, list, list, list]]) -> str:
    """A reliability diagram: fraction of positives by predicted probability, over the diagonal.

    Args:
      curves: (name, mean probability, fraction of positives, share of the pixels) of the bins; a
        dot's area follows the logarithm of its pixels.
    """
    names, quarters, numbers = [name for name, *_ in curves], (0, 0.25, 0.5, 0.75, 1), []
    further = svg.LEGEND_LINE * (svg.legend_lines(names, 300) - 1)
    plot = Plot((0, 1), (0, 1), (300, 300 + further), Margins(top=Margins().top + further))
    plot.y_axis(quarters)
    plot.x_axis(quarters, "predicted probability")
    plot.parts += [svg.line(plot.to_x(v), plot.top, plot.to_x(v), plot.bottom, class_="grid")
                   for v in quarters]
    plot.parts.append(svg.line(plot.left, plot.bottom, plot.right, plot.top, class_="mark"))
    for (colour, dash), (name, probs, true, pixels) in zip(STYLES, curves, strict=False):
        kept = [n for n in range(len(pixels)) if pixels[n] > 0]
        plot.curve([probs[n] for n in kept], [true[n] for n in kept], class_="line",
                   stroke=colour, stroke_dasharray=dash)
        for n in kept:
            plot.dot(probs[n], true[n], max(2.0, 7 + math.log10(pixels[n])), fill=colour)
        numbers.append(f"{name}: " + ", ".join(
            f"{true[n]:.2f} positive at {probs[n]:.2f}" for n in kept))
    plot.legend(names)
    plot.parts.append(svg.tag("g", svg.text(-150, 14, "fraction of positives", "middle"),
                              transform="rotate(-90)"))
    return plot.draw(f"{title}: {'; '.join(numbers)}")


def histogram(name: str, values, unit: str, limits=None) -> str:
    """How many of `values` lie in each of at most BINS equal steps.

    Args:
      unit: what is counted, such as "images".
      limits: (low, high) of the axis; from 0 to the largest value if None.
    """
    low, high = limits or (0, max(values) or 1)
    counts, edges = np.histogram(values, BINS, (low, high))
    y_ticks = ticks(0, int(counts.max()))
    plot = Plot((low, high), (0, y_ticks[-1]), margins=Margins(top=10))
    plot.y_axis([n for n in y_ticks if n == int(n)])
    for a, b, n in zip(edges, edges[1:], counts, strict=False):
        if n:
            left, right, top = plot.to_x(a) + 0.5, plot.to_x(b) - 0.5, plot.to_y(n)
            plot.parts.append(svg.tag("rect", class_="bar", x=float(left), y=float(top),
                                      width=float(right - left),
                                      height=float(plot.bottom - top)))
    plot.x_axis([v for v in ticks(low, high) if low <= v <= high], f"{name}; {unit} upwards")
    return plot.draw(f"{name} of {len(values)} {unit}: from {min(values):.4g} to "
                     f"{max(values):.4g}, median {np.median(values):.4g}")
