"""Floating-point operations of a network, by its trace: nothing is lowered or compiled."""

import math

import jax
import jax.numpy as jnp
from jax.extend import core

from cellseg_jax.models import onednn


def forward_flops(module, image_shape: tuple[int, int, int]) -> float:
    """Those of a forward pass of one image (H, W, C): of convolutions and matrix products alone.

    A multiplication and an addition are two operations. Pixels of padding are counted as others;
    the zeros between the pixels of a transposed convolution are not.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with onednn.disabled():  # its calls say nothing of what they compute
        traced = jax.make_jaxpr(lambda x: module.init(jax.random.key(0), x, train=False))(image)
    return _count(traced.jaxpr)


def _count(jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> float:
    options, name = equation.params, equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[options["dimension_numbers"].rhs_spec[0]]
        pixels = math.prod(equation.outvars[0].aval.shape)
        return 2 * pixels * math.prod(kernel) / outputs / math.prod(options["lhs_dilation"])
    if name == "dot_general":
        (contracted, _), _ = options["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (2 * math.prod(equation.outvars[0].aval.shape)
                * math.prod(left[axis] for axis in contracted))
    inside = jax.tree.leaves(list(options.values()), is_leaf=_is_jaxpr)
    return options.get("length", 1) * sum(
        _count(getattr(one, "jaxpr", one)) for one in inside if _is_jaxpr(one))


def _is_jaxpr(value) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
