"""Functions as StableHLO files for JAX, with open sizes where they can be traced so."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from cellseg_jax.models import onednn

PLATFORMS = ("cpu", "cuda", "tpu")
MULTIPLES = (1, 8, 16, 32, 64, 128, 256)  # of pixels, that height and width may have to be


class Program(NamedTuple):
    """What was written, and the arrays it takes."""

    data: bytes
    shape: tuple  # of the input: numbers, and names or products of names such as "32*h"


def to_stablehlo(function: Callable, shape: Sequence[int]) -> Program:
    """The function as a file of `jax.export`, compiled where it is loaded.

    `jax.export.deserialize(bytearray(data)).call(image)` runs it, without Flax and without this
    package. Batch, height and width stay open as far as the function can be traced so: all
    three, the batch alone, or none.

    Args:
      function: (N, H, W, C) float32 -> an array; what it closes over is stored in the file.
      shape: (N, H, W, C) to fall back on where sizes cannot stay open.
    """
    height, width, channels = shape[1:]
    open_shapes = [("b", f"{n}*h", f"{n}*w", channels) for n in MULTIPLES]

    def build(image):
        with onednn.disabled():
            exported = export.export(jax.jit(function), platforms=PLATFORMS)(image)
        return Program(bytes(exported.serialize()), named(image.shape))

    return first_traceable(build, [*open_shapes, ("b", height, width, channels), shape])


def first_traceable(build, shapes) -> Program:
    """build(image) of the first shape for which it can be traced.

    Args:
      build: jax.ShapeDtypeStruct -> Program.
      shapes: numbers and names of sizes, the most open first.
    Raises: what `build` raises for the last shape.
    """
    for n, shape in enumerate(shapes):
        image = jax.ShapeDtypeStruct(
            export.symbolic_shape(", ".join(map(str, shape))), jnp.float32)
        try:
            return build(image)
        except Exception:  # arithmetic with a symbolic size fails in many ways
            if n == len(shapes) - 1:
                raise


def named(shape) -> tuple:
    """A shape with the names of its open sizes as text."""
    return tuple(size if isinstance(size, int) else str(size) for size in shape)
