"""Gradients of convolution kernels as products of matrices over blocks of pixels, for a CPU.

JAX derives a convolution with the cotangent as its kernel, which XLA computes up to a hundred times
slower inside of a loop. In the order of dimensions that stays fast there, the images of a batch are
its channels; whole steps were up to a tenth slower with it than with these products.
"""

import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cellseg_jax.models.onednn import Pads

OF_INPUTS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B', of 4x4 pixels
OF_OUTPUTS = ((1, 0), (1, 1), (1, -1), (0, -1))  # A, of 2x2 pixels
TO_KERNEL = ((1, 0.5, 0.5, 0), (0, 0.5, -0.5, 0), (0, 0.5, 0.5, 1))  # G'
TILES = 512  # about as many at a time as the caches hold
BLOCK_BYTES = 2**21


def by_shifts(
    image: Float[Array, "n h w c"], cotangent: Float[Array, "n p q k"], size: tuple[int, int],
    stride: int, pads: Pads,
) -> Float[Array, "u v c k"]:
    """That of a convolution with a kernel of this size; summed in the dtype of the arrays.

    The image with its columns shifted by each tap, times the cotangent with its rows shifted by
    each, is one product with all taps, of u + v copies; patches would be u * v. With a stride of 2,
    taps of even and of odd rows meet other rows of the image, and have a product each.
    """
    (count, height, width, features), channels = cotangent.shape, image.shape[-1]
    down, right = size
    bytes_of_row = width * (right * channels + down * features) * image.dtype.itemsize
    blocks = -(-height * bytes_of_row // BLOCK_BYTES)
    rows = -(-height // blocks)
    blocks = -(-height // rows)
    phases = [range(phase, down, stride) for phase in range(min(stride, down))]
    most, columns = len(phases[0]), (width - 1) * stride + 1
    read = (rows - 1) * stride + down  # rows of the image, by a block
    (top, _), (left, _) = pads
    x = _padded(image, (top, 0), (read + (blocks - 1) * rows * stride, image.shape[2]))
    y = _padded(cotangent, (0, 0), (blocks * rows, width))

    def add(i, total):
        number, block = i // blocks, i % blocks * rows
        # Padded here, slices are copied once; XLA would copy those of a padded array for each tap.
        d = lax.dynamic_slice(x, (number, block * stride, 0, 0), (1, read, *x.shape[2:]))
        g = lax.dynamic_slice(y, (number, block, 0, 0), (1, rows, width, features))
        d = _padded(d, (0, left), (read, columns + right - 1))[0]
        g = _padded(g, (most - 1, 0), (rows + 2 * (most - 1), width))[0]
        shifted = jnp.concatenate(
            [d[:, v : v + columns : stride] for v in range(right)], axis=-1)
        products = []
        for taps in phases:
            met = rows + len(taps) - 1  # rows of the image
            matrices = (shifted[taps.start :: stride][:met], jnp.concatenate(
                [g[most - 1 - t : most - 1 - t + met] for t in range(len(taps))], axis=-1))
            matrices = lax.optimization_barrier(
                tuple(m.reshape(met * width, -1) for m in matrices))
            products.append(lax.dot_general(*matrices, (((0,), (0,)), ((), ()))))
        return total + jnp.concatenate(products, axis=1)

    products = 2 * right * channels * features * sum(
        len(taps) * (rows + len(taps) - 1) * width for taps in phases)
    total = _summed(add, count * blocks, cotangent, (right * channels, down * features),
                    all_flops=2 * cotangent.size * math.prod(size) * channels, flops=products)
    order = np.argsort([tap for taps in phases for tap in taps])
    return total.reshape(right, channels, down, features)[:, :, order].transpose(2, 0, 1, 3)


def by_winograd(
    image: Float[Array, "n h w c"], cotangent: Float[Array, "n p q k"], pads: Pads
) -> Float[Array, "3 3 c k"]:
    """That of a 3x3 convolution with stride 1, by Winograd's tiles; see winograd.h.

    The fastest for many channels. Summed in the dtype of the arrays.
    """
    (count, height, width, features), channels = cotangent.shape, image.shape[-1]
    columns = -(-width // 2)
    rows = min(max(TILES // columns, 1), -(-height // 2))  # of tiles, in a block
    blocks = -(-height // (2 * rows))
    size = 2 * rows * blocks, 2 * columns
    (top, _), (left, _) = pads
    x = _padded(image, (top, left), (size[0] + 2, size[1] + 2))
    y = _padded(cotangent, (0, 0), size)

    def add(i, total):
        start = i // blocks, i % blocks * 2 * rows, 0, 0
        cut = functools.partial(lax.dynamic_slice, start_indices=start)
        d = cut(x, slice_sizes=(1, 2 * rows + 2, size[1] + 2, channels)).reshape(
            rows + 1, 2, columns + 1, 2, channels)
        g = cut(y, slice_sizes=(1, 2 * rows, size[1], features)).reshape(
            rows, 2, columns, 2, features)
        tiles = [[d[r // 2 : r // 2 + rows, r % 2, c // 2 : c // 2 + columns, c % 2]
                  for c in range(4)] for r in range(4)]
        outputs = [[g[:, r, :, c] for c in range(2)] for r in range(2)]
        matrices = (jnp.stack([part.reshape(rows * columns, -1) for row in grid for part in row])
                    for grid in (_both_sides(OF_INPUTS, tiles), _both_sides(OF_OUTPUTS, outputs)))
        # The barrier keeps XLA from computing tiles again inside of the products.
        v, u = lax.optimization_barrier(tuple(matrices))
        return total + jnp.einsum("ptc,ptk->pck", v, u)

    total = _summed(add, count * blocks, cotangent, (16, channels, features),
                    all_flops=18 * cotangent.size * channels,
                    flops=32 * rows * columns * channels * features)
    products = [list(total[start : start + 4]) for start in range(0, 16, 4)]
    return jnp.stack([jnp.stack(row) for row in _both_sides(TO_KERNEL, products)])


def flops(program: str) -> float:
    """Those of all loops in the text of a compiled program that XLA does not count.

    XLA counts the first block of each. Each pixel of the cotangent is multiplied with each of the
    image that the kernel has there, as in a convolution.
    """
    return float(sum(_flops_of(line) for line in program.splitlines()
                     if " while(" in line and "kernel_gradient_" in line))


def _flops_of(line: str) -> int:
    shape, beyond = re.search(r"kernel_gradient_([\dx]+)_(-?\d+)", line).groups()
    members = re.search(rf"\[((?:\d+,)*){shape.replace('x', ',')}\]", line)[1]
    return int(beyond) * math.prod(int(size) for size in members.split(",") if size)


def _summed(add, blocks, like, shape, *, all_flops, flops):
    """The sum of a loop over blocks, of this shape, with its name for `flops`."""
    total = jnp.zeros(shape, like.dtype)
    varying = tuple(jax.typeof(like).manual_axis_type.varying)
    total = lax.pcast(total, varying, to="varying") if varying else total
    with jax.named_scope(f"kernel_gradient_{'x'.join(map(str, shape))}_{all_flops - flops}"):
        return lax.fori_loop(0, blocks, add, total)


def _padded(array, before, size):
    """Zeros around (n, h, w, c), so that it has this height and width."""
    borders = [(low, after - low - length, 0)
               for low, after, length in zip(before, size, array.shape[1:3], strict=True)]
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *borders, (0, 0, 0)])


def _both_sides(matrix, grid):
    """matrix grid matrix', of a grid of arrays."""
    columns = [_times(matrix, column) for column in zip(*grid, strict=True)]
    return [_times(matrix, row) for row in zip(*columns, strict=True)]


def _times(matrix, arrays):
    """The matrix times a vector of arrays."""
    signed = {1: operator.pos, -1: operator.neg}
    return [functools.reduce(operator.add, (
        signed.get(weight, lambda array, weight=weight: weight * array)(array)
        for weight, array in zip(row, arrays, strict=True) if weight)) for row in matrix]
