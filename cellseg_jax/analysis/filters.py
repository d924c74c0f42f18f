"""The filters of a network and what its layers respond to: activation maps, attention."""

from typing import NamedTuple

import numpy as np

from cellseg_jax import data, metrics, models
from cellseg_jax.analysis.activations import activations_of, image_and_range, statistics
from cellseg_jax.analysis.attention import (
    attention_figure,
    attention_layers,
    distance_figure,
    mean_distances,
)
from cellseg_jax.analysis.distances import kernels
from cellseg_jax.analysis.page import Findings
from cellseg_jax.errors import InputError
from cellseg_jax.files import write_csv
from cellseg_jax.inference.measure import measure
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.report import figures, panels
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.train.initial_weights import layers_of

MOST_FILTERS, MOST_CHANNELS = 48, 16  # in a picture
DISTANCE_IMAGES = 16  # of which attention distances are the mean
# Heads whose distance differs less from that of uniform attention, as a share, average the image.
UNIFORM_TOLERANCE = 0.03
DIVERGING = "PuOr"  # colour map of weights around 0


class Drawn(NamedTuple):
    """The images whose maps are drawn."""

    predictor: object
    arrays: data.Arrays
    chosen: list[tuple[int, float]]  # (sample, Dice)
    outputs: list[dict[str, np.ndarray]]  # of each: {module: its output}


def analyse(workdir, config, folder, *, split: str = "test", images: int = 2) -> Findings:
    """Filters near image and output, activation maps of some images, and attention.

    Args:
      split: whose images are used.
      images: how many have their maps drawn: those whose Dice is closest to the median.
    Raises: InputError for a split without images.
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
    scores = measure(network.eval_step, network.values, network.variables, batches())
    chosen = _ordinary(arrays, rows, metrics.dice(scores.main(config)).mean(1), images)
    measured = statistics(network.spec, network.variables, batches())
    write_csv(folder / "filters.csv", [{"module": n, **values} for n, values in measured.items()])
    drawn = Drawn(predictor, arrays, chosen, activations_of(
        predictor, arrays, [i for i, _ in chosen]))
    shown_layer, pictures = _draw_filters(config, folder, drawn)
    places = _places("/".join(shown_layer.kernel[:-1]), drawn.outputs[0])
    pictures += _draw_activations(folder, drawn, places)
    tables = [("filters.csv", "Output of each module over the split: mean, sd, share of zeros, "
                              "channels that never vary")]
    reach = None
    if attention_layers(network.spec.module({}), drawn.outputs[0]):
        reach, more = _draw_attention(folder, drawn, rows)
        pictures += more
        tables.append(("attention.csv", "Attention distance of each head, pixels"))
    return Findings("Filters and activations of the layers",
                    _text(measured, reach, chosen, split, len(rows), places, predictor.step),
                    pictures, tables)


def _draw_filters(config, folder, drawn) -> tuple[models.Layer, list[tuple[str, str]]]:
    """(the first convolution with an activation map, the pictures of filters)."""
    layers, pictures = layers_of(config), []
    weights = kernels(config, drawn.predictor.network.variables["params"])
    first = _first_convolution(layers, drawn.arrays)
    with_map = _first_convolution(
        [x for x in layers if "/".join(x.kernel[:-1]) in drawn.outputs[0]], drawn.arrays)
    for layer in dict.fromkeys((first, with_map)):  # of a transformer, patches and skip
        file = f"filters_{layer.name.replace('/', '.')}.png"
        figures.save(_image_filters(layer.name, weights[layer.name]), folder / file)
        pictures.append((file, _filter_caption(layer)))
    figures.save(_output_filters(layers[-1].name, weights[layers[-1].name]),
                 folder / "filters_output.png")
    pictures.append(("filters_output.png", f"Weights of the last layer, {layers[-1].name}"))
    return with_map, pictures


def _draw_activations(folder, drawn, places) -> list[tuple[str, str]]:
    pictures = []
    for number, ((i, dice), found) in enumerate(zip(drawn.chosen, drawn.outputs, strict=True)):
        for where, name in places.items():
            file = f"activations_{where}_{number}.png"
            figures.save(_activation_figure(drawn, i, dice, name, found), folder / file)
            pictures.append((file, f"Activation near the {where}: output of {name}, image "
                                   f"{drawn.arrays.names[i]} (Dice {dice:.2f}); the channels that "
                                   "vary most, each from its own minimum (dark) to its own "
                                   "maximum"))
    return pictures


def _draw_attention(folder, drawn, rows):
    """(mean_distances of some images, the pictures)."""
    spread = rows[np.linspace(0, len(rows) - 1, min(DISTANCE_IMAGES, len(rows)))
                  .round().astype(int)]
    reach = mean_distances(drawn.predictor, drawn.arrays, spread)
    module = drawn.predictor.network.spec.module({})
    figures.save(attention_figure(module, drawn.arrays, drawn.chosen, drawn.outputs),
                 folder / "attention.png")
    figures.save(distance_figure(reach), folder / "attention_distance.png")
    write_csv(folder / "attention.csv", [
        {"layer": name, "head": head, "distance": float(value), "uniform": uniform}
        for name, (values, uniform) in reach.items() for head, value in enumerate(values)])
    return reach, [
        ("attention.png", "Attention of the marked token, in the middle of the largest cell: mean "
                          "over heads"),
        ("attention_distance.png", f"Mean distance of attention of each head, of {len(spread)} "
                                   "images")]


def _ordinary(arrays, rows, dice, count) -> list[tuple[int, float]]:
    """(sample, Dice) of those next to the median, of the samples with foreground."""
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
    so its activation function is in it; near the output the last module that returns neither one
    channel, as a gate does, nor as many as there are outputs: of stars these are many.
    """
    maps = {name: x for name, x in found.items() if x.ndim == 4 and name != "logits"}
    block = first.rpartition("/")[0]
    if block in maps and maps[block].shape[1:3] == maps[first].shape[1:3]:
        first = block
    ends = 1, found["logits"].shape[-1]
    return {"input": first,
            "output": [first, *(n for n, x in maps.items() if x.shape[-1] not in ends)][-1]}


def _filter_caption(layer) -> str:
    colour = "colours are the image's (alpha left out)" if layer.shape[-2] > 2 else "grey"
    return (f"Filters of {layer.name}, {layer.shape[0]}x{layer.shape[1]} pixels, the longest "
            f"first; {colour}; each is scaled by its own largest weight, mid-grey is 0")


def _image_filters(name, kernel):
    """The filters with the largest norms, as the pictures to which they respond most."""
    shown = kernel[:, :, :3] if kernel.shape[2] > 2 else kernel[:, :, :1]
    norm = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
    order = np.argsort(-norm)[:MOST_FILTERS]
    fig, axes = figures.tiles(len(order), min(12, max(len(order), 6)))
    for ax, n in zip(axes, order, strict=False):
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
    order = np.sort(np.argsort(-norm)[:MOST_FILTERS])
    limit = abs(flat).max()
    fig, axes = figures.tiles(len(order), 12, width=11, titles=0.05)
    for ax, n in zip(axes, order, strict=False):
        image = ax.imshow(flat[..., n], cmap=DIVERGING, vmin=-limit, vmax=limit,
                          interpolation="nearest")
        ax.set_title(f"{n // outputs} → {n % outputs}", fontsize=9)
    fig.colorbar(image, ax=axes, label="weight", shrink=0.8)
    fig.suptitle(f"{name}: {len(order)} of {flat.shape[-1]} pairs of input channel → output",
                 fontsize=11)
    return fig


def _activation_figure(drawn, i, dice, name, found):
    """The image, the network's probabilities, and the channels of `name` that vary most."""
    predictor, arrays = drawn.predictor, drawn.arrays
    maps = found[name][0].astype(np.float32)
    order = np.argsort(-maps.var((0, 1)))[:MOST_CHANNELS]
    fig, axes = figures.tiles(2 + len(order), 6)
    image, range_ = image_and_range(arrays, predictor.config, i)
    axes[0].imshow(panels.overlay(arrays.image[i], arrays.label[i]))
    axes[0].set_title("image, true outlines", fontsize=9)
    probs = predictor.network(image, range_)[0, ..., : predictor.target.num_binary]
    shown = probs[..., 0] if probs.shape[-1] == 1 else probs.argmax(-1) / (probs.shape[-1] - 1)
    axes[1].imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes[1].set_title("probability" if probs.shape[-1] == 1 else "strongest output", fontsize=9)
    for ax, n in zip(axes[2:], order, strict=False):
        ax.imshow(maps[..., n], cmap=figures.SEQUENTIAL, interpolation="nearest")
        ax.set_title(f"#{n}: {maps[..., n].min():.2g} to {maps[..., n].max():.2g}", fontsize=9)
    fig.suptitle(f"{name}, {maps.shape[0]}x{maps.shape[1]} pixels: {len(order)} of "
                 f"{maps.shape[-1]} channels by variance (channel: minimum to maximum); "
                 f"Dice {dice:.2f}", fontsize=11)
    return fig


def _is_uniform(reach) -> bool:
    """Whether all heads attend about as far as uniform attention does."""
    return all((abs(values / uniform - 1) < UNIFORM_TOLERANCE).all()
               for values, uniform in reach.values())


def _text(measured, reach, chosen, split, num_images, places, step) -> list[str]:
    dead = {name: s for name, s in measured.items() if s["constant_channels"]}
    total = sum(s["channels"] for s in measured.values())
    lost = sum(s["constant_channels"] for s in dead.values())
    shown = ", ".join(f"{name} ({s['constant_channels']} of {s['channels']})" for name, s in sorted(
        dead.items(), key=lambda item: -item[1]["constant_channels"])[:5])
    text = [f"{lost} of {total} channels are dead: they have the same value in all pixels of all "
            f"{num_images} images. Most are in {shown}. They cost time and carry nothing: a "
            "network with fewer channels there would do the same; where they are many, a lower "
            "learning rate or a norm keeps them alive." if dead else
            "No channel is dead: the output of each convolution, norm and block varies over the "
            f"{num_images} images, so that the whole network is used."]
    name, sparse = max(measured.items(), key=lambda item: item[1]["zeros"])
    text[0] += ("" if sparse["zeros"] < 0.01 else
                f" The largest share of zeros is in {name}, {sparse['zeros']:.0%}.")
    if reach:
        first, last = list(reach)[0], list(reach)[-1]
        (near, uniform), (far, _) = reach[first], reach[last]
        text.append(
            f"Attention reaches {near.mean():.0f} pixels on average in the first layer, {first} "
            f"(heads from {near.min():.0f} to {near.max():.0f}), and {far.mean():.0f} in the last, "
            f"{last} (heads from {far.min():.0f} to {far.max():.0f}); uniform attention would "
            f"reach {uniform:.0f} in the first. A head far below that is local, as a "
            "convolution is; one close to it averages the image"
            + (", which all of these do: attention does not depend on the place."
               if _is_uniform(reach) else "."))
    dice = ", ".join(f"{dice:.2f}" for _, dice in chosen)
    text.append(
        f"How measured: on the {split} split, at the best checkpoint (step {step}). Maps are those "
        f"of {places['input']} near the image and {places['output']} near the output, for the "
        f"images whose Dice is closest to the median of those with cells ({dice}). The table is "
        "of what each module returns, over all images; where its activation function is applied "
        "by the block around it, zeros show in that block.")
    return text
