"""A function of arrays as an ONNX file, for the runtimes of other tools.

The graph is written from the jaxpr, one rule per primitive. Of the converters on offer, the
one that knows today's JAX does not install beside today's orbax, and its older releases drop the
dilation of a transposed convolution. What our networks use is some fifty primitives.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from cellseg_jax.interop.onnx_graph import Graph
from cellseg_jax.interop.onnx_rules import CALLS, IDENTITY, ONE_NODE, RULES
from cellseg_jax.interop.stablehlo import Program, first_traceable, named
from cellseg_jax.models import onednn


def to_onnx(function: Callable, shape: Sequence[int], *, names=("input", "output")) -> Program:
    """The function as an ONNX model with an open batch, where it can be traced so.

    Its opset is onnx_graph.OPSET.

    Args:
      function: float32 array of `shape` -> an array; the first axis is the batch.
      shape: of the input; all but the batch is fixed.
      names: of the input and the output.
    Raises: NotImplementedError naming the primitive that has no rule.
    """

    def build(image):
        graph = Graph(names[0], image.shape)
        with onednn.disabled():
            jaxpr = jax.make_jaxpr(function)(image)
        (result,) = outputs_of(graph, jaxpr, [names[0]])
        return Program(graph.finish(result, names[1]), named(image.shape))

    return first_traceable(build, [("b", *shape[1:]), shape])


def outputs_of(graph: Graph, jaxpr, arguments) -> list:
    """The values of the outputs of a jaxpr, given those of its inputs; adds the nodes needed."""
    constants = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(x):
        return np.asarray(x.val, x.aval.dtype) if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        results = _results(graph, equation, [read(x) for x in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _results(graph: Graph, equation, inputs) -> list:
    """The values of the outputs of one equation."""
    name = equation.primitive.name
    if name in CALLS:
        return outputs_of(graph, equation.params[CALLS[name]], inputs)
    if name in IDENTITY:
        return inputs
    known = not any(isinstance(x, str) for x in inputs)
    if known and all(isinstance(n, int) for x in equation.outvars for n in x.aval.shape):
        return _computed(equation, inputs)
    if all(0 in x.aval.shape for x in equation.outvars):  # ONNX's Reshape reads 0 as "keep"
        return [_empty(x.aval) for x in equation.outvars]
    if name in ONE_NODE:
        return [graph.add(ONE_NODE[name], *inputs)]
    if name not in RULES:
        raise NotImplementedError(f"no rule for the primitive {name}")
    results = RULES[name](graph, equation, *inputs)
    return results if isinstance(results, list) else [results]


def _computed(equation, inputs) -> list[np.ndarray]:
    """The outputs of an equation that does not depend on the input."""
    results = equation.primitive.bind(*map(jnp.asarray, inputs), **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    return [np.asarray(x) for x in results]


def _empty(aval) -> np.ndarray:
    return np.zeros([n if isinstance(n, int) else 0 for n in aval.shape], aval.dtype)
