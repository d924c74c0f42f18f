"""Scores of a trained run: restore, predict, decode, score, write.

Training validates through `measure` and `summarize`; `evaluate` scores a split of a finished run
and writes `eval/`.
"""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
from scipy.special import logit

from cellseg_jax import config as config_lib
from cellseg_jax import crops, data, metrics, targets
from cellseg_jax.config import derived
from cellseg_jax.data import resize
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, write_atomic, write_csv
from cellseg_jax.inference.definitions import (
    CLASS_DEFINITION,
    DEFINITIONS,
    INTERVAL_DEFINITION,
    SURFACE_DEFINITIONS,
)
from cellseg_jax.inference.measure import measure
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.inference.summary import _summary
from cellseg_jax.metrics import report_compat
from cellseg_jax.report import panels
from cellseg_jax.runs import checkpoint, provenance
from cellseg_jax.runs.folder import (
    CHECKPOINTS,
    ENVIRONMENT_FILE,
    SPLIT_FILE,
    changes,
    check_same_config,
    images_file,
    pictures_folder,
    read_config,
    scores_file,
)
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.memory import peak_rss

# --- a finished run ------------------------------------------------------------------------------


def evaluate(config, workdir, *, split: str = "test", which: str = "best") -> dict:
    """Score a split of a trained run and write eval/<name>.json, _images.csv, _predictions/.

    <name> is `result_name`: the split, or dataset and split where the data are not those that
    the run was trained on. Scores are taken at data.size, as the network sees the images, and at
    the original size.
    Raises: InputError without a checkpoint, without images in the split, or if `config` is not
      that of the run in more than the data.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    arrays = data.load(config.data)
    name = result_name(workdir, config, split, arrays.fingerprint)
    indices = _images_of(config, arrays, split)
    predictor = Predictor(workdir, config, which)
    network = predictor.network
    resident = resident_source(config, arrays, network.mesh)
    source = data.records_of(config.data) if config.data.fit != "resize" else None
    cells = arrays.grid**2
    original_counts, objects, surfaces, calibration, report2 = [], [], [], [], []

    def at_original_size(probs):
        i = indices[len(original_counts)]
        seen = crops.from_grid(arrays.label[i * cells : (i + 1) * cells])  # at data.size
        if network.learned:
            calibration.append(jax.device_get(
                network.calibration_counts(seen[None], probs[None])))
        if config.eval.report_compat:
            report2.append(report_compat.report2_scores(
                seen > 0, logit(np.clip(probs[..., 0].astype(np.float64), 1e-7, 1 - 1e-7)),
                "bce" if config.loss.bce else ""))
        label = arrays.original_label(i)
        if source is None:
            probs = resize.resize_image(probs, label.shape)
        else:  # a cropped run saw only a part: tile the whole image
            probs = predictor.image_probs(source[i].read().image)
        original_counts.append(predictor.counts(label, probs))
        if _kind(config) == "instances":
            objects.append(metrics.instance_counts(label, predictor.decode(probs)))
        if config.eval.surface:
            surfaces.append(_surface_scores(label, probs, predictor))

    def scored(images, keep_probs):
        rows = (images[:, None] * cells + np.arange(cells)).reshape(-1)
        batches = eval_batches(config, arrays, rows, network.mesh, resident)
        return measure(network.eval_step, network.values, network.variables, batches, keep_probs,
                       cells)

    scores = scored(indices, at_original_size)
    original = metrics.Counts(*(np.concatenate(c).astype(np.float64)
                                for c in zip(*original_counts, strict=True)))
    table = _image_table(arrays, indices, scores.loss, scores.main(config), original, objects,
                         surfaces)
    calibration = [np.concatenate(c).astype(np.float64) for c in zip(*calibration, strict=True)]
    seconds = time.monotonic() - started
    result = {
        "name": name,
        "split": split,
        "n_images": len(indices),
        **_summary(config, scores, original, objects, surfaces, calibration,
                   np.asarray(arrays.image_groups)[indices],
                   np.asarray(arrays.image_strata)[indices]),
        **({"report2": {name: float(np.mean([r[name] for r in report2]))
                        for name in report_compat.REPORT2_DEFINITIONS}} if report2 else {}),
        "definitions": DEFINITIONS | (report_compat.REPORT2_DEFINITIONS if report2 else {}) | (
            CLASS_DEFINITION if config.data.target == "classes" else {}) | (
            SURFACE_DEFINITIONS if surfaces else {}) | {"interval": INTERVAL_DEFINITION},
        **({} if name == split else _elsewhere(workdir, config, arrays, indices)),
        **_made_by(config, predictor.step, arrays.fingerprint),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_rss": peak_rss(),
        "images_per_second": len(indices) / seconds,
    }
    pictures = _pictures(predictor, arrays, indices, table, scored)
    if jax.process_index() == 0:
        scores_file(workdir, name).unlink(missing_ok=True)
        predictions = pictures_folder(workdir, name)
        shutil.rmtree(predictions, ignore_errors=True)
        predictions.mkdir(parents=True)
        for file, picture in pictures.items():
            panels.write_png(predictions / file, picture)
        write_csv(images_file(workdir, name), table)
        # last, because its presence says that the evaluation is whole
        write_atomic(scores_file(workdir, name), json.dumps(result, indent=1) + "\n")
    return result


def read_scores(workdir, split: str, config) -> dict | None:
    """The stored scores of a split if this checkpoint and these settings made them, else None.

    Raises: InputError as `result_name`.
    """
    fingerprint = data.load(config.data).fingerprint
    name = result_name(workdir, config, split, fingerprint)
    file = scores_file(workdir, name)
    saved = ({"best": 0} if derived.is_classical(config)
             else checkpoint.saved_steps(pathlib.Path(workdir) / CHECKPOINTS))
    if not file.is_file() or not saved:
        return None
    scores = read_json(file)
    made_by = _made_by(config, saved["best"], fingerprint)
    return scores if all(scores.get(k) == v for k, v in made_by.items()) else None


def result_name(workdir, config, split: str, fingerprint: str) -> str:
    """What the files of a split's scores are called in eval/.

    The split alone means the data that the run was trained on. Other data, by their fingerprint,
    have names of their own, "bbbc039-1a2b3c4d_all", so that nobody takes one for the other.
    Raises: InputError if `config` differs from the run's in what the network is or sees, on the
      run's own data also in their split, which would score training images.
    """
    environment = read_json(pathlib.Path(workdir) / ENVIRONMENT_FILE, {})
    own = environment.get("data_fingerprint", fingerprint) == fingerprint
    if own:
        check_same_config(workdir, config)
        if split == "all":
            raise InputError("--split: got all on the data that the run was trained on; expected "
                             "train, val or test, or other data (--config.data.root)")
        return split
    options = {option for one in (config, read_config(workdir))
               for option in data.options(one.data.name)} - set(config_lib.default().data)
    about_data = {f"data.{key}" for key in options | {
        "name", "split", "split_seed", "train_fraction", "mix"}}
    changed = {k: v for k, v in changes(workdir, config).items() if k not in about_data}
    if changed:
        shown = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in changed.items())
        raise InputError(f"--workdir: {workdir} was trained with another config: {shown}; on other "
                         "data only the dataset, its options, data.split and data.mix may differ")
    return f"{config.data.name}-{fingerprint[:8]}_{split}"


def _images_of(config, arrays, split) -> np.ndarray:
    """Indices of the images of a split; "all" are those of the dataset itself, not mixed ones."""
    cells = arrays.grid**2
    if split == "all":
        indices = np.flatnonzero([not name.startswith(MIXED) for name in arrays.image_names])
    else:
        indices = np.unique(data.split_of(config.data, arrays)[split] // cells)
    if len(indices) == 0:
        raise InputError(f"config.data.split: got {config.data.split}, which leaves the {split} "
                         "split without images")
    if config.data.target == "classes":
        highest = max(int(arrays.original_label(i).max()) for i in indices)
        if highest >= config.data.num_classes:
            raise InputError(f"config.data.num_classes: the labels of {config.data.name} go up to "
                             f"class {highest}; the network knows {config.data.num_classes}, "
                             "background included")
    return indices


def _kind(config) -> str:
    """What labels say of cells: instances | binary | classes."""
    if config.data.target == "classes":
        return "classes"
    return config.data.get("labels", "instances")


def _elsewhere(workdir, config, arrays, indices) -> dict:
    """What scores of other data than trained on say of them."""
    parts = read_json(pathlib.Path(workdir) / SPLIT_FILE, {})
    trained = {name for part in ("train", "val") for name in parts.get(part, ())}
    return {"data": json.loads(config.data.to_json()),
            "names_of_training_images": sum(arrays.image_names[i] in trained for i in indices)}


def _made_by(config, checkpoint_step: int, fingerprint: str) -> dict:
    """What scores depend on: they are taken again when any of it differs."""
    return {"config_hash": config_lib.identity(config), "checkpoint_step": checkpoint_step,
            "eval_options": json.loads(config.eval.to_json()), "data_fingerprint": fingerprint,
            "code_hash": provenance.code_hash()}


def _surface_scores(label, probs, predictor) -> dict:
    """SURFACE_DEFINITIONS of one image; NaN or inf where it has no say."""
    config = predictor.config
    pred = targets.TARGETS[config.data.target].cell_mask(probs, config.eval.threshold)
    mask, pred = label > 0, np.asarray(pred)[..., 0]
    out = {"hausdorff95": metrics.hausdorff95(mask, pred),
           "surface_dice": metrics.surface_dice(mask, pred, config.eval.surface)}
    if _kind(config) == "classes":
        return out
    if _kind(config) == "instances":
        found = predictor.decode(probs)
    else:
        if config.data.get("foreground") == "membrane":  # the cells are what it parts
            mask, pred = ~mask, ~pred
        label, found = targets.components(mask), metrics.thin_borders(targets.components(pred))
    return out | {"rand_error": metrics.rand_error(label, found),
                  "information_error": metrics.information_error(label, found),
                  "variation_of_information": sum(metrics.variation_of_information(label, found))}


# --- tables and pictures -------------------------------------------------------------------------


def _image_table(arrays, indices, loss, counts, original, objects, surfaces) -> list[dict]:
    """One row per image."""
    rows = []
    for n, i in enumerate(indices):
        one = lambda counts: metrics.Counts(*(c[n : n + 1] for c in counts))
        mean = lambda score, counts: float(np.mean(score(one(counts))))
        row = {
            "name": arrays.image_names[i], "stratum": arrays.image_strata[i],
            "group": arrays.image_groups[i],
            "height": arrays.original_sizes[i][0], "width": arrays.original_sizes[i][1],
            **({} if loss is None else {"loss": float(loss[n])}),
            "dice": mean(metrics.dice, counts), "iou": mean(metrics.iou, counts),
            "dice_original": mean(metrics.dice, original),
            "iou_original": mean(metrics.iou, original),
        }
        if objects:
            row |= metrics.instance_scores(objects[n])
            row |= {"n_true": objects[n].n_true, "n_pred": objects[n].n_pred}
            row |= dict(zip(metrics.ErrorKinds._fields, objects[n].kinds.tolist(), strict=True))
        rows.append(row | (surfaces[n] if surfaces else {}))
    return rows


def _pictures(predictor, arrays, indices, table, scored) -> dict:
    """{file name: panel} of eval.panels images: worst, median and best Dice, a third each."""
    config = predictor.config
    chosen = _extremes([row["dice"] for row in table], config.eval.panels)
    if not chosen:
        return {}
    probs = []
    scored(np.asarray([indices[n] for n in chosen]), probs.append)
    pictures = {}
    for rank, ((n, kind), one) in enumerate(zip(chosen.items(), probs, strict=True)):
        i, dice = indices[n], table[n]["dice"]
        name = pathlib.PurePath(arrays.image_names[i]).name[:40]
        cells = slice(i * arrays.grid**2, (i + 1) * arrays.grid**2)
        image, label = (crops.from_grid(x[cells]) for x in (arrays.image, arrays.label))
        pictures[f"{rank:02d}_{kind}_dice{dice:.3f}_{name}.png"] = panels.panel(
            image, np.asarray(label, np.int32), predictor.decode(one),
            f"{name}  {arrays.image_strata[i]}  Dice {dice:.3f}",
            classes=config.data.target == "classes")
    return pictures


def _extremes(scores, count: int) -> dict:
    """{index: "worst" | "median" | "best"} of at most `count` scores, none of them twice.

    The worst get what does not divide by three, and what there is where images are few.
    """
    order = np.argsort(scores, kind="stable")
    third = min(count // 3, len(order) // 3)
    worst = min(count - 2 * third, len(order) - 2 * third)
    middle = order[worst : len(order) - third]
    start = min(max(len(order) // 2 - worst - third // 2, 0), len(middle) - third)
    return (dict.fromkeys(order[:worst].tolist(), "worst")
            | dict.fromkeys(middle[start : start + third].tolist(), "median")
            | dict.fromkeys(order[len(order) - third :].tolist(), "best"))
