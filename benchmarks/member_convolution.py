"""How K members should convolve at once: one after the other, grouped, or as matrix products.

    python benchmarks/run.py member_convolution [--quick]

A 3x3 convolution and its gradients in image and kernel, of K members with kernels of their own.
The table has the speed of each form relative to one member after the other.
"""

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.measuring import Result, Table, in_turns, times_faster

SIZES = ((16, 64), (64, 32), (256, 8))  # channels, pixels per side; 4 images per member
MEMBERS = (2, 8)
OPTIONS = {"quick": (False, "one tiny case, to see that it runs"), "rounds": (5, "turns")}


def convolution(image, kernel):
    """(n, H, W, C) and (3, 3, C, D) -> (n, H, W, D); vmapped it is a grouped convolution."""
    return lax.conv_general_dilated(image, kernel, (1, 1), "SAME",
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"))


def one_product(image, kernel):
    """The same by one matrix product of all 3x3 windows, nine times the memory."""
    n, height, width, channels = image.shape
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = jnp.concatenate([padded[:, i : i + height, j : j + width]
                               for i in range(3) for j in range(3)], -1)
    products = windows.reshape(-1, 9 * channels) @ kernel.reshape(9 * channels, -1)
    return products.reshape(n, height, width, -1)


def nine_products(image, kernel):
    """The same by a matrix product per tap."""
    height, width = image.shape[1:3]
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j]
               for i in range(3) for j in range(3))


def gradients(form):
    """(image, kernel) -> the gradients of a loss in both."""
    return jax.grad(lambda image, kernel: (form(image, kernel) ** 2).sum(), (0, 1))


def ways(channels: int, side: int, members: int, dtype=jnp.float32) -> dict:
    """{form: a function of nothing}, the first one member after the other."""
    image = jnp.ones((members, 4, side, side, channels), dtype)
    kernel = jnp.full((members, 3, 3, channels, channels), 0.01, dtype)
    alone, pairs = jax.jit(gradients(convolution)), list(zip(image, kernel, strict=True))
    forms = {form.__name__: jax.jit(jax.vmap(gradients(form)))
             for form in (convolution, one_product, nine_products)}
    wait = jax.block_until_ready
    return {"one by one": lambda: wait([alone(*pair) for pair in pairs])} | {
        name: lambda form=form: wait(form(image, kernel)) for name, form in forms.items()}


def measure(options) -> Result:
    rows = []
    for channels, side in ((4, 8),) if options.quick else SIZES:
        for members in MEMBERS[:1] if options.quick else MEMBERS:
            found = in_turns(ways(channels, side, members), options.rounds)
            alone = found.pop("one by one")
            rows.append([channels, f"{side}x{side}", members,
                         *(times_faster(seconds, alone) for seconds in found.values())])
    return Result([Table(["channels", "size", "K", "grouped convolution", "one product",
                          "nine products"], rows)])
