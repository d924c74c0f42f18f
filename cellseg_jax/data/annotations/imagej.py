"""ROIs of ImageJ and Fiji: a zip of the ROI Manager, or a single .roi.

Areas are drawn as ImageJ fills them: polygons, freehand and traced outlines and composites (with
holes) by `raster.filled`, splines through them included; an oval is the pixels whose centre lies in
or on the ellipse of its bounds; a rectangle is its pixels. Fractional bounds of these two count as
ImageJ measures them: the start is cut to a whole pixel, the size rounded up. Curves of composites
and round corners become CURVE lines. All pixels are those of ImageJ 1.54u7 (tests/golden/imagej).
What is no area (lines, angles, points, texts) is left out. An object's id is the ROI's name where
all names are different numbers, as in the files that `predict` writes; its class is the ROI's
group, "" for group 0.
"""

import itertools
import math
import zipfile
import zlib

import numpy as np
import roifile

from cellseg_jax.data.annotations.raster import (
    Drawn,
    Plane,
    Shape,
    check_planes,
    drawn,
    filled,
)
from cellseg_jax.errors import InputError

T = roifile.ROI_TYPE
OUTLINES = (T.POLYGON, T.FREEHAND, T.TRACED)
# Steps of a composite's path: go to, line to, quadratic and cubic curve to, back to the start; and
# how many points each has.
POINTS = {0: 1, 1: 1, 2: 2, 3: 3, 4: 0}
CURVE = 32
QUARTER = 4 / 3 * (math.sqrt(2) - 1)  # of the way to the corner: a cubic that is nearly a circle's
SPLINE = roifile.ROI_OPTIONS.SPLINE_FIT
WITHOUT_AREA = "a {}, which has no area"


def read(path, shape: tuple[int, int], plane: Plane | None = None) -> Drawn:
    """The ROIs of a .zip or .roi file in an (H, W) image, or in one plane of a stack.

    Args:
      plane: ROIs with a position (slice, or z and t) are those of this plane alone, the others lie
        on all planes. None: the image is no stack.
    Raises: InputError if it is no ROI file, or if its ROIs lie on several planes and none is given,
      or on one that the stack does not have.
    """
    shapes, problems, planes, beyond = [], [], set(), []
    for name, data in _files(path):
        try:
            roi = roifile.ImagejRoi.frombytes(data)
        except Exception as error:  # roifile raises many types; all of them mean a damaged file
            raise InputError(f"{path}: {name} cannot be read as an ImageJ ROI ({error}); save the "
                             "ROIs again (ROI Manager > More > Save)") from error
        name = roi.name or name.removesuffix(".roi")
        place = (roi.position,) if roi.position else (roi.z_position, roi.t_position)
        planes |= {place} if any(place) else set()
        numbers = _numbers(place, plane.axes) if plane else ()
        if None in numbers:
            beyond.append(f"position {place[0]}" if roi.position else
                          f"slice {place[0]} frame {place[1]}")
        if plane and plane.number not in numbers:
            continue
        try:
            shapes.append(Shape(name, str(roi.group or ""), *_pixels(roi, shape)))
        except ValueError as error:
            problems.append(f"{name} ({error})")
    if plane:
        check_planes(path, beyond, plane.axes)
    if len(planes) > 1 and plane is None:
        raise InputError(f"{path}: its ROIs lie on {len(planes)} planes of a stack, its image is "
                         "2-D; expected those of one plane, or a stack with "
                         "config.data.pages=slices")
    return drawn(path, shapes, problems, shape)


def _numbers(place, axes) -> set[int | None]:
    """Images of a stack that a ROI lies on; None among them for one that the stack does not have.

    Args:
      place: (position,) of the plane, Z before T, or (slice, frame), all from 1; 0 is any. Where
        there are channels alone, a position is that of a channel.
      axes: StackAxes.
    """
    of_channel = len(place) == 1 and axes.has_channels and axes.count == 1
    if not any(place) or of_channel:
        return set(range(axes.count))
    if len(place) == 1:  # of two axes, ImageJ counts slices first
        t, z = divmod(place[0] - 1, axes.lengths["Z"]) if len(axes.lengths) > 1 else (
            place[0] - 1, 0 if axes.projected else place[0] - 1)
        return {axes.number(z, t)}
    if len(axes.lengths) == 1:
        return {axes.number(*(max(one - 1, 0) for one in place))}
    any_of = [[one - 1] if one else range(axes.lengths[axis])
              for axis, one in zip("ZT", place, strict=True)]
    return {axes.number(z, t) for z, t in itertools.product(*any_of)}


def _files(path):
    """(name, bytes) of each ROI in a file."""
    if path.suffix.lower() == ".roi":
        return [(path.name, path.read_bytes())]
    try:
        with zipfile.ZipFile(path) as archive:
            files = [(name, archive.read(name)) for name in archive.namelist()
                     if name.lower().endswith(".roi") and not _of_finder(name)]
            others = len(archive.namelist()) - len(files)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"{path}: is no zip file, truncated or damaged ({error})") from error
    if others and not files:
        raise InputError(f"{path}: holds {others} files, none of them a .roi; expected a zip of "
                         "ImageJ's ROI Manager, unpack other archives")
    return files


def _of_finder(name: str) -> bool:
    """Whether a file in an archive is one that macOS adds to each."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


def _pixels(roi, shape):
    """(window, mask) of a ROI; ValueError with the reason if it has no area."""
    if roi.composite:
        return filled(_rings(roi.multi_coordinates), shape)
    if roi.roitype in OUTLINES:
        points = roi.coordinates()
        if len(points) < 3:
            raise ValueError(f"an outline of {len(points)} points")
        return filled([_spline(points) if roi.options & SPLINE else points], shape)
    if roi.roitype not in (T.RECT, T.OVAL) or roi.subtype == roifile.ROI_SUBTYPE.TEXT:
        raise ValueError(WITHOUT_AREA.format(roi.subtype.name.lower() if roi.subtype.value else
                                             roi.roitype.name.lower()))
    x, y, width, height = (
        (int(roi.xd), int(roi.yd), math.ceil(roi.widthd), math.ceil(roi.heightd))
        if roi.subpixelrect else (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top))
    diameter = roi.rounded_rect_arc_size if roi.roitype == T.RECT else 0  # of round corners
    window, mask = filled([_rectangle(x, y, width, height, diameter)], shape)
    if roi.roitype == T.OVAL:
        rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in window)
        across, down = (2 * (columns - x) / width - 1) ** 2, (2 * (rows - y) / height - 1) ** 2
        mask = mask & (down[:, None] + across <= 1)
    return window, mask


def _rectangle(x, y, width, height, diameter) -> np.ndarray:
    """(n, 2) outline of a rectangle whose corners are round if `diameter`, in pixels, is not 0."""
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], float)
    if not diameter:
        return corners
    radius = np.minimum(diameter, (width, height)) / 2
    outline = []
    for n, corner in enumerate(corners):
        before, after = (corner + np.sign(corners[k % 4] - corner) * radius for k in (n - 1, n + 1))
        bend = [end + QUARTER * (corner - end) for end in (before, after)]
        outline += [before, *_curve(np.stack([before, *bend, after]))]
    return np.array(outline)


def _spline(points) -> np.ndarray:
    """(n, 2) points of the curve that "Fit Spline" lays through corners.

    A cubic spline whose knots are apart by the square roots of the corners' distances, straight
    between 100 points of it, or more where the outline is longer than 200 pixels. It is closed by
    7 corners more on both sides, or one round if there are fewer, beyond which it is natural.
    """
    from scipy import interpolate  # takes a second, for few files

    steps = np.linalg.norm(np.roll(points, -1, 0) - points, axis=1).astype(np.float64)
    more, count = min(7, len(points)), len(points)
    number = np.arange(-more, count + more + 1) % count
    knots = np.cumsum(np.concatenate([[0], np.maximum(np.sqrt(steps), 1e-3)[number[:-1]]]))
    curve = interpolate.CubicSpline(knots, points[number], bc_type="natural")
    return curve(np.linspace(knots[more], knots[more + count], max(100, int(steps.sum() / 2))))


def _rings(path) -> list[np.ndarray]:
    """(n, 2) corners of each ring of a composite's path; ValueError where it is none."""
    rings, words = [], np.asarray(path if path is not None else (), np.float64)
    while len(words):
        step, count = words[0], POINTS.get(words[0])
        points = words[1 : 1 + 2 * (count or 0)].reshape(-1, 2)
        if count is None or len(points) < count or not (rings or step == 0):
            raise ValueError(f"a damaged path with the step {step:g}")
        words = words[1 + 2 * count :]
        if step == 0:
            rings.append([])
        if count > 1:
            points = _curve(np.concatenate([rings[-1][-1:], points]))
        rings[-1].extend(points)
    if not rings:
        raise ValueError("an empty path")
    return [np.array(ring) for ring in rings]


def _curve(points) -> np.ndarray:
    """(CURVE, 2) points of a Bezier curve behind its start, by de Casteljau's construction."""
    share = np.linspace(0, 1, CURVE + 1)[1:, None]
    levels = [np.repeat(point[None], CURVE, 0) for point in points]
    while len(levels) > 1:
        levels = [(1 - share) * a + share * b for a, b in zip(levels, levels[1:], strict=False)]
    return levels[0]
