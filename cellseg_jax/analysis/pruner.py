"""Scores of masked copies of a trained network.

Masks are an array axis: one compiled program takes the ranks of all weights (see
cellseg_jax.pruning) and, for each masked copy of the network, how many weights each layer has lost.
"""

import math
import time
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util
from flax.core import FrozenDict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import data, metrics, pruning
from cellseg_jax.analysis.pruning_series import Series
from cellseg_jax.inference import measure
from cellseg_jax.report import terminal
from cellseg_jax.step import eval_step
from cellseg_jax.step.mesh import fetch, put
from cellseg_jax.step.spec import Spec

MOST_COPIES = 64  # in one call: fewer keep a device busy


class SplitImages(NamedTuple):
    """The images of a split, in batches that all pruned copies share."""

    arrays: data.Arrays
    images: np.ndarray  # (n,) their numbers
    batches: object  # () -> batches of step.batches.eval_batches


class MaskedCopy(NamedTuple):
    """One copy of the network to score, and where its scores go."""

    series: int
    level: int
    mask: int
    gone: np.ndarray  # (layers,) how many of each kernel's ranks it has lost
    layers: tuple[int, ...]  # that are pruned


def map_pruned(spec: Spec, mesh, threshold: float, paths, copies: int):
    """The compiled f(variables, ranks, gone, batch) of `copies` masked copies of a network.

    ranks: {path of a kernel: see pruning.ranks}; gone: (copies, len(paths)) int32, how many of
    each kernel's ranks a copy has lost; batch: as in eval_step.map_eval, its rows over the mesh.
    Returns: {"counts", "cells"} of step.eval_step with a leading axis of copies.
    """
    rows = P(("member", "data"))
    unscored = spec.replace(loss_options=FrozenDict())

    def per_device(variables, ranks, gone, batch):
        def one(gone):
            params = pruning.prune(
                variables["params"], ranks, dict(zip(paths, gone, strict=True)))
            out = eval_step.eval_step(unscored, {}, {**variables, "params": params}, batch,
                                      threshold)
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
        self.kernels = kernels_at(predictor.network.variables["params"], self.paths)
        self.everywhere = NamedSharding(predictor.network.mesh, P())
        self.alone = None  # map_pruned of one copy
        self.program, self.how = None, ""  # (map_pruned, its copies); the same in words

    def series(self, targets, amount: float, iterations: int, seeds) -> list[Series]:
        """A Series per target (method, LAYERS, numbers of layers).

        Args:
          amount, iterations: of pruning.counts.
          seeds: of random methods, a mask each; other methods have one mask.
        """
        out, work = self._empty_series(targets, amount, iterations, seeds)
        base, done, total = None, 0, 1 + sum(map(len, work.values()))
        with terminal.counting("scoring pruned copies") as progress:
            for (method, seed, chosen), copies in work.items():
                ranks = self.ranks(method, seed, chosen)
                if base is None:
                    base = self.score(ranks, np.zeros((1, len(self.paths)), np.int32),
                                      width=max(map(len, work.values())))
                scores = self.score(ranks, np.stack([copy.gone for copy in copies]),
                                    lambda count, done=done: progress(done + count, total))
                done += len(copies)
                sorted_ranks = [np.sort(np.asarray(ranks[path]), None) for path in self.paths]
                for j, copy in enumerate(copies):
                    for whole, one in zip(out[copy.series].counts, scores, strict=True):
                        whole[copy.level, copy.mask] = one[j]
                    out[copy.series].zeros[copy.level, copy.mask] = sum(
                        np.searchsorted(sorted_ranks[i], copy.gone[i]) for i in copy.layers)
        for one in out:
            for whole, first in zip(one.counts, base, strict=True):
                whole[0] = first[0]
        return out

    def _empty_series(self, targets, amount, iterations, seeds):
        """(a Series of zeros per target, {(method, seed, joint layers): [MaskedCopy]}).

        Copies under one key share their ranks.
        """
        config, levels = self.predictor.config, iterations + 1
        n, k = len(self.part.images), (
            config.data.num_classes - 1 if config.data.target == "classes" else 1)
        out, work = [], {}
        for number, (method, which, chosen) in enumerate(targets):
            how = pruning.METHODS[method]
            gone = self._gone(method, chosen, amount, iterations)
            drawn = seeds if how.by == "random" else seeds[:1]
            out.append(Series(
                f"{method}:{which}",
                "all" if which == "all" else " + ".join(self.layers[i].name for i in chosen),
                np.zeros((levels, len(drawn)), np.int64),
                sum(self.kernels[self.paths[i]].size for i in chosen),
                metrics.Counts(*np.zeros((4, levels, len(drawn), n, k)))))
            for mask, seed in enumerate(drawn):
                key = (method, seed, tuple(chosen) if how.jointly else None)
                work.setdefault(key, []).extend(
                    MaskedCopy(number, level, mask, gone[level], tuple(chosen))
                    for level in range(1, levels))
        return out, work

    def _gone(self, method, chosen, amount, iterations):
        """(levels, layers) int32: how many ranks each layer has lost at each level."""
        kernels = {self.paths[i]: self.kernels[self.paths[i]] for i in chosen}
        gone = np.zeros((iterations + 1, len(self.paths)), np.int32)
        for i in chosen:
            gone[1:, i] = pruning.counts(
                pruning.units(kernels, method)[self.paths[i]], amount, iterations)
        return gone

    def variables_at(self, target, amount: float, level: int, seed: int) -> dict:
        """The variables of the network that `series` scores at one level of a target's mask."""
        method, _, chosen = target
        ranks = self.ranks(method, seed, chosen if pruning.METHODS[method].jointly else None)
        gone = self._gone(method, chosen, amount, max(level, 1))[level]
        variables = self.predictor.network.variables
        return {**variables, "params": pruning.prune(
            variables["params"], ranks, dict(zip(self.paths, gone, strict=True)))}

    def kernels_of(self, params) -> dict:
        """{path: kernel} of other parameters, as numpy."""
        return kernels_at(params, self.paths)

    def score(self, ranks, gone, progress=lambda count: None, *, variables=None, width=0
              ) -> metrics.Counts:
        """Counts of (len(gone), n, K) as numpy: Scores.main of each masked copy.

        Args:
          width: the most copies that a later call is for, where this is the first.
        """
        variables = variables or self.predictor.network.variables
        if self.program is None:
            self._compile(variables, ranks, next(iter(self.part.batches())), width)
        program, copies = self.program if len(gone) > 1 else (self.alone, 1)
        config, found = self.predictor.config, []
        for start in range(0, len(gone), copies):
            chunk = np.zeros((copies, gone.shape[1]), np.int32)
            chunk[: len(gone) - start] = gone[start : start + copies]
            chunk = put(chunk, self.everywhere)
            outs = [(program(variables, ranks, chunk, batch), batch["weight"])
                    for batch in self.part.batches()]
            counts, found_cells = (self._gathered(outs, name, copies) for name in (
                "counts", "cells"))
            for c in range(min(copies, len(gone) - start)):
                found.append(measure.Scores(
                    None, *(metrics.Counts(*(x[c] for x in one))
                            for one in (counts, found_cells))).main(config))
            progress(len(found))
        return metrics.Counts(*map(np.stack, zip(*found, strict=True)))

    def _gathered(self, outs, name, copies) -> metrics.Counts:
        """(copies, n, K) of all batches, those of an image's patches added up."""
        n, cells = len(self.part.images), self.part.arrays.grid**2
        return metrics.Counts(*(
            np.concatenate([fetch(x)[:, fetch(w) > 0] for x, w in one], 1).astype(np.float64)
            .reshape(copies, n, cells, -1).sum(2)
            for one in zip(*([(x, w) for x in out[name]] for out, w in outs), strict=True)))

    def ranks(self, method, seed, chosen=None):
        """The ranks on the device, in full shape, so that all methods share the program.

        chosen: the layers of a joint order, or None for all. Others lose no weights.
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


def kernels_at(params, paths) -> dict:
    """{path: kernel} as numpy."""
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
