"""Scores of a split with their intervals."""

from typing import NamedTuple

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference.measure import Scores, summarize
from cellseg_jax.inference.score_definitions import MEAN_SCORES, POOLED_SCORES


class Measured(NamedTuple):
    """What was measured on n images; lists are empty where it was not."""

    scores: Scores  # at data.size
    original: metrics.Counts  # (n, K), at original size
    objects: list  # metrics.InstanceCounts of each image
    surfaces: list[dict]  # original_size.surface_scores of each image
    calibration: list[np.ndarray]  # fields of metrics.CalibrationCounts, (n, K, bins)
    groups: np.ndarray  # (n,) case of each image
    strata: np.ndarray  # (n,)


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
        "per_class": _per_class(measured.scores.counts, groups),
        "per_stratum": _per_stratum(measured.scores.main(config), measured),
        **_calibration(measured.calibration),
    }


def _at_data_size(config, measured: Measured) -> tuple[dict, dict]:
    """(scores, intervals) of images as the network sees them."""
    main, groups, loss = measured.scores.main(config), measured.groups, measured.scores.loss
    scores, intervals = summarize(main), _intervals(main, groups)
    if loss is None:
        return scores, intervals
    total = metrics.CalibrationCounts(*(c.sum(0) for c in measured.calibration))
    scores |= {"loss": float(loss.mean()),
               "ece": float(np.mean(metrics.expected_calibration_error(total)))}
    intervals |= _mean_intervals({"loss": loss}, groups)
    drawn = metrics.resampled(dict(zip(total._fields, measured.calibration, strict=True)), groups)
    if drawn is not None:
        intervals["ece"] = metrics.interval(metrics.expected_calibration_error(
            metrics.CalibrationCounts(**drawn)).mean(-1))
    return scores, intervals


def _at_original_size(measured: Measured) -> tuple[dict, dict]:
    """(scores, intervals) of images at their original size, of objects and surfaces too."""
    groups, objects, surfaces = measured.groups, measured.objects, measured.surfaces
    scores, intervals = summarize(measured.original), _intervals(measured.original, groups)
    if objects:
        total = metrics.InstanceCounts(*map(sum, zip(*objects, strict=True)))
        scores |= _finite(metrics.instance_scores(total))
        intervals |= _object_intervals(objects, groups)
    if surfaces:
        columns = {name: np.array([one[name] for one in surfaces]) for name in surfaces[0]}
        scores |= _finite({name: np.mean(x[np.isfinite(x)]) if np.isfinite(x).any() else np.nan
                           for name, x in columns.items()})
        intervals |= _mean_intervals(columns, groups)
    return scores, intervals


def _per_class(counts: metrics.Counts, groups) -> dict:
    """{class: scores and intervals} of (n, K) counts."""
    out = {}
    for k in range(counts.tp.shape[1]):
        column = metrics.Counts(*(c[:, k : k + 1] for c in counts))
        out[str(k)] = {**summarize(column), "intervals": _intervals(column, groups)}
    return out


def _per_stratum(main: metrics.Counts, measured: Measured) -> dict:
    """{stratum: number of images, scores, intervals, errors}."""
    out = {}
    for stratum in sorted(set(measured.strata)):
        chosen = measured.strata == stratum
        counts = metrics.Counts(*(c[chosen] for c in main))
        out[str(stratum)] = {"n": int(chosen.sum()), **summarize(counts),
                             "intervals": _intervals(counts, measured.groups[chosen]),
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


def _mean_intervals(columns: dict, groups) -> dict:
    """{name: (low, high)} of the means of (n,) scores over the images in which they are finite."""
    out = {}
    for name, values in columns.items():
        finite = np.isfinite(values)
        sums = metrics.resampled({"sum": np.where(finite, values, 0), "n": finite}, groups)
        if sums is not None:
            with np.errstate(invalid="ignore"):  # no image drawn has a finite score
                out[name] = metrics.interval(sums["sum"] / sums["n"])
    return out


def _intervals(counts: metrics.Counts, groups) -> dict:
    """Intervals of the scores of `summarize`, of (n, K) counts."""
    out = _mean_intervals({f"{name}_mean": score(counts).mean(-1)
                           for name, score in MEAN_SCORES.items()}, groups)
    sums = metrics.resampled(counts._asdict(), groups)
    if sums is not None:
        out |= {f"{name}_pooled": metrics.interval(score(metrics.Counts(**sums)).mean(-1))
                for name, score in POOLED_SCORES.items()}
    return out


def _object_intervals(objects, groups) -> dict:
    """Intervals of instance scores, whose counts are summed over images."""
    stacked = map(np.stack, zip(*objects, strict=True))
    columns = dict(zip(metrics.InstanceCounts._fields, stacked, strict=True))
    sums = metrics.resampled(columns, groups)
    if sums is None:
        return {}
    drawn = [metrics.instance_scores(metrics.InstanceCounts(*one))
             for one in zip(*sums.values(), strict=True)]
    return {name: metrics.interval([one[name] for one in drawn]) for name in drawn[0]}
