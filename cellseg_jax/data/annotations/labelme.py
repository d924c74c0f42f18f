"""labelme: a json for each image, NAME.json beside NAME.png. X-AnyLabeling writes the same.

Shapes are drawn as labelme.utils.shape_to_mask does: Pillow fills a polygon, a rectangle, an
oriented rectangle or a circle and draws its outline too, so that pixels on the line belong to it;
a mask is its own pixels. Where shapes overlap, the smaller keeps the pixels (labelme's own exports
let the later one have them). Points and lines have no area and are left out. The class is the
shape's label; shapes of one label and one group_id are one object.
"""

import base64
import io
import json
import math

import numpy as np
from PIL import Image, ImageDraw

from cellseg_jax.data.annotations.raster import Drawn, Shape, drawn, united
from cellseg_jax.errors import InputError

FLAT = ("point", "points", "line", "linestrip")


def read(path, shape: tuple[int, int], plane=None) -> Drawn:
    """All shapes of a file in an (H, W) image; there are no stacks in labelme.

    Raises: InputError if it is no labelme file, or was made for an image of another size.
    """
    try:
        content = json.loads(path.read_bytes())
        parts, size = list(content["shapes"]), (content.get("imageHeight"),
                                                content.get("imageWidth"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no labelme file, truncated or damaged ({error!r})"
                         ) from error
    if all(size) and size != shape:
        raise InputError(f"{path}: was made for an image of {size[0]}x{size[1]}, its image is "
                         f"{shape[0]}x{shape[1]}; its shapes do not fit")
    objects, problems = {}, []
    for n, part in enumerate(parts):
        name = f"shape {n + 1}"
        try:
            pixels = _pixels(part, shape)
        except (ValueError, TypeError, KeyError, OSError) as error:
            problems.append(f"{name} ({error})")
            continue
        group = part.get("group_id")
        key = (part.get("label"), group) if group is not None else (None, name)
        objects.setdefault(key, (name, str(part.get("label") or ""), []))[2].append(pixels)
    shapes = [Shape(name, kind, *united(pixels, shape)) for name, kind, pixels in objects.values()]
    return drawn(path, shapes, problems, shape)


def _pixels(part, shape):
    """(window, mask) of a shape; ValueError with the reason if it has no area."""
    kind = part.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in part["points"]]
    if not np.isfinite(points).all():
        raise ValueError("a coordinate that is no number")
    if kind == "mask":
        return _bitmap(part, np.asarray(points).astype(int), shape)
    needed = {"polygon": 3, "oriented_rectangle": 4, "rotation": 4, "rectangle": 2, "circle": 2}
    if kind not in needed:
        raise ValueError(f"a {kind}, which has no area" if kind in FLAT else f"a {kind}")
    if len(points) < needed[kind]:
        raise ValueError(f"a {kind} of {len(points)} points")
    picture = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(picture)
    if kind == "rectangle":  # of two opposite corners, or of all four by X-AnyLabeling
        draw.rectangle((*np.min(points, 0), *np.max(points, 0)), outline=1, fill=1)
    elif kind == "circle":
        (x, y), edge = points[:2]
        radius = math.dist((x, y), edge)
        draw.ellipse(((x - radius, y - radius), (x + radius, y + radius)), outline=1, fill=1)
    else:
        draw.polygon(points, outline=1, fill=1)
    return _cut(np.asarray(picture, bool))


def _bitmap(part, corners, shape):
    """The mask of a shape, whose corners are its first and its last pixel."""
    bitmap = np.asarray(Image.open(io.BytesIO(base64.b64decode(part["mask"])))) > 0
    (left, top), (right, bottom) = corners
    if bitmap.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(f"a mask of {bitmap.shape[0]}x{bitmap.shape[1]} pixels for a box of "
                         f"{bottom - top + 1}x{right - left + 1}")
    if left < 0 or top < 0:
        raise ValueError("a mask that begins outside of the image")
    bitmap = bitmap[: max(0, shape[0] - top), : max(0, shape[1] - left)]
    return (slice(top, top + bitmap.shape[0]), slice(left, left + bitmap.shape[1])), bitmap


def _cut(mask):
    """(window, mask) around the pixels of a mask of the whole image."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    window = tuple(slice(i[0], i[-1] + 1) if len(i) else slice(0, 0) for i in (rows, columns))
    return window, mask[window]
