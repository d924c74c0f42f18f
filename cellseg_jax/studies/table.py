"""The table of a study: scores and costs of its rows, compared, with their noise and claims."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError, pick
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import comparable, learning_curve, stats
from cellseg_jax.studies.claims import JudgedClaim, judge_claims
from cellseg_jax.studies.confounders import Differs, differences
from cellseg_jax.studies.course import COURSE, LOSS_METRICS
from cellseg_jax.studies.equivalence import Within, within
from cellseg_jax.studies.gaps import (
    Gaps,
    by_rank,
    diverged,
    gaps_of,
    limited,
    own_gaps,
    with_last,
    word_between,
)
from cellseg_jax.studies.output.image_tables import (
    column_of,
    coverage_notes,
    per_image,
    read_images,
    twin_notes,
)
from cellseg_jax.studies.row_families import FRACTION, families
from cellseg_jax.studies.runs import Run, read, split_ratio, values_of
from cellseg_jax.studies.study import Study, metrics_of

DETECTABLE = (0.005, 0.01, 0.02)  # differences of a score: how many repeats find them?
SPLIT_SEED = "data.split_seed"
# What a network is trained to say: the loss of another target is another loss.
TARGET_KEYS = ("data.target", "data.num_classes", "data.contour_width", "data.num_rays",
               "data.weight_w0", "data.weight_sigma")


class RankReading(NamedTuple):
    """A row against the baseline with the repeats that diverged as the worst, see gaps.by_rank."""

    comparison: stats.Comparison
    adjusted_p: float  # Holm over all rows of the table
    verdict: str  # better, worse, not distinguishable or too few repeats


class Row(NamedTuple):
    """A row of the table. The keys of all mappings by metric are Table.metrics."""

    name: str
    changes: Mapping[str, object]  # {dotted key: value} against the study's base
    runs: list[Run]  # one per repeat
    values: dict[str, np.ndarray]  # {metric: (R,) float64}, NaN = not there or not counted
    mean: dict[str, float]  # of the repeats that count, NaN = none
    sd: dict[str, float]  # over repeats (n - 1), NaN = fewer than two
    reference: Mapping[str, float]  # {metric: published value}
    compared: dict[str, stats.Comparison | None]  # this row minus the baseline; None: baseline, or
    #   another loss, other pixels or classes
    adjusted_p: dict[str, float]  # Holm over the rows, for each metric by itself
    verdicts: dict[str, str]  # one of stats.VERDICTS; "" for the baseline and what is not ranked
    per_image: dict[str, stats.Comparison | None]  # secondary; None: not the same test images
    diverged: np.ndarray = np.zeros(0, bool)  # (R,) which runs became non-finite
    gaps: Mapping[str, Gaps] = {}  # {metric: repeats without a score}
    by_rank: Mapping[str, RankReading] = {}  # {score: reading}, where this or the baseline diverged
    within: Mapping[str, Within] = {}  # {metric of MARGIN: equal to the baseline, no worse, or not}
    differs: tuple[Differs, ...] = ()  # all keys in which it differs from the baseline


class Curve(NamedTuple):
    """A score against the number of training images, over rows that differ in nothing else."""

    name: str  # of the family of rows
    metric: str
    points: list[tuple[str, int, int, float]]  # (row, repeat, training images, score)
    available: float  # training images of the whole split
    fit: learning_curve.Fit | None
    problem: str  # why there is no fit, else ""
    needed: Mapping[float, tuple[float, tuple[float, float]]]  # {target: images_needed}
    lacking: str = ""  # "unet_0.5: 1 of 3 diverged": runs that the fit has to do without


class Table(NamedTuple):
    """A study's results: all that its tables and its page show."""

    study: Study
    workdir: str
    rows: list[Row]  # of a Grid, those with a folder or a published value
    claims: list[JudgedClaim]
    noise: dict[str, stats.Noise]  # {metric: spread of runs of the same config}
    notes: list[str]  # a sentence each that a reader needs beside the numbers
    missing: list[str]  # "row/repeat: why it does not count"
    metrics: tuple[str, ...] = ()  # columns: the study's metrics, then RESOURCES
    definitions: Mapping[str, str] = {}  # {metric: text}
    best: Mapping[str, tuple[str, tuple[str, ...]]] = {}  # {metric: (row with the best mean,
    #   rows that are not distinguishable from it)}; marked as best only if there are none
    needed: Mapping[float, float] = {}  # {wanted difference: repeats}, headline metric; inf: never
    test_train_ratio: float = 0.0  # > 0: the repeats' random splits overlap, and tests allow for it
    curves: tuple[Curve, ...] = ()  # one per family, if the study has LEARNING_CURVE


def collect(study, workdir, *, rows=None, repeats=None, smoke=False) -> Table:
    """The table of a Study from the run folders WORKDIR/<row>/<repeat>.

    Args:
      rows: names of rows, default all; the baseline is always among them.
      repeats: per row, default the study's.
      smoke: the runs were made with the study's SMOKE.
    Raises: InputError for an unknown row, or where rows would be ranked by losses that differ.
    """
    for name in rows or ():
        pick(study.rows, name, "--rows")
    names = [name for name in study.rows if rows is None or name in {study.baseline, *rows}]
    _refuse_losses(study, names)
    found, missing, notes = read(
        study, workdir, names, repeats=repeats or study.repeats, smoke=smoke)
    metrics = tuple(dict.fromkeys((*study.metrics, *RESOURCES)))
    values = {name: {m: values_of(runs, m) for m in metrics} for name, runs in found.items()}
    ratio = _test_train_ratio(study, found)
    wanted = {column_of(metric) for metric in study.metrics}
    images = {name: [read_images(one.run, wanted) for one in runs] for name, runs in found.items()}
    notes = [*notes, *coverage_notes(images, found, study.baseline), *twin_notes(found)]
    made = [_row(study, name, found, values, ratio) for name in found]
    made = _with_ranks(study, _with_verdicts(study, made, images), ratio)
    made = [row._replace(differs=differences(study, row.name, found, smoke=smoke))
            for row in _with_margins(study, made)]
    definitions = {k: v for runs in found.values() for one in runs
                   for k, v in one.test.get("definitions", {}).items()}
    if study.learning_curve and not _draws_splits(study):
        notes = [*notes, "All repeats train on the same images (VARIES has no data.split_seed): "
                         "intervals of the learning curve leave out which images were drawn."]
    return Table(
        study, str(workdir), made, judge_claims(study, found, ratio),
        {m: stats.noise_floor([values[name][m] for name in found]) for m in metrics},
        notes, missing, metrics,
        _definitions(definitions, metrics),
        {m: best for m in metrics if (best := _best(study, m, made, ratio))},
        _needed(study, made, values[study.baseline], ratio), ratio,
        tuple(_curve(study, name, {row: found[row] for row in rows}, ratio)
              for name, rows in families(study, found).items())
        if study.learning_curve else ())


def _definitions(stored, metrics) -> dict[str, str]:
    """{metric: text} of all columns; of one stratum or class as of all."""
    known = {**stored, **COURSE, **{name: one.definition for name, one in RESOURCES.items()}}
    parts = {m: m.partition("[") for m in metrics if "[" in m}
    words = lambda part: ("at the original size" if part == comparable.ORIGINAL
                          else f"of {part} alone")
    return known | {m: f"{known[base]}; {words(part.rstrip(']'))}"
                    for m, (base, _, part) in parts.items() if base in known}


def _row(study, name, found, values, ratio) -> Row:
    """A row without its verdicts, which depend on the other rows."""
    mine, base = values[name], values[study.baseline]
    known = {m: x[np.isfinite(x)] for m, x in mine.items()}
    both = (name, study.baseline)
    ranked = [m for m in mine if name != study.baseline and _same_loss(study, m, both)
              and comparable.compare(found, both, m)]
    return Row(
        name, study.rows[name], [one.run for one in found[name]], mine,
        {m: float(x.mean()) if len(x) else math.nan for m, x in known.items()},
        {m: float(x.std(ddof=1)) if len(x) > 1 else math.nan for m, x in known.items()},
        study.reference.get(name, {}),
        {m: stats.paired(x, base[m], test_train_ratio=ratio) if m in ranked else None
         for m, x in mine.items()},
        {}, {}, {}, diverged(found[name]), {m: gaps_of(found[name], m) for m in mine})


def _with_verdicts(study, rows, images) -> list[Row]:
    """The rows with Holm-adjusted p-values and a verdict for each metric."""
    base, adjusted = next(row for row in rows if row.name == study.baseline), {}
    for metric in rows[0].compared:
        judged = [row for row in rows if row.compared[metric]
                  and row.compared[metric].n >= stats.MIN_PAIRS]
        adjusted[metric] = dict(zip(
            (row.name for row in judged),
            stats.holm([row.compared[metric].p for row in judged]).tolist(), strict=True))
    out = []
    for row in rows:
        p = {m: adjusted[m].get(row.name, math.nan) for m in row.compared}
        out.append(row._replace(
            adjusted_p=p,
            verdicts={m: limited(stats.verdict(one, p[m], stats.larger_is_better(m)),
                                 *own_gaps((row, base), m)) if one else ""
                      for m, one in row.compared.items()},
            per_image={m: per_image(images[row.name], images[study.baseline], m) if one else None
                       for m, one in row.compared.items()}))
    return out


def _with_ranks(study, rows, ratio) -> list[Row]:
    """The rows with a reading by rank of each score, if a run of the table diverged.

    All rows are read and adjusted, so that the number of readings does not depend on chance; only
    those of a row that diverged, or of all if the baseline did, are kept.
    """
    base = next(row for row in rows if row.name == study.baseline)
    if not any(row.diverged.any() for row in rows):
        return rows
    readings = {row.name: {} for row in rows}
    for metric in dict.fromkeys(study.metrics):
        others = [row for row in rows if row.compared[metric]]
        last = lambda row, m=metric: with_last(row.values[m], row.diverged,
                                               stats.larger_is_better(m))
        compared = [by_rank(last(row), last(base), ratio) for row in others]
        adjusted = stats.holm([one.p for one in compared]).tolist()
        for row, one, p in zip(others, compared, adjusted, strict=True):
            if row.diverged.any() or base.diverged.any():
                readings[row.name][metric] = RankReading(one, p, stats.verdict(one, p))
    return [row._replace(by_rank=readings[row.name]) for row in rows]


def _with_margins(study, rows) -> list[Row]:
    """The rows with what is shown within the study's margins."""
    base, found = next(row for row in rows if row.name == study.baseline), {}
    for metric, margin in study.margin.items():
        others = [row for row in rows if row.compared[metric]]
        found[metric] = dict(zip((row.name for row in others), within(
            [row.compared[metric] for row in others],
            [own_gaps((row, base), metric) for row in others],
            margin, stats.larger_is_better(metric)), strict=True))
    return [row._replace(within={m: of_row[row.name] for m, of_row in found.items()
                                 if row.name in of_row}) for row in rows]


def _best(study, metric, rows, ratio) -> tuple[str, tuple[str, ...]] | None:
    """The row of the best mean, and the rows that no paired test distinguishes from it.

    The best row has to be better than each other one, which needs no adjustment: also than those
    without a run that ended well, but for rows that have ended and have no such score (the cost of
    what is not trained). A row of which a repeat diverged or is missing cannot be best; None where
    there is no other one. Rows that are not compared with the baseline do not take part.
    """
    rows = [row for row in rows if np.isfinite(row.mean[metric])
            or not any(run.counts for run in row.runs)]
    if not _same_loss(study, metric, [row.name for row in rows]):
        return None
    alone, rows = len(rows) == 1, [row for row in rows if row.name == study.baseline
                                   or row.compared[metric]]
    whole = [row for row, gap in zip(rows, own_gaps(rows, metric), strict=True) if not gap]
    if not whole or len(rows) == 1 and not alone:
        return None
    up = stats.larger_is_better(metric)
    best = (max if up else min)(whole, key=lambda row: row.mean[metric])
    beaten = lambda row: word_between(best, row, metric, ratio) == "better"
    return best.name, tuple(row.name for row in rows if row is not best and not beaten(row))


def _needed(study, rows, base, ratio) -> dict[float, float]:
    """{difference of a score: repeats that find it with a power of 0.8}, Holm's first step."""
    headline = study.metrics[0]
    known = np.concatenate([row.values[headline] for row in rows])
    known = known[np.isfinite(known)]
    if headline in RESOURCES or not known.size or known.min() < 0 or known.max() > 1:
        return {}
    others = [row for row in rows if row.name != study.baseline]
    # The difference from a row without randomness varies less than that of two networks.
    sd = stats.noise_floor([row.values[headline] - base[headline] for row in others
                            if row.sd[headline] > 0]).sd
    alpha = stats.ALPHA / max(1, len(others))
    return {} if math.isnan(sd) else {wanted: stats.repeats_needed(
        sd, wanted, alpha=alpha, test_train_ratio=ratio) for wanted in DETECTABLE}


def _curve(study, name, found, ratio) -> Curve:
    """The learning curve of a family's {row: runs}; images that are mixed in are not counted."""
    metric, targets = study.learning_curve["metric"], study.learning_curve["targets"]
    images = np.array([[sum(not name.startswith(MIXED) for name in one.split.get("train", ()))
                        for one in runs] for runs in found.values()])
    scores = np.array([values_of(runs, metric) for runs in found.values()])
    known = np.isfinite(scores) & (images > 0)
    scores[~known] = math.nan
    sizes = np.where(known, images, 0).sum(1) / np.maximum(known.sum(1), 1)
    rows = list(found)
    curve = Curve(name, metric, [(rows[k], int(r), int(images[k, r]), float(scores[k, r]))
                                 for k, r in np.argwhere(known)], math.nan, None, "", {},
                  "; ".join(f"{row}: {gap}" for row, runs in found.items()
                            if (gap := gaps_of(runs, metric))))
    larger = stats.larger_is_better(metric)
    best = 1.0 if larger else 0.0
    beyond = any((score > best) == larger and score != best for *_, score in curve.points)
    try:
        fit = learning_curve.fit(sizes, scores.T, larger_is_better=larger,
                                 best=None if beyond else best, test_train_ratio=ratio)
    except InputError as error:
        return curve._replace(problem=str(error))
    share, size = max((one.config[FRACTION], n) for runs, n in zip(
        found.values(), sizes, strict=True) for one in runs if n and one.config)
    return curve._replace(available=float(size / share), fit=fit, needed={
        target: learning_curve.images_needed(fit, target) for target in targets})


def _draws_splits(study) -> bool:
    """Whether each repeat is tested on other images: folds, or random splits."""
    return study.folds is not None or SPLIT_SEED in study.varies


def _test_train_ratio(study, found) -> float:
    """Of stats.paired: the largest of rows; 0 where repeats share a split."""
    if not _draws_splits(study):
        return 0.0
    counted = [[one for one in runs if one.run.counts] for runs in found.values()]
    return max((split_ratio([one.split for one in runs], [one.config[FRACTION] for one in runs])
                for runs in counted), default=0.0)


def _same_loss(study, metric, names) -> bool:
    """Whether a metric may rank these rows: any but a loss, and that if they train with one."""
    return metric.partition("[")[0] not in LOSS_METRICS or not _loss_keys(study, names)


def _loss_keys(study, names) -> list[str]:
    """The keys in which rows differ that make their losses different ones: loss.*, the target."""
    base = config_lib.flatten(study.base)
    changes = [study.rows[name] for name in names]
    keys = dict.fromkeys(k for one in changes for k in one
                         if k.startswith("loss.") or k in TARGET_KEYS)
    return [k for k in keys if len({repr(one.get(k, base.get(k))) for one in changes}) > 1]


def _refuse_losses(study, names) -> None:
    """InputError where the headline or a claim ranks rows by losses that are not one loss."""
    ranked = [("METRICS", study.metrics[0], names)]
    ranked += [(f"CLAIMS[{i}]", metrics_of(study, claim)[0], rows)
               for i, claim in enumerate(study.claims) for rows in _compared_rows(claim)]
    for where, metric, compared in ranked:
        if metric.partition("[")[0] not in LOSS_METRICS:
            continue
        keys = _loss_keys(study, compared)
        if keys:
            raise InputError(f"{study.name}: {where} ranks rows by {metric}, but rows differ in "
                             f"{', '.join(keys)}, and different losses do not compare; rank by a "
                             "score such as 'dice_mean'")


def _compared_rows(claim) -> list[tuple[str, ...]]:
    """Groups of rows that a claim compares with one another."""
    return claim.pairs if claim.matched else [(*claim.better, *claim.worse)]
