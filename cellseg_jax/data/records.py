"""What a dataset yields: records, samples, and findings on its files."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax.errors import InputError


class Finding(NamedTuple):
    """Something a user should know of the data. An error stops training, a note is information."""

    level: str  # "error" | "warning" | "note"
    where: str  # the file, folder or key
    what: str  # found, expected, how to fix; one line


class Sample(NamedTuple):
    """One decoded image with its truth."""

    image: np.ndarray  # (H, W, C) uint8 or uint16
    label: np.ndarray  # (H, W) int32, ids or classes, 0 background, -1 not annotated
    stratum: str  # what a split balances: modality, class, look
    findings: tuple[Finding, ...] = ()  # such as "3 of 120 polygons have no area: left out"


class Record(NamedTuple):
    """One sample not yet decoded. Samples of one `group` never straddle a split."""

    name: str
    group: str
    files: tuple[pathlib.Path, ...]  # everything `read` depends on, image first; () if in memory
    read: Callable[[], Sample]
    part: str = ""  # "train" | "val" | "test" in the dataset's own split
    # () -> (height, width) of a pixel in micrometres or None; None: that of the first file
    pixel_size: Callable | None = None
    size: Callable | None = None  # () -> (height, width) of the image; None: as the first file's


class BadFiles(InputError):
    """What is wrong with the files of a dataset, all of it, in one line.

    `findings` has one error each, `records` the samples that nothing is wrong with so far.
    """

    def __init__(self, findings, records=()):
        first, *more = findings
        names = ", ".join(dict.fromkeys(pathlib.Path(f.where).name for f in more[:10]))
        rest = f"; and {len(more)} more: {names}" if more else ""
        super().__init__(f"{first.where}: {first.what}{rest}")
        self.findings, self.records = tuple(findings), records


class Records(list):
    """A dataset's Records sorted by name, and what was noticed while listing its files."""

    def __init__(self, records, findings=()):
        super().__init__(records)
        self.findings = tuple(findings)


def some(names, limit=5) -> str:
    """'a, b, c, d, e, ... (12 in all)': the first of many names, for a message."""
    names = [str(name) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
