"""Masks of iterated pruning beside torch.nn.utils.prune on the same weights, every method."""

import numpy as np
import pytest

from cellseg_jax import pruning

torch = pytest.importorskip("torch")
prune = pytest.importorskip("torch.nn.utils.prune")

AMOUNT, ITERATIONS, SEED = 0.25, 10, 5
SHAPES = ((3, 64), (64, 24), (24, 7))  # channels in and out of 3x3 convolutions


def convolutions():
    """Their kernels (3, 3, in, out) by path and the same as torch's (out, in, 3, 3)."""
    random = np.random.default_rng(0)
    kernels = {(f"conv_{n}", "kernel"): random.normal(size=(3, 3, *shape)).astype(np.float32)
               for n, shape in enumerate(SHAPES)}
    modules = {}
    for path, kernel in kernels.items():
        modules[path] = torch.nn.Conv2d(*kernel.shape[2:], 3)
        modules[path].weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    return kernels, modules


def draws(kernels, filters):
    """What sparsity draws for each kernel, in torch's order of axes."""
    found = {}
    for number, (path, kernel) in enumerate(kernels.items()):
        random = np.random.default_rng((SEED, number))
        found[path] = (random.random(kernel.shape[-1]) if filters
                       else random.random(kernel.shape).transpose(3, 2, 0, 1))
    return found


def pruned_once(method, modules, drawn, monkeypatch):
    """One more iteration by torch, which is handed the draws of what remains."""
    left = lambda path: modules[path].weight_mask.numpy() if hasattr(
        modules[path], "weight_mask") else np.ones(modules[path].weight.shape)
    pairs = [(module, "weight") for module in modules.values()]
    if method == "l1_grouped":
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=AMOUNT)
        return
    if method == "random_grouped":
        flat, kept = (np.concatenate([f(path).ravel() for path in modules])
                      for f in (drawn.get, left))
        with monkeypatch.context() as patch:  # torch prunes the largest draws
            patch.setattr(torch, "rand_like", lambda t: torch.from_numpy(1 - flat[kept == 1]))
            prune.global_unstructured(pairs, prune.RandomUnstructured, amount=AMOUNT)
        return
    for path, module in modules.items():
        kept = left(path)
        if method == "l1_layers":
            prune.l1_unstructured(module, "weight", amount=AMOUNT)
        elif method == "l1_filters":
            prune.ln_structured(module, "weight", amount=AMOUNT, n=1, dim=0)
        elif method == "random_layers":
            draws = torch.from_numpy(1 - drawn[path][kept == 1])
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand_like", lambda t, draws=draws: draws)
                prune.random_unstructured(module, "weight", amount=AMOUNT)
        else:
            draws = torch.from_numpy(drawn[path][kept.any((1, 2, 3))])
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda n, draws=draws: draws)
                prune.random_structured(module, "weight", amount=AMOUNT, dim=0)


@pytest.mark.parametrize("method", pruning.METHODS)
def test_masks_equal_torchs_at_every_iteration(method, monkeypatch):
    kernels, modules = convolutions()
    ranks = pruning.ranks(kernels, method, SEED)
    units = pruning.units(kernels, method)
    drawn = draws(kernels, method.endswith("filters"))
    zeros = []
    for level in range(ITERATIONS):
        pruned_once(method, modules, drawn, monkeypatch)
        for path, module in modules.items():
            gone = pruning.counts(units[path], AMOUNT, ITERATIONS)[level]
            theirs = module.weight_mask.numpy().transpose(2, 3, 1, 0)
            np.testing.assert_array_equal(ranks[path] >= gone, theirs == 1)
        zeros.append(int((modules["conv_0", "kernel"].weight == 0).sum()))
    if method.endswith("layers"):  # a 64x3x3x3 kernel
        assert zeros == pruning.counts(1728, AMOUNT, ITERATIONS) and zeros[0] == 432
