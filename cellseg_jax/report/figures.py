"""What all matplotlib figures share: size, letters, and colours for every kind of colour vision.

Pictures are made without a screen and without matplotlib's global state.
"""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cellseg_jax.files import write_atomic

# Okabe and Ito, Color Universal Design, 2008; with dashes, for grey prints.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
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
    """Keywords of the n-th line of a plot."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


def save(fig, path) -> None:
    """Write a PNG, whole or not at all."""
    png = io.BytesIO()
    fig.savefig(png, format="png")
    write_atomic(path, png.getvalue())
