"""Masks as images: what their values mean, and how to tell that they mean something else."""

import re

import numpy as np

from cellseg_jax.data.records import some
from cellseg_jax.errors import InputError
from cellseg_jax.targets.geometry import neighbours

MANY_CLASSES = 20  # masks with larger values were made for something else


def packed(colours) -> np.ndarray:
    """(n,) integers 0xRRGGBB of hexadecimal texts."""
    for colour in colours:
        if not re.fullmatch("#?[0-9a-fA-F]{6}", str(colour)):
            raise InputError(f"config.data.colours: got {colour!r}; expected six hexadecimal "
                             "digits such as 'ff0000' for red")
    return np.array([int(colour.lstrip("#"), 16) for colour in colours], np.int64)


def indices(path, mask, colours) -> np.ndarray:
    """(H, W, 1) places in `colours` of an (H, W, 1 to 4) uint8 mask; transparent pixels are 0."""
    if mask.dtype != np.uint8:
        raise InputError(f"{path}: mask is {mask.dtype}; expected 8 bit colours where "
                         "config.data.colours is set")
    packed = _pack(mask)
    order = np.argsort(colours)
    place = order[np.searchsorted(colours, packed, sorter=order).clip(max=len(colours) - 1)]
    known = colours[place] == packed
    if not known.all():
        strange, counts = np.unique(packed[~known], return_counts=True)
        names = [f"{colour:06x}" for colour in strange[np.argsort(-counts)]]
        raise InputError(f"{path}: mask has colours {some(names)} ({counts.sum()} pixels) that "
                         "are not in config.data.colours; add them, or export the mask without "
                         "smoothing")
    if mask.shape[-1] in (2, 4):
        place = np.where(mask[..., -1] > 0, place, 0)
    return place[..., None]


def _pack(mask) -> np.ndarray:
    """(H, W) 0xRRGGBB of an (H, W, 1 to 4) uint8 mask."""
    red, green, blue = np.moveaxis(mask[..., :3] if mask.shape[-1] > 2 else
                                   mask[..., :1].repeat(3, -1), -1, 0).astype(np.int64)
    return red << 16 | green << 8 | blue


def colours_found(mask) -> str:
    """How many colours an RGB mask has, and what to do about it."""
    packed, counts = np.unique(_pack(mask), return_counts=True)
    text = f"{len(packed)} colours; "
    if mask.dtype != np.uint8 or len(packed) > MANY_CLASSES:
        return text + "expected one value per pixel, export it as gray 8 or 16 bit image of ids"
    ordered = sorted(zip(-counts, packed, strict=True), key=lambda pair: (pair[1] != 0, pair[0]))
    names = tuple(f"{colour:06x}" for _, colour in ordered)
    return (text + f'set config.data.colours="{names}" (background first; then values 1, 2, ... '
            "of labels=classes) or export it as gray image")


def _instances(path, label, values, num_classes, threshold):
    if values.tolist() in ([0, 255], [0, 65535]):
        raise InputError(f"{path}: holds only 0 and {values[-1]}: a binary mask; set "
                         "config.data.labels=binary")
    if _smeared(label, values):
        raise InputError(f"{path}: mask has {len(values)} values{_hint(label, values)}")
    return label


def _binary(path, label, values, num_classes, threshold):
    if threshold:
        return (label > threshold).astype(np.int32)
    if len(values) > 2 or (values[0] != 0 and values.tolist() not in ([1], [255], [65535])):
        raise InputError(f"{path}: mask has {len(values)} values ({some(values)}); expected 0 "
                         f"and one other such as 1 or 255{_hint(label, values)}")
    return (label > 0).astype(np.int32)


def _classes(path, label, values, num_classes, threshold):
    if values[-1] >= num_classes:
        wrong = values[values >= num_classes]
        hint = ("; for 0/255 masks set config.data.labels=binary"
                if values.tolist() in ([0, 255], [255])
                else f"; are these all classes? Set config.data.num_classes={values[-1] + 1}"
                if values[-1] < MANY_CLASSES else _hint(label, values))
        raise InputError(f"{path}: mask has values {some(wrong)}, but num_classes is "
                         f"{num_classes} (0 .. {num_classes - 1}){hint}")
    return label


def _smeared(label, values) -> bool:
    """Whether this is a mask of 0 and 255 with values between, from resizing or JPEG.

    Then more of it is bright than of middle brightness, and most values between lie alone; ids,
    even where most of the mask is 255, cover areas.
    """
    if len(values) <= 2 or not 200 < values[-1] <= 255:
        return False
    bright, dark = (np.count_nonzero(label > share * values[-1]) for share in (0.75, 0.25))
    padded = np.pad(label, 1, constant_values=-1)
    up, down, left, right = (label == other[1:-1, 1:-1] for other in neighbours(padded))
    between = (label > 0) & (label < values[-1])
    area = between & (up | down) & (left | right)
    return bright > dark - bright and 2 * np.count_nonzero(area) < np.count_nonzero(between)


def _hint(label, values) -> str:
    ids = values[values > 0]
    cut = f"set config.data.labels=binary config.data.threshold={ids[-1] // 2}"
    if _smeared(label, values) or len(ids) <= 2:
        return ("; its edges look smeared by resizing or JPEG: export it again as PNG without "
                f"interpolation, or {cut}")
    return ("; they look like instance ids: set config.data.labels=instances (or, if only edges "
            f"between two values are smeared, {cut})")


def values(path, mask, colours) -> np.ndarray:
    """(H, W) integers of an (H, W, C) mask, or places in `colours` if there are some."""
    mask = indices(path, mask, colours) if len(colours) else mask
    if (mask != mask[..., :1]).any():
        raise InputError(f"{path}: mask is RGB with {colours_found(mask)}")
    return mask[..., 0]


def label(path, values, unknown, options) -> np.ndarray:
    """(H, W) int32 label of the values of a mask, -1 where it is unknown.

    Args:
      values: (H, W) integers.
      unknown: (H, W) bool, what is not annotated.
      options: with labels, num_classes and threshold.
    Raises: InputError if the values are not what `labels` says.
    """
    partly = unknown.any()
    if partly:  # what is left must hold what `labels` says
        values = np.where(unknown, values.dtype.type(0), values)
    held = np.unique(values)
    if held[0] < 0 or held[-1] > np.iinfo(np.int32).max or (held % 1).any():
        raise InputError(f"{path}: mask has values {some(held)}; expected 0 .. 2^31 - 1")
    made = LABELS[options.labels](path, values.astype(np.int32), held, options.num_classes,
                                  options.threshold)
    return np.where(unknown, np.int32(-1), made) if partly else made


LABELS = {"instances": _instances, "binary": _binary, "classes": _classes}
