"""The parts of all charts as SVG text: elements, ticks, and a plot with two axes.

Everything that is not Markup is escaped here, so a name can never become an element. Colours are
classes of style.css, which follow the page. No script, no font file, sharp on paper and on a phone.
"""

import dataclasses
import math
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 250  # user units; a chart is about this wide on a phone, so text stays legible
# Colour and dashes of lines; they differ in both, for grey prints.
STYLES = (("var(--blue)", "none"), ("var(--orange)", "7 3"), ("var(--green)", "2 3"))
MAX_POINTS = 600  # of a line
LEGEND_LINE = 16  # height of a line of a legend, user units


def tag(name: str, *content, **attributes) -> Markup:
    """An element: `class_` is class and `stroke_width` is stroke-width; floats get one decimal."""
    plain = lambda value: f"{value:.1f}" if isinstance(value, float) else value
    words = Markup("").join(
        Markup(' {}="{}"').format(Markup(key.strip("_").replace("_", "-")), plain(value))
        for key, value in attributes.items())
    inside = Markup("").join(content)
    return Markup(f"<{name}{words}>{inside}</{name}>" if inside else f"<{name}{words}/>")


def text(x: float, y: float, words, anchor: str = "start") -> Markup:
    """Words at a place; `anchor` is their start, middle or end."""
    return tag("text", escape(words), x=float(x), y=float(y), text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, **attributes) -> Markup:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), **attributes)


def circle(x: float, y: float, radius: float, **attributes) -> Markup:
    """A dot."""
    return tag("circle", cx=float(x), cy=float(y), r=float(radius), **attributes)


def element(aria_label: str, width: float, height: float, parts) -> Markup:
    """A whole chart; `aria_label` holds what a screen reader reads: the title and the numbers."""
    return tag("svg", tag("title", aria_label), *parts, role="img", aria_label=aria_label,
               viewBox=f"0 0 {width} {height:.0f}")


def scale(low: float, high: float, start: float, end: float):
    """v -> start + (v - low) / (high - low) * (end - start), also where low is high."""
    span = high - low or 1e-9
    return lambda v: start + (v - low) / span * (end - start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` steps of 1, 2 or 5 times a power of ten around [low, high]."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def is_finite(value) -> bool:
    """Whether it is a number that can be drawn."""
    return value is not None and math.isfinite(value)


class Margins(NamedTuple):
    """Room around a plot, in user units."""

    left: float = 52
    right: float = 12
    top: float = 30
    bottom: float = 36


def legend_lines(names, width: float) -> int:
    """How many lines a legend takes in a plot of this width; beyond 1 the top needs more room."""
    return max((row for _, row in _legend_places(names, Margins().left, width)), default=0) + 1


def _legend_places(names, left, width) -> list[tuple[float, int]]:
    """(x, line) of each name; one that does not fit beside the others begins a line."""
    places, x, row = [], left, 0
    for name in names:
        size = 48 + 7 * len(name)
        if x > left and x + size - 18 > width:
            x, row = left, row + 1
        places.append((x, row))
        x += size
    return places


@dataclasses.dataclass
class Plot:
    """A chart with axes at the bottom and at the left; `parts` collects what is drawn.

    Args:
      x: its lowest and highest value.
      y: as x.
      size: width and height in user units.
      log_x: whether the x axis is logarithmic.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    size: tuple[float, float] = (WIDTH, HEIGHT)
    margins: Margins = Margins()
    log_x: bool = False
    parts: list[Markup] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        left, right, top, bottom = self.margins
        self.left, self.right, self.top = left, self.size[0] - right, top
        self.bottom = self.size[1] - bottom
        across = scale(*(map(math.log, self.x) if self.log_x else self.x), self.left, self.right)
        self.to_x = (lambda v: across(math.log(v))) if self.log_x else across
        self.to_y = scale(*self.y, self.bottom, self.top)

    def y_axis(self, values) -> None:
        """Grid lines with their numbers at the left."""
        for v in values:
            y = self.to_y(v)
            self.parts += [line(self.left, y, self.right, y, class_="grid"),
                           text(self.left - 6, y + 4, f"{v:.4g}", "end")]

    def x_axis(self, values, name: str, form: str = "g") -> None:
        """Numbers below the plot, over the name of the axis."""
        for v in values:
            x = self.to_x(v)
            at_edge = x > self.right - 2 and self.margins.right < 10
            self.parts.append(text(x, self.bottom + 16, f"{v:{form}}",
                                   "end" if at_edge else "middle"))
        self.parts.append(text((self.left + self.right) / 2, self.size[1] - 4, name, "middle"))

    def curve(self, x, y, **attributes) -> None:
        """A line through points: None is passed over, other values that are not finite are gaps."""
        points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
        points = points[:-1][:: -(-len(points) // MAX_POINTS)] + points[-1:]
        words, drawing = [], False
        for a, b in points:
            if is_finite(b):  # h0: a point between two gaps is a dot
                words.append(f"{'L' if drawing else 'M'}{self.to_x(a):.1f} {self.to_y(b):.1f}"
                             + ("" if drawing else "h0"))
            drawing = is_finite(b)
        self.parts.append(tag("path", **attributes, d="".join(words)))

    def area(self, x, low, high, **attributes) -> None:
        """The band between two lines, over the points where both are finite."""
        edge = lambda values: [f"{self.to_x(a):.1f} {self.to_y(b):.1f}"
                               for a, b in zip(x, values, strict=True) if is_finite(b)]
        outline = "L".join(edge(high) + edge(low)[::-1])
        if outline:
            self.parts.append(tag("path", **attributes, d=f"M{outline}Z"))

    def dot(self, x: float, y: float, radius: float, **attributes) -> None:
        """A circle at a point."""
        self.parts.append(circle(self.to_x(x), self.to_y(y), radius, **attributes))

    def legend(self, names) -> None:
        """Names beside a piece of their lines, above the plot, where `legend_lines` puts them."""
        for (colour, dash), name, (x, row) in zip(STYLES, names, _legend_places(
                names, self.left, self.size[0]), strict=False):
            y = 14 + LEGEND_LINE * row
            self.parts += [line(x, y, x + 24, y, class_="line", stroke=colour,
                                stroke_dasharray=dash), text(x + 30, y + 4, name)]

    def draw(self, aria_label: str) -> Markup:
        """The whole chart."""
        return element(aria_label, *self.size, self.parts)
