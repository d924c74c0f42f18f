"""Your own images: `images/` and `masks/`, a mask with the same stem for every image.

PNG or TIFF, 8 or 16 bit. What a mask means is `labels`: instances (ids, 0 background), binary
(foreground or not) or classes (0 .. num_classes - 1).
"""

import functools
import pathlib
import re
import unicodedata

import numpy as np

from cellseg_jax.data.records import (
    SUFFIXES, Record, Records, Sample, check_root, check_size, entries, read_image, read_mask)
from cellseg_jax.errors import InputError, pick

MANY_CLASSES = 20  # masks with larger values were made for something else
LAYOUT = "Expected DIR/images/NAME.png and DIR/masks/NAME.png (or .tif)"


def records(root, labels="instances", num_classes=2, group="") -> Records:
    """One record per image, sorted by name.

    Args:
      root: the folder with images/ and masks/.
      labels: instances | binary | classes. Binary foreground is one object per image as far as
        instances are concerned: it is never split into its connected parts here.
      num_classes: classes with the background; read by labels="classes" only.
      group: regular expression with one group, searched in the stem: the case (patient, well,
        video) of an image. Images of one case never straddle a split. "": each on its own.
    """
    to_label = pick(LABELS, labels, "config.data.labels")
    root = check_root(root, LAYOUT)
    if root.absolute().name == "images" and not (root / "images").exists():
        raise InputError(f"config.data.root: '{root}' is itself the folder of images; pass the "
                         f"one it lies in, --config.data.root='{root.absolute().parent}'")
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")
    lone = [f"{kind} without {other}: {_some(names)}" for kind, other, names in (
        ("images", "a mask", sorted(images.keys() - masks.keys())),
        ("masks", "an image", sorted(masks.keys() - images.keys()))) if names]
    if lone:
        raise InputError(f"config.data.root: '{root}' has {'; '.join(lone)}; a mask has the name "
                         "of its image: rename, add or move files away")
    if not images:
        raise InputError(f"config.data.root: '{root / 'images'}' is empty. {LAYOUT}")
    to_label = functools.partial(to_label, num_classes=num_classes)
    return Records(
        Record(stem, _group(group, stem), (images[stem], masks[stem]),
               functools.partial(_read, images[stem], masks[stem], to_label))
        for stem in sorted(images))


def _by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise InputError(f"config.data.root: folder '{folder}' does not exist. {LAYOUT}")
    found = {}
    for path in entries(folder):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            jpeg = path.suffix.lower() in (".jpg", ".jpeg")
            fix = ("convert to PNG: JPEG changes pixel values" if jpeg
                   else "convert it or move it away")
            raise InputError(f"{path}: expected only {', '.join(SUFFIXES)} files in '{folder}'; "
                             f"{fix}")
        stem = unicodedata.normalize("NFC", path.stem)  # macOS writes an umlaut as two letters
        if stem in found:
            raise InputError(f"{path}: ambiguous, {found[stem].name} has the same stem; "
                             "keep one of the two")
        found[stem] = path
    return found


def _group(pattern: str, stem: str) -> str:
    key = "config.data.group"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{key}: {pattern!r} is no regular expression ({error})") from error
    if not pattern:
        return stem
    if compiled.groups != 1:
        raise InputError(f"{key}: {pattern!r} has {compiled.groups} groups; expected one, "
                         "such as '(case[0-9]+)'")
    match = compiled.search(stem)
    if not match or match[1] is None:
        raise InputError(f"{key}: {pattern!r} does not match the image name {stem!r}")
    return match[1]


def _read(image_path, mask_path, to_label) -> Sample:
    image, mask = read_image(image_path), read_mask(mask_path)
    check_size(mask_path, mask, image_path, image)
    if (mask != mask[..., :1]).any():
        colours = len(np.unique(mask.reshape(-1, 3), axis=0))
        raise InputError(f"{mask_path}: mask is RGB with {colours} colours; expected one value "
                         "per pixel, export it as gray or palette image")
    values = np.unique(mask)
    if values[0] < 0 or values[-1] > np.iinfo(np.int32).max:
        raise InputError(f"{mask_path}: mask has values {_some(values)}; expected 0 .. 2^31 - 1")
    return Sample(image, to_label(mask_path, mask[..., 0].astype(np.int32), values), "")


def _instances(path, label, values, num_classes):
    if values.tolist() in ([0, 255], [0, 65535]):
        raise InputError(f"{path}: holds only 0 and {values[-1]}: a binary mask; set "
                         "config.data.labels=binary")
    return label


def _binary(path, label, values, num_classes):
    if len(values) > 2 or (values[0] != 0 and values.tolist() not in ([1], [255], [65535])):
        raise InputError(f"{path}: mask has {len(values)} values ({_some(values)}); expected 0 "
                         f"and one other such as 1 or 255{_hint(values)}")
    return (label > 0).astype(np.int32)


def _classes(path, label, values, num_classes):
    if values[-1] >= num_classes:
        wrong = values[values >= num_classes]
        hint = ('; for 0/255 masks set config.data.labels="binary"'
                if values.tolist() in ([0, 255], [255])
                else f"; are these all classes? Set config.data.num_classes={values[-1] + 1}"
                if values[-1] < MANY_CLASSES else _hint(values))
        raise InputError(f"{path}: mask has values {_some(wrong)}, but num_classes is "
                         f"{num_classes} (0 .. {num_classes - 1}){hint}")
    return label


def _hint(values) -> str:
    ids = values[values > 0]
    if len(ids) > 2 and len(ids) < 200 and ids[-1] == len(ids):
        return '; they look like instance ids: set config.data.labels="instances"'
    return "; if it was resized or saved as JPEG, re-export with nearest as PNG"


def _some(values, limit=5) -> str:
    shown = ", ".join(str(v) for v in list(values)[:limit])
    return shown + (", ..." if len(values) > limit else "")


LABELS = {"instances": _instances, "binary": _binary, "classes": _classes}
