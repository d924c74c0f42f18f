"""Which layers a trained network needs, and which classes suffer first when it loses weights.

Masks are an array axis: one compiled program takes the ranks of all weights (see sparsity) and,
for each masked copy of the network, how many weights each layer has lost. Nothing is trained
after pruning unless `finetune_epochs` says so.
"""

import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import FrozenDict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics, models, pruning, train
from cellseg_jax.analysis import pruning_findings as findings
from cellseg_jax.analysis import weights
from cellseg_jax.analysis.page import Findings
from cellseg_jax.analysis.pruning_findings import Series
from cellseg_jax.errors import InputError, pick
from cellseg_jax.files import write_csv
from cellseg_jax.inference import measure
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.report import terminal
from cellseg_jax.step import eval_step
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.mesh import fetch, put
from cellseg_jax.step.spec import Spec
from cellseg_jax.train.initial_weights import layers_of

REPORT_2 = ("l1_layers:all,l1_grouped:all,random_layers:each,random_layers:top1,random_layers:top2,"
            "random_filters:top1,random_filters:top2")
KINDS = ("conv", "transposed", "dense")
LAYERS = ("all", "each", "top1", "top2")
MOST_COPIES = 64  # in one call: a device is busy with fewer


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
        after pruning, in finetune/ beside the folder; train.prune does this.
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
    predictor = Predictor(workdir, config)
    part = _part(config, predictor, split)
    pruner = Pruner(predictor, chosen, part)
    series = pruner.series(_targets(experiments, chosen, config, predictor),
                           amount, iterations, range(config.seed, config.seed + masks))
    if finetune_epochs:
        tuned = _finetuned(config, workdir, folder, pruner, series, amount, finetune_epochs)
        if tuned is None:
            return None
        series += tuned
    groups = np.asarray(part.arrays.image_groups)[part.images]
    classes = findings.classes_of(config, np.asarray(part.arrays.image_strata)[part.images])
    write_csv(folder / "pruning.csv", findings.score_rows(series, classes))
    write_csv(folder / "classes.csv", findings.class_rows(series, classes, groups))
    sizes = _map_sizes(predictor, chosen, part.arrays.image.shape[1:])
    shown = findings.draw(folder, series, classes, groups, sizes)
    return Findings(
        "Pruning", findings.tell(series, classes, groups, sizes, split, kinds, pruner.how, masks),
        shown,
        [("classes.csv", "Dice of each class against sparsity, with intervals; drop is what is "
                         "lost against the network as it was trained"),
         ("pruning.csv", "All scores of each experiment, layer, level, mask and class")])


# --- what is pruned ------------------------------------------------------------------------------


def _layers(config, kinds) -> list[models.Layer]:
    wanted = [pick(dict(zip(KINDS, KINDS)), kind, "--kinds") for kind in kinds.split(",")]
    layers = layers_of(config)
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
        pick(pruning.METHODS, method, "--prune")
        pick(dict.fromkeys((*LAYERS, *names)), layers, "--prune")
        found.append((method, layers))
    return found


def _targets(experiments, layers, config, predictor) -> list[tuple[str, str, list[int]]]:
    """[(method, LAYERS, numbers of the layers that are pruned together)]."""
    moved = []
    if any(which in ("top1", "top2") for _, which in experiments):
        before, after = (weights.kernels(config, params) for params in (
            weights.initial_params(config), predictor.network.variables["params"]))
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


def map_pruned(spec: Spec, mesh, threshold: float, paths, copies: int):
    """The compiled f(variables, ranks, gone, batch) of `copies` masked copies of a network.

    ranks: {path of a kernel: see sparsity.ranks}; gone: (copies, len(paths)) int32, how many of
    each kernel's ranks a copy has lost; batch: as step.map_eval has it, its rows over the mesh.
    Returns: {"counts", "cells"} of step.eval_step with a leading axis of copies.
    """
    rows = P(("member", "data"))
    unscored = spec.replace(loss_options=FrozenDict())

    def per_device(variables, ranks, gone, batch):
        def one(gone):
            params = pruning.prune(
                variables["params"], ranks, dict(zip(paths, gone, strict=True)))
            out = eval_step.eval_step(unscored, {}, {**variables, "params": params}, batch, threshold)
            return {k: out[k] for k in ("counts", "cells")}

        # Not vmapped where there is one: a CPU would take its convolutions for grouped ones.
        return (jax.tree.map(lambda x: x[None], one(gone[0])) if copies == 1
                else jax.vmap(one)(gone))

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), P(), rows),
        out_specs=P(None, ("member", "data"))))


class Pruner:
    """Scores of masked copies of one run on one part of its data."""

    def __init__(self, predictor, layers, part):
        self.predictor, self.layers, self.part = predictor, layers, part
        self.paths = [layer.kernel for layer in layers]
        self.kernels = _kernels(predictor.network.variables["params"], self.paths)
        self.everywhere = NamedSharding(predictor.network.mesh, P())
        self.alone = None  # map_pruned of one copy
        self.program, self.how = None, ""  # (map_pruned, its copies); the choice in words

    def series(self, targets, amount, iterations, seeds) -> list[Series]:
        """A Series per target: (method, LAYERS, numbers of layers)."""
        work, out, levels = {}, [], iterations + 1  # {what ranks depend on: copies to score}
        n, k = len(self.part.images), 1 if self.predictor.config.data.target != "classes" else (
            self.predictor.config.data.num_classes - 1)
        base = None
        for number, (method, which, chosen) in enumerate(targets):
            how = pruning.METHODS[method]
            kernels = {self.paths[i]: self.kernels[self.paths[i]] for i in chosen}
            gone = np.zeros((levels, len(self.paths)), np.int32)
            for i in chosen:
                gone[1:, i] = pruning.counts(
                    pruning.units(kernels, method)[self.paths[i]], amount, iterations)
            drawn = seeds if how.by == "random" else seeds[:1]
            out.append(Series(
                f"{method}:{which}",
                "all" if which == "all" else " + ".join(self.layers[i].name for i in chosen),
                np.zeros((levels, len(drawn)), np.int64),
                sum(kernel.size for kernel in kernels.values()),
                metrics.Counts(*np.zeros((4, levels, len(drawn), n, k)))))
            for m, seed in enumerate(drawn):
                key = (method, seed, tuple(chosen) if how.jointly else None)
                work.setdefault(key, []).extend((number, level, m, gone[level], tuple(chosen))
                                                for level in range(1, levels))
        with terminal.counting("scoring pruned copies") as progress:
            done, total = 0, 1 + sum(map(len, work.values()))
            for (method, seed, chosen), jobs in work.items():
                ranks = self.ranks(method, seed, chosen)
                if base is None:
                    base = self.score(ranks, np.zeros((1, len(self.paths)), np.int32),
                                      width=max(map(len, work.values())))
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
          width: the most copies that a later call is for, where this is the first.
        """
        variables = variables or self.predictor.network.variables
        if self.program is None:
            self._compile(variables, ranks, next(iter(self.part.batches())), width)
        program, copies = self.program if len(gone) > 1 else (self.alone, 1)
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
                found.append(measure.Scores(
                    None, *(metrics.Counts(*(x[c] for x in one))
                            for one in (counts, found_cells))).main(config))
            said(len(found))
        return metrics.Counts(*map(np.stack, zip(*found, strict=True)))

    def ranks(self, method, seed, chosen=None):
        """On the device, in full shape, so that all methods share the program.

        chosen: the layers of a joint order, or None. Others lose nothing, whatever their ranks.
        """
        numbers = range(len(self.paths)) if chosen is None else chosen
        made = pruning.ranks({self.paths[i]: self.kernels[self.paths[i]] for i in numbers},
                              method, seed)
        return {path: put(made.get(path, np.zeros(kernel.shape, np.int32)), self.everywhere)
                for path, kernel in self.kernels.items()}

    def _compile(self, variables, ranks, batch, width):
        """Choose how many copies a call computes, and compile it.

        On a CPU one: batched convolutions are grouped ones there, and slow. Elsewhere as many
        as memory holds, where that is faster.
        """
        network, threshold = self.predictor.network, self.predictor.config.eval.threshold

        def compiled(copies):
            gone = put(np.zeros((copies, len(self.paths)), np.int32), self.everywhere)
            program = map_pruned(network.spec, network.mesh, threshold, self.paths, copies).lower(
                variables, ranks, gone, batch).compile()
            return program, lambda: program(variables, ranks, gone, batch)

        self.alone, once = compiled(1)
        self.program, self.how = (self.alone, 1), "one masked copy per call"
        if jax.default_backend() == "cpu":
            return
        alone, copies = _seconds(once), 2 ** int(math.log2(min(MOST_COPIES, width)))
        while copies > 1:
            room = 0.5  # of copies that did not even compile, try half
            try:
                program, once = compiled(copies)
                room = _room(program)
                if room >= 1:
                    together = _seconds(once) / copies
                    break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
            copies = 2 ** int(math.log2(max(1, copies * min(room, 0.5))))
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


def _room(program) -> float:
    """Free memory of the fullest device over what the program needs beside its arguments."""
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
    free = [s["bytes_limit"] - s["bytes_in_use"] for s in (
        device.memory_stats() for device in jax.local_devices()) if s and "bytes_limit" in s]
    return 0.9 * min(free, default=math.inf) / max(needed, 1)


def _part(config, predictor, split) -> Part:
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)[split]
    if not len(rows):
        raise InputError(f"--split: config.data.split {config.data.split} leaves the {split} split "
                         "without images")
    cells = np.arange(arrays.grid**2)
    images = np.unique(rows // len(cells))  # with their blank patches, which training may leave out
    rows = (images[:, None] * len(cells) + cells).reshape(-1)
    resident = resident_source(config, arrays, predictor.network.mesh)
    batches = lambda: eval_batches(config, arrays, rows, predictor.network.mesh, resident)
    if resident is not None:
        kept = list(batches())
        batches = lambda: kept
    return Part(arrays, images, batches)


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
            lambda v, x: predictor.network.spec.module({}).apply(v, x, train=False),
            predictor.network.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return {layer.name: sizes["/".join(layer.kernel[:-1])] for layer in layers}


# --- training after pruning ----------------------------------------------------------------------


def _finetuned(config, workdir, folder, pruner, series, amount, epochs) -> list[Series] | None:
    """The experiments on all layers again, mask 0 of each level trained on.

    The runs in finetune/ beside the folder are taken again where all that they come of is the same.
    """
    bases = [one for one in series if one.layer == "all"]
    if not bases:
        raise InputError("--finetune_epochs: none of --prune is on all layers; add l1_layers:all")
    configs, workdirs = [], []
    runs = folder.parent / "finetune" / f"step{pruner.predictor.step}_epochs{epochs}"
    for base in bases:
        method = base.experiment.partition(":")[0]
        for level in range(1, len(base.zeros)):
            configs.append(config_lib.changed(config, {
                "train.weights": str(pathlib.Path(workdir).resolve()),
                "train.prune": amount, "train.prune_iterations": level,
                "train.prune_how": method,
                "train.epochs": epochs, "train.steps": 0,
                "train.early_stopping": 0, "train.early_stopping_mode": "patience",
                "optimizer.warmup": 0}))
            workdirs.append(runs / f"{method}_{amount:g}_{level}")
    for result in train.train(configs, workdirs):
        if result.status == "interrupted":
            return None
        if result.status != "done":
            raise InputError(f"--finetune_epochs: {result.workdir} ended as {result.status!r}; "
                             "expected 'done': wait for the process that uses it, or train the "
                             "run with a smaller optimizer.lr")
    trained, tuned = iter(zip(workdirs, configs, strict=True)), []
    none = np.zeros((1, len(pruner.paths)), np.int32)
    ranks = {path: put(np.zeros(kernel.shape, np.int32), pruner.everywhere)
             for path, kernel in pruner.kernels.items()}
    for base in bases:
        zeros, levels = base.zeros[:, :1].copy(), [metrics.Counts(*(c[0, 0] for c in base.counts))]
        for level in range(1, len(base.zeros)):
            variables = Predictor(*next(trained)).network.variables
            zeros[level] = sum((kernel == 0).sum() for kernel in _kernels(
                variables["params"], pruner.paths).values())
            scores = pruner.score(ranks, none, variables=variables)
            levels.append(metrics.Counts(*(c[0] for c in scores)))
        tuned.append(base._replace(
            experiment=f"{base.experiment}, then {epochs} epoch{'s' * (epochs > 1)}", zeros=zeros,
            counts=metrics.Counts(*(np.stack(c)[:, None] for c in zip(*levels, strict=True)))))
    return tuned
