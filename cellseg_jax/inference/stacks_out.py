"""What was found in the planes of a stack in one file of each format, beside those of each plane.

Labels become one TIFF, ROIs one zip with positions, objects one GeoJSON with planes. Every plane
was segmented by itself: a number in one plane and the same in another are not the same cell.
"""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import tifffile

from cellseg_jax.data import lazy
from cellseg_jax.data.decode import TIFF_SUFFIXES, kind_of, named, open_tiff
from cellseg_jax.data.microscopes import microscope_stacks
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import geojson, roi, tiff
from cellseg_jax.inference.outputs.files import StackAxes
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


def write(stacks: Iterable[StackOut]) -> None:
    """Write what is due; a line says how many there are and that cells are not linked."""
    written = [stack for stack in stacks if stack.due() and _write(stack)]
    if written:
        count = len({stack.source for stack in written})
        terminal.log(f"planes of {count} stacks in one file each, such as {written[0].file.name}: "
                     "each plane is segmented and numbered by itself, cells are not linked over "
                     "planes")


def _write(stack: StackOut) -> bool:
    """Whether the planes could be joined: labels of one TIFF have one size."""
    axes, pixel_size = axes_of(stack.source, len(stack.planes)), None
    if stack.format == "tiff":
        sizes = set()
        for path in stack.planes:
            with tifffile.TiffFile(path) as file:
                sizes.add(file.pages[0].shape)
        if len(sizes) > 1:
            terminal.log(f"{stack.source}: its images have different sizes, so their labels make "
                         "no stack")
            return False
        pixel_size = lazy.pixel_size_of(stack.planes[0])
    JOINED[stack.format](stack.file, stack.planes, axes, pixel_size)
    return True


def axes_of(source: pathlib.Path, count: int) -> StackAxes:
    """The axes of `count` planes of a file: T and Z as it names them, else Z."""
    lengths = _lengths(source)
    if lengths:
        has_channels = lengths.get("C", 1) > 1
        found = {axis: length for axis, length in lengths.items() if axis in "TZ"}
        for axes in (found, {"T": found.get("T", 0)}, {"Z": found.get("Z", 0)}):
            if axes and StackAxes(axes).count == count:
                return StackAxes(axes, has_channels)
    return StackAxes({"Z": count})


def _lengths(source: pathlib.Path) -> dict[str, int]:
    """{axis: length} as a TIFF or the only scene of a file of a microscope names them."""
    if kind_of(source) == "MICROSCOPE":
        stacks = named(source, lambda: microscope_stacks(source))
        return dict(zip(stacks[0].axes, stacks[0].lengths, strict=True)) if not stacks[1:] else {}
    if source.suffix.lower() not in TIFF_SUFFIXES:
        return {}
    return open_tiff(source, lambda file: dict(zip(
        file.series[0].axes, file.series[0].shape, strict=True)))
