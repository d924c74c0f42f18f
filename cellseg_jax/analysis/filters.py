"""What the layers of a network look for and see: filters, activation maps, attention.

Attention is computed again from the queries and keys of a layer, by the formula of its network:
nothing but the outputs of modules is needed, and the networks need not know of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.patches import Rectangle
from scipy.ndimage import distance_transform_edt

from cellseg_jax import data, metrics, models
from cellseg_jax.analysis.page import Findings
from cellseg_jax.analysis.weights import kernels
from cellseg_jax.errors import InputError
from cellseg_jax.files import write_csv
from cellseg_jax.inference.measure import measure as measure_
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.segformer import HEADS, REDUCTIONS, SegFormer
from cellseg_jax.models.unetr import PATCH, UNETR
from cellseg_jax.normalize import normalize
from cellseg_jax.report import figures, panels
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.train.initial_weights import layers_of

FILTERS, CHANNELS, LAYERS = 48, 16, 4  # at most so many in a picture
MEASURED = 16  # images of which attention distances are the mean
ALIKE = 0.03  # of the distance of uniform attention: heads that differ less average the image
DIVERGING = "PuOr"  # of weights around 0


class Attention(NamedTuple):
    """Queries and keys of a layer, (n, rows, columns, heads, width), and their distance apart."""

    query: jax.Array
    key: jax.Array
    spacing: tuple[int, int]  # pixels between neighbouring queries, and keys


# --- what a network computes on the way ----------------------------------------------------------


def activations(module, variables: dict, image) -> dict[str, jax.Array]:
    """{path of a module: its first output, (N, ..., C)}, in the order in which modules finish.

    "logits" is the whole network's. Dropout, which does nothing here, is left out.
    """
    found = {}

    def note(next_, args, kwargs, context):
        output = next_(*args, **kwargs)
        if (context.method_name == "__call__" and getattr(output, "ndim", 0) > 2
                and not isinstance(context.module, Dropout)):
            found.setdefault("/".join(context.module.path) or "logits", output)
        return output

    with nn.intercept_methods(note):
        module.apply(variables, image, train=False)
    return found


def statistics(spec, variables: dict, batches) -> dict[str, dict]:
    """{path of a module: mean, sd, share of zeros, channels, constant channels} of its output.

    A constant channel has one value in all pixels of all images: it tells the next layer nothing.
    """

    @jax.jit
    def measure(variables, batch):
        image = normalize(batch["image"], batch["range"], spec.dtype)
        found = activations(spec.module({}), variables, image)
        used, out = batch["weight"] > 0, {}
        for name, x in found.items():
            x = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
            counted = used[:, None, None]
            mean = lambda y: jnp.where(counted, y, 0).mean((1, 2)).sum()
            out[name] = {
                "sum": mean(x), "square": mean(x**2), "zeros": mean(x == 0.0),
                "low": jnp.where(counted, x, jnp.inf).min((0, 1)),
                "high": jnp.where(counted, x, -jnp.inf).max((0, 1))}
        return out, used.sum(), {name: n for n, name in enumerate(out)}

    sums, count = {}, 0
    for batch in batches:
        found, used, order = jax.device_get(measure(variables, batch))
        count += int(used)
        for name in sorted(found, key=order.get):  # a jitted function sorts what it returns
            new, old = found[name], sums.get(name)
            sums[name] = {key: np.asarray(x, np.float64) if old is None else
                          {"low": np.minimum, "high": np.maximum}.get(key, np.add)(old[key], x)
                          for key, x in new.items()}
    return {name: {
        "mean": float(s["sum"] / count),
        "sd": float(np.sqrt(max(s["square"] / count - (s["sum"] / count) ** 2, 0))),
        "zeros": float(s["zeros"] / count), "channels": len(s["low"]),
        "constant_channels": int((s["low"] == s["high"]).sum())} for name, s in sums.items()}


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
            heads = lambda x: x.reshape(*x.shape[:3], HEADS[stage], -1)
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
        for x, spacing in zip((layer.query, layer.key), layer.spacing))
    return np.linalg.norm(query[:, None] - key, axis=-1).astype(np.float32)


def cell_centre(label) -> tuple[int, int]:
    """(row, column) deepest inside of the largest object of (H, W) `label`, else the middle."""
    label = np.asarray(label)
    if not label.any():
        return label.shape[0] // 2, label.shape[1] // 2
    ids, area = np.unique(label[label > 0], return_counts=True)
    depth = distance_transform_edt(np.pad(label == ids[area.argmax()], 1))
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row) - 1, int(column) - 1


# --- the analysis --------------------------------------------------------------------------------


def analyse(workdir, config, folder, *, split: str = "test", images: int = 2) -> Findings:
    """Filters near image and output, activation maps of some images, and attention.

    Args:
      split: whose images are looked at.
      images: of how many, those with the most ordinary Dice, maps are drawn.
    """
    predictor = Predictor(workdir, config)
    network = predictor.network
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)[split]
    if not len(rows):
        raise InputError(f"--split: got {split}, which has no images by config.data.split "
                         f"{config.data.split}; expected a part that has some")
    resident = resident_source(config, arrays, network.mesh)
    batches = lambda: eval_batches(config, arrays, rows, network.mesh, resident)
    scores = measure_(network.eval_step, network.values, network.variables, batches())
    chosen = _ordinary(arrays, rows, metrics.dice(scores.main(config)).mean(1), images)
    measured = statistics(network.spec, network.variables, batches())
    write_csv(folder / "filters.csv", [{"module": n, **values} for n, values in measured.items()])

    layers, pictures = layers_of(config), []
    weights = kernels(config, predictor.network.variables["params"])
    seen = _activations_of(predictor, arrays, [i for i, _ in chosen])
    first = _first_convolution(layers, arrays)
    drawn = _first_convolution([x for x in layers if "/".join(x.kernel[:-1]) in seen[0]], arrays)
    for layer in dict.fromkeys((first, drawn)):  # of a transformer, patches and skip
        file = f"filters_{layer.name.replace('/', '.')}.png"
        figures.save(_image_filters(layer.name, weights[layer.name]), folder / file)
        pictures.append((file, _filter_caption(layer)))
    figures.save(_output_filters(layers[-1].name, weights[layers[-1].name]),
                 folder / "filters_output.png")
    pictures.append(("filters_output.png", f"Weights of the last layer, {layers[-1].name}"))

    module = predictor.network.spec.module({})
    places = _places("/".join(drawn.kernel[:-1]), seen[0])
    for number, ((i, dice), found) in enumerate(zip(chosen, seen, strict=True)):
        for where, name in places.items():
            file = f"activations_{where}_{number}.png"
            figures.save(_activation_figure(arrays, i, dice, name, found, predictor),
                         folder / file)
            pictures.append((file, f"Activation near the {where}: output of {name}, image "
                                   f"{arrays.names[i]} (Dice {dice:.2f}); the channels that vary "
                                   "most, each from its own minimum (dark) to its own maximum"))
    reach = None
    if attention_layers(module, seen[0]):
        spread = rows[np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).round().astype(int)]
        reach = _reach(predictor, arrays, spread)
        figures.save(_attention_figure(module, arrays, chosen, seen), folder / "attention.png")
        figures.save(_reach_figure(reach), folder / "attention_distance.png")
        write_csv(folder / "attention.csv", [
            {"layer": name, "head": head, "distance": float(value), "uniform": uniform}
            for name, (values, uniform) in reach.items() for head, value in enumerate(values)])
        pictures += [
            ("attention.png", "Where the marked token, in the middle of the largest cell, "
                              "attends: mean over heads"),
            ("attention_distance.png", f"Mean distance of attention of each head, of "
                                       f"{len(spread)} images")]
    tables = [("filters.csv", "Output of each module over the split: mean, sd, share of zeros, "
                              "channels that never vary")]
    tables += [("attention.csv", "Attention distance of each head, pixels")] if reach else []
    return Findings("What the layers look for and see",
                    _text(measured, reach, chosen, split, len(rows), places, predictor.step),
                    pictures, tables)


def _ordinary(arrays, rows, dice, count) -> list[tuple[int, float]]:
    """(sample, Dice) of those next to the median, of the samples with something to find."""
    full = arrays.foreground[rows] > 0
    rows, dice = (rows[full], dice[full]) if full.any() else (rows, dice)
    order = np.argsort(abs(dice - np.median(dice)), kind="stable")[:count]
    return [(int(rows[n]), float(dice[n])) for n in order]


def _first_convolution(layers, arrays) -> models.Layer:
    """The first convolution that takes as many channels as the image has, else the first."""
    convolutions = [layer for layer in layers if layer.kind == "conv"]
    return next((layer for layer in convolutions if layer.shape[-2] == arrays.image.shape[-1]),
                convolutions[0])


def _places(first, found) -> dict[str, str]:
    """The modules whose maps are shown: {"input": ..., "output": ...}.

    Near the input the block around `first`, the first convolution, if it ends at the same size:
    so its activation function is in it; near the output the last module that returns more
    channels than there are outputs.
    """
    maps = {name: x for name, x in found.items() if x.ndim == 4 and name != "logits"}
    block = first.rpartition("/")[0]
    if block in maps and maps[block].shape[1:3] == maps[first].shape[1:3]:
        first = block
    outputs = found["logits"].shape[-1]
    return {"input": first, "output": [n for n, x in maps.items() if x.shape[-1] > outputs][-1]}


def _one(arrays, config, i):
    """The image of sample i and its range, each with a leading axis."""
    return arrays.image[i][None], arrays.range(config.data.normalize)[i][None]


def _activations_of(predictor, arrays, rows) -> list[dict[str, np.ndarray]]:
    """`activations` of each of some samples, in their order."""
    order = []

    @jax.jit
    def run(variables, image, range_):
        image = normalize(image, range_, predictor.network.spec.dtype)
        found = activations(predictor.network.spec.module({}), variables, image)
        order.extend(found)
        return found

    outputs = [jax.device_get(run(predictor.network.variables, *_one(arrays, predictor.config, i)))
               for i in rows]
    return [{name: found[name] for name in order} for found in outputs]


def _reach(predictor, arrays, rows) -> dict[str, tuple[np.ndarray, float]]:
    """{layer: ((heads,) attention distance, that of uniform attention)}, pixels."""
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

    found = [jax.device_get(run(predictor.network.variables, *_one(arrays, predictor.config, i)))
             for i in rows]
    return {name: (np.mean([f[name] for f in found], 0), uniform[name]) for name in order}


# --- pictures ------------------------------------------------------------------------------------


def _grid(count, columns, width=10.0, titles=0.2, top=0.5):
    """(figure, flat axes) of square tiles without ticks; those beyond `count` are empty."""
    lines = -(-count // columns)
    height = lines * (0.93 * width / columns + titles) + top
    fig, axes = figures.figure(width, height, lines, columns, squeeze=False)
    for n, ax in enumerate(axes.flat):
        ax.set_xticks([])
        ax.set_yticks([])
        if n >= count:
            ax.set_axis_off()
    return fig, list(axes.flat)


def _filter_caption(layer) -> str:
    colour = "colours are the image's (alpha left out)" if layer.shape[-2] > 2 else "grey"
    return (f"Filters of {layer.name}, {layer.shape[0]}x{layer.shape[1]} pixels, the longest "
            f"first; {colour}; each is scaled by its own largest weight, mid-grey is 0")


def _image_filters(name, kernel):
    """The filters with the largest norms, as the pictures to which they answer most."""
    shown = kernel[:, :, :3] if kernel.shape[2] > 2 else kernel[:, :, :1]
    norm = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    order = np.argsort(-norm)[:FILTERS]
    fig, axes = _grid(len(order), min(12, max(len(order), 6)))
    for ax, n in zip(axes, order):
        one = shown[..., n]
        picture = 0.5 + one / (2 * max(abs(one).max(), 1e-12))
        ax.imshow(np.repeat(picture, 3 // picture.shape[-1], -1), interpolation="nearest")
        ax.set_title(f"#{n}: {norm[n]:.2g}", fontsize=8)
    fig.suptitle(f"{name}: {len(order)} of {kernel.shape[-1]} filters (number: L2 norm)",
                 fontsize=11)
    return fig


def _output_filters(name, kernel):
    """Each input channel's weights towards the outputs: as pictures, or bars where 1x1."""
    outputs = kernel.shape[-1]
    if kernel.ndim == 2 or kernel.shape[:2] == (1, 1):
        matrix = kernel.reshape(-1, outputs)
        fig, axes = figures.figure(9, 1.2 + 1.8 * outputs, outputs, 1, squeeze=False, sharex=True)
        for k, ax in enumerate(axes[:, 0]):
            ax.bar(range(len(matrix)), matrix[:, k], color=figures.COLOURS[0])
            ax.axhline(0, color="0.3", linewidth=0.8)
            ax.set_ylabel(f"weight to\noutput {k}")
        axes[-1, 0].set_xlabel("input channel")
        fig.suptitle(f"{name}: one weight per input channel and output", fontsize=11)
        return fig
    flat = kernel.reshape(*kernel.shape[:2], -1)  # input channels, then outputs
    norm = np.linalg.norm(flat.reshape(-1, flat.shape[-1]), axis=0)
    order = np.sort(np.argsort(-norm)[:FILTERS])
    limit = abs(flat).max()
    fig, axes = _grid(len(order), 12, width=11, titles=0.05)
    for ax, n in zip(axes, order):
        image = ax.imshow(flat[..., n], cmap=DIVERGING, vmin=-limit, vmax=limit,
                          interpolation="nearest")
        ax.set_title(f"{n // outputs} → {n % outputs}", fontsize=9)
    fig.colorbar(image, ax=axes, label="weight", shrink=0.8)
    fig.suptitle(f"{name}: {len(order)} of {flat.shape[-1]} pairs of input channel → output",
                 fontsize=11)
    return fig


def _activation_figure(arrays, i, dice, name, found, predictor):
    """The image, what the network says, and the channels of `name` that vary most."""
    maps = found[name][0].astype(np.float32)
    order = np.argsort(-maps.var((0, 1)))[:CHANNELS]
    fig, axes = _grid(2 + len(order), 6)
    image, range_ = _one(arrays, predictor.config, i)
    axes[0].imshow(panels.overlay(arrays.image[i], arrays.label[i]))
    axes[0].set_title("image, true outlines", fontsize=9)
    probs = predictor(image, range_)[0]
    shown = probs[..., 0] if probs.shape[-1] == 1 else probs.argmax(-1) / (probs.shape[-1] - 1)
    axes[1].imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes[1].set_title("probability" if probs.shape[-1] == 1 else "strongest output", fontsize=9)
    for ax, n in zip(axes[2:], order):
        ax.imshow(maps[..., n], cmap=figures.SEQUENTIAL, interpolation="nearest")
        ax.set_title(f"#{n}: {maps[..., n].min():.2g} to {maps[..., n].max():.2g}", fontsize=9)
    fig.suptitle(f"{name}, {maps.shape[0]}x{maps.shape[1]} pixels: {len(order)} of "
                 f"{maps.shape[-1]} channels by variance (channel: minimum to maximum); "
                 f"Dice {dice:.2f}", fontsize=11)
    return fig


def _attention_figure(module, arrays, chosen, seen):
    """A line per image: the image with a marked token, then what it attends to in some layers."""
    lines = []
    for (i, _), found in zip(chosen, seen, strict=True):
        layers = attention_layers(module, found)
        names = list(layers)
        names = [names[n] for n in np.unique(np.linspace(
            0, len(names) - 1, min(LAYERS, len(names))).round().astype(int))]
        lines.append((i, {name: layers[name] for name in names}))
    fig, axes = _grid(len(lines) * (len(names) + 1), len(names) + 1, titles=0.3)
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


def _reach_figure(reach):
    fig, ax = figures.figure(9, 4.2)
    for n, (values, _) in enumerate(reach.values()):
        ax.plot([n] * len(values), values, "o", color=figures.COLOURS[0], markersize=6,
                zorder=3, label="one head" if n == 0 else None)
    means = [values.mean() for values, _ in reach.values()]
    ax.plot(means, **figures.line_style(1), label="mean of the heads")
    ax.plot([uniform for _, uniform in reach.values()], color="0.4", linestyle=":",
            label="attention to all alike")
    ax.set_xticks(range(len(reach)), list(reach), rotation=0 if len(reach) < 9 else 60, fontsize=9)
    ax.set_xlabel("layer, from image to output")
    ax.set_ylabel("mean attention distance (pixels)")
    ax.set_ylim(0, 1.15 * max(max(values.max(), uniform) for values, uniform in reach.values()))
    ax.grid(axis="y", color="0.9")
    ax.legend(fontsize=9, loc="lower right")
    return fig


# --- words ---------------------------------------------------------------------------------------


def _text(measured, reach, chosen, split, num_images, places, step) -> list[str]:
    dead = {name: s for name, s in measured.items() if s["constant_channels"]}
    total = sum(s["channels"] for s in measured.values())
    lost = sum(s["constant_channels"] for s in dead.values())
    shown = ", ".join(f"{name} ({s['constant_channels']} of {s['channels']})" for name, s in sorted(
        dead.items(), key=lambda item: -item[1]["constant_channels"])[:5])
    text = [f"{lost} of {total} channels are dead: they have the same value in all pixels of all "
            f"{num_images} images. Most are in {shown}." if dead else
            "No channel is dead: what each convolution, norm and block puts out varies over the "
            f"{num_images} images."]
    name, sparse = max(measured.items(), key=lambda item: item[1]["zeros"])
    text[0] += ("" if sparse["zeros"] < 0.01 else
                f" The largest share of zeros is in {name}, {sparse['zeros']:.0%}.")
    if reach:
        first, last = list(reach)[0], list(reach)[-1]
        (near, uniform), (far, _) = reach[first], reach[last]
        text.append(
            f"Attention reaches {near.mean():.0f} pixels on average in the first layer, {first} "
            f"(heads from {near.min():.0f} to {near.max():.0f}), and {far.mean():.0f} in the last, "
            f"{last} (heads from {far.min():.0f} to {far.max():.0f}); attention to all alike would "
            f"reach {uniform:.0f} in the first. A head far below that looks at its surroundings, "
            "as a convolution does; one close to it averages the image"
            + (", which all of these do: attention tells no place from another." if all(
                (abs(values / same - 1) < ALIKE).all() for values, same in reach.values())
               else "."))
    dice = ", ".join(f"{dice:.2f}" for _, dice in chosen)
    text.append(
        f"How measured: on the {split} split, at the best checkpoint (step {step}). Maps are those "
        f"of {places['input']} near the image and {places['output']} near the output, for the "
        f"images whose Dice is closest to the median of those with cells ({dice}). The table is "
        "of what each module returns, over all images; where its activation function is applied "
        "by the block around it, zeros show in that block.")
    return text
