"""The test images on which a row wins and loses most against the baseline, with their pictures."""

import math
import pathlib
from typing import NamedTuple

from cellseg_jax.report import embedded, panels
from cellseg_jax.studies import stats
from cellseg_jax.studies.output.disagreement import mean
from cellseg_jax.studies.output.summary import headline

SHOWN = 3  # images of each side
PICTURED = 6  # images with pictures, of all rows together
TILE = 200  # pixels, longer side of a picture


class Image(NamedTuple):
    """A test image of two rows; means of the repeats that tested it in both."""

    name: str
    gain: float  # of the row over the baseline, positive where the row is better
    mine: float
    base: float


def extremes(mine, base, larger_is_better: bool = True) -> tuple[list[Image], list[Image]]:
    """(images that a row wins by most, those that it loses by most), at most SHOWN each.

    Args:
      mine, base: {image: (score, stratum)} or None of each repeat, as disagreement.run_scores;
        repeats that only one of both has are left out.
    """
    pairs = {}
    for a, b in zip(mine, base, strict=True):
        for name in a.keys() & b.keys() if a and b else ():
            if math.isfinite(a[name][0] - b[name][0]):
                pairs.setdefault(name, []).append((a[name][0], b[name][0]))
    found = []
    for name, scores in sorted(pairs.items()):
        x, y = (mean(side) for side in zip(*scores, strict=True))
        found.append(Image(name, x - y if larger_is_better else y - x, x, y))
    ranked = sorted(found, key=lambda image: -image.gain)
    return ([image for image in ranked[:SHOWN] if image.gain > 0],
            [image for image in ranked[::-1][:SHOWN] if image.gain < 0])


def of_rows(table, scores, column) -> dict[str, tuple[list[Image], list[Image]]]:
    """`extremes` of all rows that are compared with the baseline.

    Args:
      scores: {row: disagreement.run_scores}.
    """
    base = scores[table.study.baseline]
    up = stats.larger_is_better(column)
    return {row.name: extremes(scores[row.name], base, up) for row in table.rows
            if row.compared[headline(table)]}


def strips(table, wins, found) -> list[dict]:
    """Image, truth, prediction of the baseline and of the row, of at most PICTURED images.

    Rows take turns, so that each has its first image before one has its second.

    Args:
      wins: of `of_rows`; found: of disagreement.pictures.
    """
    base, queue = table.study.baseline, []
    for row, sides in wins.items():
        images = [(row, side, image) for side, images in zip(("wins", "loses"), sides, strict=True)
                  for image in images if {row, base} <= found.get(image.name, {}).keys()]
        queue += [(place, *one) for place, one in enumerate(images)]
    queue.sort(key=lambda one: one[0])
    return [_strip(row, base, side, image, found[image.name])
            for _, row, side, image in queue[:PICTURED]]


def _strip(row, base, side, image, found) -> dict:
    tile = lambda path, n: embedded.jpeg(panels.tiles(pathlib.Path(path))[n], TILE).src
    return {"row": row, "side": side, "name": image.name, "gain": image.gain,
            "image": tile(found[base][1], 0), "truth": tile(found[base][1], 1),
            "predictions": [{"row": name, "dice": found[name][0], "score": score,
                             "src": tile(found[name][1], 2)}
                            for name, score in ((base, image.base), (row, image.mine))]}
