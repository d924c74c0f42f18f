"""Settings applied: `warp` to the pixels of a sample, `intensity` to the values of an image."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Integer, Key

from cellseg_jax.augment.draws import draws
from cellseg_jax.augment.geometric import GEOMETRIC, elastic, shift
from cellseg_jax.augment.intensities import INTENSITY, Image
from cellseg_jax.augment.settings import OPTIONS, WHOLE_PIXEL, active_in

WARPED = ("image", "label", "pixel_weight")
TILES = 16  # along each axis, whose mirrored copies have ids of their own


class Patch(NamedTuple):
    """One patch of an image that is augmented as a whole and cut afterwards, as crops.to_grid."""

    grid: int  # patches along each side of the image
    first: Integer[ArrayLike, ""]  # number of the image's first patch among all that are stored
    cell: Integer[ArrayLike, ""]  # of the patch in its image, column after column


def _mirrored(place, n):
    """Places anywhere brought into 0..n-1, as between two mirrors in the outermost pixels."""
    period = max(2 * (n - 1), 1)
    place = jnp.abs(place)
    place = place - period * jnp.floor(place / period)
    return jnp.clip(jnp.where(place > n - 1, period - place, place), 0, n - 1)


def _input_places(key, active, settings, size, part):
    """Where each pixel of the output comes from: (y, x), each (H, W) float32, anywhere.

    `part` takes, from rows (H, 1), columns (1, W) or fields (H, W) of the image, those wanted.
    """
    centre = [(n - 1) / 2 for n in size]
    y, x = (jnp.arange(n, dtype=jnp.float32) - c for n, c in zip(size, centre, strict=True))
    y, x = part(y[:, None]), part(x[None, :])
    matrix, moved_by = jnp.eye(2, dtype=jnp.float32), jnp.zeros(2, jnp.float32)
    drawn = draws(key, active, settings)
    for name in reversed(active):  # from the output back to the input
        strength, draw = drawn[name]
        if name == "elastic":
            sigma = settings.get("elastic_sigma", OPTIONS["elastic_sigma"])
            down, right = elastic(draw, strength, size, sigma)
            y, x = y + part(down), x + part(right)
        elif name == "shift":
            moved_by = jnp.stack(shift(draw, strength, size))
        else:
            step = jnp.array(GEOMETRIC[name](draw, strength, size), jnp.float32)
            matrix = (step[:, :, None] * matrix).sum(1)  # exact, unlike fast matrix products
    moved_by = (matrix * moved_by).sum(1) + jnp.array(centre, jnp.float32)
    # The barrier keeps XLA from drawing again for every pixel.
    matrix, moved_by = jax.lax.optimization_barrier((matrix, moved_by))
    return tuple(matrix[i, 0] * y + matrix[i, 1] * x + moved_by[i] for i in (0, 1))


def _read(flat, row):
    """(H, W, C): the pixels (H * W, C) at the flat numbers `row` (H, W), all within bounds."""
    return flat.at[row].get(mode="promise_in_bounds")  # without a check of the bounds


def _corners(y, x, size, number):
    """The pixels around places: flat numbers of the four and of the nearest, and fractions.

    `number` gives the flat number of the pixel in row y and column x.

    Returns: [top left, top right, bottom left, bottom right], the nearest, each (H, W) uint32; and
      how far down and right of the first the place is, each (H, W, 1) in [0, 1).
    """
    y, x = _mirrored(y, size[0]), _mirrored(x, size[1])
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    edges = [(near.astype(jnp.uint32), jnp.minimum(near + 1, n - 1).astype(jnp.uint32))
             for near, n in ((top, size[0]), (left, size[1]))]
    corners = [number(edges[0][i], edges[1][j]) for i in (0, 1) for j in (0, 1)]
    nearest = number(jnp.where(down < 0.5, *edges[0]), jnp.where(right < 0.5, *edges[1]))
    # The barrier computes these once for all that is read, in loops that vectorise.
    return jax.lax.optimization_barrier((corners, nearest, down[..., None], right[..., None]))


def _interpolated(flat, corners, down, right):
    """(H, W, C) float32 of pixels (H * W, C), bilinear between the four corners."""
    a, b, c, d = (_read(flat, row).astype(jnp.float32) for row in corners)
    upper, lower = a + right * (b - a), c + right * (d - c)
    return upper + down * (lower - upper)


def _copies_apart(flat, label, y, x, size, number):
    """(H, W) int32: a label that was read at places y and x, its mirrored copies with own ids.

    Each mirror starts another tile of the plane, tile 0 being the image along each axis. An
    instance that touches a mirror is in one piece with its copy behind it, and shares its id.

    Args:
      flat: (n, 1) the labels that were read.
      number: as in _corners.
    """
    rows, columns = (jnp.arange(n, dtype=jnp.uint32) for n in size)
    zero = jnp.uint32(0)
    mirrors = (number(zero, columns), number(rows[-1], columns),
               number(rows, zero), number(rows, columns[-1]))
    touches = _sides_touched(label, [flat[pixels, 0] for pixels in mirrors])
    copy = jnp.zeros(label.shape, jnp.int32)
    for axis, (place, n) in enumerate(zip((y, x), size, strict=True)):
        tile = jnp.floor(place / max(n - 1, 1)).astype(jnp.int32)
        first, last = (touches >> (2 * axis + k) & 1 > 0 for k in (0, 1))
        # Tiles 2k - 1 and 2k meet at the first mirror, 2k and 2k + 1 at the last.
        tile = jnp.where(first & last, 0, jnp.where(
            first, (tile + 1) // 2, jnp.where(last, tile // 2, tile)))
        copy = TILES * copy + tile % TILES
    label = label.astype(jnp.int32)
    highest = label.max()
    apart = (label > 0) & (highest < 2**31 // TILES**2 - 1)  # there is no room beside larger ids
    return jnp.where(apart, label + copy * (highest + 1), label)


def _sides_touched(label, sides):
    """(H, W) int32: bit k is set where the id (H, W) is one of sides[k], (n,) ids each.

    One binary search among the ids of all sides: jnp.isin of each takes three times as long.
    """
    ids = jnp.sort(jnp.concatenate(sides))
    bits = sum(jnp.zeros(ids.shape, jnp.int32).at[jnp.searchsorted(ids, side)].set(1 << k)
               for k, side in enumerate(sides))
    place = jnp.minimum(jnp.searchsorted(ids, label), len(ids) - 1)
    return jnp.where(ids[place] == label, bits[place], 0)


def _reading(shape, patch):
    """How warped pixels of (H, W) are read: the size of the whole image, `part`, `number`.

    See _input_places and _corners. The height and width of the output are `shape`.
    """
    if patch is None:
        return shape, lambda x: x, lambda y, x: y * shape[1] + x
    (height, width), grid = shape, patch.grid
    column, row = patch.cell // grid, patch.cell % grid

    def part(x):
        zero = jnp.zeros_like(row)  # of the same type, also in float64
        start = [row * height if x.shape[0] > 1 else zero,
                 column * width if x.shape[1] > 1 else zero]
        return jax.lax.dynamic_slice(
            x, start, (min(height, x.shape[0]), min(width, x.shape[1])))

    def number(y, x):
        cell = patch.first + x // width * grid + y // height
        return (cell * height + y % height) * width + x % width

    return (grid * height, grid * width), part, number


def warp(key: Key[Array, ""], sample: dict, settings: dict, patch: Patch | None = None, *,
         copies_apart: bool = False) -> dict:
    """One sample, its pixels moved by the GEOMETRIC augmentations of `settings`.

    All of them make one map from the pixels of the output to places in the input, read once:
    image and pixel_weight bilinear, label the nearest pixel. Places outside are mirrored in the
    outermost pixels (scipy's mode="mirror"), where a mirrored instance keeps its id unless
    `copies_apart`. If only augmentations of WHOLE_PIXEL are switched on, pixels are moved as they
    are.

    Args:
      key: of this sample.
      sample: "image" (H, W, C) integer or float, and maybe "label" (H, W) and "pixel_weight"
        (H, W); other entries pass through.
      settings: see the package; names of INTENSITY are for `intensity`.
      patch: given, the pixels of the sample are the patches (p, h, w, ...) of some images, and the
        result is this patch of its warped image, (h, w, ...).
      copies_apart: the label holds instances, and a mirrored copy of one that is not in one piece
        with it gets another id, in int32. For what follows from a whole instance, such as its
        centre.
    Returns: the sample with the same shapes. Label and pixel_weight keep their dtype; so does the
      image where pixels are moved as they are, otherwise it is float32, in the same units and
      not rounded.
    Raises: InputError for an unknown name; ValueError for a Python strength without a meaning,
      such as 90 degrees for an image that is not square (see `check`).
    """
    axes = 2 if patch is None else 3  # those of pixels, the first of them of patches
    shape = sample["image"].shape[axes - 2 : axes]
    size, part, number = _reading(shape, patch)
    active = active_in(settings, GEOMETRIC, size)
    moved = {name: jnp.asarray(sample[name]) for name in WARPED if name in sample}
    if not active:
        return sample if patch is None else sample | {
            name: pixels[patch.first + patch.cell] for name, pixels in moved.items()}
    y, x = _input_places(key, active, settings, size, part)
    flat = {name: pixels.reshape(math.prod(pixels.shape[:axes]), -1)
            for name, pixels in moved.items()}
    if set(active) <= set(WHOLE_PIXEL):
        row = number(y.astype(jnp.uint32), x.astype(jnp.uint32))
        return sample | {name: _read(flat[name], row).reshape(shape + pixels.shape[axes:])
                         for name, pixels in moved.items()}
    corners, nearest, down, right = _corners(y, x, size, number)
    for name, pixels in moved.items():
        value = (_read(flat[name], nearest) if name == "label" else
                 _interpolated(flat[name], corners, down, right))
        dtype = jnp.float32 if name == "image" else pixels.dtype
        if name == "label" and copies_apart:
            value, dtype = _copies_apart(flat[name], value[..., 0], y, x, size, number), jnp.int32
        moved[name] = value.astype(dtype).reshape(shape + pixels.shape[axes:])
    return sample | jax.lax.optimization_barrier(moved)


def intensity(key: Key[Array, ""], image: Image, settings: dict, colours: int = 3) -> Image:
    """One image, its intensities changed by the INTENSITY augmentations of `settings`.

    Args:
      key: of this sample.
      image: normalised: about 0 to 1.
      settings: see the package; names of GEOMETRIC are for `warp`.
      colours: how many channels are changed; those behind them, such as alpha, stay as they are.
    Returns: of the same dtype, not clipped.
    Raises: as `warp`.
    """
    active = active_in(settings, INTENSITY, image.shape[:2])
    if not active:
        return image
    channels = image[..., :colours]
    for name, (strength, draw) in draws(key, active, settings).items():
        changed = INTENSITY[name](draw, strength, channels).astype(image.dtype)
        channels = jnp.where(strength > 0, changed, channels)
    # Written in place: a concatenation would compute the whole warp again for each channel.
    return image.at[..., :colours].set(channels) if image.shape[-1] > colours else channels
