"""Pruning as an order, beside pruning again and again what remains."""

import jax
import numpy as np
import pytest

from cellseg_jax import pruning

SHAPES = {("first", "kernel"): (3, 3, 3, 8), ("second", "kernel"): (3, 3, 8, 5),
          ("out", "kernel"): (5, 1)}


def some_kernels():
    random = np.random.default_rng(0)
    return {path: random.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def slow_masks(kernels, method, amount, iterations, seed):
    """[{path: mask}] of each iteration: sort what remains, drop the least round(amount * n)."""
    by, _, units = method.partition("_")
    draw = {path: np.random.default_rng((seed, n)) for n, path in enumerate(kernels)}
    cells = []  # [importance, path, index of what is dropped]
    for path, kernel in kernels.items():
        shape = kernel.shape[-1:] if units == "filters" else kernel.shape
        drawn = draw[path].random(shape)
        for index in np.ndindex(shape):
            where = (..., *index) if units == "filters" else index
            value = drawn[index] if by == "random" else np.abs(kernel[where]).sum()
            cells.append((value, path, where))
    orders = [cells] if units == "grouped" else [
        [c for c in cells if c[1] == path] for path in kernels]
    masks, current = [], {path: np.ones(k.shape, bool) for path, k in kernels.items()}
    for _ in range(iterations):
        for order in orders:
            order.sort(key=lambda c: c[0])
            for _, path, where in [order.pop(0) for _ in range(round(amount * len(order)))]:
                current[path][where] = False
        masks.append({path: mask.copy() for path, mask in current.items()})
    return masks


@pytest.mark.parametrize("method", pruning.METHODS)
def test_the_beginning_of_one_order_is_what_iterated_pruning_takes(method):
    kernels = some_kernels()
    ranks = pruning.ranks(kernels, method, seed=3)
    totals = pruning.units(kernels, method)
    counts = {path: pruning.counts(totals[path], 0.25, 10) for path in kernels}
    for level, masks in enumerate(slow_masks(kernels, method, 0.25, 10, seed=3)):
        for path, mask in masks.items():
            np.testing.assert_array_equal(ranks[path] >= counts[path][level], mask)


def test_the_sequence_of_the_report():
    taken = np.array(pruning.counts(64 * 3 * 3 * 3, 0.25, 10))
    assert taken[0] == 432
    np.testing.assert_allclose(taken / 1728, [.25, .4375, .578, .684, .763, .822, .867, .900, .925,
                                              .944], atol=1e-3)
    assert pruning.counts(1, 0.25, 3) == [0, 0, 0]  # a quarter of one filter rounds to none


def test_pruned_parameters_under_jit_and_what_is_left_alone():
    kernels = some_kernels()
    params = {"first": {"kernel": kernels["first", "kernel"], "bias": np.ones(8, np.float32)},
              "second": {"kernel": kernels["second", "kernel"]}}
    path = ("first", "kernel")
    ranks = pruning.ranks({path: kernels[path]}, "l1_layers")
    assert ranks[path].dtype == np.int32
    found = jax.jit(lambda count: pruning.prune(params, ranks, {path: count}))(54)
    kept = np.abs(kernels[path]) > np.sort(np.abs(kernels[path]), None)[53]
    np.testing.assert_array_equal(found["first"]["kernel"], kernels[path] * kept)
    np.testing.assert_array_equal(found["first"]["bias"], 1)
    np.testing.assert_array_equal(found["second"]["kernel"], kernels["second", "kernel"])


def test_masks_differ_by_seed_and_by_layer():
    kernels = {("a",): np.ones((3, 3, 4, 8)), ("b",): np.ones((3, 3, 4, 8))}
    one, other = (pruning.ranks(kernels, "random_layers", seed) for seed in (0, 1))
    assert (one["a",] != other["a",]).any() and (one["a",] != one["b",]).any()
    again = pruning.ranks(kernels, "random_layers", 0)
    np.testing.assert_array_equal(one["b",], again["b",])
