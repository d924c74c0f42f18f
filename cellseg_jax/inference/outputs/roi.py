"""A zip of ROIs for the ROI Manager of ImageJ and Fiji, one for each object, named by its id.

An object of one piece without holes is a traced ROI with integer corners, as the wand tool makes
it: ImageJ's integer (x, y) is the upper left corner of a pixel, so that the ROI selects the pixels
of the label, and Measure gives their number as area. Others are composite ROIs of all their rings.

The bounds in a file's header have 16 bits: ImageJ takes 60,536 to 65,535 for -5,000 to -1, and
what is larger has no bits at all. From 60,536 on the outline is written as floats, exact to 2^24,
from which ImageJ and roifile take the place; the bounds stop at LAST, instead of a wrong place.
"""

import zipfile

import numpy as np
import roifile

from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.files import atomic_file
from cellseg_jax.inference.outputs.files import blocks, objects
from cellseg_jax.inference.outputs.outlines import outlines

MOVE, LINE, CLOSE = 0.0, 1.0, 4.0  # the words of a composite ROI's path
LAST = 60_535  # the largest bound that is read as it was written


def write(path, label, image, probability=None, classes=()) -> None:
    """All objects of (H, W) `label`; see `outputs.write`. Classes become groups 1, 2, ..."""
    label, class_of = objects(label, classes)
    with atomic_file(path) as temporary, zipfile.ZipFile(
            temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for top, part in blocks(label):
            for number, polygons in outlines(part).items():
                rings = [ring + (0, top) for polygon in polygons for ring in polygon]
                roi = _traced(rings[0]) if len(rings) == 1 else _composite(rings)
                roi.name = str(number)
                roi.group = int(class_of[number]) if classes else 0
                archive.writestr(f"{number}.roi", roi.tobytes())


def write_stack(path, planes, axes: StackAxes, pixel_size=None) -> None:
    """The zips of the planes of a stack as one, each ROI with the position of its plane.

    That is the number of the image where ImageJ has a plain stack, slice and frame of a hyperstack
    else. Files in the zip are named by plane and id, ROIs by their id.
    """
    hyperstack = axes.has_channels or len(axes.lengths) > 1
    with atomic_file(path) as temporary, zipfile.ZipFile(
            temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, plane in enumerate(planes):
            place = {axis: index + 1 for axis, index in axes.place(number).items()}
            with zipfile.ZipFile(plane) as of_plane:
                for name in of_plane.namelist():
                    roi = roifile.ImagejRoi.frombytes(of_plane.read(name))
                    if hyperstack:
                        roi.z_position, roi.t_position = place.get("Z", 1), place.get("T", 1)
                    else:
                        roi.position = number + 1
                    archive.writestr(f"{number + 1:04d}-{name}", roi.tobytes())


def _traced(ring):
    roi = roifile.ImagejRoi.frompoints(ring)
    roi.roitype = roifile.ROI_TYPE.TRACED
    roi.left, roi.top, roi.right, roi.bottom = _bounds(ring)
    return roi


def _composite(rings):
    corners = np.concatenate(rings)
    left, top, right, bottom = _bounds(corners)
    steps = []
    for ring in rings:
        words = np.full((len(ring), 1), LINE)
        words[0] = MOVE
        steps += [np.hstack([words, ring]).ravel(), [CLOSE]]
    steps = np.concatenate(steps).astype(np.float32)
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT, left=left, top=top, right=right, bottom=bottom,
        shape_roi_size=len(steps), multi_coordinates=steps)


def _bounds(corners) -> list[int]:
    """Left, top, right and bottom of (n, 2) corners, as far as the header's fields reach."""
    return [*np.minimum(corners.min(0), LAST - 1).tolist(),
            *np.minimum(corners.max(0), LAST).tolist()]
