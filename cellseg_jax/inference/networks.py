"""What turns a batch of images into probabilities: a trained network, or a classical method.

What networks compute alike is traced and compiled once: hundreds of runs of a study share it.
"""

import pathlib
from typing import Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import classical, metrics, models, targets
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.errors import InputError
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import CHECKPOINTS, CONFIG_FILE, no_checkpoint
from cellseg_jax.step.memory import check_fits
from cellseg_jax.step.mesh import all_devices, fetch, put
from cellseg_jax.step.programs import (
    abstract_variables,
    calibration_program,
    eval_program,
    probs_program,
    scoring_values,
    soft_program,
)
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.targets.geometry import far_from_unknown


class Network(Protocol):
    """Probabilities of batches, and their scores.

    Attributes:
      learned: whether there are weights, a loss and probabilities between 0 and 1.
      tile: (h, w) that images are cut to; None where whole images go in.
      batch_size: images or tiles per call.
      step: of the checkpoint.
    """

    learned: bool
    tile: tuple[int, int] | None
    batch_size: int
    step: int

    def __call__(self, image, ranges) -> np.ndarray:
        """(n, h, w, C) uint8|uint16 of one shape and (n, C, 2) ranges -> (n, h, w, K) float32."""

    def eval_step(self, values, variables, batch) -> dict:
        """What eval_step.map_eval computes: "probs", "counts", "cells" and, if learned, "loss"."""


class TrainedNetwork:
    """The network of a run with the weights of a checkpoint.

    Args:
      workdir: the run's folder.
      config: its config, where eval.* may have been changed.
      which: "best" or "last" checkpoint.
      batch_size: images or tiles per call; 0 is eval.batch_size.
    Raises: InputError without a checkpoint, for one of another network than the config's, and for
      one that does not fit memory.
    """

    learned = True

    def __init__(self, workdir, config, which: str = "best", batch_size: int = 0):
        self.config, self.mesh, self.spec = config, all_devices(), make_spec([config])
        self.step, self.variables = self._restored(pathlib.Path(workdir), which)
        everywhere = NamedSharding(self.mesh, P())
        values = scoring_values(traced_values(config, self.spec))
        self.values = {k: put(v, everywhere) for k, v in values.items()}
        self.eval_step = eval_program(self.spec, self.mesh, config.eval.threshold)
        self.calibration_counts = calibration_program(self.spec)
        self.soft_scores = soft_program(self.spec)
        self._probs = probs_program(self.spec, self.mesh)
        self.batch_size = round_up(batch_size or config.eval.batch_size, self.mesh.size)
        self.tile = derived.input_size(config)
        self._rows = NamedSharding(self.mesh, P(("member", "data")))

    def _restored(self, workdir, which) -> tuple[int, dict]:
        """(step, variables) of the checkpoint, or of another one where it is damaged."""
        directory = workdir / CHECKPOINTS
        saved = checkpoint.saved_steps(directory)
        if not saved:
            raise InputError(f"--workdir: {no_checkpoint(workdir)}")
        shape = (*derived.input_size(self.config), derived.channels(self.config))
        wanted, weights = abstract_variables(self.config, self.spec, shape), self.spec.weights
        part = {weights: wanted["params"], "batch_stats": wanted["batch_stats"]}
        part = checkpoint.abstract({k: v for k, v in part.items() if v},
                                   NamedSharding(self.mesh, P()))

        def checked(shapes):
            checkpoint.check_shapes(shapes, part, workdir / CONFIG_FILE)
            check_fits(part, f"{workdir}: the network")
            return part

        step, loaded = checkpoint.load_first(directory, (saved[which], *saved.values()), checked)
        return step, {"params": loaded[weights],
                      "batch_stats": loaded.get("batch_stats", {})}

    def __call__(self, image, ranges) -> np.ndarray:
        """See `Network`. Batches have two sizes at most, so that few programs are compiled."""
        sizes = [self.batch_size] * (len(image) // self.batch_size)
        rest = len(image) - sum(sizes)
        sizes += ([self.batch_size] if 2 * rest > self.batch_size
                  else [self.mesh.size] * -(-rest // self.mesh.size))
        out, start = [], 0
        for size in sizes:
            batch = (np.resize(x[start : start + size], (size, *x.shape[1:]))
                     for x in map(np.asarray, (image, ranges)))
            probs = self._probs(self.variables, *(put(x, self._rows) for x in batch))
            out.append(fetch(probs)[: len(image) - start])
            start += size
        return np.concatenate(out)

    def stride(self) -> int:
        """Pixels by which tiles must be apart for the network to see alike: its downsampling."""
        return models.stride(self.spec.module({}), derived.channels(self.config))

    def reach(self) -> int:
        """The halo that suffices: pixels around a logit that it can depend on, at least.

        Raises: InputError where that is all of the image.
        """
        options = {k: v for k, v in self.spec.model.items()
                   if k not in ("name", "num_outputs", "dtype")}
        reach = models.reach(self.config.model.name, **options)
        if reach is None:
            raise InputError(f"--halo: {self.config.model.name} looks at more than 512 pixels "
                             "around each, or at the whole image; leave --halo out (tiles are "
                             "blended), or give a number of pixels")
        return round_up(reach, self.stride())


class ClassicalMethod:
    """A method of classical.py: probabilities are 0 or 1, and images are not tiled."""

    learned = False
    tile, batch_size, step = None, 1, 0
    values = variables = None

    def __init__(self, config):
        if derived.is_labels(config):
            raise InputError("--workdir: holds scores of labels made elsewhere, so there is no "
                             "method to segment images with; pass a trained run")
        self.config, self.mesh = config, all_devices()

    def __call__(self, image, ranges) -> np.ndarray:
        """See `Network`; (n, h, w, 1), and ranges are not read."""
        method = classical.CLASSICAL[self.config.model.name]
        options = derived.classical_options(self.config)
        return np.stack([method(one, **options) for one in image])[..., None].astype(np.float32)

    def eval_step(self, values, variables, batch) -> dict:
        """See `Network`; without a loss."""
        target, threshold = targets.TARGETS[self.config.data.target], self.config.eval.threshold
        probs, label = jax.numpy.asarray(self(fetch(batch["image"]), None)), fetch(batch["label"])
        options, known = derived.target_options(self.config), label >= 0
        truth = target.encode(np.maximum(label, 0), **options)
        return {"probs": probs,
                "counts": metrics.pixel_counts(
                    truth, target.mask(probs, threshold),
                    far_from_unknown(label, target.reach(**options))),
                "cells": metrics.pixel_counts(label[..., None] > 0,
                                              target.cell_mask(probs, threshold), known)}

    def reach(self) -> int:
        """No halo: `Predictor.check` refuses one."""
        return 0
