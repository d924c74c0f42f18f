"""Scores of a split with their intervals."""

import numpy as np

from cellseg_jax import metrics
from cellseg_jax.inference.definitions import MEAN_SCORES, POOLED_SCORES
from cellseg_jax.inference.measure import summarize

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
    out = _mean_intervals({f"{name}_mean": score(counts).mean(-1)
                           for name, score in MEAN_SCORES.items()}, groups)
    sums = metrics.resampled(counts._asdict(), groups)
    if sums is not None:
        out |= {f"{name}_pooled": metrics.interval(score(metrics.Counts(**sums)).mean(-1))
                for name, score in POOLED_SCORES.items()}
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
