"""Gradient magnitude per layer: at the end of a run, and over training if logged."""

import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from matplotlib.colors import LogNorm

from cellseg_jax import data
from cellseg_jax.analysis import distances
from cellseg_jax.analysis.page import Findings
from cellseg_jax.files import read_jsonl, write_csv
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.normalize import normalize
from cellseg_jax.report import figures
from cellseg_jax.runs.folder import GRADIENTS_LOG
from cellseg_jax.step import train_step
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.train.initial_weights import layers_of

# Gradients vanish if those near the image are below this share of those near the output, both
# relative to the weights, and the layers near the image have not learned.
VANISHING_RATIO = 1e-3
IDLE_RATIO = 1e-2  # of a layer's relative gradient to the median one, below which it gets nothing
DECAYED = 0.1  # norm after / before, below which only weight decay has acted
NAMED = 4  # layers in a sentence


class LayerState(NamedTuple):
    """What a layer's kernel gets, and what training has made of it."""

    gradient: float  # mean |dL/dw|
    relative: float  # gradient / mean |w|, by how much of itself a step changes it
    moved: float  # |w - initial w| / |initial w|
    norm_ratio: float  # |w| / |initial w|

    @property
    def learned(self) -> bool:
        """Whether the weights differ from the initial ones by more than weight decay."""
        return self.moved >= distances.UNMOVED and self.norm_ratio >= DECAYED


def layer_states(gradients: dict, before: dict, after: dict) -> dict[str, LayerState]:
    """{layer: LayerState}.

    The gradient relative to the weight is the inverse of LARS' trust ratio: layers of another
    size, fan-in or scale of their weights compare by it, and by the gradient alone they do not.
    Source: You, Gitman, Ginsburg, arXiv:1708.03888, section 4.

    Args:
      gradients: {layer: mean absolute gradient}.
      before, after: {layer: kernel}, initial and trained.
    """
    moved, out = distances.distances(before, after), {}
    for name, gradient in gradients.items():
        size = float(np.abs(after[name]).mean(dtype=np.float64))
        old, new = (float(np.linalg.norm(np.asarray(k[name], np.float64))) for k in (before, after))
        relative = gradient / size if size else math.inf if gradient else 0.0
        out[name] = LayerState(gradient, relative, moved[name][1] if old else math.inf,
                               new / old if old else math.inf)
    return out


def idle_layers(states: dict[str, LayerState]) -> list[str]:
    """Layers that get next to no gradient and have learned nothing.

    A small gradient alone is no fault: at the end of a good training all gradients are small, and
    smallest in the deep layers of a U-Net, whose skip connections pass most of the signal.
    """
    median = float(np.median([one.relative for one in states.values()]))
    return [name for name, one in states.items()
            if not one.learned and one.relative <= IDLE_RATIO * median]


def vanish(states: dict[str, LayerState]) -> bool:
    """Whether gradients are lost on their way from the output to the image.

    That is: the quarter of the layers that is nearest to the image has a median relative gradient
    below VANISHING_RATIO of that of the quarter nearest to the output, and most of it has not
    learned. Source of the meaning: Glorot and Bengio 2010, section 4.2.
    """
    layers = list(states.values())
    quarter = max(1, len(layers) // 4)
    near, far = layers[:quarter], layers[-quarter:]
    median = lambda part: float(np.median([one.relative for one in part]))
    return (len(layers) > 1 and median(near) < VANISHING_RATIO * median(far)
            and sum(one.learned for one in near) < len(near) / 2)


def evaluation_loss(spec, hparams: dict, params, batch_stats, batch: dict):
    """() the run's loss of a batch, without dropout and by the running statistics of batch norm.

    With deep supervision it is that of all scales, as in training; losses that training pools
    over the batch are taken image by image, as in validation.

    Args:
      hparams: of spec.hparams.
      batch: as step.batches.eval_batches gives it; rows of weight 0 do not count.
    """
    prepared = {"image": normalize(batch["image"], batch["range"], spec.dtype),
                "weight": batch["weight"], **spec.truth(batch)}
    loss, _ = train_step.objective(spec, hparams, params, batch_stats, prepared)
    return loss / batch["weight"].sum()


def mean_gradients(predictor, layers, batches) -> dict[str, float]:
    """{layer: mean over batches of the mean absolute gradient of its kernel}.

    The gradient is that of `evaluation_loss` at the predictor's weights.
    """
    spec = predictor.network.spec

    @jax.jit
    def gradients(variables, values, batch):
        # A single run prunes if its Spec does; `values` holds the weights of the losses alone.
        hparams = {"prune": 1.0, **spec.hparams(values)}
        grads = jax.grad(evaluation_loss, argnums=2)(
            spec, hparams, variables["params"], variables["batch_stats"], batch)
        flat = traverse_util.flatten_dict(grads)
        return {layer.name: jnp.abs(flat[layer.kernel]).mean() for layer in layers}

    found = [jax.device_get(gradients(predictor.network.variables, predictor.network.values, batch))
             for batch in batches]
    return {layer.name: float(np.mean([g[layer.name] for g in found], dtype=np.float64))
            for layer in layers}


def read_logged(workdir, names) -> tuple[list, np.ndarray] | None:
    """(epochs, (layers, epochs) mean absolute gradients) of gradients.jsonl, or None without it.

    Layers that a line lacks are NaN.
    """
    path = pathlib.Path(workdir) / GRADIENTS_LOG
    lines = read_jsonl(path) if path.is_file() else []
    if not lines:
        return None
    table = [[line["gradients"].get(name, np.nan) for line in lines] for name in names]
    return [line["epoch"] for line in lines], np.array(table, float)


def analyse(workdir, config, folder) -> Findings:
    """Mean absolute gradient of each kernel over the training images."""
    predictor, layers = Predictor(workdir, config), layers_of(config)
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)["train"]
    config = config.copy_and_resolve_references()
    # A gradient takes the memory of a training step, so that the batch is that of one.
    config.eval.batch_size = config.train.batch_size // config.optimizer.accumulate
    resident = resident_source(config, arrays, predictor.network.mesh)
    end = mean_gradients(predictor, layers, eval_batches(
        config, arrays, rows, predictor.network.mesh, resident))
    logged = read_logged(workdir, list(end))
    table = [{"epoch": "end", "layer": name, "mean_abs_gradient": value}
             for name, value in end.items()]
    figures.save(_end_figure(end), folder / "gradients_end.png")
    pictures = [("gradients_end.png", "Mean absolute gradient of each layer's kernel over the "
                                      "training images, at the weights of the best checkpoint")]
    if logged:
        epochs, values = logged
        table += [{"epoch": epoch, "layer": name, "mean_abs_gradient": float(values[n, e])}
                  for e, epoch in enumerate(epochs) for n, name in enumerate(end)]
        figures.save(_training_figure(list(end), epochs, values),
                     folder / "gradients_training.png")
        pictures.append(("gradients_training.png", "Mean absolute gradient of each layer's kernel "
                         "over the steps of each epoch; the colour is on a log scale, grey is 0 or "
                         "not finite"))
    write_csv(folder / "gradients.csv", table)
    states = layer_states(end, distances.kernels(config, distances.initial_params(config, workdir)),
                          distances.kernels(config, predictor.network.variables["params"]))
    write_csv(folder / "layers.csv", [{"layer": name, **one._asdict(), "learned": int(one.learned)}
                                      for name, one in states.items()])
    return Findings(
        "Gradient magnitude per layer",
        [*_verdict(states, config.optimizer.name), *_numbers(end, logged),
         _how(len(rows), config.eval.batch_size, predictor.step)], pictures,
        [("layers.csv", "Each layer: its gradient, that relative to its weights, how far training "
                        "moved the weights, and their norm after / before"),
         ("gradients.csv", "Mean absolute gradient of each layer: at the end"
                           + (", and of each epoch" if logged else ""))])


def _verdict(states, optimizer) -> list[str]:
    """What the gradients mean for the user, and what to do about it."""
    idle = idle_layers(states)
    if vanish(states):
        near = list(states)[: max(1, len(states) // 4)]
        return [f"Gradients vanish on their way to the image: the layers near it ({_some(near)}) "
                "get almost none and have kept their initial weights, so that the network works "
                "with random first layers. Norms (batch, instance), residual blocks, a higher "
                "rate, or fewer layers help."]
    if idle:
        decayed = all(states[name].norm_ratio < DECAYED for name in idle)
        what = ("weight decay has shrunk their weights to almost nothing" if decayed else
                "training has hardly changed their weights")
        return [f"{len(idle)} of {len(states)} layers do nothing for the result: {_some(idle)} get "
                f"almost no gradient, and {what}. The other layers learn. A network without these "
                "(fewer levels or blocks) is faster and probably scores the same"
                + ("; less weight decay or a lower rate may bring them into use." if decayed else
                   f"; or {optimizer} needs a higher rate or more steps to bring them into use.")]
    still = [name for name, one in states.items() if not one.learned]
    if still:
        return [f"Gradients reach all layers, but {len(still)} of {len(states)} have not learned: "
                f"{_some(still)} moved by less than {distances.UNMOVED:.0%} of their norm at the "
                f"start, or shrank below {DECAYED:.0%} of it. More steps or a higher rate of "
                f"{optimizer} change that, or less weight decay where they shrank, if they were "
                "not frozen on purpose."]
    name = min(states, key=lambda one: states[one].moved)
    return ["All layers learn: gradients reach the image, and training has moved the weights of "
            f"each layer, least those of {name}, by {states[name].moved:.0%} of their norm at the "
            "start. Nothing has to be changed. Small gradients at the end mean that a layer has "
            "little left to learn, not that it did not learn."]


def _numbers(end, logged) -> list[str]:
    names = sorted(end, key=end.get)
    first, last, largest = list(end)[0], list(end)[-1], names[-1]
    ratio = end[names[0]] / end[largest] if end[largest] else float("nan")
    shown = ", ".join(f"{name} ({end[name]:.2g})" for name in names[:3])
    text = [
        f"The smallest gradients are those of {shown}, the largest that of {largest} "
        f"({end[largest]:.2g}). The smallest is {ratio:.2g} of the largest. The layer "
        f"nearest to the image, {first}, gets {_times(end[first], end[last])} that of the last, "
        f"{last}."]
    if logged:
        epochs, values = [f"{epoch:g}" for epoch in logged[0]], logged[1]
        with np.errstate(all="ignore"):
            ratios = np.nanmin(values, 0) / np.nanmax(values, 0)
        worst = int(np.nanargmin(ratios)) if np.isfinite(ratios).any() else 0
        quietest = list(end)[int(np.nanargmin(np.nanmean(values, 1)))]
        text.append(
            f"Over training, the mean of the {len(epochs)} logged epochs is least in {quietest}; "
            f"the ratio of smallest to largest was {ratios[0]:.2g} in epoch {epochs[0]}, "
            f"{ratios[-1]:.2g} in epoch {epochs[-1]} and worst, {ratios[worst]:.2g}, in epoch "
            f"{epochs[worst]}.")
    else:
        text.append("How it was over training is not known: the run did not log it. Train with "
                    "--config.train.log_gradients=True to have it (gradients.jsonl).")
    return text


def _how(num_images, batch_size, step) -> str:
    return (
        f"How measured: the run's loss on the {num_images} training samples, without augmentation "
        f"and dropout and by the running statistics of batch norm, at the best checkpoint (step "
        f"{step}); the mean absolute gradient of each kernel, without biases and norms, then the "
        f"mean over batches of {batch_size}. Gradients of batches of another size do not compare: "
        "noise averages out in larger ones. A layer does nothing if its gradient relative to its "
        f"weights is below 1/{1 / IDLE_RATIO:.0f} of the median layer's, and its weights moved by "
        f"less than {distances.UNMOVED:.0%} of their initial norm or shrank below {DECAYED:.0%} of "
        "it. Gradients vanish if, relative to the weights, those of the quarter of the layers "
        f"nearest to the image are below 1/{1 / VANISHING_RATIO:.0f} of those nearest to the "
        "output, and most of these layers did not learn.")


def _some(names) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _times(value, other) -> str:
    return f"{value / other:.2g} times" if other else "any number of times"


def _end_figure(end):
    fig, (ax,) = figures.layer_axes(list(end))
    values = np.array(list(end.values()))
    lines = np.arange(len(values))
    if (values > 0).any():
        ax.set_xscale("log")
        low, high = values[values > 0].min() / 2, values.max() * 2
        ax.set_xlim(low, high)
        ax.hlines(lines, low, np.maximum(values, low), color=figures.COLOURS[0], linewidth=2)
        for n in np.flatnonzero(values == 0):
            ax.annotate("0", (low, n), (4, 0), textcoords="offset points", va="center")
    ax.plot(values, lines, "o", color=figures.COLOURS[0], markersize=6)
    ax.set_xlabel("mean |dL/dw| of the layer's weights (log scale)")
    return fig


def _training_figure(names, epochs, values):
    fig, (ax,) = figures.layer_axes(names)
    ax.grid(False)
    positive = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(positive.min(), positive.max()) if positive.size else None
    ax.set_facecolor("0.85")
    image = ax.imshow(np.ma.masked_less_equal(np.ma.masked_invalid(values), 0), aspect="auto",
                      cmap=figures.SEQUENTIAL, norm=norm, interpolation="nearest")
    shown = range(0, len(epochs), -(-len(epochs) // 10))
    ax.set_xticks(shown, [f"{epochs[n]:g}" for n in shown])
    ax.set_xlabel("epoch")
    fig.colorbar(image, ax=ax, label="mean |dL/dw|")
    return fig
