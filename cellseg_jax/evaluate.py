"""Scores of a trained run: restore, predict, decode, score, write.

Training validates through `measure` and `summarize`; `evaluate` scores a split of a finished run
and writes `eval/`.
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
from scipy.special import logit

from cellseg_jax import checkpoint, data, derived, feed, metrics, rundir, targets, tiles
from cellseg_jax import config as config_lib
from cellseg_jax.data import resize
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError
from cellseg_jax.feed import fetch
from cellseg_jax.metrics import report_compat
from cellseg_jax.predictor import make_predictor
from cellseg_jax.report import panels

MEAN_SCORES = ("dice", "iou", "precision", "recall", "accuracy")
POOLED_SCORES = ("dice", "iou")
DEFINITIONS = {
    "dice_mean": "2TP/(2TP+FP+FN) per image, 1 where truth and prediction are empty; mean of "
                 "images",
    "iou_mean": "TP/(TP+FP+FN) per image, 1 where truth and prediction are empty; mean of images",
    "dice_pooled": "2TP/(2TP+FP+FN) of the pixels of all images together",
    "iou_pooled": "TP/(TP+FP+FN) of the pixels of all images together",
    "precision_mean": "TP/(TP+FP) per image; where nothing is predicted 1 if nothing is true, else "
                      "0, as Dice has it; mean of images",
    "recall_mean": "TP/(TP+FN) per image; where nothing is true 1 if nothing is predicted, else 0, "
                   "as Dice has it; mean of images",
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

SURFACE_DEFINITIONS = {
    "hausdorff95": "95th percentile of the distances between true and predicted outline of all "
                   "cells, the larger of both directions, pixels; mean of the images in which both "
                   "have an outline",
    "surface_dice": "part of both outlines that lies within eval.surface pixels of the other, 1 "
                    "where both are empty; mean of images",
    "rand_error": "1 - Rand F-score of the pixels inside of true cells (ISBI 2012), each pixel of "
                  "predicted background on its own; cells of binary labels are 4-connected "
                  "components, the predicted ones thinned to borders of one pixel; mean of images "
                  "with cells",
    "information_error": "1 - information F-score of the same partitions; mean of images with "
                         "cells",
    "variation_of_information": "H(prediction|truth) + H(truth|prediction) of the same partitions, "
                                "bits; mean of images with cells",
}
INTERVAL_DEFINITION = ("95 % percentile bootstrap that draws whole cases (groups of images): what "
                       "another sample of such images might give. The spread between runs of "
                       "other seeds is not in it")

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
    out = {f"{name}_mean": float(np.mean(getattr(metrics, name)(counts))) for name in MEAN_SCORES}
    out |= {f"{name}_pooled": float(np.mean(getattr(metrics, name)(pooled)))
            for name in POOLED_SCORES}
    return out


def validate(eval_step, values, variables, batches, config) -> dict:
    """config.VALIDATION_METRICS of the batches."""
    scores = measure(eval_step, values, variables, batches, cells=config.data.grid**2)
    out = {**summarize(scores.main(config)), "loss": float(scores.loss.mean())}
    return {name: out[name] for name in derived.VALIDATION_METRICS}


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
    predictor = make_predictor(workdir, config, which)
    resident = feed.resident_source(config, arrays, predictor.mesh)
    source = data.records_of(config.data) if config.data.fit != "resize" else None
    cells, learned = arrays.grid**2, not derived.is_classical(config)
    original_counts, objects, surfaces, calibration, report2 = [], [], [], [], []

    def at_original_size(probs):
        i = indices[len(original_counts)]
        seen = tiles.from_grid(arrays.label[i * cells : (i + 1) * cells])  # at data.size
        if learned:
            calibration.append(jax.device_get(
                predictor.calibration_counts(seen[None], probs[None])))
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
        batches = feed.eval_batches(config, arrays, rows, predictor.mesh, resident)
        return measure(predictor.eval_step, predictor.values, predictor.variables, batches,
                       keep_probs, cells)

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
        "peak_rss": feed.peak_rss(),
        "images_per_second": len(indices) / seconds,
    }
    pictures = _pictures(predictor, arrays, indices, table, scored)
    if jax.process_index() == 0:
        folder = pathlib.Path(workdir) / "eval"
        predictions = folder / f"{name}_predictions"
        (folder / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(predictions, ignore_errors=True)
        predictions.mkdir(parents=True)
        for file, picture in pictures.items():
            panels.write_png(predictions / file, picture)
        rundir.write_atomic(folder / f"{name}_images.csv", _csv(table))
        # last, because its presence says that the evaluation is whole
        rundir.write_atomic(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return result


def read_scores(workdir, split: str, config) -> dict | None:
    """The stored scores of a split if this checkpoint and these settings made them, else None.

    Raises: InputError as `result_name`.
    """
    fingerprint = data.load(config.data).fingerprint
    name = result_name(workdir, config, split, fingerprint)
    file = pathlib.Path(workdir) / "eval" / f"{name}.json"
    saved = ({"best": 0} if derived.is_classical(config)
             else checkpoint.saved_steps(pathlib.Path(workdir) / "checkpoints"))
    if not file.is_file() or not saved:
        return None
    scores = rundir.read_json(file)
    made_by = _made_by(config, saved["best"], fingerprint)
    return scores if all(scores.get(k) == v for k, v in made_by.items()) else None


def result_name(workdir, config, split: str, fingerprint: str) -> str:
    """What the files of a split's scores are called in eval/.

    The split alone means the data that the run was trained on. Other data, by their fingerprint,
    have names of their own, "bbbc039-1a2b3c4d_all", so that nobody takes one for the other.
    Raises: InputError if `config` differs from the run's in what the network is or sees, on the
      run's own data also in their split, which would score training images.
    """
    environment = rundir.environment_file(workdir)
    own = not environment.exists() or (
        rundir.read_json(environment).get("data_fingerprint", fingerprint) == fingerprint)
    if own:
        rundir.check_same_config(workdir, config)
        if split == "all":
            raise InputError("--split: got all on the data that the run was trained on; expected "
                             "train, val or test, or other data (--config.data.root)")
        return split
    options = {option for one in (config, rundir.read_config(workdir))
               for option in data.options(one.data.name)} - set(config_lib.default().data)
    about_data = {f"data.{key}" for key in options | {
        "name", "split", "split_seed", "train_fraction", "mix"}}
    changed = {k: v for k, v in rundir.changes(workdir, config).items() if k not in about_data}
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
    split = pathlib.Path(workdir) / "split.json"
    parts = rundir.read_json(split) if split.is_file() else {}
    trained = {name for part in ("train", "val") for name in parts.get(part, ())}
    return {"data": json.loads(config.data.to_json()),
            "names_of_training_images": sum(arrays.image_names[i] in trained for i in indices)}


def _made_by(config, checkpoint_step: int, fingerprint: str) -> dict:
    """What scores depend on: they are taken again when any of it differs."""
    return {"config_hash": config_lib.identity(config), "checkpoint_step": checkpoint_step,
            "eval_options": json.loads(config.eval.to_json()), "data_fingerprint": fingerprint,
            "code_hash": rundir.code_hash()}


# --- scores of all images ------------------------------------------------------------------------


def _summary(config, scores, original, objects, surfaces, calibration, groups, strata) -> dict:
    """The scores of all images together, of classes and strata, with their intervals."""
    main = scores.main(config)
    small, small_intervals = summarize(main), _intervals(main, groups)
    if scores.loss is not None:
        total = metrics.CalibrationCounts(*(c.sum(0) for c in calibration))
        small |= {"loss": float(scores.loss.mean()),
                  "ece": float(np.mean(metrics.expected_calibration_error(total)))}
        small_intervals |= _mean_intervals({"loss": scores.loss}, groups)
        drawn = metrics.resampled(dict(zip(total._fields, calibration, strict=True)), groups)
        if drawn is not None:
            small_intervals["ece"] = metrics.interval(metrics.expected_calibration_error(
                metrics.CalibrationCounts(**drawn)).mean(-1))
    large, large_intervals = summarize(original), _intervals(original, groups)
    if objects:
        total = metrics.InstanceCounts(*map(sum, zip(*objects, strict=True)))
        large |= _finite(metrics.instance_scores(total))
        large_intervals |= _object_intervals(objects, groups)
    if surfaces:
        columns = {name: np.array([one[name] for one in surfaces]) for name in surfaces[0]}
        large |= _finite({name: np.mean(x[np.isfinite(x)]) if np.isfinite(x).any() else np.nan
                          for name, x in columns.items()})
        large_intervals |= _mean_intervals(columns, groups)
    column = lambda k: metrics.Counts(*(c[:, k : k + 1] for c in scores.counts))
    among = lambda chosen: metrics.Counts(*(c[chosen] for c in main))
    kinds = lambda chosen: {"errors": _kinds([objects[n] for n in np.flatnonzero(chosen)])}
    return {
        "metrics": small,
        "metrics_original_size": large,
        "intervals": small_intervals,
        "intervals_original_size": large_intervals,
        "n_groups": len(set(groups)),
        **(kinds(np.ones(len(groups))) if objects else {}),
        "per_class": {str(k): {**summarize(column(k)), "intervals": _intervals(column(k), groups)}
                      for k in range(scores.counts.tp.shape[1])},
        "per_stratum": {
            str(s): {"n": int((strata == s).sum()), **summarize(among(strata == s)),
                     "intervals": _intervals(among(strata == s), groups[strata == s]),
                     **(kinds(strata == s) if objects else {})}
            for s in sorted(set(strata))},
        **({"calibration": {name: c.sum(0).tolist() for name, c in zip(
            metrics.CalibrationCounts._fields, calibration, strict=True)}} if calibration else {}),
    }


def _kinds(objects) -> dict:
    """{kind: how many} of the objects of some images."""
    total = np.sum([one.kinds for one in objects], 0).tolist()
    return dict(zip(metrics.ErrorKinds._fields, total, strict=True))


def _finite(scores: dict) -> dict:
    """JSON has no NaN."""
    return {name: float(score) if np.isfinite(score) else None for name, score in scores.items()}


def _mean_intervals(columns: dict, groups) -> dict:
    """{name: (low, high)} of the means of (n,) scores over the images in which they are finite."""
    out = {}
    for name, values in columns.items():
        finite = np.isfinite(values)
        sums = metrics.resampled({"sum": np.where(finite, values, 0), "n": finite}, groups)
        if sums is not None:
            with np.errstate(invalid="ignore"):  # none of the images drawn has a say
                out[name] = metrics.interval(sums["sum"] / sums["n"])
    return out


def _intervals(counts: metrics.Counts, groups) -> dict:
    """Intervals of what `summarize` says of (n, K) counts."""
    out = _mean_intervals({f"{name}_mean": getattr(metrics, name)(counts).mean(-1)
                           for name in MEAN_SCORES}, groups)
    sums = metrics.resampled(counts._asdict(), groups)
    if sums is not None:
        out |= {f"{name}_pooled": metrics.interval(
            getattr(metrics, name)(metrics.Counts(**sums)).mean(-1)) for name in POOLED_SCORES}
    return out


def _object_intervals(objects, groups) -> dict:
    """Intervals of instance scores, whose counts are summed over images."""
    columns = dict(zip(metrics.InstanceCounts._fields, map(np.stack, zip(*objects)), strict=True))
    sums = metrics.resampled(columns, groups)
    if sums is None:
        return {}
    drawn = [metrics.instance_scores(metrics.InstanceCounts(*one))
             for one in zip(*sums.values(), strict=True)]
    return {name: metrics.interval([one[name] for one in drawn]) for name in drawn[0]}


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


def _csv(table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


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
        image, label = (tiles.from_grid(x[cells]) for x in (arrays.image, arrays.label))
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
