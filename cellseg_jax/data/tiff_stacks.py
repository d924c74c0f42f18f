"""The stacks of a TIFF: which of its pages are images, their axes, channel names and pixel size.

Smaller copies (pyramids, whether in SubIFDs or as pages of their own), thumbnails, pictures of a
slide's label and transparency masks are no images. The files of an OME set (`ome_sets`) are one
image, read from its first file.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import re
from xml.etree import ElementTree

import tifffile

from cellseg_jax.data import ome_sets
from cellseg_jax.data.image_planes import check_kind, mapped_plane, tiff_plane
from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Stack
from cellseg_jax.errors import InputError

BESIDE = re.compile(r"\b(label|macro|thumbnail|overview|preview)\b", re.IGNORECASE)
REDUCED, MASK = 1, 4  # bits of NewSubfileType


def tiff_stacks(tiff: tifffile.TiffFile, values: str) -> list[Stack]:
    """The stacks of an open TIFF; `values` as in image_planes.tiff_plane.

    Raises: InputError where it is a part of a set of files, or one of its parts is missing.
    """
    root = _ome(tiff)
    if root is not None:
        _check_set(tiff, root)
    names = _channel_names(tiff, root)
    numbered = [(n, series) for n, series in enumerate(tiff.series) if _is_image(n, series)]
    numbered = numbered or [(0, tiff.series[0])]
    stacks = [_stack(series, values, names(n), tiff_pixel_size(tiff, n)) for n, series in numbered]
    if len(stacks) > 1 and all(series.kind == "generic" for _, series in numbered):
        return _in_order(stacks, [series for _, series in numbered])
    return stacks


def _in_order(stacks, series) -> list[Stack]:
    """Stacks of pages that nothing but size and type puts together, in the order of the pages.

    Those that have pages of others between their own are taken apart there.
    """
    pages = sorted((page.index, which, n) for which, one in enumerate(series)
                   for n, page in enumerate(one.pages))
    found = []
    for which, run in itertools.groupby(pages, key=lambda page: page[1]):
        planes = [stacks[which].planes[n] for *_, n in run]
        several = len(planes) > 1
        found.append(stacks[which]._replace(
            axes="I" * several, lengths=(len(planes),) * several, planes=planes))
    return found


def _is_image(number, series) -> bool:
    kind = int(getattr(series.keyframe, "subfiletype", 0) or 0)
    return not (kind & (REDUCED | MASK) or (number and BESIDE.search(series.name or "")))


def _stack(series, values, names, pixel_size) -> Stack:
    key = series.keyframe
    check_kind(key)
    inside = len(key.axes)
    axes, lengths = series.axes[:-inside], series.shape[:-inside]
    count = math.prod(lengths)
    if count * key.size != series.size or not set(series.axes[-inside:]) <= set("YXSC"):
        raise InputError(f"has axes {series.axes} {series.shape} in pages of {key.axes} "
                         f"{key.shape}; expected pages of one 2-D plane each, save it again")
    if count > len(series.pages):  # a large ImageJ stack describes its first page alone
        planes = [mapped_plane(key, series.dataoffset + n * key.nbytes, values)
                  for n in range(count)]
    else:
        planes = [tiff_plane(series.pages[n], values) for n in range(count)]
    return Stack(axes, tuple(lengths), planes, names, pixel_size)


# --- OME -----------------------------------------------------------------------------------------


def _ome(tiff):
    """The OME-XML of a file; None where it has none, or one that cannot be read."""
    if not tiff.is_ome:
        return None
    with contextlib.suppress(ElementTree.ParseError):
        return ElementTree.fromstring(tiff.ome_metadata)


def _check_set(tiff, root) -> None:
    path, names = pathlib.Path(tiff.filehandle.path), ome_sets.file_names(root)
    ome_sets.check_names(root, path)
    if tiff.filename in names and tiff.filename != names[0]:
        raise InputError(f"is read as a part of {names[0]}; leave it out")
    if any(page is None for series in tiff.series for page in series.pages):
        raise InputError("lacks planes that its OME-XML describes (was a file "
                         "renamed?); export it again")


def _channel_names(tiff, root):
    """number of a series -> names of its channels, or ()."""
    if root is not None:
        images = root.findall("{*}Image")
        if len(images) != len(tiff.series):
            return lambda n: ()
        return functools.partial(_ome_names, images)
    labels = _labels(tiff)
    named = labels and all(labels) and len(set(labels)) == len(labels)
    return lambda n: tuple(map(str, labels)) if named and n == 0 else ()


def _labels(tiff) -> list[str]:
    """Of the channels of the first series, where ImageJ or the microscope wrote them."""
    if tiff.is_lsm:
        return (tiff.lsm_metadata.get("ChannelColors") or {}).get("ColorNames", [])
    if tiff.is_qpi:
        pages = [_xml(page.description) for page in tiff.series[0].pages]
        return [page.findtext("Biomarker") or page.findtext("Name") or "" for page in pages]
    if tiff.is_micromanager:
        return (tiff.micromanager_metadata or {}).get("Summary", {}).get("ChNames") or []
    if tiff.is_imagej and tiff.series[0].axes.startswith("CYX"):
        return (tiff.imagej_metadata or {}).get("Labels") or []
    return []


def _xml(text):
    with contextlib.suppress(ElementTree.ParseError):
        return ElementTree.fromstring(text)
    return ElementTree.Element("none")


def _ome_names(images, n) -> tuple[str, ...]:
    names = [channel.get("Name") for channel in images[n].iterfind("{*}Pixels/{*}Channel")]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()


def tiff_pixel_size(tiff, number: int = 0):
    """(height, width) in micrometres from OME-XML, LSM, ImageJ, or tags in centimetres.

    Args:
      number: of the series; images of one file may be of different magnifications.
    """
    if tiff.is_ome:
        root = _ome(tiff)  # None: the pixels are good all the same
        found = [] if root is None else [_ome_size(one) for one in root.iterfind(".//{*}Pixels")]
        if len(found) > 1 and len(found) == len(tiff.series):
            return found[number]
        return found[0] if len(set(found)) == 1 else None
    if tiff.is_lsm:
        return in_micrometres(*((tiff.lsm_metadata.get(f"VoxelSize{axis}"), "m") for axis in "YX"))
    tags = (tiff.series[number].keyframe if number else tiff.pages[0]).tags
    unit = {3: "cm"}.get(tags.valueof("ResolutionUnit"))  # inches are those of a screen
    if tiff.is_imagej:
        unit = tiff.imagej_metadata.get("unit")
    return in_micrometres(*((_inverse(tags.valueof(f"{axis}Resolution")), unit) for axis in "YX"))


def _ome_size(pixels):
    return in_micrometres(*((pixels.get(f"PhysicalSize{axis}"),
                             pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "YX"))


def _inverse(resolution) -> float | None:
    """Units per pixel of a tag that holds pixels per unit; None without one, or where it is 0."""
    try:
        above, below = resolution
        return below / above if above else None
    except (TypeError, ValueError):  # no tag, or one of another type
        return None
