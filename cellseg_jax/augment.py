"""Augmentations: one sample in, one sample out, on device inside the compiled step.

`warp` moves the pixels of a sample as it was decoded, `intensity` changes the intensities of a
normalised image. Both take one sample; vmap over a batch with one key per row:
`vmap(lambda key, sample: warp(key, sample, settings))(keys, batch)`.

`settings` is {name: (probability, strength)} over AUGMENTATIONS, and maybe numbers of OPTIONS;
all may be traced. Each augmentation is applied with its own probability, in the order of
AUGMENTATIONS, and has its own key, made from its name: leaving one out does not change the
others' draws. Draws are float32 also under x64. A probability or strength of 0 is the exact
identity; a probability that is the Python number 0 compiles nothing.

Functions are named as what they do; the keys of GEOMETRIC and INTENSITY are those of a config.
"""

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, Key

from cellseg_jax.errors import pick
from cellseg_jax.random_bits import random_words

WARPED = ("image", "label", "pixel_weight")
COPY_FOLD = 2**32 - 1  # folded into the seed for stored variants; no step is that late


def variant_key(seed: ArrayLike, sample: ArrayLike, copy: ArrayLike) -> Key[Array, ""]:
    """The key of a stored variant: of the run's seed, a sample (or image), and the copy."""
    variants = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), COPY_FOLD)
    return jax.random.fold_in(jax.random.fold_in(variants, sample), copy)


class Patch(NamedTuple):
    """One patch of an image that is augmented as a whole and cut afterwards, as crops.to_grid."""

    grid: int  # patches along each side of the image
    first: Integer[ArrayLike, ""]  # number of the image's first patch among all that are stored
    cell: Integer[ArrayLike, ""]  # of the patch in its image, column after column


class Draw(NamedTuple):
    """The random numbers of one augmentation of one sample."""

    key: Key[Array, ""]  # for whole fields of random numbers
    u: Float[Array, "4"]  # uniform in [0, 1)


def _draws(key, names, settings) -> dict:
    """{name: (its strength, 0 where it is not applied, its Draw)}, all names drawn at once."""
    hashes = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, hashes)
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (5,), jnp.float32))(keys)
    draws = {}
    for name, key, u in zip(names, keys, numbers, strict=True):
        probability, strength = (jnp.asarray(number, jnp.float32) for number in settings[name])
        # A uniform number is below 1, so that probability 1 always applies.
        draws[name] = jnp.where(u[0] < probability, strength, 0), Draw(key, u[1:])
    return draws


def _between(low, high, u):
    return low + (high - low) * u


def _smoothing(n, sigma, spacing=1):
    """(n, cells): this times numbers `spacing` pixels apart is n pixels under a Gaussian of sigma.

    With spacing 1 that of scipy.ndimage.gaussian_filter1d with its defaults (mode="reflect", cut
    off at 4 sigma) where sigma, in pixels, is at most n / 4; sigma 0 is the identity. Cells lie in
    the middle of their pixels and are mirrored at the two ends. A matrix, since sigma is traced,
    and since matrix products are what every device does best.
    """
    cells = -(-n // spacing)
    sigma = jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-3)

    def weight(distance):
        inside = jnp.abs(distance) <= jnp.floor(4 * sigma + 0.5)
        return jnp.where(inside, jnp.exp(-0.5 * (distance / sigma) ** 2), 0)

    i = jnp.arange(n, dtype=jnp.float32)[:, None]
    cell = spacing * jnp.arange(cells, dtype=jnp.float32) + (spacing - 1) / 2
    end = 2 * spacing * cells - 1
    weights = weight(i - cell) + weight(i + cell + 1) + weight(end - i - cell)  # two mirrors
    return weights / weights.sum(1, keepdims=True)


def _smooth(numbers, sigma, size, spacing=1):
    """(..., H, W) under a Gaussian of sigma pixels, of numbers `spacing` pixels apart."""
    rows, columns = (_smoothing(n, sigma, spacing).astype(numbers.dtype) for n in size)
    return jnp.einsum("yi,...ij,xj->...yx", rows, numbers, columns, precision="highest")


# Geometric augmentations: (draw, strength, size) -> a 2x2 matrix that maps the output's (y, x),
# relative to the centre of the image, to the input's; or the displacement of the output's pixels,
# (down, right). strength is a number, which may be traced, and size is (H, W) in pixels.


def flip_horizontal(draw, strength, size):
    """Left and right exchanged. strength: 1 flips, 0 does not."""
    del draw, size
    return [[1, 0], [0, jnp.where(strength >= 1, -1, 1)]]


def flip_vertical(draw, strength, size):
    """Top and bottom exchanged. strength: 1 flips, 0 does not."""
    del draw, size
    return [[jnp.where(strength >= 1, -1, 1), 0], [0, 1]]


def rot90(draw, strength, size):
    """Rotated counter-clockwise by 90 degrees n times, n uniform in 1..strength, strength 0..3.

    90 and 270 degrees would change the shape of an image that is not square, so there only 180
    degrees are left: strength 2 and 3 rotate by 180 degrees, strength 1 changes nothing.
    """
    if size[0] == size[1]:
        quarters = jnp.floor(draw.u[0] * strength) + (strength >= 1)
    else:
        quarters = 2 * (strength >= 2)
    cos = jnp.where(quarters % 2 == 1, 0, 1 - quarters)  # of 0, 1, 2, 3: 1, 0, -1, 0
    sin = jnp.where(quarters % 2 == 1, 2 - quarters, 0)  # 0, 1, 0, -1
    return [[cos, sin], [-sin, cos]]


def rotation(draw, strength, size):
    """Rotated about the centre by an angle uniform in +-strength degrees."""
    del size
    angle = jnp.deg2rad(_between(-strength, strength, draw.u[0]))
    return [[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]]


def zoom(draw, strength, size):
    """Larger or smaller by a factor log-uniform in [1 / (1 + strength), 1 + strength]."""
    del size
    inverse = jnp.exp(_between(-1, 1, draw.u[0]) * jnp.log1p(strength))
    return [[inverse, 0], [0, inverse]]


def zoom_in(draw, strength, size):
    """Larger by a factor log-uniform in [1, 1 + strength]."""
    del size
    inverse = jnp.exp(-draw.u[0] * jnp.log1p(strength))
    return [[inverse, 0], [0, inverse]]


def shear(draw, strength, size):
    """Rows and columns sheared about the centre, each by its own angle in +-strength degrees."""
    del size
    slope = jnp.tan(jnp.deg2rad(_between(-strength, strength, draw.u[:2])))
    return [[1, slope[0]], [slope[1], 1]]


def shift(draw, strength, size):
    """Moved along each axis, uniform in +-strength times that side of the image."""
    return _between(-strength, strength, draw.u[:2]) * jnp.array(size)


SPACINGS = (1, 4, 8)  # pixels between the random numbers of elastic: the largest up to sigma


def elastic(draw, strength, size, sigma=8.0):
    """Displaced by a smooth random field: strength * gaussian_filter(uniform(-1, 1), sigma).

    sigma in pixels, at most a quarter of the shorter side. strength is the paper's alpha, in
    pixels before smoothing; far from the border a component of the displacement has the standard
    deviation 0.163 * strength / sigma.

    Returns: (down, right), each (H, W) in pixels.
    Source: Simard et al. 2003, Best Practices for Convolutional Neural Networks, section 2. Differs
      from it by fewer random numbers where sigma is large: one per s x s pixels, with s the
      largest of SPACINGS up to sigma, divided by s. Standard deviation and correlation
      are the same within 0.1 %, since a Gaussian removes nearly all frequencies that so wide a
      grid lacks. The uniform numbers have 256 levels, which smoothing makes invisible.
    """

    def field(spacing):
        cells = [-(-n // spacing) for n in size]
        count = 2 * cells[0] * cells[1]
        # One byte per number: drawing is what costs time where spacing is 1.
        key = jax.random.fold_in(draw.key, 1)
        words = jax.random.bits(key, ((count + 3) // 4,), jnp.uint32)
        levels = jax.lax.bitcast_convert_type(words, jnp.uint8).ravel()[:count]
        numbers = (levels.astype(jnp.float32) / 127.5 - 1).reshape(2, *cells)
        return _smooth(numbers / spacing, sigma, size, spacing)

    # sigma is shared by all rows of a batch: under vmap this stays a choice of one field.
    spacings = [s for s in SPACINGS if s <= max(1, min(size) / 4)]
    chosen = (jnp.asarray(sigma) >= jnp.array(spacings[1:])).sum()
    down, right = jax.lax.switch(chosen, [lambda s=s: field(s) for s in spacings])
    # The barrier keeps the products out of the loops that gather, where they cost thrice as much.
    return jax.lax.optimization_barrier((strength * down, strength * right))


# Intensity augmentations: (draw, strength, image) -> image, of the channels without alpha. strength
# is a number, which may be traced.

Image = Float[ArrayLike, "h w c"]


def brightness(draw: Draw, strength, image: Image) -> Image:
    """Times a factor uniform in 1 +- strength."""
    return image * _between(1 - strength, 1 + strength, draw.u[0])


def contrast(draw: Draw, strength, image: Image) -> Image:
    """Distances from the mean of the image times a factor uniform in 1 +- strength."""
    mean = image.mean()
    return mean + (image - mean) * _between(1 - strength, 1 + strength, draw.u[0])


def gamma(draw: Draw, strength, image: Image) -> Image:
    """To a power log-uniform in [1 / (1 + strength), 1 + strength]; values below 0 become 0."""
    return jnp.maximum(image, 0) ** jnp.exp(_between(-1, 1, draw.u[0]) * jnp.log1p(strength))


def colour_jitter(draw: Draw, strength, image: Image) -> Image:
    """Brightness, contrast, saturation and hue, in this order, each by its own draw.

    Brightness, contrast and saturation change by factors uniform in 1 +- strength, hue by an
    angle uniform in +-strength turns of the colour circle. Gray images have neither saturation
    nor hue: there the two do nothing.

    Source: torchvision's ColorJitter, with one strength for its four; but saturation is that of
      HSV (Smith 1978), like hue, and nothing is clipped in between.
    """
    image = brightness(draw, strength, image)
    image = contrast(Draw(draw.key, draw.u[1:]), strength, image)
    if image.shape[-1] != 3:
        return image
    factor = _between(1 - strength, 1 + strength, draw.u[2])
    return _saturation_hue(image, factor, _between(-strength, strength, draw.u[3]))


def _saturation_hue(image, factor, turns):
    """(H, W, 3) with HSV saturation times factor, at most 1, and hue moved by turns of a circle."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = image.max(-1)
    chroma = value - image.min(-1)
    per = 1 / jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red, (green - blue) * per,
        jnp.where(value == green, 2 + (blue - red) * per, 4 + (red - green) * per))
    chroma = jnp.minimum(chroma * factor, jnp.maximum(value, chroma))
    k = (sextant + 6 * turns)[..., None] + jnp.array([5, 3, 1], image.dtype)
    k = k - 6 * jnp.floor(k / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def rgb_shift(draw: Draw, strength, image: Image) -> Image:
    """To each channel its own number added, uniform in +-strength."""
    count = image.shape[-1]
    u = draw.u[:count] if count <= len(draw.u) else jax.random.uniform(draw.key, (count,))
    return image + _between(-strength, strength, u)


def blur(draw: Draw, strength, image: Image) -> Image:
    """Smoothed by a Gaussian of a sigma uniform in [0, strength] pixels, mirrored at the border."""
    smooth = _smooth(jnp.moveaxis(image, -1, 0), strength * draw.u[0], image.shape[:2])
    return jnp.moveaxis(smooth, 0, -1)


def noise(draw: Draw, strength, image: Image) -> Image:
    """Plus independent Gaussian noise of a standard deviation uniform in [0, strength]."""
    words = random_words(jax.random.fold_in(draw.key, 1), image.size)
    # 23 bits, in the middle of their intervals: never -1 or 1, where erf_inv is infinite.
    uniform = ((words >> 9).astype(jnp.float32) + 0.5) * 2**-22 - 1
    normal = 2**0.5 * jax.lax.erf_inv(uniform).reshape(image.shape)
    return image + strength * draw.u[0] * normal


GEOMETRIC = {
    "flip_horizontal": flip_horizontal,
    "flip_vertical": flip_vertical,
    "turn": rot90,
    "rotation": rotation,
    "zoom": zoom,
    "zoom_in": zoom_in,
    "shear": shear,
    "shift": shift,  # displacements come after all matrices: _input_places relies on it
    "elastic": elastic,
}
INTENSITY = {
    "brightness": brightness,
    "contrast": contrast,
    "gamma": gamma,
    "colour_jitter": colour_jitter,
    "rgb_shift": rgb_shift,
    "blur": blur,
    "noise": noise,
}
AUGMENTATIONS = {**GEOMETRIC, **INTENSITY}
OPTIONS = {"elastic_sigma": 8.0}  # pixels; numbers in settings that are no augmentation
WHOLE_PIXEL = ("flip_horizontal", "flip_vertical", "turn")
LIMITS = {  # largest strength and what it measures
    "rotation": (180, "degrees"),
    "zoom": (9, "the largest factor minus 1"),
    "zoom_in": (9, "the largest factor minus 1"),
    "shear": (44, "degrees"),
    "shift": (1, "a fraction of the side"),
    "elastic": (float("inf"), "pixels"),
    "brightness": (1, "a fraction"),
    "contrast": (1, "a fraction"),
    "gamma": (9, "the largest power minus 1"),
    "colour_jitter": (0.5, "a fraction, turns of the colour circle"),
    "rgb_shift": (1, "a fraction of the image's range"),
    "noise": (1, "a fraction of the image's range"),
}


def check(name: str, strength, size) -> str:
    """Why a strength, or a number of OPTIONS, is invalid for images of size (H, W).

    Returns: what was expected instead; "" for a valid one.
    """
    if name == "elastic_sigma":
        largest = min(size) / 4
        return "" if 0 < strength <= largest else (
            f"pixels above 0, at most {largest:g}, a quarter of the shorter side")
    if name in WHOLE_PIXEL:
        choices = (1,) if name != "turn" else (1, 2, 3) if size[0] == size[1] else (2, 3)
        return "" if strength in choices else (
            f"a strength among {choices} at size {tuple(size)}")
    largest, unit = LIMITS.get(name) or (min(size) / 4, "pixels")  # blur
    return "" if 0 <= strength <= largest else f"a strength from 0 to {largest:g} ({unit})"


def _active(settings, table, size):
    """The names of `table` that settings switch on, in the table's order.

    Raises: as `warp`.
    """
    for name in settings:
        pick(AUGMENTATIONS | OPTIONS, name, "config.augment")
    active = [name for name in table if name in settings
              and not (_known(settings[name][0]) and settings[name][0] == 0)]
    for name in active:
        strength = settings[name][1]
        if _known(strength) and strength and (expected := check(name, strength, size)):
            raise ValueError(f"augment {name}: got {strength}; expected {expected}")
    return active


def _known(number):
    """Whether the number is known before tracing."""
    return isinstance(number, (int, float))


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
    draws = _draws(key, active, settings)
    for name in reversed(active):  # from the output back to the input
        strength, draw = draws[name]
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


def warp(key: Key[Array, ""], sample: dict, settings: dict, patch: Patch | None = None) -> dict:
    """One sample, its pixels moved by the GEOMETRIC augmentations of `settings`.

    All of them make one map from the pixels of the output to places in the input, read once:
    image and pixel_weight bilinear, label the nearest pixel. Places outside are mirrored in the
    outermost pixels (scipy's mode="mirror"), where a mirrored instance keeps its id. If only
    augmentations of WHOLE_PIXEL are switched on, pixels are moved as they are.

    Args:
      key: of this sample.
      sample: "image" (H, W, C) integer or float, and maybe "label" (H, W) and "pixel_weight"
        (H, W); other entries pass through.
      settings: see the module; names of INTENSITY are for `intensity`.
      patch: given, the pixels of the sample are the patches (p, h, w, ...) of some images, and the
        result is this patch of its warped image, (h, w, ...).
    Returns: the sample with the same shapes. Label and pixel_weight keep their dtype; so does the
      image where pixels are moved as they are, otherwise it is float32, in the same units and
      not rounded.
    Raises: InputError for an unknown name; ValueError for a Python strength without a meaning,
      such as 90 degrees for an image that is not square (see `check`).
    """
    axes = 2 if patch is None else 3  # those of pixels, the first of them of patches
    shape = sample["image"].shape[axes - 2 : axes]
    size, part, number = _reading(shape, patch)
    active = _active(settings, GEOMETRIC, size)
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
        moved[name] = value.astype(dtype).reshape(shape + pixels.shape[axes:])
    return sample | jax.lax.optimization_barrier(moved)


def intensity(key: Key[Array, ""], image: Image, settings: dict, colours: int = 3) -> Image:
    """One image, its intensities changed by the INTENSITY augmentations of `settings`.

    Args:
      key: of this sample.
      image: normalised: about 0 to 1.
      settings: see the module; names of GEOMETRIC are for `warp`.
      colours: how many channels are changed; those behind them, such as alpha, stay as they are.
    Returns: of the same dtype, not clipped.
    Raises: as `warp`.
    """
    active = _active(settings, INTENSITY, image.shape[:2])
    if not active:
        return image
    channels = image[..., :colours]
    for name, (strength, draw) in _draws(key, active, settings).items():
        changed = INTENSITY[name](draw, strength, channels).astype(image.dtype)
        channels = jnp.where(strength > 0, changed, channels)
    # Written in place: a concatenation would compute the whole warp again for each channel.
    return image.at[..., :colours].set(channels) if image.shape[-1] > colours else channels


def _nuclei(size):
    return {}  # report 0 augments nothing


def _small_unet(size):
    # Report 1: rotation, zoom-in, flips; amounts unstated. Nuclei have no preferred direction.
    return {"flip_horizontal": (0.5, 1), "flip_vertical": (0.5, 1), "rotation": (0.5, 180),
            "zoom_in": (0.5, 0.5)}


def _ebhi(size):
    return {"flip_horizontal": (0.5, 1), "flip_vertical": (0.7, 1), "rotation": (0.6, 30)}


def _ebhi_copies(size):
    # Report 2's stored copies. Its "one of blur and colour jitter" (together 0.5) is two
    # independent draws here, its 3x3 box blur a Gaussian of at most the same variance, its
    # jitter the tool's default. It fills rotated corners with a constant; here they are mirrored.
    return {"rotation": (0.9, 40), "flip_horizontal": (0.5, 1), "flip_vertical": (0.1, 1),
            "rgb_shift": (0.9, 25 / 255), "blur": (0.25, 0.8), "colour_jitter": (0.25, 0.2)}


def _em(size):
    # Report 3: affine, brightness, elastic; the numbers of the code that it names. That code
    # draws three points +-0.08 W away: each entry of the affine matrix then has the standard
    # deviation 0.1, which these rotations, zooms and shears share. Brightness is unstated.
    width = size[1]
    return {"rotation": (1, 7), "zoom": (1, 0.12), "shear": (1, 7), "shift": (1, 0.08),
            "elastic": (1, 2 * width), "elastic_sigma": 0.08 * width, "brightness": (1, 0.2)}


def _livecell(size):
    # Report 4: elastic and rotation, amounts unstated: the middle of the usual sigma 4 to 10 and
    # alpha 34 to 100, and report 2's rotation.
    return {"elastic": (1, 67), "elastic_sigma": 7, "rotation": (1, 30)}


PRESETS = {"nuclei": _nuclei, "small_unet": _small_unet, "ebhi": _ebhi,
           "ebhi_copies": _ebhi_copies, "em": _em, "livecell": _livecell}


def preset(name: str, size) -> dict:
    """The settings of a report's own recipe for images of size (H, W), in pixels."""
    return pick(PRESETS, name, "augment.preset")(size)
