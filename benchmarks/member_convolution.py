"""How K members should convolve at once: one after the other, grouped, or as matrix products.

    python benchmarks/member_convolution.py [--quick]

A 3x3 convolution and its gradients in image and kernel, of K members with kernels of their own.
Prints the speed of each form relative to one member after the other, from interleaved rounds.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from jax import lax

SIZES = ((16, 64), (64, 32), (256, 8))  # channels, pixels per side; 4 images per member
MEMBERS, ROUNDS = (2, 8), 5


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


def main():
    """One line per size and K."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one tiny case, to see that it runs")
    quick = parser.parse_args().quick
    alone = jax.jit(gradients(convolution))
    together = {form.__name__: jax.jit(jax.vmap(gradients(form)))
                for form in (convolution, one_product, nine_products)}
    for channels, side in ((4, 8),) if quick else SIZES:
        for members in MEMBERS[:1] if quick else MEMBERS:
            image = jnp.ones((members, 4, side, side, channels))
            kernel = jnp.full((members, 3, 3, channels, channels), 0.01)
            pairs = list(zip(image, kernel, strict=True))
            calls = {"one by one": lambda pairs=pairs: [alone(*pair) for pair in pairs]}
            calls |= {name: lambda form=form, arrays=(image, kernel): form(*arrays)
                      for name, form in together.items()}
            jax.block_until_ready([call() for call in calls.values()])
            seconds = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    started = time.monotonic()
                    jax.block_until_ready(call())
                    seconds[name].append(time.monotonic() - started)
            best = {name: min(times) for name, times in seconds.items()}
            print(f"{channels} channels, {side}x{side}, K = {members}: " + ", ".join(
                f"{name} {best['one by one'] / time_:.2f}" for name, time_ in best.items()))


if __name__ == "__main__":
    main()
