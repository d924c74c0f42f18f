"""Predictions out of fold of a study's rows, what is tuned on them, and ensembles of the folds.

Where the repeats of a study are folds (study.folds), the runs of a row together predict every
image by a network that never saw it. In STUDY/out_of_fold/<row>:

    predictions/     label and probabilities of each image, out of fold
    images.csv       its scores at the original size
    ensemble/        labels of the outer test part by the mean of all folds' probabilities
    ensemble.csv     their scores, image by image
    scores.json      all of it in numbers; it is there when the others are complete

With `tune`, decoding options are found on predictions out of fold: for the images of a fold on
those of the other folds, which gives the scores "tuned"; for the ensemble on all of them. Only the
first assignment counts, as many repeats as there are folds.
"""

import json
import math
import pathlib
from typing import NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics
from cellseg_jax.config import derived
from cellseg_jax.data.scale import as_image
from cellseg_jax.files import read_csv, read_json, write_atomic, write_csv
from cellseg_jax.inference import outputs, tune
from cellseg_jax.inference.ensemble import Ensemble
from cellseg_jax.inference.evaluate import images_of
from cellseg_jax.inference.original_size import pixel_counts
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.report import terminal
from cellseg_jax.runs import provenance
from cellseg_jax.runs.folder import check_same_data
from cellseg_jax.runs.lock import InUse, Lock
from cellseg_jax.studies import stats

FOLDER = "out_of_fold"
PREDICTIONS, ENSEMBLE, SCORES = "predictions", "ensemble", "scores.json"
IMAGES_CSV, ENSEMBLE_CSV = "images.csv", "ensemble.csv"
TABLE = "ensembles"  # .csv and .md in the study's folder


class Images(NamedTuple):
    """The images of a row's runs, as prediction reads them."""

    arrays: data.Arrays
    records: data.Records

    def batches(self, indices, size: int):
        """Yields (indices, [image, ...]), `size` at a time."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield part, [as_image(self.records[i]) for i in part]


class ImageScore(NamedTuple):
    """Counts of one image; see metrics."""

    pixels: metrics.Counts  # (1, K)
    objects: metrics.InstanceCounts | None  # None where labels hold no instances


def combine(study, workdir, row: str, runs) -> dict | None:
    """Predict, tune and score a row out of fold, unless that is done; what scores.json holds.

    None where the row learns nothing that predicts (labels made elsewhere), or another process is
    at it.

    Args:
      runs: [(config, folder), ...] of the folds, all of them done.
    Raises: InputError where the data have changed.
    """
    config = runs[0][0]
    if derived.is_labels(config):
        return None
    folder = pathlib.Path(workdir) / FOLDER / row
    try:
        with Lock(folder):
            members = [Predictor(path, one) for one, path in runs]
            made_by = {
                "runs": [[config_lib.identity(one), int(member.step)]
                         for (one, _), member in zip(runs, members, strict=True)],
                "eval": config_lib.as_json(config.eval), "tune": study.folds.tune,
                "code": provenance.code_hash()}
            before = read_json(folder / SCORES, {})
            if before.get("made_by") != made_by:
                (folder / SCORES).unlink(missing_ok=True)
                terminal.log(f"{row}: predictions out of fold")
                before = _combined(study, folder, members) | {"made_by": made_by}
                write_atomic(folder / SCORES, json.dumps(before, indent=1) + "\n")
            return json.loads(json.dumps(before))
    except InUse as error:
        terminal.log(str(error))
        return None


def _combined(study, folder, members) -> dict:
    """scores.json without what made it; writes the other files."""
    config = members[0].config
    arrays = data.load(config.data)
    for member in members:
        check_same_data(member.workdir, arrays.fingerprint)
    images = Images(arrays, data.records_of(config.data))
    tested = [images_of(member.config, arrays, "test") for member in members]
    pixels = sum(int(np.prod(arrays.original_sizes[i])) for part in tested for i in part)
    every = -(-pixels // tune.MAX_PIXELS) if study.folds.tune else math.inf
    rows, scored, kept = [], [], []
    for number, (member, part) in enumerate(zip(members, tested, strict=True)):
        for n, (i, probs, label, score) in enumerate(_predicted(member, images, part)):
            _write(folder / PREDICTIONS, member.config, images, i, label, probs)
            if n % every == 0:  # of each fold one at least: options are found on the others
                kept.append((number, i, probs))
            rows.append({"fold": number, **_row(arrays, i, score)})
            scored.append(score)
    write_csv(folder / IMAGES_CSV, rows)
    result = {"folds": len(members), "n_images": len(rows), "scores": totals(scored)}
    if study.folds.tune:
        result["tuned"] = _tuned(study.folds.tune, members[0], images, kept)
    outer = data.outer_test_images(config.data, arrays)
    if len(outer):
        result["outer"] = _outer(folder, members, images, outer, result.get("tuned"))
    return result


def _predicted(predictor, images: Images, indices, options=None):
    """Yields (index, probabilities, label, ImageScore) of images, at their original size.

    Args:
      options: of the decoding, by keys of config.eval.
    """
    for part, batch in images.batches(indices, predictor.batch_size):
        for i, probs in zip(part, predictor.probs(batch), strict=True):
            yield i, probs, *_scored(predictor, images.arrays.original_label(i), probs, options)


def _scored(predictor, truth, probs, options=None) -> tuple[np.ndarray, ImageScore]:
    """The decoded label of an image and its score."""
    label = predictor.decode(probs, **(options or {}))
    pixels = pixel_counts(predictor, truth, probs, label)
    objects = (metrics.instance_counts(truth, label)
               if derived.has_cells(predictor.config) else None)
    return label, ImageScore(pixels, objects)


def totals(scores: list[ImageScore]) -> dict[str, float]:
    """Scores of several images at their original size: means of pixels, sums of objects."""
    mean = lambda score: float(np.mean([score(one.pixels).mean() for one in scores]))
    out = {"dice_mean": mean(metrics.dice), "iou_mean": mean(metrics.iou)}
    if scores[0].objects is not None:
        total = metrics.instance_scores(metrics.summed(one.objects for one in scores))
        out |= {name: float(value) for name, value in total.items()}
    return out


def _row(arrays, i, score: ImageScore) -> dict:
    """One line of images.csv."""
    row = {"name": arrays.image_names[i], "stratum": arrays.image_strata[i],
           "group": arrays.image_groups[i], **totals([score])}
    if score.objects is not None:
        row |= {"n_true": score.objects.n_true, "n_pred": score.objects.n_pred}
    return row


def _write(folder, config, images: Images, i, label, probs=None) -> None:
    stem, image = folder / images.arrays.image_names[i], as_image(images.records[i])
    for name in ("tiff",) if probs is None else ("tiff", "probability"):
        outputs.write(name, stem, label, image, probability=probs,
                      classes=derived.class_names(config))


def _tuned(metric: str, predictor, images: Images, kept) -> dict:
    """Decoding options found out of fold, see the head of this file.

    Args:
      kept: [(fold, image, probabilities), ...], of all images where they fit memory.
    """
    fold = np.array([number for number, *_ in kept])
    pairs = [(images.arrays.original_label(i), probs) for _, i, probs in kept]
    start = tune.start_of(predictor.config)
    score = tune.Score(predictor, pairs, metric, lambda done: None)

    def found(chosen) -> dict:
        choices = tune.choices_of(predictor.config, [pairs[i][0] for i in chosen])
        return tune.best_options(start, choices, score.among(chosen))

    numbers = np.unique(fold).tolist()
    of_folds = [found(np.flatnonzero(fold != number)) for number in numbers]
    tuned = [score.counts(of_folds[numbers.index(number)])[i] for i, number in enumerate(fold)]
    as_trained = score.counts(start)
    value = lambda counts: {name: float(x) for name, x in metrics.instance_scores(
        metrics.summed(counts)).items()}
    return {"metric": metric, "n_images": len(pairs), "options": found(range(len(pairs))),
            "options_of_folds": of_folds, "scores_before": value(as_trained),
            "scores": value(tuned)}


def _outer(folder, members, images: Images, outer, tuned) -> dict:
    """Scores of the folds and of their ensemble on images that none of them saw."""
    each = [totals([score for *_, score in _predicted(member, images, outer)])
            for member in members]
    ensemble, rows, found, found_tuned = Ensemble(members), [], [], []
    for i, probs, label, score in _predicted(ensemble, images, outer):
        row = _row(images.arrays, i, score)
        found.append(score)
        if tuned:
            label, score = _scored(ensemble, images.arrays.original_label(i), probs,
                                   tuned["options"])
            found_tuned.append(score)
            row |= {f"{name}_tuned": x for name, x in totals([score]).items()}
        _write(folder / ENSEMBLE, ensemble.config, images, i, label)
        rows.append(row)
    write_csv(folder / ENSEMBLE_CSV, rows)
    return {"n_images": len(outer), "members": each, "ensemble": totals(found),
            **({"ensemble_tuned": totals(found_tuned)} if tuned else {})}


# --- the table of all rows ------------------------------------------------------------------------


def table_rows(study, workdir, combined: dict) -> list[dict]:
    """A line per row and way to predict: out of fold, and by the ensemble on the outer test part.

    "difference" is that of the study's headline metric (dice_mean, where it is another one) to the
    same line of the baseline, image by image, with its 95 % interval; its p-value is not adjusted.

    Args:
      combined: {row: what `combine` gave}.
    """
    metric = study.metrics[0]
    if not all(metric in found["scores"] for found in combined.values()):
        metric = "dice_mean"  # some labels hold no instances
    out = []
    for row, found in combined.items():
        for how, n_images, scores, file, column in _lines(found, metric):
            compared = None
            if file and row != study.baseline and study.baseline in combined:
                compared = _against_baseline(study, workdir, row, file, column)
            low, high = compared.interval if compared else (None, None)
            out.append({"row": row, "predicted": how, "n_images": n_images, **scores,
                        "metric": metric, "difference": compared and compared.difference,
                        "low": low, "high": high, "p": compared and compared.p})
    return out


def _lines(found, metric):
    """Yields (how it was predicted, images, scores, file of the images' scores, its column)."""
    yield "out of fold", found["n_images"], found["scores"], IMAGES_CSV, metric
    if tuned := found.get("tuned"):
        yield "out of fold, tuned", tuned["n_images"], tuned["scores"], "", ""
    if outer := found.get("outer"):
        n_images, each = outer["n_images"], outer["members"]
        mean = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        yield "folds on the outer test part, mean", n_images, mean, "", ""
        name = f"ensemble of {found['folds']}"
        yield name, n_images, outer["ensemble"], ENSEMBLE_CSV, metric
        if "ensemble_tuned" in outer:
            yield (f"{name}, tuned", n_images, outer["ensemble_tuned"], ENSEMBLE_CSV,
                   f"{metric}_tuned")


def _against_baseline(study, workdir, row, file, column) -> stats.Comparison | None:
    """Secondary, since another seed is another set of networks; see stats.per_image."""
    mine, base = ({line["name"]: line for line in read_csv(
        pathlib.Path(workdir) / FOLDER / name / file)} for name in (row, study.baseline))
    names = sorted(mine.keys() & base.keys())
    if not names or any(column not in side[names[0]] for side in (mine, base)):
        return None
    values = [[float(side[name][column] or "nan") for name in names] for side in (mine, base)]
    return stats.per_image(*values, [mine[name]["group"] for name in names])


def write_table(study, workdir, combined: dict) -> list[str]:
    """Write ensembles.csv and .md into the study's folder; a sentence for each row."""
    rows = table_rows(study, workdir, combined)
    fields = list(dict.fromkeys(name for row in rows for name in row))
    workdir = pathlib.Path(workdir)
    write_csv(workdir / f"{TABLE}.csv", rows, fields)
    metric = rows[0]["metric"]
    shown = [name for name in ("dice_mean", "iou_mean", "ap50", "pq") if name in fields]
    shown = list(dict.fromkeys((metric, *shown)))
    columns = ["row", "predicted", "images", *shown, f"{metric} against {study.baseline}"]
    lines = [[row["row"], row["predicted"], str(row["n_images"]),
              *(f"{row[name]:.4f}" if row.get(name) is not None else "-" for name in shown),
              _difference(row)] for row in rows]
    write_atomic(workdir / f"{TABLE}.md", "".join(
        f"| {' | '.join(line)} |\n" for line in (columns, ["---"] * len(columns), *lines)))
    terminal.print_table("Predictions out of fold, and ensembles of the folds", columns, lines)
    return [_sentence(row, found, metric) for row, found in combined.items()]


def _difference(row) -> str:
    if row["difference"] is None:
        return "-"
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def _sentence(row, found, metric) -> str:
    """What the folds of a row give together."""
    text = (f"{row}: {metric} of all {found['n_images']} images, each predicted by the fold that "
            f"did not see it, at the original size: {found['scores'][metric]:.4f}")
    if "tuned" in found:
        tuned = found["tuned"]
        name = tuned["metric"]
        count = tuned["n_images"]  # fewer where not all fit memory
        text += (f"; {name}{f' of {count} of them' * (count < found['n_images'])} "
                 f"{tuned['scores_before'][name]:.4f}, with decoding options found on the other "
                 f"folds {tuned['scores'][name]:.4f}")
    if "outer" not in found:
        return (f"{text}. No ensemble: each image trained some of the folds; folds(..., test=0.2) "
                "keeps images for it.")
    outer = found["outer"]
    each = [one[metric] for one in outer["members"]]
    text += (f". On the {outer['n_images']} images of the outer test part the folds have "
             f"{np.mean(each):.4f} ± {np.std(each, ddof=1):.4f}, their ensemble "
             f"{outer['ensemble'][metric]:.4f}")
    if "ensemble_tuned" in outer:
        text += (f"; its {name} {outer['ensemble'][name]:.4f}, with options found on all folds "
                 f"{outer['ensemble_tuned'][name]:.4f}")
    return f"{text}."
