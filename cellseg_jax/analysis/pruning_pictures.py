"""Pictures of a pruned network: its filters before and after, and what it still predicts."""

import numpy as np

from cellseg_jax import crops
from cellseg_jax.report import figures, panels
from cellseg_jax.step.mesh import fetch

MOST_FILTERS, MOST_LAYERS, IMAGES = 12, 2, 2  # that are drawn


def draw(folder, pruner, target, one, amount: float, seed: int) -> list[tuple[str, str]]:
    """Write the pictures of one experiment into the folder; [(file, caption)].

    Args:
      pruner: pruner.Pruner.
      target: (method, LAYERS, numbers of layers), of which `one` is the Series.
      amount: of pruning.counts. seed: of the first mask.
    """
    last = len(one.zeros) - 1
    levels = sorted({0, 1, (1 + last) // 2, last})
    variables = [pruner.variables_at(target, amount, level, seed) for level in levels]
    shares = one.sparsity()[levels]
    figures.save(_filters(pruner, target, variables[1], shares[1]), folder / "pruned_filters.png")
    figures.save(_predictions(pruner, one, variables, levels), folder / "pruned_predictions.png")
    return [("pruned_filters.png",
             f"Filters of the first layers before (above) and after pruning ({one.experiment}, "
             f"sparsity {shares[1]:.2f}), the largest first; white is 0"),
            ("pruned_predictions.png",
             f"What the network predicts as it is pruned ({one.experiment}, mask 0), of the images "
             "whose Dice is closest to the median without pruning")]


def _filters(pruner, target, pruned, share):
    """Filters of some layers: a row before pruning, a row after it, for each layer."""
    chosen = target[2][:MOST_LAYERS]
    after = pruner.kernels_of(pruned["params"])
    before = {pruner.paths[i]: pruner.kernels[pruner.paths[i]] for i in chosen}
    fig, axes = figures.figure(MOST_FILTERS, 2.6 * len(chosen), 2 * len(chosen), MOST_FILTERS,
                               squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for row, (path, kernel) in enumerate(before.items()):
        kernels = [x.reshape(-1, *x.shape[-2:]) if x.ndim < 4 else x
                   for x in (kernel, after[path])]
        order = np.argsort(-np.linalg.norm(kernels[0].reshape(-1, kernel.shape[-1]), axis=0))
        for column, n in enumerate(order[:MOST_FILTERS]):
            limit = max(abs(kernels[0][..., 0, n]).max(), 1e-12)
            for k, one in enumerate(kernels):
                axes[2 * row + k, column].imshow(
                    np.atleast_2d(one[..., 0, n]), cmap="PuOr", vmin=-limit, vmax=limit,
                    interpolation="nearest")
        name = pruner.layers[chosen[row]].name
        axes[2 * row, 0].set_title(f"{name}, first input channel", fontsize=9, loc="left")
        axes[2 * row + 1, 0].set_title(f"pruned, sparsity {share:.2f}", fontsize=9, loc="left")
    return fig


def _predictions(pruner, one, variables, levels):
    """A row per image: truth, then the prediction at each level."""
    dice = one.dice()[:, 0].mean(-1)  # (levels, n) of mask 0
    chosen = np.argsort(abs(dice[0] - np.median(dice[0])), kind="stable")[:IMAGES]
    columns = 1 + len(levels)
    fig, axes = figures.figure(2.4 * columns, 2.7 * len(chosen), len(chosen), columns,
                               squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    probs = [probs_of(pruner, v, chosen) for v in variables]
    for row, n in enumerate(chosen):
        image, label = _as_seen(pruner.part, n)
        axes[row, 0].imshow(panels.overlay(image, label))
        axes[row, 0].set_title("truth", fontsize=9)
        for column, (level, found) in enumerate(zip(levels, probs, strict=True)):
            ax = axes[row, 1 + column]
            ax.imshow(panels.overlay(image, pruner.predictor.decode(found[row])))
            ax.set_title(f"sparsity {one.sparsity()[level]:.2f}, Dice {dice[level, n]:.2f}",
                         fontsize=9)
    return fig


def probs_of(pruner, variables, images) -> list[np.ndarray]:
    """(H, W, K) probabilities, by some variables, of some of the numbered images of the part."""
    network, cells = pruner.predictor.network, pruner.part.arrays.grid**2
    wanted = (np.asarray(images)[:, None] * cells + np.arange(cells)).reshape(-1)
    found, row = {}, 0
    for batch in pruner.part.batches():
        used = np.flatnonzero(fetch(batch["weight"]) > 0)
        here = {row + k: int(i) for k, i in enumerate(used) if row + k in wanted}
        if here:
            probs = fetch(network.eval_step(network.values, variables, batch)["probs"])
            found |= {k: probs[i] for k, i in here.items()}
        row += len(used)
    return [crops.from_grid(np.stack([found[k] for k in one]))
            for one in wanted.reshape(-1, cells)]


def _as_seen(part, number):
    """(image, label) of the numbered image of the part, as the network sees it."""
    arrays, cells = part.arrays, part.arrays.grid**2
    rows = slice(part.images[number] * cells, (part.images[number] + 1) * cells)
    return crops.from_grid(arrays.image[rows]), crops.from_grid(arrays.label[rows])
