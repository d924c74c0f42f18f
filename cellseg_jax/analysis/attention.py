"""What the softmax attention of a transformer attends to, and how far away.

Attention is computed again from the queries and keys of a layer, by the formula of its network:
nothing but the outputs of modules is needed, and the networks need no code for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.patches import Rectangle
from scipy.ndimage import distance_transform_edt

from cellseg_jax.analysis.activations import activations, image_and_range
from cellseg_jax.models.segformer import HEADS, REDUCTIONS, SegFormer
from cellseg_jax.models.unetr import PATCH, UNETR
from cellseg_jax.normalize import normalize
from cellseg_jax.report import figures, panels

MOST_LAYERS = 4  # in a picture


class Attention(NamedTuple):
    """Queries and keys of a layer, (n, rows, columns, heads, width), and their distance apart."""

    query: jax.Array
    key: jax.Array
    spacing: tuple[int, int]  # pixels between neighbouring queries, and keys


def attention_layers(module, found: dict) -> dict[str, Attention]:
    """{layer: Attention} of the softmax attention among `activations`; {} where there is none."""
    out = {}
    for name, value in found.items():
        place, _, leaf = name.rpartition("/")
        if isinstance(module, UNETR) and leaf == "qkv":
            n, *size = found["logits"].shape[:3]
            joint = value.reshape(n, *(-(-side // PATCH) for side in size), 3,
                                  module.num_heads, -1)
            out[place] = Attention(joint[..., 0, :, :], joint[..., 1, :, :], (PATCH, PATCH))
        elif isinstance(module, SegFormer) and leaf == "query":
            stage = int(place.split("_")[1])
            both = found[f"{place}/key_value"]
            heads = lambda x, stage=stage: x.reshape(*x.shape[:3], HEADS[stage], -1)
            spacing = 4 * 2**stage
            out[place] = Attention(heads(value), heads(both[..., : both.shape[-1] // 2]),
                                   (spacing, spacing * REDUCTIONS[stage]))
    return out


def attention_weights(layer: Attention):
    """(n, heads, queries, keys), each row a distribution over the keys."""
    flat = lambda x: x.reshape(len(x), -1, *x.shape[-2:])
    scores = jnp.einsum("nphd,nqhd->nhpq", flat(layer.query), flat(layer.key))
    scores = (scores * layer.query.shape[-1] ** -0.5).astype(
        jnp.promote_types(scores.dtype, jnp.float32))
    return jax.nn.softmax(scores)


def attention_distance(weights, layer: Attention):
    """(heads,) pixels: mean over queries of the distance to what they attend to, by its weight.

    Source: Dosovitskiy et al., arXiv:2010.11929, section 4.5 and figure 7.

    Args:
      weights: (n, heads, queries, keys).
    """
    return (weights * distances(layer)).sum(-1).mean((0, 2))


def distances(layer: Attention) -> np.ndarray:
    """(queries, keys) pixels from each query to each key."""
    query, key = (
        (np.stack(np.mgrid[: x.shape[1], : x.shape[2]], -1).reshape(-1, 2) + 0.5) * spacing
        for x, spacing in zip((layer.query, layer.key), layer.spacing, strict=True))
    return np.linalg.norm(query[:, None] - key, axis=-1).astype(np.float32)


def cell_centre(label) -> tuple[int, int]:
    """(row, column) deepest inside of the largest object of (H, W) `label`, else the middle."""
    label = np.asarray(label)
    if not (label > 0).any():  # -1 is not annotated
        return label.shape[0] // 2, label.shape[1] // 2
    ids, area = np.unique(label[label > 0], return_counts=True)
    depth = distance_transform_edt(np.pad(label == ids[area.argmax()], 1))
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row) - 1, int(column) - 1


def mean_distances(predictor, arrays, rows) -> dict[str, tuple[np.ndarray, float]]:
    """{layer: ((heads,) mean attention distance, that of uniform attention)}, pixels."""
    order, uniform = [], {}
    module = predictor.network.spec.module({})

    @jax.jit
    def run(variables, image, range_):
        image = normalize(image, range_, predictor.network.spec.dtype)
        layers = attention_layers(module, activations(module, variables, image))
        order[:] = layers
        uniform.update({name: float(distances(layer).mean()) for name, layer in layers.items()})
        return {name: attention_distance(attention_weights(layer), layer)
                for name, layer in layers.items()}

    variables = predictor.network.variables
    found = [jax.device_get(run(variables, *image_and_range(arrays, predictor.config, i)))
             for i in rows]
    return {name: (np.mean([f[name] for f in found], 0), uniform[name]) for name in order}


def attention_figure(module, arrays, chosen, seen):
    """A row of tiles per image: it with a marked token, then the attention in some layers."""
    lines = []
    for (i, _), found in zip(chosen, seen, strict=True):
        layers = attention_layers(module, found)
        names = list(layers)
        names = [names[n] for n in np.unique(np.linspace(
            0, len(names) - 1, min(MOST_LAYERS, len(names))).round().astype(int))]
        lines.append((i, {name: layers[name] for name in names}))
    fig, axes = figures.tiles(len(lines) * (len(names) + 1), len(names) + 1, titles=0.3)
    fig.suptitle("attention of the marked token (mean over heads): from 0 (dark) to the map's "
                 "maximum, at least twice uniform attention", fontsize=11)
    axes = iter(axes)
    for i, layers in lines:
        size = arrays.image.shape[1:3]
        row, column = cell_centre(arrays.label[i])
        ax = next(axes)
        ax.imshow(panels.stretch(arrays.image[i]))
        ax.set_title("image", fontsize=9)
        grey = panels.stretch(arrays.image[i]).mean(-1)
        for n, (name, layer) in enumerate(layers.items()):
            spacing, apart = layer.spacing
            query = np.minimum([row // spacing, column // spacing],
                               np.array(layer.query.shape[1:3]) - 1)
            token = int(query[0] * layer.query.shape[2] + query[1])
            weights = np.asarray(attention_weights(layer))[0, :, token].mean(0)
            weights = weights.reshape(layer.key.shape[1:3])
            marks = [next(axes)] + ([ax] if n == 0 else [])
            marks[0].imshow(grey, cmap="gray", extent=(0, size[1], size[0], 0))
            rows, columns = weights.shape
            marks[0].imshow(weights, cmap=figures.SEQUENTIAL, vmin=0,
                            vmax=max(weights.max(), 2 / weights.size), alpha=0.7,
                            interpolation="nearest", extent=(0, columns * apart, rows * apart, 0))
            marks[0].set_xlim(0, size[1])
            marks[0].set_ylim(size[0], 0)
            marks[0].set_title(f"{name}\nmax. {weights.max():.2g} (uniform "
                               f"{1 / weights.size:.2g})", fontsize=9)
            for mark in marks:
                mark.add_patch(Rectangle((query[1] * spacing, query[0] * spacing), spacing, spacing,
                                         fill=False, edgecolor=figures.COLOURS[1], linewidth=2))
    return fig


def distance_figure(reach):
    """The `mean_distances` of each layer, a point per head."""
    fig, ax = figures.figure(9, 4.2)
    for n, (values, _) in enumerate(reach.values()):
        ax.plot([n] * len(values), values, "o", color=figures.COLOURS[0], markersize=6,
                zorder=3, label="one head" if n == 0 else None)
    means = [values.mean() for values, _ in reach.values()]
    ax.plot(means, **figures.line_style(1), label="mean of the heads")
    ax.plot([uniform for _, uniform in reach.values()], color="0.4", linestyle=":",
            label="uniform attention")
    ax.set_xticks(range(len(reach)), list(reach), rotation=0 if len(reach) < 9 else 60, fontsize=9)
    ax.set_xlabel("layer, from image to output")
    ax.set_ylabel("mean attention distance (pixels)")
    ax.set_ylim(0, 1.15 * max(max(values.max(), uniform) for values, uniform in reach.values()))
    ax.grid(axis="y", color="0.9")
    ax.legend(fontsize=9, loc="lower right")
    return fig
