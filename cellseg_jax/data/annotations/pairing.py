"""What belongs to what in a folder of a user's own images: which annotation to which image.

An annotation belongs to the image of its name, without suffix. Where there is none, one of
ENDINGS is left out of its name, and one of IMAGE_ENDINGS of the image's. COCO files name their
images themselves. What is ambiguous is an error that says how to choose; nothing is guessed.
"""

import collections
import functools
import pathlib
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from cellseg_jax.data.annotations import (
    FORMATS,
    REFUSED,
    coco,
    coco_images,
    format_of,
    image_folders,
    layouts,
    nnunet,
    suffix_of,
)
from cellseg_jax.data.decode import MASK_SUFFIXES, SUFFIXES
from cellseg_jax.data.dependencies import depends_on
from cellseg_jax.data.ome_sets import is_companion, set_of
from cellseg_jax.data.read import entries
from cellseg_jax.data.records import Finding, some
from cellseg_jax.errors import InputError, nearest

ENDINGS = ("_cp_masks", "_masks", "_mask", "_seg", "_labels", "_label", "_rois", "_RoiSet",
           "_objects", "_annotations")
IMAGE_ENDINGS = ("_0000", ".ome", "_image", "_img")
# Ends of files that lie beside annotations, written by tools: neither image nor annotation.
DERIVED = ("_objects.csv", "_overlay.png", "_probability.tif", "_uncertainty.tif", "_flows.tif",
           "_dP.tif", "_cp_output.png", "_outlines.txt", "predict.json", "columns.txt",
           "dataset.json")
PLANE = re.compile("_[0-9]{4}$")  # of the outputs for one plane of a stack
COMPARED = 100  # names among which the nearest one is looked for, which takes long


class Pair(NamedTuple):
    """An image with its annotation."""

    images: tuple[pathlib.Path, ...]  # one file, or one for each channel
    annotation: pathlib.Path
    read: Callable | None = None  # ((H, W), raster.Plane or None) -> raster.Drawn, of outlines
    values: Callable | None = None  # () -> (H, W) numbers, of label images but masks
    beside: tuple[pathlib.Path, ...] = ()  # the mask of what is not annotated, if there is one
    stacked: bool = False  # whether `read` knows the planes of a stack apart
    more: tuple[pathlib.Path, ...] = ()  # masks of the other objects, where each has one

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Everything that the sample follows from, image first."""
        return tuple(dict.fromkeys((*self.images, self.annotation, *self.more, *self.beside)))


class Listing(NamedTuple):
    """The pairs of a folder by name, and what is wrong or worth a word."""

    pairs: dict[str, Pair]
    bad: list[Finding]  # errors
    findings: list[Finding]


def listing(root: pathlib.Path, wanted: str = "", mask_suffix: str = "", ignored: str = "",
            named: str = "") -> Listing:
    """What lies in a folder.

    Args:
      root: of images/ and masks/, labels/, ...; of images with their annotations beside them; of
        imagesTr/, labelsTr/ and dataset.json; or of images and a COCO file.
      wanted: the format of annotations, "" for whatever lies there.
      mask_suffix: how names of annotations end after the name of the image; "" for any of ENDINGS.
      ignored: how names of files end that mark what is not annotated; "" for none.
      named: the folders of images and annotations in root, as `layouts.places`.
    Raises: layouts.NoLayout where nothing is recognised; InputError for what is ambiguous.
    """
    if not named and nnunet.is_raw(root):
        pairs, bad = nnunet.listed(root)
        return Listing({name: Pair(images, label) for name, (images, label) in pairs.items()},
                       bad, [])
    if named and not all((root / name.strip()).is_dir() for name in named.split(",")):
        in_folders = _in_folders(root, wanted, mask_suffix, ignored, named)
        if in_folders:
            return in_folders
    folder, places = layouts.places(root, named)
    try:
        images, found = _sorted_out(folder, places, wanted.partition(":")[0], ignored)
    except layouts.NoLayout:
        in_folders = None if named else _in_folders(root, wanted, mask_suffix, ignored)
        if not in_folders:
            raise
        return in_folders
    name = wanted.partition(":")[2]
    beside = _ignore_masks(images, found, ignored) if ignored else {}
    if found.coco and not found.annotations:
        return _of_coco(folder, images, found, beside)
    if found.coco:
        raise InputError(f"{found.coco[0]}: lists images that also have annotations of their own, "
                         f"such as {some(p.name for p in found.annotations)}; choose one, such as "
                         "config.data.annotations=coco")
    chosen, lone = _matched(images, found.annotations, mask_suffix, found.bad)
    for stem, path in () if mask_suffix else found.inside.items():
        chosen[stem].append(path)
        found.annotations[path] = "zarr"
    if mask_suffix:
        found.left_out.extend(lone)
    found.bad.extend(_unpaired(images, chosen, () if mask_suffix else lone))
    pairs = {}
    for stem, files in chosen.items():
        if len(files) > 1:
            found.bad.append(_several(images[stem], stem, files, found.annotations))
            continue
        pairs[stem] = _pair(images[stem], files[0], found.annotations[files[0]], name,
                            beside.get(stem, ()))
    return Listing(dict(sorted(pairs.items())), found.bad, found.notes())


def _ignore_masks(images, found, ignored) -> dict[str, tuple]:
    """{stem of an image: the mask of what is not annotated in it}, taken out of the annotations.

    An image may have such a name too: then its mask is a mask.
    """
    stems = {key: stem for stem in images for key in _keys(stem, IMAGE_ENDINGS)[1:]}
    stems |= {stem: stem for stem in images}
    beside = {}
    for path in [path for path in found.annotations if _stem(path).endswith(ignored)]:
        stem = stems.get(_stem(path).removesuffix(ignored))
        if stem and _stem(path) not in images and stem not in beside:
            beside[stem] = (path,)
            del found.annotations[path]
    return beside


def _pair(image, annotation, kind, name, beside) -> Pair:
    _, read, values, stacked, named = FORMATS[kind]
    chosen = {named: name} if name and named else {}
    return Pair((image,), annotation, read and functools.partial(read, annotation, **chosen),
                values and functools.partial(values, annotation, **chosen), beside, stacked)


def _in_folders(root, wanted, mask_suffix, ignored, named="") -> Listing | None:
    """The pairs of a root with a folder for each image; None of another layout."""
    found, bad = image_folders.listed(root, named)
    wanted, _, part = wanted.partition(":")
    chosen, beside = {}, {}
    for name, (image, files) in found.items():
        beside[name] = tuple(p for p in files if ignored and _stem(p).endswith(ignored))
        chosen[name] = image_folders.ImageFolder(image, [
            path for path in files if path not in beside[name] and _stem(path).endswith(mask_suffix)
            and format_of(path) and wanted in ("", format_of(path))])
    several = any(len(one.masks) > 1 for one in chosen.values())
    if several:
        image_folders.check_objects(chosen)
    pairs = {}
    for name, (image, masks) in chosen.items():
        kinds = {format_of(path) for path in masks}
        if not masks or (several and kinds != {"masks"}):
            what = (f"ambiguous, has {len(masks)} annotations: {some(p.name for p in masks)}; "
                    f"choose one, such as config.data.annotations={min(kinds)}" if masks else
                    "image without a mask in its folder")
            bad.append(Finding("error", str(image), what))
        elif several:
            read = functools.partial(image_folders.read_objects, masks)
            pairs[name] = Pair((image,), masks[0], read, None, beside[name], False, (*masks[1:],))
        else:
            pairs[name] = _pair(image, masks[0], *kinds, part, beside[name])
    return Listing(pairs, bad, []) if pairs or bad else None


class _Found(NamedTuple):
    """What lies beside the images."""

    annotations: dict[pathlib.Path, str]  # file -> format
    coco: list[pathlib.Path]  # files that name their images themselves
    bad: list[Finding]
    left_out: list[pathlib.Path]
    inside: dict[str, pathlib.Path]  # stem -> OME-Zarr image that holds its labels
    parts: set[pathlib.Path]  # of OME sets, which are read with their first files

    def notes(self) -> list[Finding]:
        if not self.left_out:
            return []
        names = some([path.name for path in self.left_out])
        return [Finding("note", str(self.left_out[0].parent),
                        f"{len(self.left_out)} files are read neither as image nor as "
                        f"annotation: {names}")]


def _sorted_out(folder, places, wanted, ignored) -> tuple[dict, _Found]:
    """({stem: image}, the rest) of a folder of images and those of their annotations."""
    found, images = _Found({}, [], [], [], {}, set()), {}
    alone = folder not in places
    here = entries(folder)
    files = set() if alone else {_stem(p) for p in here if p.suffix.lower() in SUFFIXES}
    zarrs = {p for p in here if _is_ome_zarr(p) and _stem(p) not in files}
    stems = files | {_stem(path) for path in zarrs}
    names = stems | {_plain(path.name) for path in here if path.suffix.lower() in SUFFIXES}
    for path in here:
        is_image = path.suffix.lower() in SUFFIXES and path.is_file() or path in zarrs
        if is_image and (alone or not _is_of_another(path, names)):
            of = set_of(path)
            if of.first == path:
                _add_image(images, path, found.bad)
            else:
                found.parts.add(path)
            if of.problem:
                found.bad.append(Finding("error", str(path), of.problem))
        elif alone and path not in places and not is_companion(path):
            found.bad.append(_foreign(path, folder, SUFFIXES))
    for place in places:
        _add_annotations(found, place, wanted, images, folder, ignored)
        _leave_out_parts(found, place)
    if not wanted or wanted == "zarr":  # of an OME-Zarr image the labels may be inside
        found.inside.update({stem: path for stem, path in images.items()
                             if path.is_dir() and depends_on(path / "labels").is_dir()})
    if not alone and not (found.annotations or found.inside or (found.coco and images)):
        raise layouts.NoLayout("config.data.root: no folder images/ with masks/, labels/, "
                               "annotations/ or rois/, no image with its annotation beside it")
    return images, found


def _add_annotations(found, place, wanted, images, folder, ignored) -> None:
    """Sorts what lies in a folder; what is no annotation is an error where nothing else belongs."""
    beside_images, around_images = place == folder, place in folder.parents
    strict = not beside_images and not around_images
    taken = found.parts.union(images.values()) if beside_images else ()
    for path in entries(place):
        if path in taken or (not strict and path.is_dir() and suffix_of(path) != ".zarr"):
            continue
        if path.name.endswith(DERIVED) and _stem(path) not in images:
            found.left_out.append(path)
            continue
        kind = format_of(path)
        if around_images and kind != "coco":
            continue  # the root over images/: a COCO file may lie there, and anything else
        if not kind and (strict or path.suffix.lower() in SUFFIXES):
            found.bad.append(_foreign(path, path.parent, MASK_SUFFIXES))
        elif not kind or (wanted and kind != wanted
                          and not (ignored and _stem(path).endswith(ignored))):
            found.left_out.append(path)
        elif kind == "coco":
            found.coco.append(path)
        else:
            found.annotations[path] = kind


def _leave_out_parts(found, place) -> None:
    """Our COCO files of single images go where one of all images in the folder is."""
    if place / coco.OF_FOLDER in found.coco:
        parts = [path for path in found.coco
                 if path.parent == place and path.name.endswith(coco.OF_IMAGE)]
        found.coco[:] = [path for path in found.coco if path not in parts]
        found.left_out.extend(parts)


def _stem(path) -> str:
    """The name of a file without suffix, as it is compared: macOS writes an umlaut as two letters.
    """
    return _plain(path.name[: len(path.name) - len(suffix_of(path))])


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_ome_zarr(path) -> bool:
    """Whether this is the folder of an OME-Zarr image, and not of an array alone."""
    described = (path / name for name in ("zarr.json", ".zattrs"))
    return suffix_of(path) == ".zarr" and path.is_dir() and any(
        b'"multiscales"' in one.read_bytes() for one in described if one.is_file())


def _is_of_another(path, stems) -> bool:
    """Whether the name of an image file is that of the mask of, or of what was made from, another.
    """
    if path.name.endswith(DERIVED):
        return True
    return any(key in stems or any(key + end in stems for end in IMAGE_ENDINGS)
               for key in _keys_of_mask(path, ENDINGS)[1:])


def _keys(stem: str, endings) -> list[str]:
    """The stem, and what is left of it without one of the endings."""
    return [stem, *(stem.removesuffix(end) for end in endings if stem.endswith(end))]


def _keys_of_mask(path, endings) -> list[str]:
    """The keys of a file's stem, and those of x_label.ome.tif as of x_label.tif."""
    stem = _stem(path)
    return list(dict.fromkeys(
        [*_keys(stem, endings), *_keys(stem.removesuffix(".ome"), endings)[1:]]))


def _add_image(images, path, bad) -> None:
    stem = _stem(path)
    if stem in images:
        bad.append(Finding("error", str(path), f"ambiguous, {images[stem].name} has the same "
                                               "stem; keep one of the two"))
    else:
        images[stem] = path


def _foreign(path, folder, suffixes) -> Finding:
    if path.is_dir() and suffix_of(path) != ".zarr":
        return Finding("error", str(path), f"is a folder in '{folder.name}', which holds files "
                       f"alone; move its files up, or choose it by {layouts.KEY}, such as "
                       f"{folder.name}/{path.name},masks/{path.name}")
    fix = ("JPEG changes the values of a mask: export it as PNG, or convert it and set "
           "config.data.labels=binary and config.data.threshold=127"
           if path.suffix.lower() in SUFFIXES else "convert it or move it away")
    what = REFUSED.get(path.suffix.lower())
    return Finding("error", str(path), f"expected only {', '.join(suffixes)} files in "
                   f"'{folder.name}'; " + (f"it is {what}" if what else fix))


def _matched(images, annotations, mask_suffix, bad) -> tuple[dict, list]:
    """({stem of an image: its annotations}, annotations of no image)."""
    short = collections.defaultdict(list)  # name without ending -> images
    whole = {_plain(path.name): stem for stem, path in images.items()}  # a.tif of a.tif.geojson
    for stem in images:
        for key in _keys(stem, IMAGE_ENDINGS):
            short[key].append(stem)
    endings = (mask_suffix,) if mask_suffix else ENDINGS
    chosen, lone = collections.defaultdict(list), []
    for path in annotations:
        keys = _keys_of_mask(path, endings)
        keys = keys[1:] if mask_suffix else keys
        keys += [key.removesuffix(".ome") for key in keys if key.endswith(".ome")]
        exact = [key for key in keys if key in images] + [whole[k] for k in keys if k in whole]
        stems = exact[:1] or list(dict.fromkeys(s for key in keys for s in short.get(key, ())))
        if len(stems) > 1:
            bad.append(Finding("error", str(path), f"may belong to {some(stems)}; rename it like "
                                                   "its image"))
        elif stems:
            chosen[stems[0]].append(path)
        else:
            lone.append(path)
    return chosen, lone


def _unpaired(images, chosen, lone):
    """An error for each image without an annotation, and the other way round."""
    without = sorted(path for stem, path in images.items() if stem not in chosen)
    for kind, other, rest, others in (("image without a mask", "mask", without, lone),
                                      ("mask without an image", "image", lone, without)):
        names = [_stem(path) for path in others[:COMPARED]]
        for n, path in enumerate(rest):
            hint = _of_a_stack(path, chosen) or (
                nearest(_stem(path), names) if n < COMPARED else "")
            yield Finding("error", str(path), f"{kind} of its name; add or rename the {other}, or "
                                              f"move the file away{hint}")


def _of_a_stack(path, chosen) -> str:
    """What to do with NAME_0000_label.tif, a plane, beside NAME_label.tif; "" for other files."""
    for key in _keys(_stem(path), ENDINGS):
        stack = PLANE.sub("", key)
        end = _stem(chosen[stack][0]).removeprefix(stack) if stack in chosen else ""
        if stack != key and end:
            return (f"; is it a plane of {stack}? config.data.mask_suffix={end} reads "
                    f"{chosen[stack][0].name} alone")
    return ""


def _several(image, stem, files, kinds) -> Finding:
    names = some([path.name for path in files])
    formats = list(dict.fromkeys(kinds[path] for path in files))
    endings = [_stem(path).removeprefix(stem) for path in files]
    if len(formats) == len(files):
        fix = f"choose one, such as config.data.annotations={formats[0]}"
    elif any(endings):
        fix = f"choose one, such as config.data.mask_suffix={max(endings, key=len)}"
    else:
        fix = "keep one of them"
    return Finding("error", str(files[0]), f"ambiguous, {image.name} has {len(files)} annotations: "
                                           f"{names}; {fix}")


def _of_coco(folder, images, found, beside) -> Listing:
    """Pairs of images and COCO files that list them."""
    listed, bad = coco_images.listed(found.coco, folder, images)
    unlisted = sorted(images.keys() - listed.keys())
    notes = found.notes()
    if unlisted:
        notes.append(Finding("warning", str(folder), f"{len(unlisted)} images are not listed in "
                     f"{some(path.name for path in found.coco)} and are left out: "
                     f"{some(unlisted)}"))
    return Listing({stem: Pair((images[stem],), path, read, beside=beside.get(stem, ()))
                    for stem, (path, read) in sorted(listed.items())}, found.bad + bad, notes)
