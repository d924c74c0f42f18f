"""Linear layers of maps and tokens, with gradients that are fast on a CPU."""

from functools import partial

from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float


def matmul(
    x: Float[ArrayLike, "*n c"], kernel: Float[ArrayLike, "c k"], **options
) -> Float[Array, "*n k"]:
    """x @ kernel, all rows of x along one axis.

    With several axes, XLA transposes a cotangent for the gradient of the kernel before it
    multiplies: on a CPU layer and gradients take up to 3.5 times as long (8 maps of 32x32 pixels,
    32 to 128 channels; findings/xla_cpu_copies_cotangents.sh).

    Args:
      options: of `lax.dot`.
    """
    rows = lax.dot(x.reshape(-1, x.shape[-1]), kernel, **options)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def _dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None):
    """As nn.Dense asks for it: the last axis of x with the first of the kernel."""
    return matmul(x, kernel, precision=precision, preferred_element_type=preferred_element_type)


Dense = partial(nn.Dense, dot_general=_dot_general)
