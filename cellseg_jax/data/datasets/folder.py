"""Your own images: `images/` and `masks/`, a mask with the same stem for every image.

PNG, TIFF or BMP, 8 or 16 bit; images, not masks, may be JPEG. What a mask means is `labels`:
instances (ids, 0 background), binary (foreground or not) or classes (0 .. num_classes - 1).

Pixels that nobody annotated are marked by `ignore`: they are -1 in the label, whatever the mask
holds there.
"""

import functools
import pathlib
import re
import unicodedata

import numpy as np

from cellseg_jax.data.decode import MASK_SUFFIXES, SUFFIXES
from cellseg_jax.data.read import (
    check_root,
    check_size,
    entries,
    num_pages,
    orientation,
    read_image,
    read_mask,
)
from cellseg_jax.data.records import BadFiles, Finding, Record, Records, Sample, some
from cellseg_jax.errors import InputError, nearest, pick
from cellseg_jax.targets.geometry import neighbours

MANY_CLASSES = 20  # masks with larger values were made for something else
PAGES = {"": None, "slices": None, "channels": "channels"}  # what read_image gets for them
LAYOUT = "Expected DIR/images/NAME.png and DIR/masks/NAME.png (or .tif)"


def records(root, labels="instances", num_classes=2, group="", threshold=0, colours=(),
            pages="", ignore="") -> Records:
    """One record per image, sorted by name.

    Args:
      root: the folder with images/ and masks/.
      labels: instances | binary | classes. Binary foreground is one object per image as far as
        instances are concerned: it is never split into its connected parts here.
      num_classes: classes with the background; read by labels="classes" only.
      group: regular expression with one group, searched in the stem: the case (patient, well,
        video) of an image. Images of one case never straddle a split. "": each on its own.
      threshold: with labels="binary", foreground is what lies above it: for masks with smeared
        edges. 0: masks must hold two values, of which the larger is foreground.
      colours: of RGB or palette masks as hexadecimal texts, ("000000", "ff0000"): a pixel of the
        n-th colour has the value n, the first being 0, the background.
      ignore: what marks pixels that are not annotated: a value of the masks ("255"; with colours,
        a place in them), or "suffix:_ignore" for a second file in masks/, NAME_ignore.png beside
        NAME.png, whose pixels above 0 are not annotated. An image without that file is annotated
        all over. "": nothing is left out.
      pages: slices (every page of a TIFF is a sample, the mask has a page for each, and all
        pages of a file are one group) | channels (the pages are colours) | "" (one page each).
    Raises: BadFiles with everything that is wrong with the names of files.
    """
    to_label = pick(LABELS, labels, "config.data.labels")
    channels = pick(PAGES, pages, "config.data.pages")
    find_group = _grouping(group)
    if threshold and labels != "binary":
        raise InputError(f"config.data.threshold: got {threshold} with labels={labels}; expected "
                         "0, or config.data.labels=binary")
    colours = _packed(colours)
    value, suffix = _ignored(ignore)
    root = check_root(root, LAYOUT)
    if root.absolute().name == "images" and not (root / "images").exists():
        raise InputError(f"config.data.root: '{root}' is itself the folder of images; pass the "
                         f"one it lies in, --config.data.root='{root.absolute().parent}'")
    read = functools.partial(_read, colours=colours, ignore=value, to_label=functools.partial(
        to_label, num_classes=num_classes, threshold=threshold))
    pairs, bad = _pairs(root, suffix)
    good = []
    for stem, files in pairs.items():
        try:
            case = find_group(stem)
            num_slices = _num_slices(*files) if pages == "slices" else 1
        except InputError as error:
            where, _, what = str(error).partition(": ")
            bad.append(Finding("error", where, what))
            continue
        names = [stem] if num_slices == 1 else [f"{stem}_{n:04d}" for n in range(num_slices)]
        for n, name in enumerate(names):  # which page of image and mask
            page = (channels, None) if num_slices == 1 else (n, n)
            good.append(Record(name, case, files, functools.partial(read, files, page)))
    if bad:
        raise BadFiles(bad, Records(good))
    if not good:
        raise InputError(f"config.data.root: '{root / 'images'}' is empty. {LAYOUT}")
    return Records(sorted(good, key=lambda record: record.name))


def _ignored(text: str) -> tuple[int | None, str]:
    """(value of a mask or None, how the names of files end or "") of data.ignore."""
    kind, _, suffix = text.partition(":")
    if kind == "suffix" and suffix:
        return None, suffix
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"config.data.ignore: got {text!r}; expected a value of the masks such as "
                         "255, or suffix:_ignore for files masks/NAME_ignore.png")
    return (int(text) if text else None), ""


def _pairs(root, suffix) -> tuple[dict[str, tuple[pathlib.Path, ...]], list[Finding]]:
    """({stem: (image, mask, maybe the mask of `suffix`)}, errors of files that belong to none)."""
    bad = []
    images = _by_stem(root / "images", SUFFIXES, bad)
    masks = _by_stem(root / "masks", MASK_SUFFIXES, bad)
    beside = {}
    if suffix:  # an image may have such a name too: then its mask is a mask
        beside = {stem: masks.pop(stem) for stem in sorted(masks.keys() - images.keys())
                  if stem.endswith(suffix) and stem.removesuffix(suffix) in images}
    for kind, other, lone, rest in (("image without a mask", "mask", images, masks),
                                    ("mask without an image", "image", masks, images)):
        unpaired = sorted(rest.keys() - lone.keys())
        bad += [Finding("error", str(lone[stem]), f"{kind} of its name; add or rename the {other}, "
                        f"or move the file away{nearest(stem, unpaired)}")
                for stem in sorted(lone.keys() - rest.keys())]
    return {stem: tuple(files[key] for files, key in (
        (images, stem), (masks, stem), (beside, stem + suffix)) if key in files)
            for stem in sorted(images.keys() & masks.keys())}, bad


def _by_stem(folder: pathlib.Path, suffixes, bad: list) -> dict[str, pathlib.Path]:
    """{stem: path} of the files of a folder; what does not belong there joins `bad`."""
    if not folder.is_dir():
        raise InputError(f"config.data.root: folder '{folder}' does not exist. {LAYOUT}")
    found = {}
    for path in entries(folder):
        if path.suffix.lower() not in suffixes or not path.is_file():
            fix = ("JPEG changes the values of a mask: export it as PNG, or convert it and set "
                   "config.data.labels=binary and config.data.threshold=127"
                   if path.suffix.lower() in SUFFIXES else "convert it or move it away")
            bad.append(Finding("error", str(path), f"expected only {', '.join(suffixes)} files in "
                                                   f"'{folder.name}'; {fix}"))
            continue
        stem = unicodedata.normalize("NFC", path.stem)  # macOS writes an umlaut as two letters
        if stem in found:
            bad.append(Finding("error", str(path), f"ambiguous, {found[stem].name} has the same "
                                                   "stem; keep one of the two"))
            continue
        found[stem] = path
    return found


def _grouping(pattern: str):
    """The function from the stem of an image to its group."""
    key = "config.data.group"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{key}: {pattern!r} is no regular expression ({error})") from error
    if pattern and compiled.groups != 1:
        raise InputError(f"{key}: {pattern!r} has {compiled.groups} groups; expected one, "
                         "such as '(case[0-9]+)'")

    def find(stem: str) -> str:
        match = compiled.search(stem)
        if pattern and (not match or match[1] is None):
            raise InputError(f"{key}: {pattern!r} does not match the image name {stem!r}")
        return match[1] if pattern else stem

    return find


def _packed(colours) -> np.ndarray:
    """(n,) integers 0xRRGGBB of hexadecimal texts."""
    for colour in colours:
        if not re.fullmatch("#?[0-9a-fA-F]{6}", str(colour)):
            raise InputError(f"config.data.colours: got {colour!r}; expected six hexadecimal "
                             "digits such as 'ff0000' for red")
    return np.array([int(colour.lstrip("#"), 16) for colour in colours], np.int64)


def _num_slices(image_path, *mask_paths) -> int:
    slices = num_pages(image_path)
    for path in mask_paths:
        of_mask = num_pages(path)
        if slices != of_mask:
            raise InputError(f"{path}: mask has {of_mask} pages, its image {image_path.name} has "
                             f"{slices}; expected one page for each")
    return slices


def _read(files, pages, *, colours, ignore, to_label) -> Sample:
    image_path, mask_path, *beside = files
    image = read_image(image_path, pages[0])
    mask = (read_image if len(colours) else read_mask)(mask_path, pages[1])
    check_size(mask_path, mask, image_path, image)
    mask = _indices(mask_path, mask, colours) if len(colours) else mask
    if (mask != mask[..., :1]).any():
        raise InputError(f"{mask_path}: mask is RGB with {_colours_found(mask)}")
    unknown = np.zeros(mask.shape[:2], bool) if ignore is None else mask[..., 0] == ignore
    for path in beside:
        marked = read_mask(path, pages[1])
        check_size(path, marked, image_path, image)
        unknown |= marked.any(-1)
    if unknown.any():  # what is left must hold what `labels` says
        mask = np.where(unknown[..., None], mask.dtype.type(0), mask)
    values = np.unique(mask)
    if values[0] < 0 or values[-1] > np.iinfo(np.int32).max:
        raise InputError(f"{mask_path}: mask has values {some(values)}; expected 0 .. 2^31 - 1")
    label = np.where(unknown, np.int32(-1),
                     to_label(mask_path, mask[..., 0].astype(np.int32), values))
    turned = orientation(image_path)
    findings = () if turned == 1 else (Finding(
        "warning", str(image_path), f"orientation tag {turned} is ignored, pixels are read as they "
        "are stored; if the mask was drawn on the turned picture, turn the pixels too "
        "(mogrify -auto-orient)"),)
    return Sample(image, label, "", findings)


def _indices(path, mask, colours) -> np.ndarray:
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


def _colours_found(mask) -> str:
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


LABELS = {"instances": _instances, "binary": _binary, "classes": _classes}
