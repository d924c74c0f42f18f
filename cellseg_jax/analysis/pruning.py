"""Which layers a trained network needs, and which classes suffer first when it loses weights.

Masks are an array axis: one compiled program takes the ranks of all weights (see sparsity) and,
for each masked copy of the network, how many weights each layer has lost. Nothing is trained
after pruning unless `finetune_epochs` says so.
"""

import itertools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import config as config_lib
from cellseg_jax import data, evaluate, feed, metrics, models, sparsity, step, train
from cellseg_jax.analysis import weights
from cellseg_jax.errors import InputError, pick
from cellseg_jax.feed import fetch, put
from cellseg_jax.metrics.bootstrap import MIN_GROUPS
from cellseg_jax.predictor import make_predictor
from cellseg_jax.report import figures, terminal
from cellseg_jax.report.analysis_page import Findings

REPORT_2 = ("l1_layers:all,l1_grouped:all,random_layers:each,random_layers:top1,random_layers:top2,"
            "random_filters:top1,random_filters:top2")
KINDS = ("conv", "transposed", "dense")
LAYERS = ("all", "each", "top1", "top2")
MOST_COPIES = 64  # in one call: a device is busy with fewer
SCORES = ("dice", "iou", "precision", "recall")
CLAIMED = ("Adenocarcinoma", "High-grade IN")  # which report 2 saw suffer first


class Series(NamedTuple):
    """One set of layers, pruned further and further. Level 0 is the network as it was trained."""

    experiment: str  # as the flag has it, "random_layers:each"
    layer: str  # its name, several with " + " between, or "all"
    sparsity: np.ndarray  # (levels,) of the layers that are pruned, up to rounding
    zeros: np.ndarray  # (levels, masks) weights lost
    weights: int  # of these layers
    counts: metrics.Counts  # of (levels, masks, n, K): n images, K columns of Scores.main

    def dice(self):
        """(levels, masks, n, K)"""
        return metrics.dice(self.counts)


class Class(NamedTuple):
    """Images or outputs that are scored apart."""

    name: str
    images: np.ndarray  # (n,) bool
    outputs: slice  # of the columns of Scores.main


class Part(NamedTuple):
    """The images of a split, as the pruned copies see them."""

    arrays: data.Arrays
    images: np.ndarray  # (n,) their numbers
    batches: object  # () -> batches of feed.eval_batches


def analyse(workdir, config, folder, *, split: str = "test", prune: str = REPORT_2,
            kinds: str = "conv", amount: float = 0.25, iterations: int = 10, masks: int = 3,
            finetune_epochs: int = 0) -> Findings | None:
    """Scores at data.size of a run that loses more and more weights, as evaluate takes them.

    Args:
      prune: experiments HOW:LAYERS with commas between. HOW is one of sparsity.METHODS; LAYERS
        all, each (one by one), top1 or top2 (those whose weights moved furthest from the initial
        ones, L2), or the name of a layer.
      kinds: of layers that are pruned, of KINDS with commas between.
      amount: share of what remains that each iteration takes.
      masks: draws of a random method, from config.seed on.
      finetune_epochs: epochs that each level of an experiment on all layers is also trained
        after pruning, in folder/finetune/; train.prune does this.
    Returns: None if fine-tuning was interrupted; it goes on when asked again.
    Raises: InputError, for an option that makes no sense here.
    """
    chosen = _layers(config, kinds)
    experiments = _experiments(prune, [layer.name for layer in chosen])
    if not 0 < amount < 1:
        raise InputError(f"--amount: got {amount}; expected a share between 0 and 1")
    if finetune_epochs and kinds != "conv":
        raise InputError(f"--kinds: got {kinds} with --finetune_epochs; expected conv, which is "
                         "what train.prune prunes")
    predictor = make_predictor(workdir, config)
    part = _part(config, predictor, split)
    pruner = _Pruner(predictor, chosen, part)
    series = pruner.series(_targets(experiments, chosen, config, predictor),
                           amount, iterations, range(config.seed, config.seed + masks))
    if finetune_epochs:
        tuned = _finetuned(config, workdir, folder, pruner, series, finetune_epochs)
        if tuned is None:
            return None
        series += tuned
    groups = np.asarray(part.arrays.image_groups)[part.images]
    classes = _classes(config, np.asarray(part.arrays.image_strata)[part.images])
    weights.write_table(folder / "pruning.csv", _rows(series, classes))
    weights.write_table(folder / "classes.csv", _class_rows(series, classes, groups))
    sizes = _map_sizes(predictor, chosen, part.arrays.image.shape[1:])
    shown = _pictures(folder, series, classes, groups, sizes)
    return Findings(
        "Pruning", _text(series, classes, groups, sizes, split, pruner.how, masks), shown,
        [("classes.csv", "Dice of each class against sparsity, with intervals; drop is what is "
                         "lost against the network as it was trained"),
         ("pruning.csv", "All scores of each experiment, layer, sparsity, mask and class")])


# --- what is pruned ------------------------------------------------------------------------------


def _layers(config, kinds) -> list[models.Layer]:
    wanted = [pick(dict(zip(KINDS, KINDS)), kind, "--kinds") for kind in kinds.split(",")]
    layers = weights.layers_of(config)
    chosen = [layer for layer in layers if layer.kind in wanted]
    if not chosen:
        raise InputError(f"--kinds: got {kinds}, but the layers of {config.model.name} are "
                         f"{', '.join(sorted({layer.kind for layer in layers}))}")
    return chosen


def _experiments(prune, names) -> list[tuple[str, str]]:
    """[(method, LAYERS)] of the flag."""
    found = []
    for text in dict.fromkeys(prune.split(",")):
        method, colon, layers = text.partition(":")
        if not colon:
            raise InputError(f"--prune: got {text!r}; expected HOW:LAYERS such as l1_layers:all")
        pick(sparsity.METHODS, method, "--prune")
        pick(dict.fromkeys((*LAYERS, *names)), layers, "--prune")
        found.append((method, layers))
    return found


def _targets(experiments, layers, config, predictor) -> list[tuple[str, str, list[int]]]:
    """[(method, LAYERS, numbers of the layers that are pruned together)]."""
    moved = []
    if any(which in ("top1", "top2") for _, which in experiments):
        before, after = (weights.kernels(config, params) for params in (
            weights.initial_params(config), predictor.variables["params"]))
        far = weights.distances(before, after)
        moved = sorted(range(len(layers)), key=lambda n: -far[layers[n].name][0])
    everything, targets = list(range(len(layers))), []
    for method, which in experiments:
        if which == "each":
            targets += [(method, which, [n]) for n in everything]
        elif which in ("top1", "top2"):
            targets.append((method, which, sorted(moved[: int(which[-1])])))
        else:
            targets.append((method, which, everything if which == "all" else [
                n for n in everything if layers[n].name == which]))
    return targets


# --- masked copies -------------------------------------------------------------------------------


def map_pruned(recipe: step.Recipe, mesh, threshold: float, paths, copies: int):
    """The compiled f(variables, ranks, gone, batch) of `copies` masked copies of a network.

    ranks: {path of a kernel: see sparsity.ranks}; gone: (copies, len(paths)) int32, how many of
    each kernel's ranks a copy has lost; batch: as step.map_eval has it, its rows over the mesh.
    Returns: {"counts", "cells"} of step.eval_step with a leading axis of copies.
    """
    rows = P(("member", "data"))
    unscored = recipe._replace(loss_options={})

    def per_device(variables, ranks, gone, batch):
        def one(gone):
            params = sparsity.prune(
                variables["params"], ranks, dict(zip(paths, gone, strict=True)))
            out = step.eval_step(unscored, {}, {**variables, "params": params}, batch, threshold)
            return {k: out[k] for k in ("counts", "cells")}

        # Not vmapped where there is one: a CPU would take its convolutions for grouped ones.
        return (jax.tree.map(lambda x: x[None], one(gone[0])) if copies == 1
                else jax.vmap(one)(gone))

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), P(), rows),
        out_specs=P(None, ("member", "data"))))


class _Pruner:
    """Scores of masked copies of one run on one part of its data."""

    def __init__(self, predictor, layers, part):
        self.predictor, self.layers, self.part = predictor, layers, part
        self.paths = [layer.kernel for layer in layers]
        self.kernels = _kernels(predictor.variables["params"], self.paths)
        self.everywhere = NamedSharding(predictor.mesh, P())
        self.program, self.how = None, ""

    def series(self, targets, amount, iterations, seeds) -> list[Series]:
        """A Series per target: (method, LAYERS, numbers of layers)."""
        work, out, levels = {}, [], iterations + 1  # {what ranks depend on: copies to score}
        n, k = len(self.part.images), 1 if self.predictor.config.data.target != "classes" else (
            self.predictor.config.data.num_classes - 1)
        base = None
        for number, (method, which, chosen) in enumerate(targets):
            how = sparsity.METHODS[method]
            kernels = {self.paths[i]: self.kernels[self.paths[i]] for i in chosen}
            gone = np.zeros((levels, len(self.paths)), np.int32)
            for i in chosen:
                gone[1:, i] = sparsity.counts(
                    sparsity.units(kernels, method)[self.paths[i]], amount, iterations)
            drawn = seeds if how.by == "random" else seeds[:1]
            out.append(Series(
                f"{method}:{which}",
                "all" if which == "all" else " + ".join(self.layers[i].name for i in chosen),
                1 - (1 - amount) ** np.arange(levels), np.zeros((levels, len(drawn)), np.int64),
                sum(kernel.size for kernel in kernels.values()),
                metrics.Counts(*np.zeros((4, levels, len(drawn), n, k)))))
            for m, seed in enumerate(drawn):
                key = (method, seed, tuple(chosen) if how.jointly else None)
                work.setdefault(key, []).extend((number, level, m, gone[level], tuple(chosen))
                                                for level in range(1, levels))
        with terminal.counting("scoring pruned copies") as progress:
            done, total = 0, 1 + sum(map(len, work.values()))
            for (method, seed, chosen), jobs in work.items():
                ranks = self._ranks(method, seed, chosen)
                if base is None:
                    base = self.score(ranks, np.zeros((1, len(self.paths)), np.int32),
                                      width=total)
                scores = self.score(ranks, np.stack([gone for _, _, _, gone, _ in jobs]),
                                    lambda count: progress(done + count, total))
                done += len(jobs)
                host = {i: np.sort(np.asarray(ranks[path]), None)
                        for i, path in enumerate(self.paths)}
                for j, (number, level, m, gone, these) in enumerate(jobs):
                    for whole, one in zip(out[number].counts, scores, strict=True):
                        whole[level, m] = one[j]
                    out[number].zeros[level, m] = sum(
                        np.searchsorted(host[i], gone[i]) for i in these)
        for one in out:
            for whole, first in zip(one.counts, base, strict=True):
                whole[0] = first[0]
        return out

    def score(self, ranks, gone, said=lambda count: None, *, variables=None, width=0
              ) -> metrics.Counts:
        """Counts of (len(gone), n, K) as numpy: Scores.main of each masked copy.

        Args:
          width: copies that are still to come, where this is the first call.
        """
        variables = variables or self.predictor.variables
        if self.program is None:
            self._compile(variables, ranks, next(iter(self.part.batches())), width)
        program, copies = self.program
        config, cells, found = self.predictor.config, self.part.arrays.grid**2, []
        for start in range(0, len(gone), copies):
            chunk = np.zeros((copies, gone.shape[1]), np.int32)
            chunk[: len(gone) - start] = gone[start : start + copies]
            chunk = put(chunk, self.everywhere)
            outs = [(program(variables, ranks, chunk, batch), batch["weight"])
                    for batch in self.part.batches()]
            whole = lambda name: metrics.Counts(*(
                np.concatenate([fetch(x)[:, fetch(w) > 0] for x, w in one], 1).astype(np.float64)
                .reshape(copies, len(self.part.images), cells, -1).sum(2)
                for one in zip(*([(x, w) for x in out[name]] for out, w in outs), strict=True)))
            counts, found_cells = whole("counts"), whole("cells")
            for c in range(min(copies, len(gone) - start)):
                found.append(evaluate.Scores(
                    None, *(metrics.Counts(*(x[c] for x in one))
                            for one in (counts, found_cells))).main(config))
            said(len(found))
        return metrics.Counts(*map(np.stack, zip(*found, strict=True)))

    def _ranks(self, method, seed, chosen):
        """On the device, in full shape, so that all methods share the program.

        chosen: the layers of a joint order, or None. Others lose nothing, whatever their ranks.
        """
        numbers = range(len(self.paths)) if chosen is None else chosen
        made = sparsity.ranks({self.paths[i]: self.kernels[self.paths[i]] for i in numbers},
                              method, seed)
        return {path: put(made.get(path, np.zeros(kernel.shape, np.int32)), self.everywhere)
                for path, kernel in self.kernels.items()}

    def _compile(self, variables, ranks, batch, width):
        """Choose how many copies a call computes, and compile it.

        On a CPU one: batched convolutions are grouped ones there, and slow. Elsewhere as many
        as memory holds, where that is faster.
        """
        predictor = self.predictor

        def compiled(copies):
            gone = put(np.zeros((copies, len(self.paths)), np.int32), self.everywhere)
            program = map_pruned(predictor.recipe, predictor.mesh, predictor.config.eval.threshold,
                                 self.paths, copies).lower(variables, ranks, gone, batch).compile()
            return program, lambda: program(variables, ranks, gone, batch)

        chosen, once = compiled(1)
        self.program, self.how = (chosen, 1), "one masked copy per call"
        if jax.default_backend() == "cpu":
            return
        alone, copies = _seconds(once), 2 ** int(math.log2(min(MOST_COPIES, width)))
        while copies > 1:
            try:
                program, once = compiled(copies)
                if _fits(program):
                    together = _seconds(once) / copies
                    break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
            copies //= 2
        if copies > 1 and together < alone:
            self.program = program, copies
            self.how = (f"{copies} masked copies per call, {alone / together:.1f} times as fast as "
                        "one by one")


def _kernels(params, paths) -> dict:
    flat = traverse_util.flatten_dict(params)
    return {path: fetch(flat[path]) for path in paths}


def _seconds(once) -> float:
    """Of one warm call."""
    jax.block_until_ready(once())
    started = time.monotonic()
    jax.block_until_ready([once() for _ in range(3)])
    return (time.monotonic() - started) / 3


def _fits(program) -> bool:
    """Whether what the program needs beside its arguments is free on all devices."""
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
    free = [s["bytes_limit"] - s["bytes_in_use"] for s in (
        device.memory_stats() for device in jax.local_devices()) if s and "bytes_limit" in s]
    return needed < 0.9 * min(free, default=math.inf)


def _part(config, predictor, split) -> Part:
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)[split]
    if not len(rows):
        raise InputError(f"--split: config.data.split {config.data.split} leaves the {split} split "
                         "without images")
    resident = feed.resident_source(config, arrays, predictor.mesh)
    batches = lambda: feed.eval_batches(config, arrays, rows, predictor.mesh, resident)
    if resident is not None:
        kept = list(batches())
        batches = lambda: kept
    cells = arrays.grid**2
    return Part(arrays, np.asarray(rows[::cells]) // cells, batches)


# --- training after pruning ----------------------------------------------------------------------


def _finetuned(config, workdir, folder, pruner, series, epochs) -> list[Series] | None:
    """The experiments on all layers again, each level trained on: runs in folder/finetune/."""
    bases = [one for one in series if one.layer == "all"]
    if not bases:
        raise InputError("--finetune_epochs: none of --prune is on all layers; add l1_layers:all")
    configs, workdirs = [], []
    for base in bases:
        method = base.experiment.partition(":")[0]
        for share in base.sparsity[1:]:
            configs.append(config_lib.changed(config, {
                "train.weights": str(workdir), "train.prune": float(share),
                "train.prune_how": method, "train.epochs": epochs, "train.steps": 0,
                "train.early_stopping": 0, "train.early_stopping_mode": "patience",
                "optimizer.warmup": 0}))
            workdirs.append(folder / "finetune" / f"{method}_{share:.4f}")
    for result in train.train(configs, workdirs):
        if result.status == "interrupted":
            return None
        if result.status != "done":
            raise InputError(f"--finetune_epochs: {result.workdir} ended as {result.status!r}; "
                             "expected a run that trains to its end: try a smaller optimizer.lr")
    runs, tuned = iter(zip(workdirs, configs, strict=True)), []
    none = np.zeros((1, len(pruner.paths)), np.int32)
    ranks = {path: put(np.zeros(kernel.shape, np.int32), pruner.everywhere)
             for path, kernel in pruner.kernels.items()}
    for base in bases:
        zeros, levels = base.zeros[:, :1].copy(), [metrics.Counts(*(c[0, 0] for c in base.counts))]
        for level in range(1, len(base.sparsity)):
            variables = make_predictor(*next(runs)).variables
            zeros[level] = sum((kernel == 0).sum() for kernel in _kernels(
                variables["params"], pruner.paths).values())
            scores = pruner.score(ranks, none, variables=variables)
            levels.append(metrics.Counts(*(c[0] for c in scores)))
        tuned.append(base._replace(
            experiment=f"{base.experiment}, then {epochs} epoch{'s' * (epochs > 1)}", zeros=zeros,
            counts=metrics.Counts(*(np.stack(c)[:, None] for c in zip(*levels, strict=True)))))
    return tuned


# --- scores --------------------------------------------------------------------------------------


def _classes(config, strata) -> list[Class]:
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


def _rows(series, classes) -> list[dict]:
    rows = []
    for one in series:
        tables = {(c.name, name): _mean(getattr(metrics, name)(one.counts), c)
                  for c in classes for name in SCORES}
        for level, mask in np.ndindex(one.zeros.shape):
            rows += [{
                "experiment": one.experiment, "layer": one.layer,
                "sparsity": f"{one.sparsity[level]:.4f}", "mask": mask, "class": c.name,
                "n_images": int(c.images.sum()),
                **{name: float(tables[c.name, name][level, mask]) for name in SCORES},
                "zeros": int(one.zeros[level, mask]), "weights": one.weights} for c in classes]
    return rows


def _class_rows(series, classes, groups) -> list[dict]:
    """Of the experiments that are not one by one: a row per level and class."""
    rows = []
    for one in _together(series):
        dice = one.dice()
        for c in classes:
            means, lost = _mean(dice, c).mean(1), dice[:1] - dice
            intervals, of_loss = (_intervals(x, c, groups) for x in (dice, lost))
            rows += [{
                "experiment": one.experiment, "layer": one.layer,
                "sparsity": f"{one.sparsity[level]:.4f}", "class": c.name,
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


def _map_sizes(predictor, layers, image_shape) -> dict[str, tuple]:
    """{layer: height and width, or number of tokens, of what it puts out}."""
    sizes = {}

    def note(next_, args, kwargs, context):
        out = next_(*args, **kwargs)
        if isinstance(out, jax.Array):
            sizes["/".join(context.module.path)] = out.shape[1:-1]
        return out

    with models.nn.intercept_methods(note):
        jax.eval_shape(
            lambda v, x: predictor.recipe.module({}).apply(v, x, train=False),
            predictor.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return {layer.name: sizes["/".join(layer.kernel[:-1])] for layer in layers}


# --- pictures ------------------------------------------------------------------------------------


def _pictures(folder, series, classes, groups, sizes) -> list[tuple[str, str]]:
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
             "(top) to output, the mean over masks")
        if len({sizes[one.layer] for one in layers}) > 1:
            keep(_depth_figure(layers, classes[0], groups, sizes), f"depth_{name}.png",
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


def _experiments_figure(series, groups, everything):
    fig, ax = figures.figure(9, 5.5)
    lines = [(one.experiment, one.layer, one.sparsity, one.dice()) for one in series
             if not one.experiment.endswith(":each")]
    lines += [(experiment, "one by one", layers[0].sparsity, _pooled(layers))
              for experiment, layers in _one_by_one(series).items()]
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
            _curve(ax, one.sparsity, one.dice(), c, groups, number, f"{c.name} "
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
    fig, axes = weights.layer_axes([one.layer for one in layers])
    ax = axes[0]
    largest = max(float(lost.max()), 1e-6)
    image = ax.imshow(lost[:, 1:], cmap=figures.SEQUENTIAL, aspect="auto", vmin=0, vmax=largest)
    for (row, column), value in np.ndenumerate(lost[:, 1:]):
        ax.text(column, row, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center",
                fontsize=7.5, color="black" if value > 0.6 * largest else "white")
    ax.grid(False)
    ax.set_xticks(range(lost.shape[1] - 1), [f"{s:.3f}" for s in layers[0].sparsity[1:]])
    ax.set_xlabel("sparsity of the one layer that is pruned")
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
        _curve(ax, same[0].sparsity, _pooled(same), everything, groups, number, label)
    _axis(ax)
    ax.legend(title="maps the layer puts out", fontsize=9)
    return fig


def _ordered(sizes) -> list[tuple]:
    """Map sizes, the largest first."""
    return sorted(set(sizes), key=math.prod, reverse=True)


def _words(size) -> str:
    """"64x64 pixels" of a map, "16 tokens" of a sequence."""
    return f"{'x'.join(map(str, size))} {'pixels' if len(size) > 1 else 'tokens'}"


# --- words ---------------------------------------------------------------------------------------


def _text(series, classes, groups, sizes, split, how, masks) -> list[str]:
    main = next((one for one in _together(series) if one.layer == "all"), _together(series)[0])
    mean = _mean(main.dice(), classes[0]).mean(1)
    halved = np.flatnonzero(mean <= mean[0] / 2)
    half = int(halved[0]) if len(halved) else len(mean) - 1
    text = []
    for level, why in ((1, "at the first level"),
                       (half, "where the mean has fallen by half" if len(halved) else
                        "at the last level; the mean never falls by half")):
        text.append(f"{main.experiment} at sparsity {main.sparsity[level]:.3f} ({why}): mean Dice "
                    f"{mean[level]:.3f}, from {mean[0]:.3f} without pruning"
                    f"{_of_nothing(main, classes[0]) if level > 1 else ''}.")
        lost = (main.dice()[:1] - main.dice())[level].mean(0)  # (n, K), the mean over masks
        for kind in ([c for c in classes[1:] if c.outputs == slice(None)],
                     [c for c in classes[1:] if c.outputs != slice(None)]):
            if kind:
                text[-1] += " " + _suffering(lost, kind, groups)
        text[-1] += _claim(lost, {c.name: c for c in classes}, groups, first=level == 1)
    for one in series:
        if ", then " in one.experiment:
            before = next(s for s in series if s.experiment == one.experiment.partition(",")[0])
            pairs = zip(one.sparsity[1:], *(_mean(s.dice(), classes[0]).mean(1)[1:]
                                            for s in (before, one)), strict=True)
            levels = [f"{a:.3f} and {b:.3f} at {share:.3f}" for share, a, b in pairs]
            text.append(f"{one.experiment} of training, mean Dice before and after it: "
                        f"{', '.join(levels)}.")
    for experiment, layers in _one_by_one(series).items():
        text.append(_of_layers(experiment, layers, classes[0], sizes, groups))
    text.append(
        f"How measured: {len(main.counts.tp[0, 0])} images of the {split} split in "
        f"{len(set(groups))} cases, at data.size, as evaluate scores them. Weights become 0 and "
        "nothing is trained after it, but where epochs are named. Each level takes the same share "
        f"of what remains. A random method is drawn {masks} times. Intervals are 95 %, of 1000 "
        f"bootstrap samples that draw whole cases, and a mask; of fewer than {MIN_GROUPS} cases "
        "bands run from the lowest to the highest mask. They hold for this one trained network; "
        f"with many pairs, about 1 in 20 seems distinguishable by chance. Computed with {how}.")
    return text


def _of_nothing(one, everything) -> str:
    """What foreground everywhere would have: no network falls far below it."""
    if one.counts.tp.shape[-1] > 1:
        return ""
    tp, fp, fn, tn = (c[0] for c in one.counts)
    blind = metrics.dice(metrics.Counts(tp + fn, fp + tn, 0 * fn, 0 * tn))
    return f"; foreground everywhere would have {float(_mean(blind, everything).mean()):.3f}"


def _suffering(lost, classes, groups) -> str:
    """Which classes lose most of their Dice, of (n, K) losses, and which differ beyond chance."""
    drawn = {c.name: _drawn(lost, c, groups) for c in classes}
    few = [name for name, draws in drawn.items() if draws is None]
    mean = {c.name: float(_mean(lost, c)) for c in classes}
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
    """Whether the two classes that report 2 names lose more than the others, of (n, K) losses.

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
    mean = {name: float(_mean(lost, tissues[name])) for name in drawn}
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
    last = {one.layer: float(_mean((one.dice()[:1] - one.dice())[-1], everything).mean())
            for one in layers}
    order = sorted(last, key=lambda name: -last[name])
    text = (f"{experiment}: at sparsity {layers[0].sparsity[-1]:.3f} of one layer alone, most Dice "
            f"is lost with {', '.join(f'{name} ({last[name]:.3f})' for name in order[:3])}, least "
            f"with {', '.join(f'{name} ({last[name]:.3f})' for name in order[:-4:-1])}.")
    large, *_, small = [_ordered(sizes[one.layer] for one in layers)[i] for i in (0, -1)]
    if large == small:
        return text
    pooled = {size: _pooled([one for one in layers if sizes[one.layer] == size])
              for size in (large, small)}
    lost = {size: (dice[:1] - dice)[-1].mean(0) for size, dice in pooled.items()}
    said = {size: f"{float(_mean(x, everything)):.3f}" for size, x in lost.items()}
    gap = lost[large] - lost[small]
    return (f"{text} A low-level layer (maps of {_words(large)}, next to input and output) costs "
            f"{said[large]} on average, a high-level one (maps of {_words(small)}, the deepest) "
            f"{said[small]}; difference {float(_mean(gap, everything)):+.3f}"
            f"{_between(_drawn(gap, everything, groups))}.")
