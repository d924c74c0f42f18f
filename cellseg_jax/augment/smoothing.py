"""Smoothing by a Gaussian, as products with matrices."""

import jax.numpy as jnp


def smoothing(n, sigma, spacing=1):
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


def smooth(numbers, sigma, size, spacing=1):
    """(..., H, W) under a Gaussian of sigma pixels, of numbers `spacing` pixels apart."""
    rows, columns = (smoothing(n, sigma, spacing).astype(numbers.dtype) for n in size)
    return jnp.einsum("yi,...ij,xj->...yx", rows, numbers, columns, precision="highest")
