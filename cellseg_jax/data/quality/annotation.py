"""What a label says of pixels that nobody annotated, and one id that seems to stand for them."""

from typing import NamedTuple

import numpy as np

from cellseg_jax.data.records import Finding
from cellseg_jax.targets import TARGETS
from cellseg_jax.targets.geometry import neighbours

MARKERS = (255, 65_535, 2**31 - 1)  # the highest values of masks: rarely ids of cells
EDGE_MASKS = 5  # with an object beside an edge, from which none on it is no chance
LEAST = 3  # masks below which one id that covers most of them is taken for an object


class Covering(NamedTuple):
    """The id that covers most of a label, 0 where there is none, and its share of the pixels."""

    id: int = 0
    share: float = 0.0


class Unknown(NamedTuple):
    """What is not annotated in a label: pixels, and objects that touch such pixels."""

    pixels: int
    touching: int


def covering(label: np.ndarray) -> Covering:
    """The object of an (H, W) instance label that looks like its background.

    It covers more than half of the pixels, reaches all four sides, or one if its id is of MARKERS,
    and there are others.
    """
    middle = int(np.partition(label.reshape(-1), label.size // 2)[label.size // 2])
    same = label == middle  # what covers more than half is the median
    share = np.count_nonzero(same) / label.size
    sides = (same[0], same[-1], same[:, 0], same[:, -1])
    reaches = any if middle in MARKERS else all
    if middle <= 0 or share <= 0.5 or not reaches(side.any() for side in sides):
        return Covering()
    return Covering(middle, share) if ((label > 0) & ~same).any() else Covering()


def sides(label: np.ndarray) -> tuple[str, str]:
    """Letters of the sides of an (H, W) label: t, b, l and r, as top, bottom, left and right.

    Returns: (sides whose last line but one an object reaches, those whose last line one reaches).
    """
    lines = {"t": label, "b": label[::-1], "l": label.T, "r": label.T[::-1]}
    reached = [("".join(name for name, one in lines.items() if len(one) > 1 and (one[n] > 0).any()))
               for n in (1, 0)]
    return reached[0], reached[1]


def of_sides(found) -> list[Finding]:
    """A note for each side whose last line no mask of many reaches.

    Args:
      found: `sides` of each mask.
    """
    names = {"t": "first row", "b": "last row", "l": "first column", "r": "last column"}
    notes = []
    for side, name in names.items():
        close = sum(side in near for near, _ in found)
        if close >= EDGE_MASKS and not any(side in last for _, last in found):
            notes.append(Finding("note", "config.data.root", f"the {name} is empty in all masks, "
                                 f"though in {close} of {len(found)} an object reaches the line "
                                 "beside it: were masks exported a pixel too small, or shifted?"))
    return notes


def of_covering(found, data_config) -> list[Finding]:
    """An error if one id looks like the background of more than half of the masks.

    Args:
      found: Covering of each mask, at least LEAST of them.
      data_config: of the masks.
    """
    ids = [one.id for one in found if one.id]
    commonest = max(set(ids), key=ids.count, default=0)
    if len(found) < LEAST or 2 * ids.count(commonest) <= len(found):
        return []
    share = np.mean([one.share for one in found if one.id == commonest])
    fix = (f"set config.data.ignore={commonest}, or give background the value 0"
           if "ignore" in data_config else "give background the value 0")
    return [Finding("error", "config.data.root", f"id {commonest} covers {share:.0%} of "
                    f"{ids.count(commonest)} masks (of {len(found)}): not annotated? {fix}")]


def of_arrays(arrays, data_config, foreground) -> list[Finding]:
    """`of_covering` of decoded data, where labels are instances.

    Args:
      foreground: share of each sample, of windows that of its whole image.
    """
    if data_config.get("labels", "instances") != "instances":
        return []
    foreground = foreground.reshape(len(arrays.image_names), -1).mean(1)
    return of_covering([covering(arrays.original_label(i)) if share > 0.25 else Covering()
                        for i, share in enumerate(foreground)], data_config)


def unknown(label: np.ndarray) -> Unknown:
    """What is not annotated in an (H, W) label: where it is -1."""
    pixels = np.count_nonzero(label < 0)
    if not pixels:
        return Unknown(0, 0)
    beside = np.any([n < 0 for n in neighbours(label)], 0)
    return Unknown(pixels, len(np.unique(label[beside & (label > 0)])))


def of_unknown(found, sizes, data_config) -> list[Finding]:
    """Notes on what is not annotated; a warning where something was to be, and nothing is.

    Args:
      found: Unknown of each mask.
      sizes: pixels of each mask.
    """
    pixels, touching = (sum(column) for column in zip(*found, strict=True))
    if not pixels:
        ignore = data_config.get("ignore", "")
        return [Finding("warning", "config.data.ignore", f"got {ignore!r}, but no mask has a pixel "
                        "that it marks; expected a value of the masks, or a file beside one")
                ] if ignore else []
    whole = sum(one.pixels == size for one, size in zip(found, sizes, strict=True))
    notes = [Finding("note", "config.data.root", f"{pixels / sum(sizes):.1%} of the pixels are not "
                     f"annotated, in {sum(one.pixels > 0 for one in found)} of {len(found)} masks: "
                     "they are in no loss and no score" + (
                         f"; nothing is annotated in {whole} masks, whose images are in no "
                         "validation and no test" if whole else ""))]
    if touching and TARGETS[data_config["target"]].num_binary is not None:
        notes.append(Finding("note", "config.data.target", f"{touching} objects touch pixels that "
                             "are not annotated: they may go on there, so that of them "
                             f"data.target={data_config['target']} learns no regressed output"))
    return notes
