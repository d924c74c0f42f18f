"""OIB and OIF files of Olympus, read by oiffile and tifffile: a TIFF in them for each plane."""

import re

import numpy as np
import tifffile

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError

PLANE = re.compile(r"s_((?:[A-Z]\d+)+)\.tif", re.IGNORECASE)  # s_C001Z002T003.tif
OIF_FOLDER = ".oif.files"  # the end of the name of the folder with the planes of an OIF


def oif_stacks(path) -> list[Stack]:
    """The stack of a file.

    Raises: InputError where a plane is missing, or the file is a line scan.
    """
    import oiffile  # here: an extra

    with oiffile.OifFile(path) as file:
        settings = file.mainfile
        names = [name.replace("\\", "/").split("/")[-1] for name in file.glob()]
        found = {_numbers(name): name for name in names if PLANE.fullmatch(name)}
        order = str(settings.get("Axis Parameter Common", {}).get("AxisOrder", "XY"))
        if not found or not {"X", "Y"} <= set(order):
            raise InputError(f"has {len(found)} planes with axes {order}; expected images in X "
                             "and Y")
        first = _page(file, found[min(found)])
    shape, dtype = (*first.shape, 1)[:3], first.dtype
    numbers = _expected(found, settings)
    axes = sorted(numbers, key=lambda axis: "TZC".find(axis))  # others before
    planes = []
    for place in np.ndindex(*(len(numbers[axis]) for axis in axes)):
        at = {axis: numbers[axis][n] for axis, n in zip(axes, place, strict=True)}
        wanted = tuple((axis, at[axis]) for axis in numbers)
        if wanted not in found:
            missing = "".join(f"{axis}{number:03d}" for axis, number in wanted)
            raise InputError(f"lacks the plane s_{missing}.tif (was its acquisition ended early?); "
                             "copy it again, or export the rest as OME-TIFF")
        planes.append(_plane(path, found[wanted], shape, dtype))
    kept = [axis for axis in axes if len(numbers[axis]) > 1]
    return [Stack("".join(kept), tuple(len(numbers[axis]) for axis in kept), planes,
                  _names(settings, numbers.get("C", [1])), _pixel_size(settings))]


def _expected(found, settings) -> dict[str, list[int]]:
    """{axis: its numbers}: channels as they are there, other axes as many as the settings name."""
    named = {one.get("AxisCode"): one.get("MaxSize", 0) for key, one in settings.items()
             if re.fullmatch(r"Axis \d+ Parameters Common", key)}
    expected = {}
    for axis, _ in min(found):
        there = sorted({dict(place)[axis] for place in found if axis in dict(place)})
        whole = list(range(1, max(there[-1], int(named.get(axis) or 0)) + 1))
        expected[axis] = there if axis == "C" else whole
    return expected


def _numbers(name) -> tuple[tuple[str, int], ...]:
    letters = re.findall(r"([A-Z])(\d+)", PLANE.fullmatch(name)[1], re.IGNORECASE)
    return tuple((axis.upper(), int(number)) for axis, number in letters)


def _page(file, name) -> np.ndarray:
    with file.open_file(name) as opened, tifffile.TiffFile(opened, name=name) as tiff:
        return tiff.pages[0].asarray()


def _plane(path, name, shape, dtype) -> Plane:
    def rows(start, stop):
        import oiffile  # here: an extra

        with oiffile.OifFile(path) as file:
            return _page(file, name).reshape(shape)[start:stop]

    return Plane(shape, dtype, rows)


def _names(settings, numbers) -> tuple[str, ...]:
    """Dyes of the channels with these numbers, else their names."""
    for key in ("DyeName", "CH Name"):
        names = [str(settings.get(f"Channel {n} Parameters", {}).get(key, "")) for n in numbers]
        if all(names) and len(set(names)) == len(numbers):
            return tuple(names)
    return ()


def _pixel_size(settings):
    reference = settings.get("Reference Image Parameter", {})
    return in_micrometres(*((reference.get(f"{side}ConvertValue"), reference.get(f"{side}Unit"))
                            for side in ("Height", "Width")))
