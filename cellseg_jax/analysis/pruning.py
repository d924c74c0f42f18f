"""Which layers a trained network needs, and which classes lose most when it is pruned.

Pruned networks are trained again only with `finetune_epochs`.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics, models, pruning, train
from cellseg_jax.analysis import distances, pruning_figures, pruning_pictures, pruning_text
from cellseg_jax.analysis.page import Findings
from cellseg_jax.analysis.pruner import Pruner, SplitImages, kernels_at
from cellseg_jax.analysis.pruning_series import Series, class_rows, classes_of, score_rows
from cellseg_jax.errors import InputError, pick
from cellseg_jax.files import write_csv
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.mesh import put
from cellseg_jax.train.initial_weights import layers_of

REPORT_2 = ("l1_layers:all,l1_grouped:all,random_layers:each,random_layers:top1,random_layers:top2,"
            "random_filters:top1,random_filters:top2")
KINDS = ("conv", "transposed", "dense")
LAYERS = ("all", "each", "top1", "top2")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is pruned, and on which images it is scored."""

    split: str = "test"
    # Experiments HOW:LAYERS with commas between. HOW is one of pruning.METHODS; LAYERS all, each
    # (one by one), top1 or top2 (whose weights moved furthest from the initial ones, L2), or the
    # name of a layer.
    prune: str = REPORT_2
    kinds: str = "conv"  # of layers that are pruned, of KINDS with commas between
    amount: float = 0.25  # share of what remains that each iteration takes
    iterations: int = 10
    masks: int = 3  # draws of a random method, from config.seed on
    # Epochs that each level of an experiment on all layers is also trained after pruning, in
    # finetune/ beside the folder, by train.prune.
    finetune_epochs: int = 0


def analyse(workdir, config, folder, **options) -> Findings | None:
    """Scores at data.size of a run that loses more and more weights, as evaluate takes them.

    Args:
      options: fields of `Options`.
    Returns: None if fine-tuning was interrupted; the same call continues it.
    Raises: InputError for an option that makes no sense here.
    """
    options = Options(**options)
    layers = chosen_layers(config, options.kinds)
    experiments = parse_experiments(options.prune, [layer.name for layer in layers])
    if not 0 < options.amount < 1:
        raise InputError(f"--amount: got {options.amount}; expected a share between 0 and 1")
    if options.finetune_epochs and options.kinds != "conv":
        raise InputError(f"--kinds: got {options.kinds} with --finetune_epochs; expected conv, "
                         "which is what train.prune prunes")
    predictor = Predictor(workdir, config)
    part = split_images(config, predictor, options.split)
    pruner = Pruner(predictor, layers, part)
    targets = targets_of(experiments, layers, config, predictor)
    series = pruner.series(targets, options.amount, options.iterations,
                           range(config.seed, config.seed + options.masks))
    if options.finetune_epochs:
        tuned = finetuned(config, workdir, folder, pruner, series, options)
        if tuned is None:
            return None
        series += tuned
    groups = np.asarray(part.arrays.image_groups)[part.images]
    classes = classes_of(config, np.asarray(part.arrays.image_strata)[part.images])
    write_csv(folder / "pruning.csv", score_rows(series, classes))
    write_csv(folder / "classes.csv", class_rows(series, classes, groups))
    sizes = map_sizes(predictor, layers, part.arrays.image.shape[1:])
    return Findings(
        "Pruning",
        pruning_text.sentences(series, classes, groups, sizes, options, pruner.how)
        + pruning_text.zeros_before(pruner.kernels.values()),
        pruning_figures.draw(folder, series, classes, groups, sizes)
        + pruning_pictures.draw(folder, pruner, targets[0], series[0], options.amount, config.seed),
        [("classes.csv", "Dice of each class against sparsity, with intervals; drop is the loss "
                         "against the network without pruning"),
         ("pruning.csv", "All scores of each experiment, layer, level, mask and class")])


def chosen_layers(config, kinds: str) -> list[models.Layer]:
    """The layers of some KINDS, from image to output. Raises InputError."""
    wanted = [pick(dict.fromkeys(KINDS, kind), kind, "--kinds") for kind in kinds.split(",")]
    layers = layers_of(config)
    chosen = [layer for layer in layers if layer.kind in wanted]
    if not chosen:
        raise InputError(f"--kinds: got {kinds}, but the layers of {config.model.name} are "
                         f"{', '.join(sorted({layer.kind for layer in layers}))}")
    return chosen


def parse_experiments(prune, names) -> list[tuple[str, str]]:
    """[(method, LAYERS)] of the flag --prune. Raises InputError."""
    found = []
    for text in dict.fromkeys(prune.split(",")):
        method, colon, layers = text.partition(":")
        if not colon:
            raise InputError(f"--prune: got {text!r}; expected HOW:LAYERS such as l1_layers:all")
        pick(pruning.METHODS, method, "--prune")
        pick(dict.fromkeys((*LAYERS, *names)), layers, "--prune")
        found.append((method, layers))
    return found


def targets_of(experiments, layers, config, predictor) -> list[tuple[str, str, list[int]]]:
    """[(method, LAYERS, numbers of the layers that are pruned together)]."""
    moved = []
    if any(which in ("top1", "top2") for _, which in experiments):
        before, after = (distances.kernels(config, params) for params in (
            distances.initial_params(config, predictor.workdir),
            predictor.network.variables["params"]))
        far = distances.distances(before, after)
        moved = sorted(range(len(layers)), key=lambda n: -far[layers[n].name][0])
    everything, targets = list(range(len(layers))), []
    for method, which in experiments:
        if which == "each":
            targets += [(method, which, [n]) for n in everything]
        elif which in ("top1", "top2"):
            targets.append((method, which, sorted(moved[: int(which[-1])])))
        else:
            targets.append((method, which, everything if which == "all" else [
                n for n in everything if layers[n].name == which]))
    return targets


def split_images(config, predictor, split: str) -> SplitImages:
    """The images of a split, with their blank patches. Raises InputError if there are none."""
    arrays = data.load(config.data)
    rows = data.split_of(config.data, arrays)[split]
    if not len(rows):
        raise InputError(f"--split: config.data.split {config.data.split} leaves the {split} split "
                         "without images")
    cells = np.arange(arrays.grid**2)
    images = np.unique(rows // len(cells))  # training may leave blank patches out
    rows = (images[:, None] * len(cells) + cells).reshape(-1)
    resident = resident_source(config, arrays, predictor.network.mesh)
    batches = lambda: eval_batches(config, arrays, rows, predictor.network.mesh, resident)
    if resident is not None:
        kept = list(batches())
        batches = lambda: kept
    return SplitImages(arrays, images, batches)


def map_sizes(predictor, layers, image_shape) -> dict[str, tuple]:
    """{layer: height and width, or number of tokens, of its output}."""
    sizes = {}

    def keep(next_, args, kwargs, context):
        out = next_(*args, **kwargs)
        if isinstance(out, jax.Array):
            sizes["/".join(context.module.path)] = out.shape[1:-1]
        return out

    with models.nn.intercept_methods(keep):
        jax.eval_shape(
            lambda v, x: predictor.network.spec.module({}).apply(v, x, train=False),
            predictor.network.variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return {layer.name: sizes["/".join(layer.kernel[:-1])] for layer in layers}


def finetuned(config, workdir, folder, pruner, series, options) -> list[Series] | None:
    """The experiments on all layers again, mask 0 of each level trained on.

    Runs in finetune/ beside the folder with the same config, checkpoint and options are used again.

    Args:
      options: `Options`.
    Returns: None if a run was interrupted.
    Raises: InputError without an experiment on all layers, or where a run fails.
    """
    epochs = options.finetune_epochs
    bases = [one for one in series if one.layer == "all"]
    if not bases:
        raise InputError("--finetune_epochs: none of --prune is on all layers; add l1_layers:all")
    configs, workdirs = _finetune_runs(config, workdir, folder, bases, options,
                                       pruner.predictor.step)
    for result in train.train(configs, workdirs):
        if result.status == "interrupted":
            return None
        if result.status != "done":
            raise InputError(f"--finetune_epochs: {result.workdir} ended as {result.status!r}; "
                             "expected 'done': wait for the process that uses it, or train the "
                             "run with a smaller optimizer.lr")
    trained, tuned = iter(zip(workdirs, configs, strict=True)), []
    none = np.zeros((1, len(pruner.paths)), np.int32)
    ranks = {path: put(np.zeros(kernel.shape, np.int32), pruner.everywhere)
             for path, kernel in pruner.kernels.items()}
    for base in bases:
        zeros, levels = base.zeros[:, :1].copy(), [metrics.Counts(*(c[0, 0] for c in base.counts))]
        for level in range(1, len(base.zeros)):
            variables = Predictor(*next(trained)).network.variables
            zeros[level] = sum((kernel == 0).sum() for kernel in kernels_at(
                variables["params"], pruner.paths).values())
            scores = pruner.score(ranks, none, variables=variables)
            levels.append(metrics.Counts(*(c[0] for c in scores)))
        tuned.append(base._replace(
            experiment=f"{base.experiment}, then {epochs} epoch{'s' * (epochs > 1)}", zeros=zeros,
            counts=metrics.Counts(*(np.stack(c)[:, None] for c in zip(*levels, strict=True)))))
    return tuned


def _finetune_runs(config, workdir, folder, bases, options, step):
    """(configs, folders) of a run for each level of some experiments."""
    configs, workdirs, epochs = [], [], options.finetune_epochs
    runs = folder.parent / "finetune" / f"step{step}_epochs{epochs}"
    for base in bases:
        method = base.experiment.partition(":")[0]
        for level in range(1, len(base.zeros)):
            configs.append(config_lib.changed(config, {
                "train.weights": str(pathlib.Path(workdir).resolve()),
                "train.prune": options.amount, "train.prune_iterations": level,
                "train.prune_how": method,
                "train.epochs": epochs, "train.steps": 0,
                "train.early_stopping": 0, "train.early_stopping_mode": "patience",
                "optimizer.warmup": 0}))
            workdirs.append(runs / f"{method}_{options.amount:g}_{level}")
    return configs, workdirs
