"""Gradient magnitude per layer: at the end of a run, and over training if logged."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from matplotlib.colors import LogNorm

from cellseg_jax import data
from cellseg_jax.analysis.page import Findings
from cellseg_jax.files import read_jsonl, write_csv
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.normalize import normalize
from cellseg_jax.report import figures
from cellseg_jax.runs.folder import GRADIENTS_LOG
from cellseg_jax.step import train_step
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.train.initial_weights import layers_of

VANISHING_RATIO = 1e-3  # smallest / largest mean gradient, below which gradients vanish


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
    return Findings(
        "Gradient magnitude per layer",
        _text(end, logged, len(rows), config.eval.batch_size, config.optimizer.name,
              predictor.step), pictures,
        [("gradients.csv", "Mean absolute gradient of each layer: at the end"
                           + (", and of each epoch" if logged else ""))])


def _text(end, logged, num_images, batch_size, optimizer, step) -> list[str]:
    names = sorted(end, key=end.get)
    least, largest = names[0], names[-1]
    ratio = end[least] / end[largest] if end[largest] else float("nan")
    verdict = (f"gradients vanish, by the rule of thumb of 1 in {1 / VANISHING_RATIO:.0f}"
               if ratio < VANISHING_RATIO else
               f"no layer falls below a {1 / VANISHING_RATIO:.0f}th of another, so that "
               "gradients do not vanish on their way back to the image")
    first, last = list(end)[0], list(end)[-1]
    shown = ", ".join(f"{name} ({end[name]:.2g})" for name in names[:3])
    text = [
        f"The smallest gradients are those of {shown}, the largest that of {largest} "
        f"({end[largest]:.2g}). The smallest is {ratio:.2g} of the largest: {verdict}. The layer "
        f"nearest to the image, {first}, gets {_times(end[first], end[last])} that of the last, "
        f"{last}."]
    if ratio < VANISHING_RATIO:
        text.append(
            "With sgd such layers hardly change." if optimizer == "sgd" else
            f"{optimizer} divides a step by the size of its gradients, so that such layers change "
            "nevertheless: by noise, and by weight decay where that is added to the gradient and "
            "larger (--analysis=weights shows layers that shrank).")
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
    text.append(
        f"How measured: the run's loss on the {num_images} training samples, without augmentation "
        f"and dropout and by the running statistics of batch norm, at the best checkpoint (step "
        f"{step}); the mean absolute gradient of each kernel, without biases and norms, then the "
        f"mean over batches of {batch_size}. Gradients of batches of another size do not compare: "
        "noise averages out in larger ones.")
    return text


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
