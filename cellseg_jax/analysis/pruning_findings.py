"""What a pruned network tells: tables, pictures and words of its scores.

Intervals are of bootstrap samples that draw whole groups of images, and a mask.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.metrics.bootstrap import MIN_GROUPS
from cellseg_jax.report import figures

SCORES = ("dice", "iou", "precision", "recall")
CLAIMED = ("Adenocarcinoma", "High-grade IN")  # which report 2 saw suffer first

MEANING = {  # of sparsity.METHODS
    "l1_layers": "the smallest weights of each layer",
    "l1_grouped": "the smallest weights of all layers together",
    "l1_filters": "the filters of each layer that have the smallest L1 norm",
    "random_layers": "random weights of each layer",
    "random_grouped": "random weights of all layers together",
    "random_filters": "random filters of each layer",
}


class Series(NamedTuple):
    """One set of layers, pruned further and further. Level 0 is the network as it was trained."""

    experiment: str  # as the flag has it, "random_layers:each"
    layer: str  # its name, several with " + " between, or "all"
    zeros: np.ndarray  # (levels, masks) weights lost
    weights: int  # of these layers
    counts: metrics.Counts  # of (levels, masks, n, K): n images, K columns of Scores.main

    def dice(self):
        """(levels, masks, n, K)"""
        return metrics.dice(self.counts)

    def sparsity(self):
        """(levels,) share of these layers' weights that is 0: what whole weights or filters allow,
        less than was asked of small layers. Masks of one level are equally large."""
        return self.zeros.mean(1) / self.weights


class Class(NamedTuple):
    """Images or outputs that are scored apart."""

    name: str
    images: np.ndarray  # (n,) bool
    outputs: slice  # of the columns of Scores.main


# --- scores --------------------------------------------------------------------------------------


def classes_of(config, strata) -> list[Class]:
    """All together, then the images of each stratum, then the outputs of each class of pixels."""
    everything = np.ones(len(strata), bool)
    found = [Class("all", everything, slice(None))]
    if len(set(strata)) > 1:
        found += [Class(name, strata == name, slice(None)) for name in sorted(set(strata))]
    if config.data.target == "classes":
        found += [Class(f"output {k + 1}", everything, slice(k, k + 1))
                  for k in range(config.data.num_classes - 1)]
    return found


def _mean(scores, one: Class) -> np.ndarray:
    """(...) mean of (..., n, K) scores over the images and outputs of a class."""
    return scores[..., one.images, one.outputs].mean((-2, -1))


def _drawn(scores, one: Class, groups) -> np.ndarray | None:
    """(draws, ...) of `_mean` in bootstrap samples of whole groups; NaN without its images.

    None where the class has images of too few groups: samples would only repeat them.
    """
    if len(set(groups[one.images])) < MIN_GROUPS:
        return None
    per_image = np.moveaxis(scores[..., one.outputs].mean(-1), -1, 0)  # (n, ...)
    sums = metrics.resampled({
        "sum": per_image * one.images.reshape(-1, *[1] * (per_image.ndim - 1)),
        "n": one.images}, groups)
    with np.errstate(invalid="ignore"):
        return sums["sum"] / sums["n"].reshape(-1, *[1] * (per_image.ndim - 1))


def _intervals(scores, one: Class, groups) -> np.ndarray:
    """(levels, 2) of (levels, masks, n, K): samples draw the groups of images and a mask."""
    drawn = _drawn(scores, one, groups)  # (draws, levels, masks)
    if drawn is None:
        means = _mean(scores, one)
        return np.stack([means.min(1), means.max(1)], -1)
    return np.array([metrics.interval(drawn[:, level]) or (np.nan, np.nan)
                     for level in range(len(scores))])


def score_rows(series, classes) -> list[dict]:
    """A row per series, level, mask and class."""
    rows = []
    for one in series:
        tables = {(c.name, name): _mean(getattr(metrics, name)(one.counts), c)
                  for c in classes for name in SCORES}
        for level, mask in np.ndindex(one.zeros.shape):
            rows += [{
                "experiment": one.experiment, "layer": one.layer, "level": level,
                "sparsity": f"{one.sparsity()[level]:.4f}", "mask": mask, "class": c.name,
                "n_images": int(c.images.sum()),
                **{name: float(tables[c.name, name][level, mask]) for name in SCORES},
                "zeros": int(one.zeros[level, mask]), "weights": one.weights} for c in classes]
    return rows


def class_rows(series, classes, groups) -> list[dict]:
    """Of the experiments that are not one by one: a row per level and class."""
    rows = []
    for one in _together(series):
        dice = one.dice()
        for c in classes:
            means, lost = _mean(dice, c).mean(1), dice[:1] - dice
            intervals, of_loss = (_intervals(x, c, groups) for x in (dice, lost))
            rows += [{
                "experiment": one.experiment, "layer": one.layer, "level": level,
                "sparsity": f"{one.sparsity()[level]:.4f}", "class": c.name,
                "n_images": int(c.images.sum()), "dice": means[level],
                "dice_low": intervals[level, 0], "dice_high": intervals[level, 1],
                "drop": means[0] - means[level], "drop_low": of_loss[level, 0],
                "drop_high": of_loss[level, 1]} for level in range(len(means))]
    return rows


def _together(series) -> list[Series]:
    """The series that stand for their experiment alone; all if each layer stands by itself."""
    return [one for one in series if not one.experiment.endswith(":each")] or series[:1]


def _one_by_one(series) -> dict[str, list[Series]]:
    """{experiment: a Series per layer, from image to output}."""
    found = {}
    for one in series:
        if one.experiment.endswith(":each"):
            found.setdefault(one.experiment, []).append(one)
    return found


def _touched(layers) -> list[Series]:
    """Those that lost weights: a share of 1 or 2 filters may round to none."""
    return [one for one in layers if one.zeros[-1].any()]


# --- pictures ------------------------------------------------------------------------------------


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
    for experiment, layers in _one_by_one(series).items():
        name = experiment.partition(":")[0]
        keep(_map_figure(layers, classes[0]), f"sensitivity_{name}.png",
             f"Sensitivity map: Dice lost when one layer alone is pruned ({name}), from image "
             "(top) to output, the mean over masks. Grey: too small to lose anything")
        if len({sizes[one.layer] for one in _touched(layers)}) > 1:
            keep(_depth_figure(_touched(layers), classes[0], groups, sizes), f"depth_{name}.png",
                 "Low-level against high-level layers: Dice when one layer alone is pruned "
                 f"({name}), the mean over the layers of one map size. Large maps lie near input "
                 "and output, small ones deep. Bands: 95 % interval of what is lost")
    return shown


def _curve(ax, sparsity_, scores, one, groups, number, label):
    """Mean Dice of (levels, masks, n, K) scores; its band is the interval of what is lost.

    Images differ far more than what they lose: so the band says how sure the fall is.
    """
    mean, style = _mean(scores, one).mean(1), figures.line_style(number)
    ax.plot(sparsity_, mean, label=label, marker="o", markersize=3, **style)
    lost = _intervals(scores[:1] - scores, one, groups)
    ax.fill_between(sparsity_, *(mean[0] - lost.T), color=style["color"], alpha=0.15, linewidth=0)


def _axis(ax, title=""):
    low, high = ax.get_ylim()
    ax.set(xlabel="sparsity (share of the pruned layers' weights that is 0)", ylabel="Dice",
           xlim=(-0.01, 1), ylim=(max(low, 0), min(high, 1)))
    ax.set_title(title, fontsize=10)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)


def _pooled(layers) -> np.ndarray:
    """(levels, masks, n, K) Dice, the mean over several series."""
    return np.mean([one.dice() for one in layers], 0)


def _reached(layers) -> np.ndarray:
    """(levels,) sparsity, the mean over several series."""
    return np.mean([one.sparsity() for one in layers], 0)


def _experiments_figure(series, groups, everything):
    fig, ax = figures.figure(9, 5.5)
    lines = [(one.experiment, one.layer, one.sparsity(), one.dice()) for one in series
             if not one.experiment.endswith(":each")]
    for experiment, every in _one_by_one(series).items():
        layers = _touched(every) or every
        lines.append((experiment, "one by one", _reached(layers), _pooled(layers)))
    for number, (experiment, layer, share, dice) in enumerate(lines):
        label = experiment if layer in ("all", "one by one") else f"{experiment} ({layer})"
        _curve(ax, share, dice, everything, groups, number, label)
    _axis(ax)
    fig.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return fig


def _class_figure(series, classes, groups):
    panels = _together(series)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = figures.figure(5.2 * columns, 1 + 3.6 * rows, rows, columns, squeeze=False,
                               sharey=True)
    shown = classes[1:] or classes
    for ax, one in zip(axes.flat, panels):
        for number, c in enumerate(shown):
            _curve(ax, one.sparsity(), one.dice(), c, groups, number, f"{c.name} "
                   f"({c.images.sum()} images, {_cases(groups, c)})")
    for ax, one in zip(axes.flat, panels):  # last, when all have told how low they go
        _axis(ax, one.experiment if one.layer == "all" else f"{one.experiment}\n{one.layer}")
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
               fontsize=9, frameon=False)
    return fig


def _cases(groups, one: Class) -> str:
    count = len(set(groups[one.images]))
    return f"{count} case{'s' * (count != 1)}"


def _map_figure(layers, everything):
    lost = np.array([_mean(one.dice()[:1] - one.dice(), everything).mean(1) for one in layers])
    fig, axes = figures.layer_axes([one.layer for one in layers])
    ax = axes[0]
    largest = max(float(lost.max()), 1e-6)
    idle = np.array([not _touched([one]) for one in layers])
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
    shares = [one.sparsity()[1:] for one in _touched(layers)] or [lost[0, 1:] * 0]
    ax.set_xticks(range(lost.shape[1] - 1), [
        f"{level + 1}\n{_range([s[level] for s in shares])}" for level in range(len(shares[0]))],
        fontsize=8)
    ax.set_xlabel("level, and sparsity of the one layer that is pruned")
    fig.colorbar(image, label="Dice lost", pad=0.02)
    return fig


def _depth_figure(layers, everything, groups, sizes):
    fig, ax = figures.figure(8, 5)
    by_size = {}
    for one in layers:
        by_size.setdefault(sizes[one.layer], []).append(one)
    for number, size in enumerate(_ordered(by_size)):
        same = by_size[size]
        label = f"{_words(size)} ({len(same)} layer{'s' * (len(same) > 1)})"
        _curve(ax, _reached(same), _pooled(same), everything, groups, number, label)
    _axis(ax)
    ax.legend(title="maps the layer puts out", fontsize=9)
    return fig


def _ordered(sizes) -> list[tuple]:
    """Map sizes, the largest first."""
    return sorted(set(sizes), key=math.prod, reverse=True)


def _words(size) -> str:
    """"64x64 pixels" of a map, "16 tokens" of a sequence."""
    return f"{'x'.join(map(str, size))} {'pixels' if len(size) > 1 else 'tokens'}"


def _range(shares) -> str:
    """"0.44", or "0.33–0.44" of layers that reach different ones."""
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low}–{high}"


# --- words ---------------------------------------------------------------------------------------


def tell(series, classes, groups, sizes, split, kinds, how, masks) -> list[str]:
    """Paragraphs, the answer first.

    Args:
      split: whose images; kinds: of layers that were pruned; how: the copies were computed; masks:
        draws of a random method.
    """
    main = next((one for one in _together(series) if one.layer == "all"), _together(series)[0])
    mean = _mean(main.dice(), classes[0]).mean(1)
    halved = np.flatnonzero(mean <= mean[0] / 2)
    half = int(halved[0]) if len(halved) else len(mean) - 1
    text = [_summary(series, classes[0], mean[0])]
    levels = {1: "at the first level"} | {half: "where the mean has fallen by half" if len(halved)
                                          else "at the last level; the mean never falls by half"}
    for level, why in levels.items():
        text.append(f"{main.experiment} at sparsity {main.sparsity()[level]:.3f} ({why}): mean "
                    f"Dice {mean[level]:.3f}, from {mean[0]:.3f} without pruning"
                    f"{_of_nothing(main, classes[0]) if level > 1 else ''}.")
        lost = (main.dice()[:1] - main.dice())[level]
        for kind in ([c for c in classes[1:] if c.outputs == slice(None)],
                     [c for c in classes[1:] if c.outputs != slice(None)]):
            if kind:
                text[-1] += " " + _suffering(lost, kind, groups)
        text[-1] += _claim(lost, {c.name: c for c in classes}, groups, first=level == 1)
    for one in series:
        if ", then " in one.experiment:
            before = next(s for s in series if s.experiment == one.experiment.partition(",")[0])
            # Only mask 0 was trained on.
            pairs = zip(one.sparsity()[1:], *(_mean(s.dice(), classes[0])[1:, 0]
                                              for s in (before, one)), strict=True)
            told = [f"{a:.3f} and {b:.3f} at {share:.3f}" for share, a, b in pairs]
            which = " of mask 0" if before.zeros.shape[1] > 1 else ""
            text.append(f"{one.experiment} of training, mean Dice{which} before and after it: "
                        f"{', '.join(told)}. The network without pruning was not trained on, so "
                        "that what more training does by itself is not known.")
    for experiment, layers in _one_by_one(series).items():
        text.append(_of_layers(experiment, layers, classes[0], sizes, groups))
    methods = dict.fromkeys(one.experiment.partition(":")[0] for one in series)
    text.append("What was pruned: " + "; ".join(f"{name}: {MEANING[name]}" for name in methods)
                + f". Only layers of kind {kinds.replace(',', ', ')}; after the colon: all of "
                "them, each by itself, or those that moved furthest from their start (top1, top2).")
    text.append(
        f"How measured: {len(main.counts.tp[0, 0])} images of the {split} split in "
        f"{len(set(groups))} cases, at data.size, as evaluate scores them. Weights become 0 and "
        "nothing is trained after it, but where epochs are named. Each level takes the same share "
        "of what remains, in whole weights or filters; sparsity is what that reached. "
        f"A random method is drawn {masks} times. Intervals are 95 %, of 1000 bootstrap samples, "
        f"each of which draws whole cases and one of the masks; with fewer than {MIN_GROUPS} cases "
        "a band runs from the lowest to the highest mask. They hold for this one trained network; "
        f"with many pairs, about 1 in 20 seems distinguishable by chance. Computed with {how}.")
    return text


def _summary(series, everything, whole: float) -> str:
    """What all experiments come to, in a sentence each."""
    ends = [f"{one.experiment} {_mean(one.dice(), everything).mean(1)[-1]:.3f} at sparsity "
            f"{one.sparsity()[-1]:.3f}" for one in _together(series)]
    text = f"Mean Dice is {whole:.3f} without pruning, and at the last level: {', '.join(ends)}."
    for experiment, layers in _one_by_one(series).items():
        lost = {one.layer: float(_mean((one.dice()[:1] - one.dice())[-1], everything).mean())
                for one in _touched(layers)}
        if lost:
            most, least = max(lost, key=lost.get), min(lost, key=lost.get)
            text += (f" One layer alone ({experiment}): {most} is needed most (Dice lost "
                     f"{lost[most]:.3f}), {least} least ({lost[least]:.3f}).")
    return text


def _of_nothing(one, everything) -> str:
    """What foreground everywhere would have: no network falls far below it."""
    if one.counts.tp.shape[-1] > 1:
        return ""
    tp, fp, fn, tn = (c[0] for c in one.counts)
    blind = metrics.dice(metrics.Counts(tp + fn, fp + tn, 0 * fn, 0 * tn))
    return f"; foreground everywhere would have {float(_mean(blind, everything).mean()):.3f}"


def _suffering(lost, classes, groups) -> str:
    """Which classes lose most of their Dice, of (masks, n, K) losses, and which differ beyond
    chance."""
    drawn = {c.name: _drawn(lost, c, groups) for c in classes}
    few = [name for name, draws in drawn.items() if draws is None]
    mean = {c.name: float(_mean(lost, c).mean()) for c in classes}
    order = sorted(mean, key=lambda name: -mean[name])
    losses = ", ".join(f"{name} {mean[name]:.3f}{_between(drawn[name])}" for name in order)
    compared = [pair for pair in itertools.combinations(order, 2) if not set(pair) & set(few)]
    apart = [f"{a} more than {b}" for a, b in compared
             if (interval := metrics.interval(drawn[a] - drawn[b])) and interval[0] > 0]
    which = f" ({'; '.join(apart)})" if apart else ""
    left_out = f" Not compared, of fewer than {MIN_GROUPS} cases: {', '.join(few)}." if few else ""
    return (f"Dice lost, most first: {losses}. Distinguishable: {len(apart)} of {len(compared)} "
            f"pairs{which}.{left_out}")


def _claim(lost, classes: dict, groups, first: bool = True) -> str:
    """Whether the two classes that report 2 names lose more than others, of (masks, n, K) losses.

    Its claim is about the first level; at others only the difference is said.

    Classes of too few cases are left out: see `_drawn`.
    """
    tissues = {name: c for name, c in classes.items() if name != "all" and c.outputs == slice(None)}
    if not set(CLAIMED) < set(tissues):
        return ""
    drawn = {name: draws for name, c in tissues.items()
             if (draws := _drawn(lost, c, groups)) is not None}
    others = [name for name in drawn if name not in CLAIMED]
    said = f" Report 2's claim that {' and '.join(CLAIMED)} suffer first: " if first else ""
    if not set(CLAIMED) < set(drawn):
        return f"{said}undecided, too few cases." if first else ""
    more = np.mean([drawn[name] for name in CLAIMED], 0) - np.mean([drawn[n] for n in others], 0)
    mean = {name: float(_mean(lost, tissues[name]).mean()) for name in drawn}
    low, high = metrics.interval(more)
    verdict = "supported" if low > 0 else "contradicted" if high < 0 else "undecided"
    gap = np.mean([mean[name] for name in CLAIMED]) - np.mean([mean[name] for name in others])
    said += f"{verdict}; at this level they" if first else f" {' and '.join(CLAIMED)}"
    return (f"{said} lose {gap:+.3f} ({low:+.3f} to {high:+.3f}) Dice more than the mean of "
            f"{', '.join(others)}.")


def _between(drawn) -> str:
    """" (0.01 to 0.03)", the interval of draws; nothing where there are none."""
    interval = None if drawn is None else metrics.interval(drawn)
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _of_layers(experiment, layers, everything, sizes, groups) -> str:
    """What one by one shows: the layers that matter, and large maps against small ones."""
    idle = [one.layer for one in layers if not _touched([one])]
    layers = _touched(layers)
    left_out = f" Too small to lose anything, not pruned: {', '.join(idle)}." if idle else ""
    if not layers:
        return f"{experiment}:{left_out}"
    last = {one.layer: float(_mean((one.dice()[:1] - one.dice())[-1], everything).mean())
            for one in layers}
    order = sorted(last, key=lambda name: -last[name])
    share = _range([one.sparsity()[-1] for one in layers])
    text = (f"{experiment}: at sparsity {share} of one layer alone, most Dice is lost with "
            f"{', '.join(f'{name} ({last[name]:.3f})' for name in order[:3])}, least with "
            f"{', '.join(f'{name} ({last[name]:.3f})' for name in order[:-4:-1])}.{left_out}")
    large, *_, small = [_ordered(sizes[one.layer] for one in layers)[i] for i in (0, -1)]
    if large == small:
        return text
    pooled = {size: _pooled([one for one in layers if sizes[one.layer] == size])
              for size in (large, small)}
    lost = {size: (dice[:1] - dice)[-1] for size, dice in pooled.items()}  # (masks, n, K)
    said = {size: f"{float(_mean(x, everything).mean()):.3f}" for size, x in lost.items()}
    gap = lost[large] - lost[small]
    return (f"{text} A low-level layer (maps of {_words(large)}, next to input and output) costs "
            f"{said[large]} on average, a high-level one (maps of {_words(small)}, the deepest) "
            f"{said[small]}; difference {float(_mean(gap, everything).mean()):+.3f}"
            f"{_between(_drawn(gap, everything, groups))}.")
