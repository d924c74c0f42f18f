"""A score over its cost as inline SVG, with the points that none beats at less cost."""

import math

import numpy as np

from cellseg_jax.report import svg
from cellseg_jax.report.charts import number_points
from cellseg_jax.report.svg import Margins, Plot, ticks

LOGARITHMIC = 20  # largest / smallest cost beyond which the axis is logarithmic
CLIPPED = 6  # scores further from the best than so many times the median one lie at the edge
LETTER, LINE = 6.2, 12  # width of a letter and height of a line, user units


def front(title: str, axes: tuple[str, str], points, *, upwards: bool = True,
          limits=(-math.inf, math.inf)) -> str:
    """A score over a cost, with a line through the points that none beats at less cost.

    Args:
      axes: names of cost and score.
      points: (name, cost, score, spread of the score, marker, is on the front) each; those of the
        front have their names beside them, all have their number from 1.
      upwards: a larger score is better.
      limits: (low, high) that a score can be, at which spreads are cut.
    """
    if not points:
        return ""
    costs = [cost for _, cost, *_ in points]
    ends = [np.clip((y - spread, y + spread), *limits).tolist() if np.isfinite(spread) else [y, y]
            for _, _, y, spread, *_ in points]
    inside = _limits([y for _, _, y, *_ in points], upwards)
    ends = [np.clip(pair, *inside).tolist() for pair in ends]
    y_ticks = ticks(min(low for low, _ in ends), max(high for _, high in ends))
    log_x = min(costs) > 0 and max(costs) / min(costs) > LOGARITHMIC
    x = ((min(costs) / 1.3, max(costs) * 1.3) if log_x else
         (lambda t: (t[0], t[-1]))(ticks(0, max(costs))))
    plot = Plot(x, (y_ticks[0], y_ticks[-1]), (svg.WIDTH, 320), Margins(top=22), log_x=log_x)
    plot.y_axis(y_ticks)
    plot.x_axis(_round_numbers(*x) if log_x else ticks(*x), f"{axes[0]}; upwards: {axes[1]}",
                ".4g")
    rim = 0.06 * (y_ticks[-1] - y_ticks[0])  # room for the arrow of a score beyond the axis
    edge = lambda y: (y_ticks[0] + rim if y < y_ticks[0] else
                      y_ticks[-1] - rim if y > y_ticks[-1] else y)
    _staircase(plot, sorted((cost, edge(y)) for _, cost, y, *_, best in points if best))
    for (_, cost, y, _, marker, _), (low, high) in zip(points, ends, strict=True):
        at = plot.to_x(cost)
        if high > low:
            plot.parts.append(svg.line(at, plot.to_y(low), at, plot.to_y(high), class_="grid"))
        height = plot.to_y(edge(y))
        plot.parts.append(svg.tag("g", marker, transform=f"translate({at:.1f} {height:.1f})"))
        if edge(y) != y:
            way = 1 if y < edge(y) else -1
            plot.parts.append(svg.tag("path", class_="span open circle",
                                      d=f"M{at - 5:.1f} {height + 8 * way:.1f}l5 {5 * way}l5 "
                                        f"{-5 * way}"))
    number_points(plot, [(n, cost, edge(y), 0) for n, (_, cost, y, *_, best) in enumerate(points, 1)
                   if not best])
    _name_front(plot, [(name, cost, edge(y)) for name, cost, y, *_, best in points if best],
                upwards)
    return plot.draw(f"{title}: " + "; ".join(
        f"{name} {axes[0]} {cost:.4g}, {axes[1]} {y:.4g}{', on the front' if best else ''}"
        for name, cost, y, *_, best in points))


def _limits(scores, upwards) -> tuple[float, float]:
    """Of the scores that the axis shows: one far behind the others does not press them flat."""
    best = max(scores) if upwards else min(scores)
    reach = CLIPPED * float(np.median(np.abs(np.subtract(scores, best)))) or math.inf
    return best - reach if upwards else -math.inf, math.inf if upwards else best + reach


def _staircase(plot, steps) -> None:
    """The front: at each cost the best score that it buys, up to the right edge."""
    if steps:
        corners = [f"{plot.to_x(steps[0][0]):.1f} {plot.to_y(steps[0][1]):.1f}"]
        corners += [f"H{plot.to_x(x):.1f}V{plot.to_y(y):.1f}" for x, y in steps[1:]]
        plot.parts.append(svg.tag("path", class_="front",
                                  d=f"M{''.join(corners)}H{plot.right:.1f}"))


def _name_front(plot, points, upwards) -> None:
    """Names beyond the front, where no point lies: to the left of it, or above at the edge."""
    taken = []
    for name, cost, y in sorted(points, key=lambda point: point[1]):
        x, y, width = plot.to_x(cost), plot.to_y(y) + (-9 if upwards else 17), LETTER * len(name)
        left = max(2, min(x + 6 - width, plot.size[0] - 4 - width))
        while any(abs(y - b) < LINE and left < right + 4 and start < left + width + 4
                  for b, start, right in taken):
            y += -LINE if upwards else LINE
        taken.append((y, left, left + width))
        plot.parts.append(svg.text(left, y, name))


def _round_numbers(low, high) -> list[float]:
    """1, 2 or 5 times powers of ten within [low, high], also below 1."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= 6 else [v for v in found if f"{v:e}"[0] == "1"]
