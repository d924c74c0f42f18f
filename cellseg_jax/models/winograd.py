"""The gradient of 3x3 kernels by Winograd's tiles, in JAX.

XLA computes it on a CPU at a tenth to a half of the speed of its other convolutions. winograd.h has
the formulas, and all convolutions in this form for oneDNN.
"""

import functools
import math
import operator
import re

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

OF_INPUTS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B', of 4x4 pixels
OF_OUTPUTS = ((1, 0), (1, 1), (1, -1), (0, -1))  # A, of 2x2 pixels
TO_KERNEL = ((1, 0.5, 0.5, 0), (0, 0.5, -0.5, 0), (0, 0.5, 0.5, 1))  # G'
TILES = 512  # about as many at a time as the caches hold


def kernel_gradient(
    image: Float[Array, "n h w c"], cotangent: Float[Array, "n p q k"],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "3 3 c k"]:
    """That of a 3x3 convolution with stride 1 and these pads; summed in the dtype of the arrays."""
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

    total = jnp.zeros((16, channels, features), image.dtype)
    varying = tuple(jax.typeof(cotangent).manual_axis_type.varying)
    total = lax.pcast(total, varying, to="varying") if varying else total
    beyond = 2 * channels * features * (9 * count * height * width - 16 * rows * columns)
    with jax.named_scope(f"winograd_{channels}_{features}_{beyond}"):  # see flops
        total = lax.fori_loop(0, count * blocks, add, total)
    products = [list(total[start : start + 4]) for start in range(0, 16, 4)]
    return jnp.stack([jnp.stack(row) for row in _both_sides(TO_KERNEL, products)])


def flops(program: str) -> float:
    """Those of all loops in the text of a compiled program that XLA does not count.

    XLA counts the first block of each. Each pixel of the cotangent is multiplied with 3x3 pixels
    of the image, as in a convolution.
    """
    return float(sum(_flops_of(line) for line in program.splitlines()
                     if " while(" in line and "winograd_" in line))


def _flops_of(line: str) -> int:
    channels, features, beyond = re.search(r"winograd_(\d+)_(\d+)_(\d+)", line).groups()
    members = re.search(rf"\[([\d,]*)16,{channels},{features}\]", line)[1]
    return int(beyond) * math.prod(int(size) for size in members.split(",") if size)


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
