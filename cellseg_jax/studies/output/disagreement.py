"""Scores of single test images over the rows of a study, and pictures where rows disagree."""

import csv
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from cellseg_jax.files import read_csv
from cellseg_jax.report import embedded, panels
from cellseg_jax.report.document import Cell
from cellseg_jax.runs.folder import images_file, pictures_folder
from cellseg_jax.runs.page import PICTURE_NAME
from cellseg_jax.studies.output.image_tables import column_of
from cellseg_jax.studies.output.summary import counted, headline

LISTED, PICTURED = 15, 6  # images listed, and shown
TILE = 280  # pixels, longer side of a picture


def image_column(table) -> str:
    """The column of test_images.csv that the headline metric is the mean of, else dice."""
    name = column_of(headline(table))
    for row in table.rows:
        for run in counted(row):
            path = images_file(run.workdir)
            if path.is_file():
                with open(path, newline="") as file:
                    return name if name in next(csv.reader(file), ()) else "dice"
    return "dice"


def run_scores(row, column: str) -> list[Mapping[str, tuple[float, str]] | None]:
    """{image: (score, stratum)} of each repeat; None where it does not count, or is damaged."""
    return [_scores_of(run, column) if run.counts else None for run in row.runs]


def _scores_of(run, column) -> Mapping[str, tuple[float, str]] | None:
    try:
        return {line["name"]: (float(line[column] or "nan"), line["stratum"])
                for line in read_csv(images_file(run.workdir), [])}
    except (KeyError, TypeError, ValueError):  # cut within a line
        return None


def image_scores(runs) -> Mapping[str, tuple[float, str]]:
    """{image: (mean score of the repeats that tested it, stratum)} of a row's run_scores."""
    scores, strata = {}, {}
    for images in filter(None, runs):
        for name, (score, stratum) in images.items():
            scores.setdefault(name, []).append(score)
            strata[name] = stratum
    return {name: (mean(values), strata[name]) for name, values in scores.items()}


def mean(values) -> float:
    """Mean of the finite ones, nan without any."""
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan


def disagreements(table, images) -> dict | None:
    """The test images whose scores depend most on the row, with the pictures that exist.

    Args:
      images: {row: image_scores}.
    Returns: `rows` of a table and `strips` of pictures, or None without an image of two rows.
    """
    spread = _spread(images)
    ranked = sorted(spread, key=lambda name: -spread[name][0])
    if not ranked:
        return None
    strata = {name: s for scores in images.values() for name, (_, s) in scores.items()}
    found = pictures(table, set(ranked))
    contrast = lambda name: float(np.ptp([spread[name][1][row] for row in found[name]]))
    pictured = sorted((n for n in ranked[: max(LISTED, len(ranked) // 4)] if n in found),
                      key=contrast, reverse=True)[:PICTURED]
    return {"rows": [_listed(name, strata[name], *spread[name]) for name in ranked[:LISTED]],
            "strips": [_strip(name, spread[name][1], found[name])
                       for name in sorted(pictured, key=ranked.index)]}


def _spread(images) -> dict[str, tuple[float, dict]]:
    """{image: (standard deviation over rows, {row: score})} of images with two rows or more."""
    spread = {}
    for name in sorted({n for scores in images.values() for n in scores}):
        by_row = {row: images[row][name][0] for row in images if name in images[row]
                  and math.isfinite(images[row][name][0])}
        if len(by_row) >= 2:
            spread[name] = (float(np.std(list(by_row.values()), ddof=1)), by_row)
    return spread


def _listed(name, stratum, sd, by_row) -> list:
    ends = min(by_row, key=by_row.get), max(by_row, key=by_row.get)
    return [name, stratum, f"{sd:.3f}", *(Cell(f"{by_row[row]:.3f}", row) for row in ends)]


def _strip(name, by_row, found) -> dict:
    """Image, truth, prediction of the worst row with a picture, and of the best one."""
    order = sorted(found, key=lambda row: by_row.get(row, math.inf))
    chosen = list(dict.fromkeys((order[0], order[-1])))
    image, truth, _ = panels.tiles(found[chosen[0]][1])
    source = lambda tile: embedded.jpeg(tile, TILE).src
    worst, best = min(by_row, key=by_row.get), max(by_row, key=by_row.get)
    return {"name": name, "image": source(image), "truth": source(truth),
            "worst": (worst, by_row[worst]), "best": (best, by_row[best]),
            "predictions": [{
                "row": row, "dice": found[row][0], "score": by_row.get(row, math.nan),
                "src": source(panels.tiles(found[row][1])[2])} for row in chosen]}


def pictures(table, names) -> dict:
    """{image: {row: (Dice in that run, path)}} of the pictures that runs kept.

    A picture's file name holds the first 40 letters of the image's; where two images share
    them, neither is taken.
    """
    full = {}
    for name in names:
        full.setdefault(pathlib.PurePath(name).name[:40], []).append(name)
    found = {}
    for row in table.rows:
        for run in counted(row):
            for path in sorted(pictures_folder(run.workdir).glob("*.png")):
                match = PICTURE_NAME.fullmatch(path.name)
                if match and len(full.get(match[3], ())) == 1:
                    found.setdefault(full[match[3]][0], {}).setdefault(row.name, (match[2], path))
    return found
