"""What all matplotlib figures share: size, letters, and colours for every kind of colour vision.

Pictures are made without a screen and without matplotlib's global state.
"""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cellseg_jax.files import write_atomic

# Okabe and Ito, Color Universal Design, 2008; with dashes, for grey prints.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = "osD^vPX"
LABEL_HEIGHT = 0.16  # inches of a name beside its line
SEQUENTIAL = "cividis"  # of values from small to large
DPI = 110
ROW = 0.21  # inches of a layer in a chart with a line per layer


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """(figure, axes) of so many inches; axes as plt.subplots gives them."""
    fig = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **options)


def layer_axes(names, columns: int = 1, width: float = 9.0):
    """(figure, list of axes) with a line per layer, the one nearest to the image on top."""
    fig, axes = figure(width, max(1.1 + ROW * len(names), 2.8), 1, columns, sharey=True,
                               squeeze=False)
    for ax in axes[0]:
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0, 0].set_ylabel("layer, from image to output")
    return fig, list(axes[0])


def tiles(count: int, columns: int, width: float = 10.0, titles: float = 0.2,
          top: float = 0.5):
    """(figure, flat axes) of square tiles without ticks; those beyond `count` are empty."""
    lines = -(-count // columns)
    height = lines * (0.93 * width / columns + titles) + top
    fig, axes = figure(width, height, lines, columns, squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.set_xticks([])
        ax.set_yticks([])
        if n >= count:
            ax.set_axis_off()
    return fig, list(axes.flat)


def line_style(number: int) -> dict:
    """Keywords of the n-th line of a plot; colour, dashes and marker repeat together after 49."""
    again = number // len(COLOURS)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4, "linestyle": DASHES[(number + again) % len(DASHES)]}


def label_lines(ax, names=None) -> None:
    """Write each line's name beside its last point, at the right of the axes.

    Names that would overlap are moved apart, and a thin line leads to the point. Call it last:
    limits of the axes have to be final.

    Args:
      names: in place of the lines' labels.
    """
    lines = [one for one in ax.get_lines() if not one.get_label().startswith("_")]
    names = [one.get_label() for one in lines] if names is None else names
    ends = [(one.get_xdata()[-1], one.get_ydata()[-1]) for one in lines]
    to_axes = ax.transData + ax.transAxes.inverted()
    at = [float(np.clip(to_axes.transform(end)[1], 0, 1)) for end in ends]
    height = ax.get_window_extent().height / ax.figure.dpi  # inches
    for line, name, end, y in zip(lines, names, ends, _apart(at, LABEL_HEIGHT / height),
                                  strict=True):
        ax.annotate(name, end, (1.03, y), textcoords="axes fraction", va="center", fontsize=8,
                    color=line.get_color(), annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6})


def _apart(heights, gap) -> list[float]:
    """Heights in their order, each at least `gap` from the next, as near as that allows."""
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, float)[order]
    for n in range(1, len(placed)):
        placed[n] = max(placed[n], placed[n - 1] + gap)
    over = placed[-1] - max(1.0, (len(placed) - 1) * gap) if len(placed) else 0
    if over > 0:  # push back down from the top
        placed[-1] -= over
        for n in range(len(placed) - 2, -1, -1):
            placed[n] = min(placed[n], placed[n + 1] - gap)
    out = np.empty_like(placed)
    out[order] = placed
    return out.tolist()


def save(fig, path) -> None:
    """Write a PNG, whole or not at all."""
    png = io.BytesIO()
    fig.savefig(png, format="png")
    write_atomic(path, png.getvalue())
