"""Scores of a split of a trained run: restore, predict, decode, score, write `eval/`."""

import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics
from cellseg_jax.config import derived
from cellseg_jax.data.cache import refitted
from cellseg_jax.data.scale import as_image
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError
from cellseg_jax.files import interpreting, read_json, write_atomic, write_csv
from cellseg_jax.inference import count_tables
from cellseg_jax.inference.label_folder import LabelFolder
from cellseg_jax.inference.measure import TimedStep, measure
from cellseg_jax.inference.original_size import OriginalSize
from cellseg_jax.inference.pictures import pictures
from cellseg_jax.inference.pixel_summary import macro_mean
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.inference.score_definitions import definitions_of
from cellseg_jax.inference.summary import Measured, summary
from cellseg_jax.metrics import report_compat
from cellseg_jax.report import panels
from cellseg_jax.runs import checkpoint, provenance
from cellseg_jax.runs.folder import (
    CHECKPOINTS,
    ENVIRONMENT_FILE,
    SPLIT_FILE,
    changes,
    check_same_config,
    check_same_split,
    counts_file,
    images_file,
    objects_file,
    pictures_folder,
    read_config,
    scores_file,
)
from cellseg_jax.step.batches import eval_batches, resident_source
from cellseg_jax.step.memory import peak_rss


def evaluate(config, workdir, *, split: str = "test", which: str = "best") -> dict:
    """Score a split of a trained run and write eval/<name>.json and tables, _predictions/.

    <name> is `result_name`: the split, or dataset and split where the data are not those that
    the run was trained on. Scores are taken at data.size, as the network sees the images, and at
    the original size.

    Args:
      which: "best" or "last" checkpoint.
    Raises: InputError without a checkpoint, without images in the split, or if `config` is not
      that of the run in more than the data.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    arrays = data.load(config.data)
    name = result_name(workdir, config, split, arrays.fingerprint)
    if name == split:
        check_same_split(workdir, arrays, data.split_of(config.data, arrays))
    indices = images_of(config, arrays, split)
    if derived.is_labels(config):
        made = _of_labels(config, arrays, indices)
    else:
        made = _of_predictor(Predictor(workdir, config, which), arrays, indices)
    measured = made.measured
    table = image_table(arrays, indices, measured, measured.scores.main(config))
    seconds = time.monotonic() - started
    result = {
        "name": name,
        "split": split,
        "n_images": len(indices),
        **summary(config, measured),
        **_report2(made.report2, measured.strata),
        "definitions": definitions_of(config, measured, bool(made.report2)),
        **made.about,
        **({} if name == split else other_data(workdir, config, arrays, indices)),
        **made_by(config, made.step, arrays.fingerprint),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_rss": peak_rss(),
        "images_per_second": len(indices) / seconds,
        "ms_per_image": made.ms_per_image,
    }
    drawn = made.pictures([row["dice"] for row in table])
    if jax.process_index() == 0:
        names = [arrays.image_names[i] for i in indices]
        _write(workdir, name, result, {
            images_file(workdir, name): table,
            counts_file(workdir, name): count_tables.count_table(names, config, measured),
            objects_file(workdir, name): count_tables.object_table(names, measured)}, drawn)
    return result


class Made(NamedTuple):
    """What was measured of a split, and how.

    pictures: (n,) Dice of the images -> {file name: panel}.
    """

    measured: Measured
    report2: list
    step: int
    ms_per_image: float | None  # None: not by a network
    pictures: Callable
    about: Mapping = MappingProxyType({})  # more fields of eval/<name>.json


def _of_predictor(predictor, arrays, indices) -> Made:
    """Of a trained run or a classical method."""
    arrays = at_found_scale(predictor, arrays, indices)
    timed = TimedStep(predictor.network.eval_step)
    scored, original = _scorer(predictor, arrays, timed), OriginalSize(predictor, arrays, indices)
    scores = scored(indices, original.add)
    if len(timed.seconds) == 1 and predictor.network.learned:
        scored(indices, None)  # the first batch includes compilation
    measured = Measured(scores, original.counts, original.objects, original.surfaces,
                        original.calibration, _columns(original.soft),
                        np.asarray(arrays.image_groups)[indices],
                        np.asarray(arrays.image_strata)[indices], original.found)
    predicted = functools.partial(_predicted, predictor, scored, indices)
    about = {"decoding": original.decodings.rows()} if original.objects else {}
    if predictor.sized_by_cells:
        about["min_size"] = predictor.config.eval.min_size
    return Made(measured, original.report2, predictor.step, timed.ms_per_row() * arrays.grid**2,
                lambda dice: pictures(predictor.config, arrays, indices, dice, predicted),
                about)


def _predicted(predictor, scored, indices, chosen) -> list[np.ndarray]:
    """The decoded predictions at data.size of some of the images."""
    probs = []
    scored(np.asarray([indices[n] for n in chosen]), probs.append)
    return [predictor.decode(one) for one in probs]


def _of_labels(config, arrays, indices) -> Made:
    """Of labels made elsewhere."""
    labels = LabelFolder(config, arrays, indices)
    labels.note_others()
    seen = lambda chosen: [labels.as_seen(n, labels.label(n)) for n in chosen]
    return Made(labels.measured(), [], 0, None,
                lambda dice: pictures(config, arrays, indices, dice, seen),
                {"labels_content": labels.content})


def at_found_scale(predictor, arrays, indices):
    """The arrays, where data.diameter is set with images at the scale that prediction finds.

    In training the true cells of an image decide its scale: scores must not know them.
    """
    config, size = predictor.config, predictor.batch_size
    if not config.data.diameter:
        return arrays
    records, factors = data.records_of(config.data), {}
    for part in np.split(indices, range(size, len(indices), size)):
        found = predictor.factors([as_image(records[i]) for i in part])
        factors |= dict(zip(part.tolist(), found, strict=True))
    return refitted(arrays, records, data.cache_options(config.data), factors)


def _scorer(predictor, arrays, eval_step):
    """(image indices, keep_probs) -> measure.Scores of these images."""
    config, network, cells = predictor.config, predictor.network, arrays.grid**2
    resident = resident_source(config, arrays, network.mesh)

    def scored(images, keep_probs):
        rows = (images[:, None] * cells + np.arange(cells)).reshape(-1)
        batches = eval_batches(config, arrays, rows, network.mesh, resident)
        return measure(eval_step, network.values, network.variables, batches, keep_probs,
                       cells)

    return scored


def _columns(scores: list[dict]) -> dict[str, np.ndarray]:
    """{name: (n, K) float64} of scores {name: (1, K)} of each image."""
    return {name: np.concatenate([one[name] for one in scores]).astype(np.float64)
            for name in (scores[0] if scores else ())}


def _report2(scores, strata) -> dict:
    """The means over strata of report 2's scores of images, where they were taken."""
    if not scores:
        return {}
    return {"report2": {name: float(macro_mean(np.array([one[name] for one in scores]), strata))
                        for name in report_compat.REPORT2_DEFINITIONS}}


def _write(workdir, name: str, result: dict, tables: dict, drawn: dict) -> None:
    """The files of an evaluation; an earlier one is replaced.

    Args:
      tables: {file: rows}; one without rows is not there.
    """
    scores_file(workdir, name).unlink(missing_ok=True)
    predictions = pictures_folder(workdir, name)
    shutil.rmtree(predictions, ignore_errors=True)
    predictions.mkdir(parents=True)
    for file, picture in drawn.items():
        panels.write_png(predictions / file, picture)
    for file, rows in tables.items():
        file.unlink(missing_ok=True)
        if rows:
            write_csv(file, rows)
    # last, because its presence means that the evaluation is complete
    write_atomic(scores_file(workdir, name), json.dumps(result, indent=1) + "\n")


def read_scores(workdir, split: str, config) -> dict | None:
    """The stored scores of a split if this checkpoint and these settings made them, else None.

    Raises: InputError as `result_name`.
    """
    fingerprint = data.load(config.data).fingerprint
    name = result_name(workdir, config, split, fingerprint)
    file = scores_file(workdir, name)
    saved = ({"best": 0} if derived.is_classical(config)
             else checkpoint.saved_steps(pathlib.Path(workdir) / CHECKPOINTS))
    if not file.is_file() or not saved or derived.is_labels(config):  # labels may be other ones
        return None
    scores = read_json(file)
    wanted = made_by(config, saved["best"], fingerprint) | {"name": name}
    return scores if all(scores.get(k) == v for k, v in wanted.items()) else None


def result_name(workdir, config, split: str, fingerprint: str) -> str:
    """What the files of a split's scores are called in eval/.

    The split alone means the data that the run was trained on. Other data, by their fingerprint,
    have names of their own, "bbbc039-1a2b3c4d_all", so that they cannot be confused.
    Raises: InputError if `config` differs from the run's in what the network is or sees, on the
      run's own data also in their split, which would score training images.
    """
    environment = read_json(pathlib.Path(workdir) / ENVIRONMENT_FILE, {})
    own = environment.get("data_fingerprint", fingerprint) == fingerprint
    if own:
        check_same_config(workdir, config)
        if split == "all":
            raise InputError("--split: got all on the data that the run was trained on; expected "
                             "train, val or test, or other data by --config.data.name=NAME and "
                             "--config.data.root=DIR")
        return split
    options = {option for one in (config, read_config(workdir))
               for option in data.options(one.data.name)} - set(config_lib.default().data)
    about_data = {f"data.{key}" for key in options | {
        "name", "only_size", "strata", "split", "split_by", "split_seed", "train_fraction", "mix",
        "mix_copies", "blank_images"}}
    changed = {k: v for k, v in changes(workdir, config).items() if k not in about_data}
    if changed:
        shown = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in changed.items())
        raise InputError(f"--workdir: {workdir} was trained with another config: {shown}; on other "
                         "data only the dataset, its options, data.split and data.mix may differ")
    return f"{config.data.name}-{fingerprint[:8]}_{split}"


def images_of(config, arrays, split) -> np.ndarray:
    """Indices of the images of a split; "all" are those of the dataset itself, not mixed ones.

    Without those of which nothing is annotated.
    """
    cells = arrays.grid**2
    if split == "all":
        indices = np.flatnonzero(data.annotated(config.data, arrays) & [
            not name.startswith(MIXED) for name in arrays.image_names])
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


def other_data(workdir, config, arrays, indices) -> dict:
    """The fields of scores of other data than the run was trained on."""
    with interpreting(pathlib.Path(workdir) / SPLIT_FILE):
        parts = read_json(pathlib.Path(workdir) / SPLIT_FILE, {})
        trained = {name for part in ("train", "val") for name in parts.get(part, ())}
    return {"data": config_lib.as_json(config.data),
            "names_of_training_images": sum(arrays.image_names[i] in trained for i in indices)}


def made_by(config, checkpoint_step: int, fingerprint: str) -> dict:
    """What scores depend on: they are taken again when any of it differs."""
    return {"config_hash": config_lib.identity(config), "checkpoint_step": checkpoint_step,
            "eval_options": config_lib.as_json(config.eval), "data_fingerprint": fingerprint,
            "code_hash": provenance.code_hash()}


def image_table(arrays, indices, measured: Measured, main: metrics.Counts) -> list[dict]:
    """One row per image: what it is, and its scores.

    Args:
      main: measured.scores.main.
    """
    loss, original = measured.scores.loss, measured.original
    columns = {
        **({} if loss is None else {"loss": [float(one) for one in loss]}),
        "dice": _per_image(metrics.dice, main), "iou": _per_image(metrics.iou, main),
        "dice_original": _per_image(metrics.dice, original),
        "iou_original": _per_image(metrics.iou, original),
    }
    edges = measured.found and metrics.size_edges(measured.found)
    rows = []
    for n, i in enumerate(indices):
        height, width = arrays.original_sizes[i][:2]
        row = {"name": arrays.image_names[i], "stratum": arrays.image_strata[i],
               "group": arrays.image_groups[i], "height": height, "width": width,
               **{name: column[n] for name, column in columns.items()}}
        if measured.objects:
            one = measured.objects[n]
            row |= metrics.instance_scores(one)
            row |= {"n_true": one.n_true, "n_pred": one.n_pred}
            row |= {"count_error": abs(one.n_pred - one.n_true)}
            row |= dict(zip(metrics.ErrorKinds._fields, one.kinds.tolist(), strict=True))
        if edges:
            sizes = metrics.f1_by_size(metrics.size_counts(measured.found[n], edges))
            row |= {name: float(value) for name, value in sizes.items()}
        rows.append(row | (measured.surfaces[n] if measured.surfaces else {}))
    return rows


def _per_image(score, counts: metrics.Counts) -> list[float]:
    """The score of each image, the mean over its classes."""
    return [float(np.mean(score(metrics.Counts(*(c[n : n + 1] for c in counts)))))
            for n in range(len(counts.tp))]
