"""The distance of each layer's weights from their initial values, and histograms of both.

A run keeps the seed of its initial weights, not a copy: they are made again here.
"""

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from scipy.stats import spearmanr

from cellseg_jax.analysis.page import Findings
from cellseg_jax.config import derived
from cellseg_jax.files import write_csv
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.report import figures
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.train import initial_weights
from cellseg_jax.train.slot_states import init_program

BINS = 100
COLUMNS = 4  # of the histograms
UNMOVED = 0.01  # distance from the initial weights, as a share of their norm, below it none
SHRUNK = 0.7  # norm after / norm before, below which the text names a layer as shrunk


def initial_params(config, workdir) -> dict:
    """The parameters of step 0 of a run, as numpy arrays: of its seed, or of train.weights.

    Bit for bit those that the run began with, on the same kind of device.
    """
    spec = make_spec([config])
    shape = (*derived.input_size(config), derived.channels(config))
    init = init_program(spec, shape, SingleDeviceSharding(jax.local_devices()[0]))
    state = jax.device_get(init(traced_values(config, spec)))
    params = state.params
    if config.train.weights:
        found = initial_weights.read(
            config, {"params": params, "batch_stats": state.batch_stats}, workdir)
        params = jax.tree.map(lambda old, new: np.asarray(new, old.dtype), params, found["params"])
    return initial_weights.pruned(config, params)


def kernels(config, params: dict) -> dict[str, np.ndarray]:
    """{layer: its kernel (..., in, out)} as numpy, in the order in which an image meets them."""
    flat = traverse_util.flatten_dict(params)
    return {layer.name: np.asarray(flat[layer.kernel])
            for layer in initial_weights.layers_of(config)}


def distances(before: dict, after: dict) -> dict[str, tuple[float, float]]:
    """{layer: (L2 distance, the same over the L2 norm of `before`)} of {layer: kernel}.

    The relative one is NaN where all of `before` is 0.
    """
    out = {}
    for name, start in before.items():
        start = np.asarray(start, np.float64)
        moved, norm = np.linalg.norm(after[name] - start), np.linalg.norm(start)
        out[name] = float(moved), float(moved / norm) if norm else float("nan")
    return out


def analyse(workdir, config, folder) -> Findings:
    """Distance of each kernel to its initial values, with histograms."""
    predictor = Predictor(workdir, config)
    before = kernels(config, initial_params(config, workdir))
    after = kernels(config, predictor.network.variables["params"])
    moved = distances(before, after)
    rows = [{
        "layer": layer.name, "kind": layer.kind, "shape": "x".join(map(str, layer.shape)),
        "weights": after[layer.name].size,
        "l2_distance": moved[layer.name][0], "relative_distance": moved[layer.name][1],
        **{f"{what}_{when}": float(getattr(np, function)(kernel[layer.name], dtype=np.float64))
           for when, kernel in (("before", before), ("after", after))
           for what, function in (("mean", "mean"), ("sd", "std"))},
        "norm_ratio": _norm_ratio(before[layer.name], after[layer.name]),
        "zeros": float(np.mean(after[layer.name] == 0)),
    } for layer in initial_weights.layers_of(config)]
    write_csv(folder / "weights.csv", rows)
    figures.save(_distance_figure(rows), folder / "distances.png")
    figures.save(_histograms(before, after), folder / "histograms.png")
    return Findings(
        "Distance of the weights from their initial values", _text(config, rows, predictor.step),
        [("distances.png", "Distance of each layer's kernel to its initial values; layers from "
                           "image (top) to output (bottom)"),
         ("histograms.png", f"Weights of each layer in {BINS} bins, before and after training, "
                            "from image (top left) to output")],
        [("weights.csv", "Distances, means, standard deviations and zeros of each layer")])


def _most(rows, key, count: int = 3) -> str:
    """"name (value), ..." of the rows with the largest values, NaN left out."""
    rows = sorted((r for r in rows if r[key] == r[key]), key=lambda r: -r[key])[:count]
    return ", ".join(f"{r['layer']} ({r[key]:.3g})" for r in rows)


def _norm_ratio(before, after) -> float:
    old, new = (np.linalg.norm(np.asarray(k, np.float64)) for k in (before, after))
    return float(new / old) if old else float("nan")


def _distance_figure(rows):
    fig, axes = figures.layer_axes([r["layer"] for r in rows], 3, width=10)
    for number, (ax, key, label) in enumerate(zip(
            axes, ("l2_distance", "relative_distance", "norm_ratio"),
            ("L2 distance to the start\n(grows with the number\nof weights)",
             "relative distance: L2 distance\n/ L2 norm at the start",
             "L2 norm after / before\n(below 1 the layer shrank)"), strict=True)):
        ax.barh(range(len(rows)), [r[key] for r in rows], color=figures.COLOURS[number])
        ax.set_xlabel(label)
    for ax in axes[1:]:
        ax.axvline(1, color="0.3", linestyle="--", linewidth=1)
    return fig


def _histograms(before, after):
    lines = -(-len(before) // COLUMNS)
    fig, axes = figures.figure(10, 0.9 + 1.6 * lines, lines, COLUMNS, squeeze=False)
    for ax, name in zip(axes.flat, before, strict=False):
        pair = [np.asarray(k[name], np.float64).ravel() for k in (before, after)]
        edges = np.histogram_bin_edges(np.concatenate(pair), BINS)
        share = [np.histogram(x, edges)[0] / x.size for x in pair]
        ax.stairs(share[0], edges, fill=True, color="0.75", label="before training")
        ax.stairs(share[1], edges, color=figures.COLOURS[0], linewidth=1.4, label="after training")
        ax.set_title(f"{name}\n{pair[0].size:,} weights", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.set_ylim(0, 1.05 * max(s.max() for s in share))
        ax.locator_params(axis="x", nbins=4)
        ax.locator_params(axis="y", nbins=3)
    for ax in axes.flat[len(before):]:
        ax.set_axis_off()
    fig.supxlabel("weight", fontsize=10)
    fig.supylabel("share of the weights", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=10, frameon=False)
    return fig


def _meaning(known) -> str:
    """What the distances mean for the user."""
    if not known:
        return ""
    still = [r["layer"] for r in known if r["relative_distance"] < UNMOVED]
    if still:
        return (f"Training hardly changed {len(still)} of {len(known)} layers ({still[0]}"
                f"{', ...' if len(still) > 1 else ''}): they moved by less than {UNMOVED:.0%} of "
                "their norm, so that they learned next to nothing. More steps or a higher rate "
                "change that, if they were not frozen on purpose (--analysis=gradients). ")
    least = min(known, key=lambda r: r["relative_distance"])
    return (f"Training changed every layer, least {least['layer']}, by "
            f"{least['relative_distance']:.0%} of its norm at the start: all of them took part in "
            "learning. ")


def _text(config, rows, step) -> list[str]:
    origin = (f"those of train.weights ({config.train.weights})" if config.train.weights
              else f"made again from seed {config.seed}") + (
                  ", pruned by train.prune" if config.train.prune else "")
    known = [r for r in rows if r["relative_distance"] == r["relative_distance"]]
    text = [
        f"{_meaning(known)}By relative distance, which allows for a layer's size, these moved "
        "most: "
        f"{_most(rows, 'relative_distance')}; 1 means moved by as much as the norm that it began "
        "with. By plain L2 distance, which report 2 shows, these moved most: "
        f"{_most(rows, 'l2_distance')}."]
    shrunk = sorted((r for r in rows if r["norm_ratio"] < SHRUNK), key=lambda r: r["norm_ratio"])
    if shrunk:
        text.append(
            f"{len(shrunk)} of {len(rows)} layers moved by shrinking: "
            + ", ".join(f"{r['layer']} to {r['norm_ratio']:.2g}" for r in shrunk[:3])
            + " of their norm at the start"
            + (f", as weight decay (here {config.optimizer.weight_decay:g}) does to weights "
               "on which the loss depends little." if config.optimizer.weight_decay else "."))
    if len(known) > 2:
        size = [r["weights"] for r in known]
        order = [float(spearmanr(size, [r[key] for r in known])[0])
                 for key in ("l2_distance", "relative_distance")]
        text.append(
            "The L2 distance adds up over weights and so grows with their number, whatever they "
            f"learned: here its rank correlation with the number of weights is {order[0]:.2f}; "
            f"that of the relative distance is {order[1]:.2f}."
            + (" That is high too: wide layers start from small weights (1 / square root of the "
               "fan-in), so that equal steps of single weights move them further."
               if order[1] > 0.7 else ""))
    zeros = max(rows, key=lambda r: r["zeros"])
    text.append("No weight is exactly 0." if not zeros["zeros"] else
                f"Exactly 0 are {sum(r['zeros'] * r['weights'] for r in rows):.0f} of "
                f"{sum(r['weights'] for r in rows)} weights; the largest share is in "
                f"{zeros['layer']}, {zeros['zeros']:.1%}.")
    text.append(f"How measured: kernels alone, without biases and norms, of the best checkpoint "
                f"(step {step}), against the initial ones, {origin}. A histogram that has kept its "
                "shape belongs to a layer that hardly changed.")
    return text
