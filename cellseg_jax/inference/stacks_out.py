"""What was found in the planes of a stack in one file of each format, beside those of each plane.

Labels become one TIFF, ROIs one zip with positions, objects one GeoJSON with planes. Every plane
was segmented by itself: a number in one plane and the same in another are not the same cell.
"""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tifffile

from cellseg_jax.data import lazy
from cellseg_jax.data.read import image_axes
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import geojson, roi, tiff
from cellseg_jax.report import terminal

JOINED = {"tiff": tiff.write_stack, "roi": roi.write_stack, "geojson": geojson.write_stack,
          "geojson.gz": geojson.write_stack_gzip}


class StackOut(NamedTuple):
    """A file of several planes and the files of one format made from these."""

    source: pathlib.Path
    stem: pathlib.Path  # path of the outputs of the file, without suffix
    format: str  # of JOINED
    planes: tuple[pathlib.Path, ...]  # in the order of the planes

    @property
    def file(self) -> pathlib.Path:
        """Where all come together."""
        return outputs.output_path(self.format, self.stem)

    def due(self) -> bool:
        """Whether all planes are there, and newer than what came together before."""
        if not all(path.exists() for path in self.planes):
            return False
        newest = max(path.stat().st_mtime_ns for path in self.planes)
        return not (self.file.exists() and self.file.stat().st_mtime_ns >= newest)


def stacks_of(files, formats) -> list[StackOut]:
    """The stacks among files, in those of the formats that can be joined.

    Args:
      files: [(file, path of its outputs without suffix, its images_in.Planes), ...].
    """
    return [StackOut(source, stem, name, tuple(outputs.output_path(name, plane.stem)
                                               for plane in planes))
            for source, stem, planes in files if len(planes) > 1
            for name in formats if name in JOINED]


def write(stacks: Iterable[StackOut], options: ReadOptions) -> None:
    """Write what is due; a line says how many there are and that cells are not linked.

    Args:
      options: of the run, by which the planes are numbered.
    """
    written = [stack for stack in stacks if stack.due() and _write(stack, options)]
    if written:
        count = len({stack.source for stack in written})
        terminal.log(f"planes of {count} stacks in one file each, such as {written[0].file.name}: "
                     "each plane is segmented and numbered by itself, cells are not linked over "
                     "planes")


def _write(stack: StackOut, options) -> bool:
    """Whether the planes could be joined: labels of one TIFF have one size."""
    axes, pixel_size = image_axes(stack.source, options), None
    if stack.format == "tiff":
        sizes = set()
        for path in stack.planes:
            with tifffile.TiffFile(path) as file:
                sizes.add(file.pages[0].shape)
        if len(sizes) > 1:
            terminal.log(f"{stack.source}: its images have different sizes, so their labels make "
                         "no stack")
            return False
        found = {lazy.pixel_size_of(path) for path in stack.planes}
        pixel_size = found.pop() if len(found) == 1 else None  # images of several magnifications
    JOINED[stack.format](stack.file, stack.planes, axes, pixel_size)
    return True
