"""The evaluation step: probabilities and scores of one device's rows."""

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
      Counts of (n, 1): cell or not, whatever the target is}.
    """
    target_kind = targets.TARGETS[spec.target]
    logits = spec.logits(variables, batch["image"], batch["range"])
    target = spec.encode(batch["label"])
    probs = target_kind.probs(logits)
    return {
        "probs": probs,
        "loss": spec.losses(logits, target, spec.hparams(values),
                            pixel_weight=batch.get("pixel_weight")),
        "counts": metrics.pixel_counts(target, target_kind.mask(probs, threshold)),
        "cells": metrics.pixel_counts(batch["label"][..., None] > 0,
                                      target_kind.cell_mask(probs, threshold)),
    }
