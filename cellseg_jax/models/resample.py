"""Padding, pooling and upsampling of (N, H, W, C) maps, equal to torch's."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

Image = Float[ArrayLike, "n h w c"]


def pad_to_multiple(image: Image, multiple: int) -> Float[ArrayLike, "n _ _ c"]:
    """Zeros added below and to the right, until height and width are multiples of `multiple`."""
    high = [-size % multiple for size in image.shape[1:3]]
    return jnp.pad(image, ((0, 0), (0, high[0]), (0, high[1]), (0, 0))) if any(high) else image


def max_pool(image: Image) -> Float[Array, "n h//2 w//2 c"]:
    """The largest of every 2x2 pixels; an odd last row or column is left out, as in torch.

    Two `maximum`: their gradient costs a fraction of reduce_window's. Equal pixels share the
    gradient, where torch gives it to the first; after a ReLU the many equal zeros pass none.
    """
    n, height, width, channels = image.shape
    rows, columns = height // 2, width // 2
    image = image[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, 2 * columns, channels)
    image = jnp.maximum(image[:, :, 0], image[:, :, 1]).reshape(n, rows, columns, 2, channels)
    return jnp.maximum(image[:, :, :, 0], image[:, :, :, 1])


def upsample_bilinear(image: Image) -> Float[Array, "n 2*h 2*w c"]:
    """Twice the height and width; corners stay where they are (torch: align_corners=True).

    Pixel 2k lies k / (2H - 1) before pixel k, and pixel 2k + 1 lies (H - 1 - k) / (2H - 1)
    behind it: made of shifts and weights, without a gather.
    """
    for axis in (1, 2):
        size = image.shape[axis]
        share = _along(axis, jnp.arange(size) / (2 * size - 1), image.dtype)
        before, after = _edge(image, axis, 0), _edge(image, axis, size - 1)
        before = jnp.concatenate([before, lax.slice_in_dim(image, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([lax.slice_in_dim(image, 1, size, axis=axis), after], axis)
        even = image + (before - image) * share
        odd = image + (after - image) * jnp.flip(share)
        shape = (*image.shape[:axis], 2 * size, *image.shape[axis + 1 :])
        image = jnp.stack([even, odd], axis + 1).reshape(shape)
    return image


def stretch_by_one(image: Image, axis: int) -> Float[Array, "n _ _ c"]:
    """One pixel more along `axis`, resized bilinearly about pixel centres.

    Equal to torch's interpolate(mode="bilinear", align_corners=False): pixel i of H + 1 lies
    (i + 1/2) / (H + 1) before pixel i of the H.
    """
    size = image.shape[axis]
    share = _along(axis, (jnp.arange(size + 1) + 0.5) / (size + 1), image.dtype)
    before = jnp.concatenate([_edge(image, axis, 0), image], axis)
    after = jnp.concatenate([image, _edge(image, axis, size - 1)], axis)
    return after + (before - after) * share


def _edge(image, axis, index):
    return lax.slice_in_dim(image, index, index + 1, axis=axis)


def _along(axis, weights, dtype):
    return weights.astype(dtype).reshape([-1 if a == axis else 1 for a in range(4)])
