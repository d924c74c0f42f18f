"""The sentences on a pruned network: which layers matter, which classes lose most."""

import itertools

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.analysis.pruning_series import (
    bootstrap_means,
    joint_series,
    largest_first,
    mean_over,
    pooled_dice,
    pruned_series,
    range_text,
    single_layer_series,
    size_text,
)
from cellseg_jax.metrics.bootstrap import MIN_GROUPS

REPORT_2_CLASSES = ("Adenocarcinoma", "High-grade IN")  # that lose Dice first, by report 2
FREE = 0.01  # of Dice, a loss that hardly matters
MEANING = {  # of pruning.METHODS
    "l1_layers": "the smallest weights of each layer",
    "l1_grouped": "the smallest weights of all layers together",
    "l1_filters": "the filters of each layer that have the smallest L1 norm",
    "random_layers": "random weights of each layer",
    "random_grouped": "random weights of all layers together",
    "random_filters": "random filters of each layer",
}


def sentences(series, classes, groups, sizes, options, how: str) -> list[str]:
    """Paragraphs on all experiments, the answer first.

    Args:
      series, classes: of pruning_series.
      groups: (n,) of the images.
      sizes: {layer: height and width of its output}.
      options: pruning.Options.
      how: in which calls the masked copies were computed.
    """
    joint = joint_series(series)
    main = next((one for one in joint if one.layer == "all"), joint[0])
    mean = mean_over(main.dice(), classes[0]).mean(1)
    halved = np.flatnonzero(mean <= mean[0] / 2)
    half = int(halved[0]) if len(halved) else len(mean) - 1
    text = [_summary(series, classes[0], mean[0])]
    levels = {1: "at the first level"} | {half: "where the mean has fallen by half" if len(halved)
                                          else "at the last level; the mean never falls by half"}
    for level, why in levels.items():
        text.append(f"{main.experiment} at sparsity {main.sparsity()[level]:.3f} ({why}): mean "
                    f"Dice {mean[level]:.3f}, from {mean[0]:.3f} without pruning"
                    f"{_all_foreground_dice(main, classes[0]) if level > 1 else ''}.")
        lost = (main.dice()[:1] - main.dice())[level]
        for kind in ([c for c in classes[1:] if c.outputs == slice(None)],
                     [c for c in classes[1:] if c.outputs != slice(None)]):
            if kind:
                text[-1] += " " + _class_sentences(lost, kind, groups)
        text[-1] += _report_2_claim(lost, {c.name: c for c in classes}, groups, first=level == 1)
    for one in series:
        if ", then " in one.experiment:
            before = next(s for s in series if s.experiment == one.experiment.partition(",")[0])
            # Only mask 0 was trained on.
            pairs = zip(one.sparsity()[1:], *(mean_over(s.dice(), classes[0])[1:, 0]
                                              for s in (before, one)), strict=True)
            scores = [f"{a:.3f} and {b:.3f} at {share:.3f}" for share, a, b in pairs]
            which = " of mask 0" if before.zeros.shape[1] > 1 else ""
            text.append(f"{one.experiment} of training, mean Dice{which} before and after it: "
                        f"{', '.join(scores)}. The network without pruning was not trained on, so "
                        "that what more training does by itself is not known.")
    for experiment, layers in single_layer_series(series).items():
        text.append(_layer_sentences(experiment, layers, classes[0], sizes, groups))
    methods = dict.fromkeys(one.experiment.partition(":")[0] for one in series)
    text.append("What was pruned: " + "; ".join(f"{name}: {MEANING[name]}" for name in methods)
                + f". Only layers of kind {options.kinds.replace(',', ', ')}; after the colon: "
                "all of them, each by itself, or those that moved furthest from their start "
                "(top1, top2).")
    text.append(
        f"How measured: {len(main.counts.tp[0, 0])} images of the {options.split} split in "
        f"{len(set(groups))} cases, at data.size, as evaluate scores them. Weights become 0 and "
        "nothing is trained afterwards, except where epochs are named. Each level takes the same "
        "share of what remains, in whole weights or filters; sparsity is the share that is then 0. "
        f"A random method is drawn {options.masks} times. Intervals are 95 %, of 1000 bootstrap "
        "samples, each of which draws whole cases and one of the masks; with fewer than "
        f"{MIN_GROUPS} cases a band runs from the lowest to the highest mask. They hold for "
        "this one trained network; "
        f"with many pairs, about 1 in 20 seems distinguishable by chance. Computed with {how}.")
    return text


def zeros_before(kernels) -> list[str]:
    """A sentence on weights that are 0 in the trained network, as train.prune leaves them."""
    zeros, count = sum(int((k == 0).sum()) for k in kernels), sum(k.size for k in kernels)
    return [f"{zeros / count:.0%} of the weights that were pruned here, {zeros} of {count}, were 0 "
            "before (as train.prune leaves them). Sparsity counts those that were chosen, "
            "whether 0 or not: the smallest are chosen first, and cost nothing."] if zeros else []


def _summary(series, everything, whole: float) -> str:
    """The result of all experiments, in a sentence each."""
    ends = [f"{one.experiment} {mean_over(one.dice(), everything).mean(1)[-1]:.3f} at sparsity "
            f"{one.sparsity()[-1]:.3f}" for one in joint_series(series)]
    text = _spare(series, everything) + (
        f"Mean Dice is {whole:.3f} without pruning, and at the last level: {', '.join(ends)}.")
    for experiment, layers in single_layer_series(series).items():
        lost = {one.layer: float(mean_over((one.dice()[:1] - one.dice())[-1], everything).mean())
                for one in pruned_series(layers)}
        if lost:
            most, least = max(lost, key=lost.get), min(lost, key=lost.get)
            text += (f" One layer alone ({experiment}): {most} is needed most (Dice lost "
                     f"{lost[most]:.3f}), {least} least ({lost[least]:.3f}).")
    return text


def _spare(series, everything) -> str:
    """How many weights the network does without, in words: of all, or of the layers it tells."""
    free = {}
    for one in joint_series(series):
        mean = mean_over(one.dice(), everything).mean(1)
        if mean[0] <= FREE:
            return ("What the network does without is not known, as it finds next to nothing "
                    "without pruning. ")
        kept = np.flatnonzero(np.logical_and.accumulate(mean > mean[0] - FREE))[-1]
        free[one.experiment] = float(one.zeros[kept].mean()), float(one.sparsity()[kept]), one.layer
    best = max(free, key=free.get)  # by weights: one small layer says little of the network
    count, share, layer = free[best]
    if count == 0:
        return (f"The network needs all of its weights: each pruning that was tried costs more "
                f"than {FREE:g} of Dice. ")
    if layer != "all":
        return (f"The network does without {share:.0%} of the weights of {layer}: so many can be "
                f"set to 0 ({best}) for less than {FREE:g} of Dice. ")
    return (f"The network does without {share:.0%} of these weights: so many can be set to 0 "
            f"({best}) for less than {FREE:g} of Dice, so that a smaller network may be enough. ")


def _all_foreground_dice(one, everything) -> str:
    """The Dice of predicting foreground everywhere: no network falls far below it."""
    if one.counts.tp.shape[-1] > 1:
        return ""
    tp, fp, fn, tn = (c[0] for c in one.counts)
    everywhere = metrics.dice(metrics.Counts(tp + fn, fp + tn, 0 * fn, 0 * tn))
    score = float(mean_over(everywhere, everything).mean())
    return f"; foreground everywhere would have {score:.3f}"


def _class_sentences(lost, classes, groups) -> str:
    """Which classes lose most of their Dice, of (masks, n, K) losses, and which differ beyond
    chance."""
    drawn = {c.name: bootstrap_means(lost, c, groups) for c in classes}
    few = [name for name, draws in drawn.items() if draws is None]
    mean = {c.name: float(mean_over(lost, c).mean()) for c in classes}
    order = sorted(mean, key=lambda name: -mean[name])
    losses = ", ".join(f"{name} {mean[name]:.3f}{_interval_text(drawn[name])}" for name in order)
    compared = [pair for pair in itertools.combinations(order, 2) if not set(pair) & set(few)]
    apart = [f"{a} more than {b}" for a, b in compared
             if (interval := metrics.interval(drawn[a] - drawn[b])) and interval[0] > 0]
    which = f" ({'; '.join(apart)})" if apart else ""
    left_out = f" Not compared, of fewer than {MIN_GROUPS} cases: {', '.join(few)}." if few else ""
    return (f"Dice lost, most first: {losses}. Distinguishable: {len(apart)} of {len(compared)} "
            f"pairs{which}.{left_out}")


def _report_2_claim(lost, classes: dict, groups, first: bool = True) -> str:
    """Whether the two classes that report 2 names lose more than others, of (masks, n, K) losses.

    The claim is about the first level; at others only the difference is given.

    Classes of too few cases are left out: see `bootstrap_means`.
    """
    tissues = {name: c for name, c in classes.items() if name != "all" and c.outputs == slice(None)}
    if not set(REPORT_2_CLASSES) < set(tissues):
        return ""
    drawn = {name: draws for name, c in tissues.items()
             if (draws := bootstrap_means(lost, c, groups)) is not None}
    others = [name for name in drawn if name not in REPORT_2_CLASSES]
    named = " and ".join(REPORT_2_CLASSES)
    text = f" Report 2's claim that {named} lose most first: " if first else ""
    if not set(REPORT_2_CLASSES) < set(drawn):
        return f"{text}undecided, too few cases." if first else ""
    more = (np.mean([drawn[name] for name in REPORT_2_CLASSES], 0)
            - np.mean([drawn[name] for name in others], 0))
    mean = {name: float(mean_over(lost, tissues[name]).mean()) for name in drawn}
    low, high = metrics.interval(more)
    verdict = "supported" if low > 0 else "contradicted" if high < 0 else "undecided"
    gap = (np.mean([mean[name] for name in REPORT_2_CLASSES])
           - np.mean([mean[name] for name in others]))
    text += f"{verdict}; at this level they" if first else f" {named}"
    return (f"{text} lose {gap:+.3f} ({low:+.3f} to {high:+.3f}) Dice more than the mean of "
            f"{', '.join(others)}.")


def _interval_text(drawn) -> str:
    """" (0.01 to 0.03)", the interval of draws; nothing where there are none."""
    interval = None if drawn is None else metrics.interval(drawn)
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _layer_sentences(experiment, layers, everything, sizes, groups) -> str:
    """Of layers pruned one by one: which matter, and large maps against small ones."""
    idle = [one.layer for one in layers if not pruned_series([one])]
    layers = pruned_series(layers)
    left_out = f" Too small to be pruned: {', '.join(idle)}." if idle else ""
    if not layers:
        return f"{experiment}:{left_out}"
    last = {one.layer: float(mean_over((one.dice()[:1] - one.dice())[-1], everything).mean())
            for one in layers}
    order = sorted(last, key=lambda name: -last[name])
    share = range_text([one.sparsity()[-1] for one in layers])
    text = (f"{experiment}: at sparsity {share} of one layer alone, most Dice is lost with "
            f"{', '.join(f'{name} ({last[name]:.3f})' for name in order[:3])}, least with "
            f"{', '.join(f'{name} ({last[name]:.3f})' for name in order[:-4:-1])}.{left_out}")
    large, *_, small = [largest_first(sizes[one.layer] for one in layers)[i] for i in (0, -1)]
    if large == small:
        return text
    pooled = {size: pooled_dice([one for one in layers if sizes[one.layer] == size])
              for size in (large, small)}
    lost = {size: (dice[:1] - dice)[-1] for size, dice in pooled.items()}  # (masks, n, K)
    shown = {size: f"{float(mean_over(x, everything).mean()):.3f}" for size, x in lost.items()}
    gap = lost[large] - lost[small]
    return (f"{text} A low-level layer (maps of {size_text(large)}, next to input and output) "
            f"costs {shown[large]} on average, a high-level one (maps of {size_text(small)}, the "
            f"deepest) {shown[small]}; difference {float(mean_over(gap, everything).mean()):+.3f}"
            f"{_interval_text(bootstrap_means(gap, everything, groups))}.")
