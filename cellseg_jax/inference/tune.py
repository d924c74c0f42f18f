"""Decoding options that score best on the validation images of a run, kept in its tuning.json.

Test images are never looked at: only the part "val" of the run's own split is read.
"""

import json
import pathlib
from collections.abc import Callable

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data, metrics
from cellseg_jax.config import derived
from cellseg_jax.data.scale import as_image
from cellseg_jax.errors import InputError, check_choice
from cellseg_jax.files import interpreting, read_json, write_atomic
from cellseg_jax.report import terminal
from cellseg_jax.runs import provenance
from cellseg_jax.runs.folder import TUNING_FILE, check_same_data, read_config

METRICS = ("ap", "ap50", "ap75", "f1", "pq", "seg", "det", "aji")
CHOICES = {
    "decode": ("components", "watershed"),
    "threshold": (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8),
    "watershed_h": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "nms": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "flow_error": (0.0, 0.2, 0.3, 0.4, 0.6, 1.0),
    "smooth": (0.0, 0.5, 1.0, 2.0),
    "seed_depth": (0.02, 0.05, 0.1, 0.2, 0.3),
}
MIN_SIZES = (0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # shares of a true object's median area
MAX_PIXELS = 2**27  # of validation images in memory; of more, some, evenly spread


def tune(predictor, metric: str, *, fixed=()) -> dict:
    """The best decoding options for a metric, from tuning.json or found on the validation images.

    One option after the other of those that the target's decode reads is set to what scores best,
    the current value winning ties: how objects are cut, the threshold, the depth of the
    watershed, what distance, star and flow have of their own, the least size.

    Args:
      predictor: of the run.
      metric: of METRICS, on all validation images together, at their original size.
      fixed: keys, as "eval.threshold", that stay as they are.
    Returns: {"metric", "score", "score_before", "options": {"eval.threshold": ...}, "n_images",
      "tried": [[options, score], ...], "made_by"}.
    Raises: InputError where the run has no validation images, or no instances.
    """
    check_choice(metric, METRICS, "--tune")
    config, file = predictor.config, pathlib.Path(predictor.workdir) / TUNING_FILE
    made_by = _made_by(config, predictor.step, metric, fixed)
    if file.exists():
        before = read_json(file)
        if before.get("made_by") == made_by:
            return before
    images = validation_images(predictor)
    choices = choices_of(config, [label for label, _ in images], fixed)
    start = start_of(config)
    with terminal.counting("tuning") as progress:
        most = sum(map(len, choices.values()))
        score = Score(predictor, images, metric, lambda done: progress(done, most))
        best = best_options(start, choices, score)
        scores = score(start), score(best)
    result = {"metric": metric, "score": scores[1], "score_before": scores[0],
              "options": {f"eval.{key}": value for key, value in best.items()},
              "split": "val", "n_images": len(images), "tried": score.tried, "made_by": made_by}
    write_atomic(file, json.dumps(result, indent=1) + "\n")
    return json.loads(json.dumps(result))


class Score:
    """Options -> their score on the images; each is computed once.

    Args:
      images: [(label, probabilities), ...].
      progress: called with the number of options tried.
    """

    def __init__(self, predictor, images, metric: str, progress):
        self.predictor, self.images, self.metric = predictor, images, metric
        self.progress, self.tried, self._counts = progress, [], []

    def __call__(self, options: dict) -> float:
        """The metric of the images decoded with the options."""
        known = [value for other, value in self.tried if other == options]
        if known:
            return known[0]
        self.tried.append((options, self.among(range(len(self.images)))(options)))
        self.progress(len(self.tried))
        return self.tried[-1][1]

    def counts(self, options: dict) -> list[metrics.InstanceCounts]:
        """The counts of each image; each is computed once."""
        for other, counts in self._counts:
            if other == options:
                return counts
        self._counts.append((options, [
            metrics.instance_counts(label, self.predictor.decode(probs, **options))
            for label, probs in self.images]))
        return self._counts[-1][1]

    def among(self, chosen) -> Callable[[dict], float]:
        """Options -> the score of images number `chosen` alone."""
        def score(options):
            counts = self.counts(options)
            total = metrics.summed(counts[i] for i in chosen)
            return float(metrics.instance_scores(total)[self.metric])
        return score


def start_of(config) -> dict:
    """{option: value} of what is tuned, as the config has it."""
    keys = derived.decode_keys(config)
    return {key: config.eval[key] for key in (*CHOICES, "min_size") if key in keys}


def choices_of(config, labels, fixed=()) -> dict:
    """{option: values that are tried} of the options that the target's decode reads.

    Args:
      labels: the true ones, whose areas decide the least sizes.
      fixed: keys, as "eval.threshold", that are left out.
    Raises: InputError where they hold no objects.
    """
    areas = np.concatenate([np.unique(label[label > 0], return_counts=True)[1]
                            for label in labels])
    if not areas.size:
        raise InputError("--tune: the validation images hold no objects; expected some")
    sizes = sorted({round(share * float(np.median(areas))) for share in MIN_SIZES})
    keys = derived.decode_keys(config)
    return {key: values for key, values in (CHOICES | {"min_size": sizes}).items()
            if key in keys and f"eval.{key}" not in fixed}


def best_options(options: dict, choices: dict, score: Callable) -> dict:
    """The options after each was set to what scores best, one after the other."""
    for key in (*CHOICES, "min_size"):
        if key == "watershed_h" and options.get("decode") != "watershed":  # not read there
            continue
        for value in choices.get(key, ()):
            if score({**options, key: value}) > score(options):
                options = {**options, key: value}
    return options


def read(workdir, config, step: int) -> dict:
    """tuning.json of a run; InputError if there is none, or none of this checkpoint and code."""
    file = pathlib.Path(workdir) / TUNING_FILE
    if not file.exists():
        raise InputError(f"--workdir: {workdir} has no {TUNING_FILE}; make it with python -m "
                         f"cellseg_jax.predict --workdir={workdir} --tune=ap50")
    with interpreting(file):
        tuning = read_json(file)
        made_by = dict(tuning["made_by"])
        sentence(tuning)
        if not all(key.startswith("eval.") for key in tuning["options"]):
            raise InputError(f"{file}: has options that are none of eval; tune again")
    for key, value in _made_by(config, step, "", ()).items():
        if key not in ("metric", "fixed", "options") and made_by.get(key) != value:
            raise InputError(f"{file}: was made with another {key} ({made_by.get(key)}, now "
                             f"{value}); tune again")
    return tuning


def found(predictor) -> dict | None:
    """tuning.json of a run where there is one of this checkpoint and code; else None."""
    try:
        return read(predictor.workdir, read_config(predictor.workdir), predictor.step)
    except InputError:
        return None


def apply(config, tuning: dict):
    """The config with the tuned options."""
    return config_lib.override(config, [(k, str(v)) for k, v in tuning["options"].items()])


def sentence(tuning: dict) -> str:
    """What was found, as one line."""
    options = ", ".join(f"{key}={value}" for key, value in tuning["options"].items())
    return (f"tuned for {tuning['metric']} on {tuning['n_images']} validation images: "
            f"{tuning['score_before']:.4f} -> {tuning['score']:.4f} with {options}")


def _made_by(config, step, metric, fixed) -> dict:
    return {"run": config_lib.identity(config), "checkpoint step": int(step), "metric": metric,
            "fixed": sorted(fixed), "options": config_lib.as_json(config.eval),
            "code": provenance.code_hash()}


def validation_images(predictor) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(label, probabilities)] of the validation images, at their original size."""
    config = predictor.config
    if config.data.target == "classes" or config.data.get("labels", "instances") != "instances":
        raise InputError("--tune: this run's truth has no instances to match; nothing to tune")
    arrays = data.load(config.data)
    check_same_data(predictor.workdir, arrays.fingerprint)
    cells = arrays.grid**2
    indices = data.split_of(config.data, arrays)["val"][::cells] // cells
    if len(indices) == 0:
        raise InputError(f"--tune: config.data.split={config.data.split} leaves no validation "
                         "images; expected a run with some")
    pixels = sum(int(np.prod(arrays.original_sizes[i])) for i in indices)
    indices = indices[:: -(-pixels // MAX_PIXELS)]
    source, out = data.records_of(config.data), []
    for first in range(0, len(indices), predictor.batch_size):
        part = indices[first : first + predictor.batch_size]
        probs = predictor.probs([as_image(source[i]) for i in part])
        out += [(arrays.original_label(i), one) for i, one in zip(part, probs, strict=True)]
    return out
