"""Your own images with masks or annotations; docs/formats.md lists the layouts.

The plain one is `images/` and `masks/` with a mask of the same name for every image. Images are
PNG, TIFF, BMP or JPEG, 8 or 16 bit; masks are PNG, TIFF or BMP, NumPy or Zarr arrays; or outlines
drawn in ImageJ, QuPath, labelme or a tool that exports COCO. Which one is recognised by what lies
there (`data.annotations.pairing`). Folders in both, by condition or well, are strata: images are
called CONDITION_NAME, every part of a split has its share of each, and scores are told apart. A
folder for each image, with its mask or one for each object, is read too (`image_folders`).

What a mask means is `labels`: instances (ids, 0 background), binary (foreground or not) or classes
(0 .. num_classes - 1). Pixels that nobody annotated are marked by `ignore`: they are -1 in the
label, whatever the mask holds there.
"""

import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.annotations import FORMATS, geojson, layouts, masks, nnunet, outlines
from cellseg_jax.data.annotations.pairing import Pair, listing
from cellseg_jax.data.annotations.raster import Drawn, Plane
from cellseg_jax.data.nnunet_channels import numbers
from cellseg_jax.data.ome_sets import set_of
from cellseg_jax.data.read import (
    check_root,
    check_size,
    image_axes,
    image_with_notes,
    mask_with_notes,
    num_images,
    orientation,
    pixels_of,
    read_mask,
)
from cellseg_jax.data.records import BadFiles, Finding, Record, Records, Sample
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError, check_choice, pick


class Options(NamedTuple):
    """The options of the dataset, keys of config.data."""

    # Binary foreground is one object per image as far as instances are concerned: it is never
    # split into its connected parts here.
    labels: str = "instances"  # what masks hold: instances | binary | classes
    num_classes: int = 2  # with the background; read by labels="classes" only
    # Regular expression with one group, searched in the stem: the case (patient, well, video) of
    # an image. Images of one case never straddle a split. "": each on its own.
    group: str = ""
    # With labels="binary", foreground is what lies above it: for masks with smeared edges. 0: masks
    # must hold two values, of which the larger is foreground.
    threshold: int = 0
    # Of RGB or palette masks as hexadecimal texts, ("000000", "ff0000"): a pixel of the n-th colour
    # has the value n, the first being 0, the background.
    colours: tuple = ()
    # slices (every page of a TIFF is a sample, the mask has a page for each, and all pages of a
    # file are one group) | channels (the pages are channels) | "" (one image each).
    pages: str = ""
    # What marks pixels that are not annotated: a value of the masks ("255"; with colours, a place
    # in them), or "suffix:_ignore" for a second file beside the mask, NAME_ignore.png, whose pixels
    # above 0 are not annotated. An image without that file is annotated all over. Of outlines,
    # "class:Ignore*" is the class of objects that are not annotated. "": all is.
    ignore: str = ""
    # Format of the annotations, of annotations.FORMATS: only such files are read; "": whatever lies
    # there. "zarr:NAME" is one of several labels in an OME-Zarr image, "geojson:nucleus" or
    # "geojson:cell" one of the two outlines of QuPath's cells.
    annotations: str = ""
    # How names of masks end after the name of the image, such as "_cp_masks"; "": any usual end.
    mask_suffix: str = ""
    # Names of the folders of images and annotations in root where they are not images and masks,
    # with a comma: "raw,annotated"; "." is root itself. "": the usual ones. Where each image has a
    # folder, they lie in that.
    folders: str = ""
    # Names of the classes 1, 2, ... of outlines. With labels="instances" or "binary" only objects
    # of these classes are read; () = all.
    classes: tuple = ()
    # As config.data: z, channel_index and channels decide what images a file holds.
    z: str = ""
    channel_index: str = ""
    channels: str = "rgba"


def records(root, **chosen) -> Records:
    """One record per image, sorted by name.

    Args:
      root: the folder with images/ and masks/, or of another layout of docs/formats.md.
      chosen: the fields of Options.
    Raises: BadFiles with everything that is wrong with the names of files.
    """
    options = Options(**chosen)
    find_group, (value, suffix) = _grouping(options.group), _ignored(options.ignore)
    _check(options)
    root, described = check_root(root, layouts.LAYOUT), ()
    if not options.folders and nnunet.is_raw(root):
        nnunet.check(root, options)
        index = numbers(root, options.channel_index)
        described = (root / "dataset.json",) if index != options.channel_index else ()
        options = options._replace(channel_index=index)
    read = functools.partial(_read, options=options, colours=masks.packed(options.colours),
                             ignore=value)
    pairs, bad, findings = _pairs(root, options, suffix)
    good = []
    for stem, (condition, pair) in pairs.items():
        try:
            case = find_group(stem)
            several = options.z or options.pages == "slices"
            count = _num_samples(pair, ReadOptions.of(options._asdict())) if several else 1
        except InputError as error:
            where, _, what = str(error).partition(": ")
            bad.append(Finding("error", where, what))
            continue
        first = pair.images[0]
        files = pair.files + set_of(first).others(first) + described
        for n in range(count):
            name, number = (stem, None) if count == 1 else (f"{stem}_{n:04d}", n)
            of_plane = {} if count == 1 else {
                "pixel_size": functools.partial(_pixel_size, first, options, n),
                "size": functools.partial(_size, first, options, n)}
            good.append(Record(name, case, files,
                               functools.partial(read, pair, number, condition), **of_plane))
    bad += _named_twice(good)
    good = Records(sorted(good, key=lambda record: record.name), findings)
    if bad:
        raise BadFiles(bad, good)
    if not good:
        raise InputError(f"config.data.root: '{root / 'images'}' is empty. {layouts.LAYOUT}")
    return good


def _pairs(root, options, suffix):
    """({name: (condition or "", Pair)}, errors, other findings) of all images of the root."""
    by_condition = {} if options.folders else layouts.conditions(root)
    pairs, bad, findings = {}, [], []
    for condition, folders in (by_condition or {"": options.folders}).items():
        found = _listing(root, options._replace(folders=folders), suffix)
        bad += [_with_choice(finding, options) for finding in found.bad]
        findings += found.findings
        for stem, pair in found.pairs.items():
            name = f"{condition}_{stem}" if condition else stem
            if name in pairs:
                bad.append(Finding("error", str(pair.images[0]), f"would be called {name}, as "
                                   f"{pairs[name][1].images[0]} is; rename one of the two"))
            pairs[name] = condition, pair
    return pairs, bad, findings


def _with_choice(finding, options) -> Finding:
    """An error, with what the user chose to read where an image lacks its annotation."""
    chosen = [f"config.data.{key}={getattr(options, key)}" for key in ("annotations", "mask_suffix")
              if getattr(options, key)]
    if not chosen or not finding.what.startswith("image without"):
        return finding
    return finding._replace(what=f"{finding.what}; of its annotations only those of "
                                 f"{' and '.join(chosen)} are read")


def _listing(root, options, suffix):
    """What lies in the root; where nothing is recognised, an error with what would read it."""
    def readable(folder, named) -> bool:
        try:
            found = listing(folder, options.annotations, options.mask_suffix, suffix, named)
        except InputError:
            return False
        return bool(found.pairs) and not found.bad

    try:
        return listing(root, options.annotations, options.mask_suffix, suffix, options.folders)
    except layouts.NoLayout as error:
        raise InputError(f"{error}. {layouts.advice(root, readable)}") from error


def _check(options) -> None:
    """InputError at the first option that is unknown or does not go with the others."""
    pick(masks.LABELS, options.labels, "config.data.labels")
    ReadOptions.of(options._asdict()).check()
    _check_annotations(options.annotations)
    if options.threshold and options.labels != "binary":
        raise InputError(f"config.data.threshold: got {options.threshold} with labels="
                         f"{options.labels}; expected 0, or config.data.labels=binary")
    if options.labels == "classes" and options.classes and (
            len(options.classes) + 1 != options.num_classes):
        raise InputError(f"config.data.classes: got {len(options.classes)} names; expected "
                         f"{options.num_classes - 1}, config.data.num_classes without the "
                         "background")


def _check_annotations(chosen) -> None:
    key, (kind, _, name) = "config.data.annotations", chosen.partition(":")
    check_choice(kind, ("", *FORMATS), key)
    if name and not (kind and FORMATS[kind].named):
        raise InputError(f"{key}: got {chosen!r}; expected {kind}, which has no parts to choose")
    if name and kind == "geojson":
        check_choice(name, geojson.PARTS, key)


def _ignored(text: str) -> tuple[int | None, str]:
    """(value of a mask or None, how the names of files end or "") of data.ignore."""
    kind, _, suffix = text.partition(":")
    if kind == "suffix" and suffix:
        return None, suffix
    if kind == "class" and suffix:
        return None, ""
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"config.data.ignore: got {text!r}; expected a value of the masks such as "
                         "255, suffix:_ignore for files masks/NAME_ignore.png, or class:NAME of "
                         "outlines")
    return (int(text) if text else None), ""


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


def _pixel_size(path, options, number):
    """Of an image of a file, whose others may be of another magnification."""
    return pixels_of(path, ReadOptions.of(options._asdict()))[number].pixel_size


def _size(path, options, number):
    """(height, width) of an image of a file."""
    return pixels_of(path, ReadOptions.of(options._asdict()))[number].shape[:2]


def _named_twice(found) -> list[Finding]:
    """An error for each record with the name of another, which a split file could not tell."""
    first = {}
    return [Finding("error", str(one.files[0]), f"would be called {one.name}, as one of "
                    f"{first[one.name].files[0]} is; rename one of the two")
            for one in found if first.setdefault(one.name, one) is not one]


def _num_samples(pair: Pair, options: ReadOptions) -> int:
    """Images that `options` make of the files, as many as each of its masks has planes."""
    count = num_images(pair.images[0], options)
    for path in (pair.annotation, *pair.beside):
        of_mask = (count if pair.stacked and path == pair.annotation else 1
                   if path == pair.annotation and (pair.read or pair.values) else
                   num_images(path, options, as_mask=True))
        if count != of_mask:
            raise InputError(f"{path}: mask has {of_mask} pages, its image {pair.images[0].name} "
                             f"gives {count} samples; expected one page for each")
    return count


def _read(pair: Pair, number, stratum, *, options, colours, ignore) -> Sample:
    chosen = ReadOptions.of(options._asdict())
    image, notes = image_with_notes(pair.images, chosen, number)
    of_mask = chosen._replace(channel_index="", channels="rgba"), number
    path, findings = pair.annotation, ()
    if pair.read:
        outlines.check(path, options)
        drawn = _drawn(pair, image.shape[:2], chosen, number)
        label, findings = outlines.label(path, drawn, options)
        label = np.where(_unknown(pair, chosen, of_mask, image, label, None), np.int32(-1), label)
    else:
        if options.ignore.startswith(outlines.BY_CLASS):
            raise InputError(f"{path}: holds values of pixels; set config.data.ignore to one of "
                             f"them, or to suffix:_ignore, in place of {options.ignore!r}")
        if options.classes and options.labels != "classes":
            raise InputError(f"{path}: holds values of pixels, which have no names to choose by; "
                             "leave out config.data.classes, or set config.data.labels=classes")
        place = () if pair.values else _place_in(path, pair, chosen, *of_mask)
        mask, found = ((pair.values()[..., None], ()) if pair.values else
                       (image_with_notes(path, *place)[0], ()) if len(colours) else
                       mask_with_notes(path, *place))
        check_size(path, mask, pair.images[0], image)
        values = masks.values(path, mask, colours)
        unknown = _unknown(pair, chosen, of_mask, image, values, ignore)
        label = masks.label(path, values, unknown, options)
        findings = tuple(Finding("warning", str(path), note) for note in found)
    findings = (*(Finding("warning", str(pair.images[0]), note) for note in notes), *findings)
    return Sample(image, label, stratum, (*_turned(pair.images[0]), *findings))


def _drawn(pair, shape, of_image, number) -> Drawn:
    """The objects of an image.

    Raises: InputError also where data.z chooses a plane and all objects lie on others.
    """
    path = pair.images[0]
    plane = _plane(path, of_image, number) if pair.stacked else None
    try:
        drawn = pair.read(shape, plane)
    except InputError:  # of channels alone, ImageJ counts each as a plane
        axes = pair.stacked and plane is None and image_axes(path, of_image)
        if not axes or not axes.has_channels:
            raise
        drawn = pair.read(shape, Plane(0, axes))
    if number is None and plane and not drawn.kinds:
        try:
            others = pair.read(shape, None).kinds
        except InputError:  # they lie on several planes
            others = True
        if others:
            raise InputError(f"{pair.annotation}: none of its objects lies on the plane that "
                             f"config.data.z={of_image.z} chooses; choose theirs, or draw them "
                             "there or without a position")
    return drawn


def _plane(path, of_image, number) -> Plane | None:
    """The plane of a stack that an image is, also where data.z takes one; None of a 2-D image."""
    if of_image.z.isdecimal():
        axes, z = image_axes(path, of_image._replace(z="slices")), int(of_image.z)
        if number is None and axes.lengths == {"Z": axes.count} and axes.count > 1:
            return Plane(z, axes)
        if number is not None and len(axes.lengths) > 1:
            return Plane(axes.number(z, number), axes)
    return None if number is None else Plane(number, image_axes(path, of_image))


def _place_in(path, pair, of_image, of_mask, number):
    """(options, number) of the plane of a mask: its file may have Z and T in another order."""
    if number is not None:
        axes, found = image_axes(pair.images[0], of_image), image_axes(path, of_mask)
        if len(axes.lengths) > 1 and found.lengths.keys() == axes.lengths.keys():
            if found.lengths != axes.lengths:
                raise InputError(f"{path}: mask has planes {found.lengths}, its image "
                                 f"{pair.images[0].name} has {axes.lengths}; expected the same")
            place = axes.place(number)
            number = found.number(place["Z"], place["T"])
    return of_mask, number


def _unknown(pair, of_image, of_mask, image, values, ignore) -> np.ndarray:
    """(H, W) bool: what is not annotated."""
    unknown = np.zeros(values.shape, bool) if ignore is None else values == ignore
    for path in pair.beside:
        marked = read_mask(path, *_place_in(path, pair, of_image, *of_mask))
        check_size(path, marked, pair.images[0], image)
        unknown |= marked.any(-1)
    return unknown


def _turned(path: pathlib.Path) -> tuple[Finding, ...]:
    turned = 1 if path.is_dir() else orientation(path)
    return () if turned == 1 else (Finding(
        "warning", str(path), f"orientation tag {turned} is ignored, pixels are read as they "
        "are stored; if the mask was drawn on the turned picture, turn the pixels too "
        "(mogrify -auto-orient)"),)
