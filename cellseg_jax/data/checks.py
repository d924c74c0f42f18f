"""What training checks of its data by itself: cheap, from the decoded arrays and a split.

`quick` is all of it. Several runs on the same data need `of_samples` and `near_duplicates` once
and `of_split` for every split.
"""

import collections

import numpy as np

from cellseg_jax.data.duplicates import near_duplicates
from cellseg_jax.data.records import Finding
from cellseg_jax.data.split import PARTS
from cellseg_jax.errors import InputError

ROOT, SPLIT, CLASSES = "config.data.root", "config.data.split", "config.data.num_classes"
MANY = 10_000  # images whose pairs take seconds to compare: left to whoever asks for it


def quick(arrays, parts, *, num_classes=None, pairs=None) -> list[Finding]:
    """All findings of decoded data under one split; errors first, then warnings, then notes.

    Args:
      arrays: cache.Arrays, or anything with its image, label, names, groups and strata.
      parts: {"train", "val", "test"}: indices into the arrays.
      num_classes: of labels that hold classes, background included; None: only 0 or above
        matters.
      pairs: near_duplicates(arrays.image), if known; None: looked for, up to MANY images.
    """
    found = of_samples(arrays, num_classes=num_classes) + of_split(arrays, parts, pairs=pairs)
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def raise_errors(findings) -> None:
    """InputError for the first finding that is an error."""
    for finding in findings:
        if finding.level == "error":
            raise InputError(f"{finding.where}: {finding.what}")


def some(names, limit=5) -> str:
    """'a, b, c, d, e, ... (12 in all)': the first names of many."""
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


LEVELS = ("error", "warning", "note")


def of_samples(arrays, *, num_classes=None) -> list[Finding]:
    """What is wrong with single images and masks, and the balance of the classes."""
    count = num_classes or 2
    pixels = np.zeros((len(arrays.names), count + 1), np.int64)  # last: values beyond the classes
    constant = []
    for i, (image, label) in enumerate(zip(arrays.image, arrays.label)):
        if num_classes:
            pixels[i] = np.bincount(np.minimum(label, count).reshape(-1), minlength=count + 1)
        else:
            pixels[i, 1] = np.count_nonzero(label)
        colour = image[..., :3].reshape(-1, min(image.shape[-1], 3))
        if (colour[0] == colour[-1]).all() and (colour == colour[0]).all():
            constant.append(arrays.names[i])
    area = arrays.label[0].size
    if not num_classes:
        pixels[:, 0] = area - pixels[:, 1]
    empty = [name for name, p in zip(arrays.names, pixels) if p[0] == area]
    full = [name for name, p in zip(arrays.names, pixels) if p[0] == 0]
    n, found = len(arrays.names), []
    if len(empty) == n:
        return [Finding("error", ROOT, "all masks are empty, there is no cell to learn from; "
                        "expected labels above 0")]
    return found


def of_split(arrays, parts, *, pairs=None) -> list[Finding]:
    """What makes the scores of a split too good or impossible: leaks and missing strata."""
    return []
