"""The evaluation step: probabilities and scores of one device's rows, mapped as in step.mapped.

It needs nothing of training.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cellseg_jax import metrics, targets
from cellseg_jax.step.spec import Spec


def eval_step(spec: Spec, values: dict, variables: dict, batch: dict, threshold: float) -> dict:
    """Probabilities and scores of this device's rows, without the axis "data".

    Args:
      values: traced hyper-parameters, of which the weights of the losses are read.
      variables: {"params", "batch_stats"}.
      batch: see step.batches.eval_layout.
      threshold: of the probability.
    Returns: {"probs" (n, H, W, K), "loss" (n,), "counts" metrics.Counts of (n, K), and "cells"
      Counts of (n, 1): cell or not, whatever the target is}. The probs are maps (see
      targets.Target), and K of the counts is the number of those that are probabilities. Pixels
      that are not annotated are in no loss and no count.
    """
    target_kind = targets.TARGETS[spec.target]
    logits = spec.logits(variables, batch["image"], batch["range"])
    truth = spec.truth(batch)
    target, label = truth["target"], batch["label"]
    probs = target_kind.probs(logits)
    return {
        "probs": probs,
        "loss": spec.losses(logits, hparams=spec.hparams(values), **truth),
        "counts": metrics.pixel_counts(_truth(target_kind, target, threshold),
                                       target_kind.mask(probs, threshold), spec.known(label)),
        "cells": metrics.pixel_counts(label[..., None] > 0,
                                      target_kind.cell_mask(probs, threshold),
                                      label >= 0 if spec.ignore else None),
    }


def _truth(target_kind, target, threshold):
    """What the mask should be: the target, or its mask where it is no mask itself."""
    return target if target_kind.num_binary is None else target_kind.mask(target, threshold)


def map_eval(spec: Spec, mesh: Mesh, threshold: float) -> Callable:
    """The compiled eval(values, variables, batch) of one member, its rows over the whole mesh."""
    rows = P(("member", "data"))

    def per_device(values, variables, batch):
        return eval_step(spec, values, variables, batch, threshold)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), rows), out_specs=rows), keep_unused=True)


def map_probs(spec: Spec, mesh: Mesh) -> Callable:
    """The compiled probs(variables, image, range) -> (n, H, W, K) float32, rows over the mesh."""
    rows = P(("member", "data"))

    def per_device(variables, image, range_):
        logits = spec.logits(variables, image, range_)
        return targets.TARGETS[spec.target].probs(logits).astype(jnp.float32)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows), keep_unused=True)
