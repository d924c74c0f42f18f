"""Pictures of the scores of a pruned network."""

import numpy as np

from cellseg_jax.analysis.pruning_series import (
    cases_text,
    intervals,
    joint_series,
    largest_first,
    mean_over,
    pooled_dice,
    pooled_sparsity,
    pruned_series,
    range_text,
    single_layer_series,
    size_text,
)
from cellseg_jax.report import figures


def draw(folder, series, classes, groups, sizes) -> list[tuple[str, str]]:
    """Write all pictures into the folder; [(file, caption)].

    Args:
      groups: (n,) of the images. sizes: {layer: height and width of its maps}.
    """
    shown = []

    def keep(fig, name, caption):
        figures.save(fig, folder / name)
        shown.append((name, caption))

    keep(_experiments_figure(series, groups, classes[0]), "experiments.png",
         "Dice of all images against sparsity, an experiment per line (one by one: the mean over "
         "layers). Bands: 95 % interval of what is lost")
    keep(_class_figure(series, classes, groups), "classes.png",
         "Dice of each class against sparsity. Bands: 95 % interval of what is lost")
    for experiment, layers in single_layer_series(series).items():
        name = experiment.partition(":")[0]
        keep(_map_figure(layers, classes[0]), f"sensitivity_{name}.png",
             f"Sensitivity map: Dice lost when one layer alone is pruned ({name}), from image "
             "(top) to output, the mean over masks. Grey: too small to be pruned")
        if len({sizes[one.layer] for one in pruned_series(layers)}) > 1:
            keep(_depth_figure(pruned_series(layers), classes[0], groups, sizes),
                 f"depth_{name}.png",
                 "Low-level against high-level layers: Dice when one layer alone is pruned "
                 f"({name}), the mean over the layers of one map size. Large maps lie near input "
                 "and output, small ones deep. Bands: 95 % interval of what is lost")
    return shown


def _curve(ax, sparsity_, scores, one, groups, number, label):
    """Mean Dice of (levels, masks, n, K) scores; its band is the interval of what is lost.

    Scores of images differ far more than their losses, so the band is that of the loss.
    """
    mean, style = mean_over(scores, one).mean(1), figures.line_style(number)
    ax.plot(sparsity_, mean, label=label, **style)
    lost = intervals(scores[:1] - scores, one, groups)
    ax.fill_between(sparsity_, *(mean[0] - lost.T), color=style["color"], alpha=0.15, linewidth=0)


def _axis(ax, title=""):
    low, high = ax.get_ylim()
    ax.set(xlabel="sparsity (share of the pruned layers' weights that is 0)", ylabel="Dice",
           xlim=(-0.01, 1), ylim=(max(low, 0), min(high, 1)))
    ax.set_title(title, fontsize=10)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)


def _experiments_figure(series, groups, everything):
    fig, ax = figures.figure(9, 5.5)
    lines = [(one.experiment, one.layer, one.sparsity(), one.dice()) for one in series
             if not one.experiment.endswith(":each")]
    for experiment, every in single_layer_series(series).items():
        layers = pruned_series(every) or every
        lines.append((experiment, "one by one", pooled_sparsity(layers), pooled_dice(layers)))
    for number, (experiment, layer, share, dice) in enumerate(lines):
        label = experiment if layer in ("all", "one by one") else f"{experiment} ({layer})"
        _curve(ax, share, dice, everything, groups, number, label)
    _axis(ax)
    figures.label_lines(ax)
    return fig


def _class_figure(series, classes, groups):
    panels = joint_series(series)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = figures.figure(5.2 * columns, 1 + 3.6 * rows, rows, columns, squeeze=False,
                               sharey=True)
    shown = classes[1:] or classes
    for ax, one in zip(axes.flat, panels, strict=False):
        for number, c in enumerate(shown):
            _curve(ax, one.sparsity(), one.dice(), c, groups, number, f"{c.name} "
                   f"({c.images.sum()} images, {cases_text(groups, c)})")
    for ax, one in zip(axes.flat, panels, strict=False):  # last: the lowest Dice is known
        _axis(ax, one.experiment if one.layer == "all" else f"{one.experiment}\n{one.layer}")
        figures.label_lines(ax, [c.name for c in shown])
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
               fontsize=9, frameon=False)
    return fig


def _map_figure(layers, everything):
    lost = np.array([mean_over(one.dice()[:1] - one.dice(), everything).mean(1) for one in layers])
    fig, axes = figures.layer_axes([one.layer for one in layers])
    ax = axes[0]
    largest = max(float(lost.max()), 1e-6)
    idle = np.array([not pruned_series([one]) for one in layers])
    image = ax.imshow(np.ma.masked_array(lost, np.broadcast_to(idle[:, None], lost.shape))[:, 1:],
                      cmap=figures.SEQUENTIAL, aspect="auto", vmin=0, vmax=largest)
    ax.set_facecolor("0.8")
    for row in np.flatnonzero(idle):
        ax.text((lost.shape[1] - 2) / 2, row, "not pruned", ha="center", va="center", fontsize=7.5)
    for (row, column), value in np.ndenumerate(lost[:, 1:]):
        if idle[row]:
            continue
        ax.text(column, row, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center",
                fontsize=7.5, color="black" if value > 0.6 * largest else "white")
    ax.grid(False)
    shares = [one.sparsity()[1:] for one in pruned_series(layers)] or [lost[0, 1:] * 0]
    ax.set_xticks(range(lost.shape[1] - 1), [
        f"{level + 1}\n{range_text([s[level] for s in shares])}"
        for level in range(len(shares[0]))],
        fontsize=8)
    ax.set_xlabel("level, and sparsity of the one layer that is pruned")
    fig.colorbar(image, label="Dice lost", pad=0.02)
    return fig


def _depth_figure(layers, everything, groups, sizes):
    fig, ax = figures.figure(8, 5)
    by_size = {}
    for one in layers:
        by_size.setdefault(sizes[one.layer], []).append(one)
    for number, size in enumerate(largest_first(by_size)):
        same = by_size[size]
        label = f"{size_text(size)} ({len(same)} layer{'s' * (len(same) > 1)})"
        _curve(ax, pooled_sparsity(same), pooled_dice(same), everything, groups, number, label)
    _axis(ax, "by output size of the layer")
    figures.label_lines(ax)
    return fig
