"""Scores of a split with their intervals."""

from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference import object_summary
from cellseg_jax.inference.measure import Scores
from cellseg_jax.inference.pixel_summary import PixelScores, mean_intervals


class Measured(NamedTuple):
    """What was measured on n images; lists are empty where it was not."""

    scores: Scores  # at data.size
    original: metrics.Counts  # (n, K), at original size
    objects: list  # metrics.InstanceCounts of each image
    surfaces: list[dict]  # original_size.surface_scores of each image
    calibration: list[np.ndarray]  # fields of metrics.CalibrationCounts, (n, K, bins)
    soft: dict[str, np.ndarray]  # {metrics.SOFT_SCORES: (n, K)} at data.size
    groups: np.ndarray  # (n,) case of each image
    strata: np.ndarray  # (n,)
    found: list  # metrics.ImageObjects of each image

    def main(self, config) -> PixelScores:
        """What headline scores are made of; see Scores.main."""
        soft = self.soft
        if config.data.target == "classes":
            soft = {name: values[:, 1:] for name, values in soft.items()}
        return PixelScores(self.scores.main(config), soft, self.groups, self.strata)


def summary(config, measured: Measured) -> dict:
    """The scores of all images together, of classes and strata, with their intervals."""
    groups = measured.groups
    small, small_intervals = _at_data_size(config, measured)
    large, large_intervals = _at_original_size(measured)
    return {
        "metrics": small,
        "metrics_original_size": large,
        "intervals": small_intervals,
        "intervals_original_size": large_intervals,
        "n_groups": len(set(groups)),
        **_errors(measured.objects, np.ones(len(groups), bool)),
        **({"size_edges": metrics.size_edges(measured.found)} if measured.objects else {}),
        "per_class": _per_class(measured),
        "per_stratum": _per_stratum(measured.main(config), measured),
        **_calibration(measured.calibration),
    }


def _at_data_size(config, measured: Measured) -> tuple[dict, dict]:
    """(scores, intervals) of images as the network sees them."""
    main, groups, loss = measured.main(config), measured.groups, measured.scores.loss
    scores, intervals = _finite(main.scores(macro=True)), main.intervals(macro=True)
    if loss is None:
        return scores, intervals
    total = metrics.CalibrationCounts(*(c.sum(0) for c in measured.calibration))
    scores |= {"loss": float(loss.mean()),
               "ece": float(np.mean(metrics.expected_calibration_error(total)))}
    intervals |= mean_intervals({"loss": loss}, groups)
    drawn = metrics.resampled(dict(zip(total._fields, measured.calibration, strict=True)), groups)
    if drawn is not None:
        intervals["ece"] = metrics.interval(metrics.expected_calibration_error(
            metrics.CalibrationCounts(**drawn)).mean(-1))
    return scores, intervals


def _at_original_size(measured: Measured) -> tuple[dict, dict]:
    """(scores, intervals) of images at their original size, of objects and surfaces too."""
    groups, objects, surfaces = measured.groups, measured.objects, measured.surfaces
    pixels = PixelScores(measured.original, {}, groups, measured.strata)
    scores, intervals = _finite(pixels.scores(macro=True)), pixels.intervals(macro=True)
    if objects:
        scores |= _finite(object_summary.scores(objects, measured.found))
        intervals |= object_summary.intervals(objects, measured.found, groups)
    if surfaces:
        columns = {name: np.array([one[name] for one in surfaces]) for name in surfaces[0]}
        scores |= _finite({name: np.mean(x[np.isfinite(x)]) if np.isfinite(x).any() else np.nan
                           for name, x in columns.items()})
        intervals |= mean_intervals(columns, groups)
    return scores, intervals


def _per_class(measured: Measured) -> dict:
    """{output: scores and intervals}."""
    pixels = PixelScores(measured.scores.counts, measured.soft, measured.groups, measured.strata)
    columns = [pixels.of_outputs(slice(k, k + 1)) for k in range(pixels.counts.tp.shape[1])]
    return {str(k): {**_finite(one.scores()), "intervals": one.intervals()}
            for k, one in enumerate(columns)}


def _per_stratum(main: PixelScores, measured: Measured) -> dict:
    """{stratum: number of images, scores, intervals, errors}."""
    out = {}
    for stratum in sorted(set(measured.strata)):
        chosen = measured.strata == stratum
        images = main.of_images(chosen)
        out[str(stratum)] = {"n": int(chosen.sum()), **_finite(images.scores()),
                             "intervals": images.intervals(),
                             **_finite(object_summary.scores(
                                 measured.objects, measured.found, chosen)),
                             **_errors(measured.objects, chosen)}
    return out


def _errors(objects, chosen) -> dict:
    """{"errors": {kind: count}} of the objects of chosen images; {} where none were counted."""
    if not objects:
        return {}
    total = np.sum([objects[n].kinds for n in np.flatnonzero(chosen)], 0).tolist()
    return {"errors": dict(zip(metrics.ErrorKinds._fields, total, strict=True))}


def _calibration(counts) -> dict:
    """{"calibration": the bins of all images together}; {} where none were counted."""
    if not counts:
        return {}
    totals = [c.sum(0).tolist() for c in counts]
    return {"calibration": dict(zip(metrics.CalibrationCounts._fields, totals, strict=True))}


def _finite(scores: dict) -> dict:
    """JSON has no NaN."""
    return {name: float(score) if np.isfinite(score) else None for name, score in scores.items()}
