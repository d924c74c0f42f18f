"""What the objects of outlines become in a label, by the options of the dataset."""

import numpy as np

from cellseg_jax.data.annotations.raster import painted
from cellseg_jax.data.records import Finding, some
from cellseg_jax.errors import InputError

BY_CLASS = "class:"  # how data.ignore names the class that marks what is not annotated
REGION = "*"  # what QuPath's classes of regions end in: Ignore*, Region*


def check(path, options) -> None:
    """InputError for an option that is about the values of pixels, which outlines do not have."""
    by_value = options.ignore and not options.ignore.startswith((BY_CLASS, "suffix:"))
    for key, used in (("threshold", options.threshold), ("colours", len(options.colours)),
                      ("ignore", by_value)):
        if used:
            raise InputError(f"config.data.{key}: got {getattr(options, key)!r}, but {path.name} "
                             "holds outlines, which have no pixel values; leave it out"
                             + (", or name what is not annotated by class:NAME or suffix:_ignore"
                                if key == "ignore" else ""))


def label(path, found, options) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """((H, W) int32 label, findings) of the objects of a file.

    Objects of the class that options.ignore names are -1, and so is what is empty in regions of
    it. Those of other classes that end in "*", QuPath's for regions, are no objects unless
    options.classes names them.

    Args:
      path: of the file, for messages.
      found: raster.Drawn.
      options: with labels, classes and ignore.
    Raises: InputError if labels are classes, and an object has none of options.classes.
    """
    unknown = options.ignore.removeprefix(BY_CLASS) if options.ignore.startswith(BY_CLASS) else None
    kinds = {n: kind for n, kind in found.kinds.items() if kind != unknown}
    regions = {n for n, kind in kinds.items() if kind.endswith(REGION)
               and kind not in options.classes}
    kinds = {n: kind for n, kind in kinds.items() if n not in regions}
    others = {n for n, kind in kinds.items() if kind not in options.classes}
    findings = found.findings
    if regions:
        findings += (_left_out(path, found, regions, "regions to QuPath (classes that end in *); "
                               "config.data.ignore=class:NAME makes one what is not annotated"),)
    if options.labels == "classes":
        _check_classes(path, kinds, others, options.classes)
        values = {n: options.classes.index(kind) + 1 for n, kind in kinds.items()}
    else:
        others = others if options.classes else set()
        values = {n: 1 if options.labels == "binary" else n for n in kinds if n not in others}
        if others:
            findings += (_left_out(path, found, others, "of classes that config.data.classes does "
                                   "not name"),)
    values |= {n: -1 for n, kind in found.kinds.items() if kind == unknown}
    drawn = found.label
    if len(values) < len(found.kinds):  # what is left out covers nothing
        size = drawn.shape
        before = painted(path, found.shapes, size)[1]
        drawn, overlaps = painted(path, {n: found.shapes[n] for n in values}, size)
        findings = (*(one for one in findings if one not in before), *overlaps)
    ids, of_ids = np.array([(0, 0), *sorted(values.items())], np.int64).T
    label = of_ids[np.searchsorted(ids, drawn)].astype(np.int32)
    for region in found.regions:
        if region.kind == unknown:
            inside = label[region.window]
            inside[region.mask & (inside == 0)] = -1
    return label, findings


def _left_out(path, found, ids, why) -> Finding:
    names = some(sorted({found.kinds[n] or "(none)" for n in ids}))
    return Finding("note", str(path), f"{len(ids)} of {len(found.kinds)} objects are left out, "
                                      f"{names}: {why}")


def _check_classes(path, kinds, wrong, classes) -> None:
    if not wrong:
        return
    shown = tuple(sorted({kind for kind in kinds.values() if kind}))
    missing = sum(not kind for kind in kinds.values())
    raise InputError(
        f"{path}: {len(wrong)} objects have no class of config.data.classes {classes}; its classes "
        f"are {shown}" + (f", and {missing} objects have none" if missing else "")
        + "; name all of them in config.data.classes, and set config.data.num_classes to one more")
