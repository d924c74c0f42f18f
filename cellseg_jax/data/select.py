"""Which records of a dataset are read, and background-only images that are added to them."""

import collections
import functools

import numpy as np

from cellseg_jax.data.read import image_size
from cellseg_jax.data.records import Record, Records, Sample, some
from cellseg_jax.data.split import MIXED
from cellseg_jax.errors import InputError

BLANK = f"{MIXED}blank/"  # how names of background-only images begin


def of_size(records: Records, size: tuple[int, int]) -> Records:
    """The records whose image has exactly that height and width in pixels.

    Headers of files are read, not pixels; records without files are read whole.

    Raises: InputError if there are none, with the sizes that there are.
    """
    sizes = [record.size() if record.size else image_size(record.files[0]) if record.files
             else record.read().image.shape[:2] for record in records]
    kept = [record for record, found in zip(records, sizes, strict=True) if found == size]
    if records and not kept:
        counts = collections.Counter(f"{height}x{width}" for height, width in sizes)
        found = [f"{text} ({count} images)" for text, count in counts.most_common()]
        raise InputError(f"config.data.only_size: got {size}, but no image has that size; there "
                         f"are {some(found)}")
    return Records(kept, records.findings)


def of_strata(strata, wanted, keep) -> np.ndarray:
    """(m,) bool: the images of the strata that are wanted, and those to keep whatever they are.

    Raises: InputError for a stratum that no image has, with those that there are.
    """
    missing = sorted(set(wanted) - set(strata))
    if missing:
        known = sorted(set(strata) - {""})
        raise InputError(f"config.data.strata: got {missing[0]!r}, but the images "
                         + (f"are {some(known)}" if known else "have no strata; leave it empty"))
    return np.isin(np.asarray(strata), list(wanted)) | keep


def blank(count: int, size: tuple[int, int]) -> list[Record]:
    """Background-only images of that size for training: every pixel is 0, and there is no cell.

    0 is the background of fluorescence; where the background is bright they are of no use.
    """
    return [Record(f"{BLANK}{i:04d}", f"{BLANK}{i:04d}", (), functools.partial(_blank, size),
                   "train") for i in range(count)]


def _blank(size) -> Sample:
    return Sample(np.zeros((*size, 1), np.uint8), np.zeros(size, np.int32), "blank")
