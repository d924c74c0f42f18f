"""Geometric augmentations: (draw, strength, size) -> where pixels come from.

The result is a 2x2 matrix that maps the output's (y, x), relative to the centre of the image, to
the input's; or the displacement of the output's pixels, (down, right). strength is a number, which
may be traced, and size is (H, W) in pixels.
"""

import jax
import jax.numpy as jnp

from cellseg_jax.augment.draws import between
from cellseg_jax.augment.smoothing import smooth


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
    angle = jnp.deg2rad(between(-strength, strength, draw.u[0]))
    return [[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]]


def zoom(draw, strength, size):
    """Larger or smaller by a factor log-uniform in [1 / (1 + strength), 1 + strength]."""
    del size
    inverse = jnp.exp(between(-1, 1, draw.u[0]) * jnp.log1p(strength))
    return [[inverse, 0], [0, inverse]]


def zoom_in(draw, strength, size):
    """Larger by a factor log-uniform in [1, 1 + strength]."""
    del size
    inverse = jnp.exp(-draw.u[0] * jnp.log1p(strength))
    return [[inverse, 0], [0, inverse]]


def shear(draw, strength, size):
    """Rows and columns sheared about the centre, each by its own angle in +-strength degrees."""
    del size
    slope = jnp.tan(jnp.deg2rad(between(-strength, strength, draw.u[:2])))
    return [[1, slope[0]], [slope[1], 1]]


def shift(draw, strength, size):
    """Moved along each axis, uniform in +-strength times that side of the image."""
    return between(-strength, strength, draw.u[:2]) * jnp.array(size)


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
        return smooth(numbers / spacing, sigma, size, spacing)

    # sigma is shared by all rows of a batch: under vmap this stays a choice of one field.
    spacings = [s for s in SPACINGS if s <= max(1, min(size) / 4)]
    chosen = (jnp.asarray(sigma) >= jnp.array(spacings[1:])).sum()
    down, right = jax.lax.switch(chosen, [lambda s=s: field(s) for s in spacings])
    # The barrier keeps the products out of the loops that gather, where they cost thrice as much.
    return jax.lax.optimization_barrier((strength * down, strength * right))

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
