"""The labels of the planes of a stack as one label TIFF, beside those of each plane.

Every plane was segmented by itself: a number in one plane and the same in another are not the same
cell.
"""

import math
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tifffile

from cellseg_jax.data import lazy
from cellseg_jax.errors import InputError
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import tiff
from cellseg_jax.report import terminal


class StackOut(NamedTuple):
    """A file of several planes and the label files of these."""

    source: pathlib.Path
    stem: pathlib.Path  # path of the outputs of the file, without suffix
    planes: tuple[pathlib.Path, ...]  # label files, in the order of the planes

    @property
    def file(self) -> pathlib.Path:
        """Where all labels come together."""
        return outputs.output_path("tiff", self.stem)

    def due(self) -> bool:
        """Whether all planes are there, and newer than what came together before."""
        if not all(path.exists() for path in self.planes):
            return False
        newest = max(path.stat().st_mtime_ns for path in self.planes)
        return not (self.file.exists() and self.file.stat().st_mtime_ns >= newest)


def stacks_of(jobs) -> list[StackOut]:
    """The stacks among files.

    Args:
      jobs: [(file, path of its outputs without suffix, its images_in.Planes), ...].
    """
    return [StackOut(source, stem, tuple(outputs.output_path("tiff", plane.stem)
                                         for plane in planes))
            for source, stem, planes in jobs if len(planes) > 1]


def write(stacks: Iterable[StackOut]) -> None:
    """Write what is due; a line says how many there are and that cells are not linked."""
    written = [stack.file.name for stack in stacks if stack.due() and _write(stack)]
    if written:
        terminal.log(f"labels of {len(written)} stacks as one TIFF each, such as {written[0]}: "
                     "each plane is segmented and numbered by itself, cells are not linked over "
                     "planes")


def _write(stack: StackOut) -> bool:
    """Whether the planes have one size, so that they could be written."""
    sizes = set()
    for path in stack.planes:
        with tifffile.TiffFile(path) as file:
            sizes.add(file.pages[0].shape)
    if len(sizes) > 1:
        terminal.log(f"{stack.source}: its images have different sizes, so their labels make no "
                     "stack")
        return False
    try:
        pixel_size = lazy.pixel_size_of(stack.planes[0])
    except InputError:
        pixel_size = None
    tiff.write_stack(stack.file, stack.planes, axes_of(stack.source, len(stack.planes)), pixel_size)
    return True


def axes_of(source: pathlib.Path, count: int) -> dict[str, int]:
    """{axis: length} of the planes of a file: T and Z as it names them, else Z."""
    if source.suffix.lower() in (".tif", ".tiff"):
        with tifffile.TiffFile(source) as file:
            series = file.series[0]
            found = {axis: length for axis, length in
                     zip(series.axes, series.shape, strict=True) if axis in "TZ"}
        for axes in (found, {"T": found.get("T", 0)}, {"Z": found.get("Z", 0)}):
            if axes and math.prod(axes.values()) == count:
                return axes
    return {"Z": count}
