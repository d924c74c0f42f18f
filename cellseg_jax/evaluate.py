"""Scores of a trained run: restore, predict, decode, score, write.

Training validates through `measure` and `summarize`; `evaluate` scores a split of a finished run
and writes `eval/`; `Predictor` gives the probabilities of any image, as `predict` needs them.
"""

import csv
import io
import json
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import logit

from cellseg_jax import (
    checkpoint, classical, data, derived, feed, metrics, recipe, rundir, step, targets, tiles)
from cellseg_jax import config as config_lib
from cellseg_jax.data import ranges, records, resize
from cellseg_jax.errors import InputError
from cellseg_jax.feed import fetch, put
from cellseg_jax.metrics import report_compat
from cellseg_jax.report import panels

DEFINITIONS = {
    "dice_mean": "2TP/(2TP+FP+FN) per image, 1 where truth and prediction are empty; mean of images",
    "iou_mean": "TP/(TP+FP+FN) per image, 1 where truth and prediction are empty; mean of images",
    "dice_pooled": "2TP/(2TP+FP+FN) of the pixels of all images together",
    "iou_pooled": "TP/(TP+FP+FN) of the pixels of all images together",
    "precision_mean": "TP/(TP+FP) per image; mean of images",
    "recall_mean": "TP/(TP+FN) per image; mean of images",
    "accuracy_mean": "(TP+TN)/all per image; mean of images",
    "ap50": "matched objects TP/(TP+FP+FN) at IoU 0.5 or more, as in DSB 2018 and StarDist, not "
            "COCO's AP; counts of all images together",
    "ap75": "as ap50, at IoU 0.75",
    "ap": "as ap50, mean over IoU .5, .55, ..., .95",
    "f1": "matched objects 2TP/(2TP+FP+FN) at IoU 0.5, counts of all images together",
    "pq": "panoptic quality: sum of matched IoU / (TP+FP/2+FN/2) at IoU 0.5, all images together",
    "seg": "Cell Tracking Challenge SEG: mean over the true objects of all images of the IoU with "
           "the prediction that covers more than half of it, else 0; inventions cost nothing",
    "det": "Cell Tracking Challenge DET on this segmentation truth: 1 - (5 splits + 10 missed + "
           "1 invented) / (10 true objects), at least 0; counts of all images together",
    "aji": "aggregated Jaccard index, Kumar 2017: intersections over unions of each true object "
           "with its closest prediction, sums of all images together",
    "ece": "expected calibration error: sum over 15 bins of the probability of the share of pixels "
           "times |mean probability - share that is true|, all pixels together; 0 is best",
    "loss": "the training loss, image by image, without dropout; mean of images",
}


CLASS_DEFINITION = {
    "classes": "means run over the classes too, background (class 0) left out; a class that is "
               "neither drawn nor predicted in an image counts 1 there",
}


class Scores(NamedTuple):
    """What was measured on n images, as numpy arrays in the order of the indices."""

    loss: np.ndarray | None  # (n,); None where nothing has a loss
    counts: metrics.Counts  # of (n, K), a column per output
    cells: metrics.Counts  # of (n, 1), cell or not

    def main(self, config) -> metrics.Counts:
        """What headline scores are made of: the classes but background, else cell or not.

        So the scores of runs compare, whatever target they learn.
        """
        if config.data.target == "classes":
            return metrics.Counts(*(c[:, 1:] for c in self.counts))
        return self.cells


def measure(eval_step, values, variables, batches, keep_probs=None, cells: int = 1) -> Scores:
    """Loss and counts of all images of the batches.

    Args:
      keep_probs: gets the probabilities (h, w, K) of each image.
      cells: samples that make up an image, grid * grid patches one after the other.
    """
    loss, counts, found, waiting = [], [], [], []
    for batch in batches:
        out = eval_step(values, variables, batch)
        used = fetch(batch["weight"]) > 0
        if "loss" in out:
            loss.append(fetch(out["loss"])[used])
        counts.append([fetch(c)[used] for c in out["counts"]])
        found.append([fetch(c)[used] for c in out["cells"]])
        if keep_probs is not None:
            for one in fetch(out["probs"])[used]:
                waiting.append(one)
                if len(waiting) == cells:
                    keep_probs(tiles.from_grid(np.stack(waiting)))
                    waiting.clear()
    per_image = lambda batches: np.concatenate(batches).astype(np.float64).reshape(
        -1, cells, *batches[0].shape[1:])
    summed = lambda batches: metrics.Counts(
        *(per_image(c).sum(1) for c in zip(*batches, strict=True)))
    return Scores(per_image(loss).mean(1) if loss else None, summed(counts), summed(found))


def summarize(counts: metrics.Counts) -> dict:
    """Mean and pooled scores of (n, K) counts."""
    pooled = metrics.Counts(*(c.sum(0, keepdims=True) for c in counts))
    out = {f"{name}_mean": float(np.mean(getattr(metrics, name)(counts)))
           for name in ("dice", "iou", "precision", "recall", "accuracy")}
    out |= {f"{name}_pooled": float(np.mean(getattr(metrics, name)(pooled)))
            for name in ("dice", "iou")}
    return out


def validate(eval_step, values, variables, batches, config) -> dict:
    """config.VALIDATION_METRICS of the batches."""
    scores = measure(eval_step, values, variables, batches, cells=config.data.grid**2)
    out = {**summarize(scores.main(config)), "loss": float(scores.loss.mean())}
    return {name: out[name] for name in derived.VALIDATION_METRICS}


# --- a finished run ------------------------------------------------------------------------------


class Predictor:
    """A trained run that turns images into probabilities, repeating the training's `fit`.

    Args:
      workdir: the run's folder.
      config: its config, where eval.* may have been changed.
      which: "best" or "last" checkpoint.
      batch_size: images or tiles per call.
    """

    def __init__(self, workdir, config, which: str = "best", batch_size: int = 0):
        self.config, self.workdir = config, pathlib.Path(workdir)
        saved = checkpoint.saved_steps(self.workdir / "checkpoints")
        if not saved:
            raise InputError(f"--workdir: no checkpoint in {workdir} yet; train first")
        self.mesh = feed.all_devices()
        self.recipe = recipe.make_recipe([config])
        everywhere = NamedSharding(self.mesh, P())
        values = recipe.traced_values(config, 1, self.recipe)
        shape = (*derived.input_size(config), derived.channels(config))
        wanted = jax.eval_shape(lambda v: step.init_state(self.recipe, v, shape), values)
        part = {k: getattr(wanted, k) for k in (wanted.weights, "batch_stats")}
        part = checkpoint.abstract({k: v for k, v in part.items() if v}, everywhere)
        self.step, loaded = checkpoint.load_first(
            self.workdir / "checkpoints", (saved[which], *saved.values()), part)
        self.variables = {"params": loaded[wanted.weights],
                          "batch_stats": loaded.get("batch_stats", {})}
        self.values = {k: put(v, everywhere) for k, v in values.items()}
        self.eval_step = step.map_eval(self.recipe, self.mesh, config.eval.threshold)
        self.batch_size = -(-(batch_size or config.eval.batch_size) // self.mesh.size) * self.mesh.size
        self.tile = derived.input_size(config)
        self._rows = NamedSharding(self.mesh, P(("member", "data")))
        self._probs = step.map_probs(self.recipe, self.mesh)

    def __call__(self, image, ranges) -> np.ndarray:
        """(n, h, w, C) uint8|uint16 of one shape and (n, C, 2) ranges -> (n, h, w, K) float32."""
        out = []
        for start in range(0, len(image), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            count = len(image[chunk])
            pad = lambda x: np.resize(x[chunk], (self.batch_size, *x.shape[1:]))
            probs = self._probs(self.variables, put(pad(np.asarray(image)), self._rows),
                                put(pad(np.asarray(ranges)), self._rows))
            out.append(fetch(probs)[:count])
        return np.concatenate(out)

    def image_probs(self, image, scale: float = 0.0) -> np.ndarray:
        """(H, W, K) float32 probabilities of one whole image of any size.

        Runs that were trained on resized images resize and map the probabilities back; others
        tile at native scale with overlap. `scale` > 0 tiles the image at that scale instead.
        """
        image = records.to_channels(image, self.config.data.channels)
        height, width = image.shape[:2]
        range_ = ranges.image_ranges(image, self.config.data.normalize)
        predict = lambda batch: self(batch, np.repeat(range_[None], len(batch), 0))
        if self.config.data.fit == "resize" and not scale:
            small = resize.resize_image(image, self.config.data.size)
            probs = tiles.from_grid(predict(tiles.to_grid(small, self.config.data.grid)))
            return resize.resize_image(probs, (height, width))
        scale = scale or 1.0
        if scale != 1.0:
            image = resize.resize_image(
                image, (max(1, round(height * scale)), max(1, round(width * scale))))
        probs = tiles.predict_tiled(
            predict, image, tile=self.tile or image.shape[:2],
            overlap=self.config.eval.overlap, batch_size=self.batch_size)
        return resize.resize_image(probs, (height, width)) if scale != 1.0 else probs

    def decode(self, probs) -> np.ndarray:
        """(H, W, K) probabilities -> (H, W) int32 instances (or classes) by the eval options."""
        return targets.TARGETS[self.config.data.target].decode(
            logit(probs), threshold=self.config.eval.threshold, method=self.config.eval.decode,
            min_size=self.config.eval.min_size, h=self.config.eval.watershed_h)

    def counts(self, label, probs) -> metrics.Counts:
        """Of (1, K): Scores.main of one (H, W) label and its (H, W, K) probabilities."""
        target, threshold = targets.TARGETS[self.config.data.target], self.config.eval.threshold
        if self.config.data.target == "classes":
            truth = self.recipe.encode(label)[..., 1:]
            return metrics.pixel_counts(truth[None], target.mask(probs, threshold)[None, ..., 1:])
        return metrics.pixel_counts(label[None, ..., None] > 0,
                                    target.cell_mask(probs, threshold)[None])


class ClassicalPredictor(Predictor):
    """The same of a classical method: probabilities are 0 or 1, and images are not tiled."""

    def __init__(self, config):
        self.config, self.mesh, self.step = config, feed.all_devices(), 0
        self.values = self.variables = None
        self.tile, self.batch_size = None, 1

    def __call__(self, image, ranges) -> np.ndarray:
        """(n, h, w, C) of one shape -> (n, h, w, 1) float32; ranges are not read."""
        method = classical.CLASSICAL[self.config.model.name]
        options = recipe.classical_options(self.config)
        return np.stack([method(one, **options) for one in image])[..., None].astype(np.float32)

    def eval_step(self, values, variables, batch) -> dict:
        """What step.map_eval computes, without a loss."""
        target, threshold = targets.TARGETS[self.config.data.target], self.config.eval.threshold
        probs, label = jax.numpy.asarray(self(fetch(batch["image"]), None)), fetch(batch["label"])
        truth = target.encode(label, **derived.target_options(self.config))
        return {"probs": probs,
                "counts": metrics.pixel_counts(truth, target.mask(probs, threshold)),
                "cells": metrics.pixel_counts(label[..., None] > 0,
                                              target.cell_mask(probs, threshold))}


def make_predictor(workdir, config, which: str = "best", batch_size: int = 0) -> Predictor:
    """The Predictor of a run, whatever its model is; arguments as Predictor has them."""
    if derived.is_classical(config):
        return ClassicalPredictor(config)
    return Predictor(workdir, config, which, batch_size)


def evaluate(config, workdir, *, split: str = "test", which: str = "best") -> dict:
    """Score a split of a trained run and write eval/<split>.json, _images.csv, _predictions/.

    Scores are taken at data.size, as the network sees the images, and at the original size.
    Raises: InputError without a checkpoint or without images in the split.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    arrays = data.load(config.data)
    rundir.check_same_data(workdir, arrays.fingerprint)
    cells = arrays.grid**2
    samples = data.split_of(config.data, arrays)[split]
    indices = samples[::cells] // cells  # of images
    if len(indices) == 0:
        raise InputError(f"config.data.split: got {config.data.split}, which leaves the {split} "
                         "split without images")
    predictor = make_predictor(workdir, config, which)
    resident = feed.resident_source(config, arrays, predictor.mesh)
    source = data.records_of(config.data) if config.data.fit != "resize" else None
    has_instances = (config.data.target != "classes"
                     and config.data.get("labels", "instances") == "instances")
    original_counts, objects, calibration, report2 = [], [], [], []
    learned = not derived.is_classical(config)
    calibrate = jax.jit(lambda label, probs: metrics.calibration_counts(
        predictor.recipe.encode(label), probs))

    def at_original_size(probs):
        i = indices[len(original_counts)]
        seen = tiles.from_grid(arrays.label[i * cells : (i + 1) * cells])  # at data.size
        if learned:
            calibration.append(jax.device_get(calibrate(seen[None], probs[None])))
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
        if has_instances:
            objects.append(metrics.instance_counts(label, predictor.decode(probs)))

    def scored(images, keep_probs):
        rows = (images[:, None] * cells + np.arange(cells)).reshape(-1)
        batches = feed.eval_batches(config, arrays, rows, predictor.mesh, resident)
        return measure(predictor.eval_step, predictor.values, predictor.variables, batches,
                       keep_probs, cells)

    scores = scored(indices, at_original_size)
    original = metrics.Counts(*(np.concatenate(c).astype(np.float64)
                                for c in zip(*original_counts, strict=True)))
    main = scores.main(config)
    at_original = summarize(original)
    if has_instances:
        total = metrics.InstanceCounts(*map(sum, zip(*objects, strict=True)))
        at_original |= {name: score if np.isfinite(score) else None  # JSON has no NaN
                        for name, score in metrics.instance_scores(total).items()}
    strata = np.asarray(arrays.image_strata)[indices]
    if learned:
        total = metrics.CalibrationCounts(
            *(np.sum(c, 0, dtype=np.float64) for c in zip(*calibration, strict=True)))
        loss = {"loss": float(scores.loss.mean()),
                "ece": float(np.mean(metrics.expected_calibration_error(total)))}
    else:
        loss = {}
    table = _image_table(arrays, indices, scores.loss, main, original, objects)
    seconds = time.monotonic() - started
    result = {
        "split": split,
        "n_images": len(indices),
        "metrics": {**summarize(main), **loss},
        "metrics_original_size": at_original,
        "per_class": {str(k): summarize(metrics.Counts(*(c[:, k : k + 1] for c in scores.counts)))
                      for k in range(scores.counts.tp.shape[1])},
        "per_stratum": {str(s): {"n": int((strata == s).sum()), **summarize(
            metrics.Counts(*(c[strata == s] for c in main)))}
            for s in sorted(set(strata))},
        **({"report2": {name: float(np.mean([r[name] for r in report2]))
                        for name in report_compat.REPORT2_DEFINITIONS}} if report2 else {}),
        "definitions": DEFINITIONS | (report_compat.REPORT2_DEFINITIONS if report2 else {}) | (
            CLASS_DEFINITION if config.data.target == "classes" else {}),
        **_made_by(config, predictor.step, arrays.fingerprint),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_rss": feed.peak_rss(),
        "images_per_second": len(indices) / seconds,
    }
    pictures = _pictures(predictor, arrays, indices, table, scored)
    if jax.process_index() == 0:
        folder = pathlib.Path(workdir) / "eval"
        predictions = folder / f"{split}_predictions"
        (folder / f"{split}.json").unlink(missing_ok=True)
        shutil.rmtree(predictions, ignore_errors=True)
        predictions.mkdir(parents=True)
        for name, picture in pictures.items():
            panels.write_png(predictions / name, picture)
        rundir.write_atomic(folder / f"{split}_images.csv", _csv(table))
        # last, because its presence says that the evaluation is whole
        rundir.write_atomic(folder / f"{split}.json", json.dumps(result, indent=1) + "\n")
    return result


def read_scores(workdir, split: str, config) -> dict | None:
    """The stored scores of a split if this checkpoint and these settings made them, else None."""
    file = pathlib.Path(workdir) / "eval" / f"{split}.json"
    saved = ({"best": 0} if derived.is_classical(config)
             else checkpoint.saved_steps(pathlib.Path(workdir) / "checkpoints"))
    if not file.is_file() or not saved:
        return None
    scores = rundir.read_json(file)
    made_by = _made_by(config, saved["best"], data.load(config.data).fingerprint)
    return scores if all(scores.get(k) == v for k, v in made_by.items()) else None


def _made_by(config, checkpoint_step: int, fingerprint: str) -> dict:
    """What scores depend on: they are taken again when any of it differs."""
    return {"config_hash": config_lib.identity(config), "checkpoint_step": checkpoint_step,
            "eval_options": json.loads(config.eval.to_json()), "data_fingerprint": fingerprint,
            "code_hash": rundir.code_hash()}


def _image_table(arrays, indices, loss, counts, original, objects) -> list[dict]:
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
        rows.append(row)
    return rows


def _csv(table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _pictures(predictor, arrays, indices, table, scored) -> dict:
    """{file name: panel} of eval.panels images: half the worst, half around the median Dice."""
    config = predictor.config
    order = np.argsort([row["dice"] for row in table], kind="stable")
    half = min(config.eval.panels // 2, -(-len(order) // 2))
    rest = order[half:]  # median ones are not among the worst
    count = min(config.eval.panels - half, len(rest))
    start = min(max(len(order) // 2 - half - count // 2, 0), len(rest) - count)
    chosen = dict.fromkeys(order[:half], "worst")
    chosen |= dict.fromkeys(rest[start : start + count], "median")
    if not chosen:
        return {}
    probs = []
    scored(np.asarray([indices[n] for n in chosen]), probs.append)
    pictures = {}
    for rank, ((n, kind), one) in enumerate(zip(chosen.items(), probs, strict=True)):
        i, dice = indices[n], table[n]["dice"]
        name = pathlib.PurePath(arrays.image_names[i]).name[:40]
        cells = slice(i * arrays.grid**2, (i + 1) * arrays.grid**2)
        image, label = (tiles.from_grid(x[cells]) for x in (arrays.image, arrays.label))
        pictures[f"{rank:02d}_{kind}_dice{dice:.3f}_{name}.png"] = panels.panel(
            image, np.asarray(label, np.int32), predictor.decode(one),
            f"{name}  {arrays.image_strata[i]}  Dice {dice:.3f}",
            classes=config.data.target == "classes")
    return pictures
