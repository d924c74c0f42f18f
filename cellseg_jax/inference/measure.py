"""Counts and scores of batches of images, under one compiled program."""

import time
from typing import NamedTuple

import jax
import numpy as np

from cellseg_jax import crops, metrics
from cellseg_jax.config import derived
from cellseg_jax.inference.score_definitions import MEAN_SCORES, POOLED_SCORES
from cellseg_jax.step.mesh import fetch


class Scores(NamedTuple):
    """What was measured on n images, as numpy arrays in the order of the indices."""

    loss: np.ndarray | None  # (n,); None where nothing has a loss
    counts: metrics.Counts  # of (n, K), a column per output
    cells: metrics.Counts  # of (n, 1), cell or not

    def main(self, config) -> metrics.Counts:
        """What headline scores are made of: the classes but background, else cell or not.

        So the scores of runs compare, whatever target they learn.
        """
        if config.data.target == "classes":
            return metrics.Counts(*(c[:, 1:] for c in self.counts))
        return self.cells


class TimedStep:
    """An eval_step that records how long each batch takes, until its results are there.

    Attributes:
      seconds: of each call, the first with compilation; rows: of a batch.
    """

    def __init__(self, eval_step):
        self.eval_step, self.seconds, self.rows = eval_step, [], 0

    def __call__(self, values, variables, batch) -> dict:
        """What eval_step returns."""
        started = time.perf_counter()
        out = jax.block_until_ready(self.eval_step(values, variables, batch))
        self.seconds.append(time.perf_counter() - started)
        self.rows = len(batch["image"])
        return out

    def ms_per_row(self) -> float:
        """Milliseconds per row of a batch: the median, without the first of several batches."""
        return 1e3 * float(np.median(self.seconds[1:] or self.seconds)) / self.rows


def measure(eval_step, values, variables, batches, keep_probs=None, cells: int = 1) -> Scores:
    """Loss and counts of all images of the batches.

    Args:
      keep_probs: gets the probabilities (h, w, K) of each image.
      cells: samples that make up an image, grid * grid patches one after the other.
    """
    loss, counts, found, waiting = [], [], [], []
    for batch in batches:
        out = eval_step(values, variables, batch)
        used = fetch(batch["weight"]) > 0
        if "loss" in out:
            loss.append(fetch(out["loss"])[used])
        counts.append([fetch(c)[used] for c in out["counts"]])
        found.append([fetch(c)[used] for c in out["cells"]])
        if keep_probs is not None:
            for one in fetch(out["probs"])[used]:
                waiting.append(one)
                if len(waiting) == cells:
                    keep_probs(crops.from_grid(np.stack(waiting)))
                    waiting.clear()
    per_image = lambda batches: np.concatenate(batches).astype(np.float64).reshape(
        -1, cells, *batches[0].shape[1:])
    summed = lambda batches: metrics.Counts(
        *(per_image(c).sum(1) for c in zip(*batches, strict=True)))
    return Scores(per_image(loss).mean(1) if loss else None, summed(counts), summed(found))


def summarize(counts: metrics.Counts) -> dict:
    """Mean and pooled scores of (n, K) counts."""
    pooled = metrics.Counts(*(c.sum(0, keepdims=True) for c in counts))
    means = {f"{name}_mean": float(np.mean(score(counts))) for name, score in MEAN_SCORES.items()}
    return means | {f"{name}_pooled": float(np.mean(score(pooled)))
                    for name, score in POOLED_SCORES.items()}


def validate(eval_step, values, variables, batches, config) -> dict:
    """config.VALIDATION_METRICS of the batches."""
    scores = measure(eval_step, values, variables, batches, cells=config.data.grid**2)
    out = {**summarize(scores.main(config)), "loss": float(scores.loss.mean())}
    return {name: out[name] for name in derived.VALIDATION_METRICS}
