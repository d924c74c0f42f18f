"""Losses: how wrong the logits of each image are.

Every loss is `LOSSES[name](logits, target, **options) -> (N,)`, 0 is perfect. Probabilities p are
independent sigmoids per output channel and target g is 0 or 1 in each, unless a loss says
otherwise. Half-precision logits are converted to float32 before anything is summed. Options that
several losses share mean the same everywhere:

  class_weights: K numbers; the loss of channel k is multiplied by the k-th. They multiply, and do
    not change what a mean divides by (torch's CrossEntropyLoss(weight) divides by their sum
    over the batch). () weighs all channels by 1.
  pixel_weight: (N, H, W), w in the formulas; None weighs all pixels by 1. A mean still divides
    by the number of pixels, so that a pixel counts the same however many others do; what is not
    annotated weighs 0. Skeletons, and distances to a boundary, are of all pixels, where it is
    background.
  smooth: pixels added to numerator and denominator; 0 makes an empty channel undefined.
  pooled: one score from sums over the whole batch, returned for every image. A row with
    `pixel_weight` 0 takes no part in it.
  axis_name: with `pooled`, the mapped axis that the batch is spread over. The sums are reduced
    here, so this must stand inside the differentiated function.

All raise ValueError where shapes differ, and where class_weights are not one per channel.

REGRESSION holds the losses of outputs that are no probabilities, such as the rays of star: see
losses.regression.
"""

import functools
import inspect

from cellseg_jax.losses.boundary_distance import boundary, signed_distance
from cellseg_jax.losses.deep_supervision import coarse, supervision_weights
from cellseg_jax.losses.overlap import cldice, dice, jaccard, lovasz, overlap_loss, tversky
from cellseg_jax.losses.pixelwise import bce, cross_entropy, focal
from cellseg_jax.losses.regression import distance_dice, mae, mse

LOSSES = {
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz": lovasz,
    "cldice": cldice,
    "boundary": boundary,
    "focal": focal,
    "bce": bce,
    "cross_entropy": cross_entropy,
}
REGRESSION = {"mae": mae, "mse": mse, "distance_dice": distance_dice}
# These are 0 on images without foreground, whatever is predicted: another loss must stand beside.
ZERO_ON_EMPTY = ("boundary", "cldice")
OF_MASKS = ("boundary", "lovasz")  # their targets are 0 or 1, never between


@functools.cache
def options(name: str) -> dict:
    """The options of a loss with their defaults, numbers or tuples, from its signature.

    An option name that two losses share means one and the same option. pixel_weight and axis_name
    are given by the step, not by a config. The dict is not to be changed.
    """
    parameters = dict(inspect.signature((LOSSES | REGRESSION)[name]).parameters)
    if parameters.pop("shared", None):
        parameters |= inspect.signature(overlap_loss).parameters
    return {name: p.default for name, p in parameters.items()
            if p.default is not p.empty and name not in ("pixel_weight", "axis_name")}
