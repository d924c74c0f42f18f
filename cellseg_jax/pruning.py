"""Pruning: the order in which weights of a network are pruned, and the number of pruned weights.

Iterative pruning without training in between removes each time the least important of the remaining
weights. So the pruned weights are always the first ones of one order: a mask is a rank per weight
and a count, `rank >= count`, and nested masks of any number share their ranks.

Kernels are (..., in, out); whole filters lie along the last axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool


class Method(NamedTuple):
    """How weights are ordered."""

    by: str  # l1, smallest first; or random
    units: str  # weights, or whole filters
    jointly: bool  # the units of all kernels in one order, or of each kernel by itself


METHODS = {
    "l1_layers": Method("l1", "weights", False),
    "l1_grouped": Method("l1", "weights", True),
    "l1_filters": Method("l1", "filters", False),
    "random_layers": Method("random", "weights", False),
    "random_grouped": Method("random", "weights", True),
    "random_filters": Method("random", "filters", False),
}


def ranks(kernels: dict, method: str, seed: int = 0) -> dict:
    """The order in which weights are pruned: the weight of rank r is the r-th, from 0.

    Args:
      kernels: {path: (..., in, out)}; equal orders of paths give equal draws.
      method: of METHODS. The weights of a filter share its rank.
      seed: of random methods, not read by others.
    Returns: {path: int32 of the kernel's shape}, maybe read-only.
    Source: torch.nn.utils.prune, of which l1_layers is l1_unstructured, l1_grouped is
      global_unstructured with L1Unstructured, l1_filters is ln_structured with n=1 along the
      outputs, random_layers is random_unstructured and random_filters is random_structured.
    """
    how = METHODS[method]
    importance = {path: _importance(np.asarray(kernel), how, np.random.default_rng((seed, number)))
                  for number, (path, kernel) in enumerate(kernels.items())}
    if how.jointly:
        joint = _ranked(np.concatenate([x.ravel() for x in importance.values()]))
        parts = np.split(joint, np.cumsum([x.size for x in importance.values()])[:-1])
    else:
        parts = [_ranked(x.ravel()) for x in importance.values()]
    return {path: np.broadcast_to(part.reshape(x.shape), np.shape(kernels[path]))
            for part, (path, x) in zip(parts, importance.items(), strict=True)}


def units(kernels: dict, method: str) -> dict:
    """{path: number of units (weights or filters) that the ranks of the method count}."""
    how = METHODS[method]
    if how.jointly:
        return dict.fromkeys(kernels, sum(np.size(kernel) for kernel in kernels.values()))
    return {path: np.shape(kernel)[-1] if how.units == "filters" else np.size(kernel)
            for path, kernel in kernels.items()}


def counts(total: int, amount: float, iterations: int) -> list[int]:
    """How many of `total` are pruned after each iteration, which takes `amount` of the rest.

    1728 and 0.25: 432, 756, 999, ... as torch.nn.utils.prune rounds.
    """
    gone = [0]
    for _ in range(iterations):
        gone.append(gone[-1] + round(amount * (total - gone[-1])))
    return gone[1:]


def prune(params: dict, ranks: dict, counts: dict) -> dict:
    """params with 0 where the rank of a weight is below the count of its kernel.

    Args:
      ranks: {path in params: see `ranks`}.
      counts: {path: int, may be traced}.
    """
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(flat | {
        path: jnp.where(rank >= counts[path], flat[path], 0) for path, rank in ranks.items()})


def hold_zeros(params: dict, pruned: bool | Bool[Array, ""] = True) -> dict:
    """The same parameters, of which kernel entries that are 0 are constants where `pruned`.

    So their gradient is 0, and training leaves them at 0.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, w: jnp.where((w == 0) & pruned, 0, w)
        if path[-1].key.endswith("kernel") else w, params)


def _importance(kernel, how: Method, random):
    """Of each weight, or each filter (F,): what is smallest goes first."""
    shape = kernel.shape[-1:] if how.units == "filters" else kernel.shape
    if how.by == "random":
        return random.random(shape)
    size = np.abs(kernel)
    return size.sum(tuple(range(kernel.ndim - 1))) if how.units == "filters" else size


def _ranked(importance) -> np.ndarray:
    """(n,) int32: the place of each in increasing order; of equals the first comes first."""
    rank = np.empty(len(importance), np.int32)
    rank[np.argsort(importance, kind="stable")] = np.arange(len(importance), dtype=np.int32)
    return rank
