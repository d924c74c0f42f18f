"""Test images of runs: their scores, which images two rows share, and tests over them."""

import collections
import csv
from typing import NamedTuple

import numpy as np

from cellseg_jax.runs.folder import images_file
from cellseg_jax.studies import stats
from cellseg_jax.studies.comparable import ORIGINAL


class Images(NamedTuple):
    """eval/test_images.csv, sorted by name."""

    names: np.ndarray
    groups: np.ndarray
    columns: dict[str, np.ndarray]  # float64, NaN where the file has nothing


def column_of(metric: str) -> str:
    """The column of test_images.csv that a metric is the mean of."""
    name, _, part = metric.partition("[")
    if part == f"{ORIGINAL}]":
        return f"{name.removesuffix('_mean')}_original"
    return metric.removesuffix("_mean")


def read_images(run, wanted) -> Images | None:
    """Some columns of a run's test images; None if it does not count, has none or is damaged."""
    file = images_file(run.workdir)
    if not run.counts or not file.is_file():
        return None
    try:
        with open(file, newline="") as lines:
            rows = sorted(csv.DictReader(lines, strict=True), key=lambda row: row["name"])
        columns = {c: np.array([row[c] or "nan" for row in rows], np.float64)
                   for c in wanted & set(rows[0])}
        names, groups = (np.array([row[c] for row in rows]) for c in ("name", "group"))
    except (csv.Error, KeyError, IndexError, TypeError, ValueError):  # cut within a line
        return None
    return Images(names, groups, columns)


def per_image(mine, base, metric) -> stats.Comparison | None:
    """Means over the repeats that tested both on the same images, image by image.

    dice_mean is compared by the column "dice"; objects are scored image by image, whatever the
    metric adds up. None for a metric without a column and where no repeat has the same images.
    """
    column = column_of(metric)
    parts = [(a, b) for a, b in zip(mine, base, strict=True)
             if a and b and column in a.columns and column in b.columns
             and np.array_equal(a.names, b.names)]
    if not parts:
        return None
    x, y = (np.concatenate([one.columns[column] for one in side])
            for side in zip(*parts, strict=True))
    names, groups = (np.concatenate([getattr(a, key) for a, _ in parts])
                     for key in ("names", "groups"))
    kept = np.isfinite(x) & np.isfinite(y)
    _, first, index = np.unique(names[kept], return_index=True, return_inverse=True)
    mean = lambda v: np.bincount(index, v[kept]) / np.bincount(index)
    return stats.per_image(mean(x), mean(y), groups[kept][first])


def coverage_notes(images, found, baseline: str) -> list[str]:
    """Test images that were scored twice, and runs with other ones than those of the baseline.

    Args:
      images: {row: [Images or None of each repeat]}, found: {row: [runs.Found of each repeat]}.
    """
    notes = []
    for row, repeats in images.items():
        for repeat, one in enumerate(repeats):
            if one is None:
                continue
            twice = [name for name, n in collections.Counter(one.names.tolist()).items() if n > 1]
            if twice:
                notes.append(f"{row}/{repeat} has {len(twice)} of its {len(set(one.names))} test "
                             f"images more than once in {images_file('').name}, such as "
                             f"{twice[0]!r}: they count more than once in its mean; expected each "
                             "once, so score it again")
            base = images[baseline][repeat]
            split = [found[name][repeat].split.get("test") for name in (row, baseline)]
            if base and split[0] == split[1] and set(one.names) != set(base.names):
                notes.append(f"{row}/{repeat} was scored on {len(set(one.names))} images and "
                             f"{baseline}/{repeat} on {len(set(base.names))}, with "
                             f"{len(set(one.names) & set(base.names))} in common: their "
                             "difference is of images too")
    return notes


def twin_notes(found) -> list[str]:
    """Rows that are one config under several names: their runs are copies, not further evidence."""
    names = collections.defaultdict(list)
    for row, runs in found.items():
        if runs and runs[0].config:
            names[repr(sorted(runs[0].config.items()))].append(row)
    return [f"{', '.join(rows)} have the same config: they are one row under {len(rows)} names, "
            "and each of them counts in the corrections for the number of rows; keep one"
            for rows in names.values() if len(rows) > 1]
