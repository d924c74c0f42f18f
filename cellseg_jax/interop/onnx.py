"""A function of arrays as a file that others run: StableHLO for JAX, ONNX for everyone else.

The ONNX graph is written from the jaxpr, one rule per primitive. Of the converters on offer, the
one that knows today's JAX does not install beside today's orbax, and its older releases drop the
dilation of a transposed convolution. What our networks use is some fifty primitives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from cellseg_jax.interop.stablehlo import Program, _first, _named

OPSET = 17  # of 2022: what other tools' runtimes know too
IR_VERSION = 8  # that came with it


def to_onnx(function: Callable, shape: Sequence[int], *, names=("input", "output")) -> Program:
    """The function as an ONNX model of opset OPSET with an open batch, where it can be traced so.

    Args:
      function: float32 array of `shape` -> an array; the first axis is the batch.
      shape: of the input; all but the batch is fixed.
      names: of the input and the output.
    Raises: NotImplementedError naming the primitive that has no rule here.
    """

    def build(image):
        graph = _Graph(names[0], image.shape)
        (result,) = graph.run(jax.make_jaxpr(function)(image), [names[0]])
        return Program(graph.finish(result, names[1]), _named(image.shape))

    return _first(build, [("b", *shape[1:]), shape])


# --- ONNX ----------------------------------------------------------------------------------------

# Primitives that are one node of ONNX.
SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "abs": "Abs",
    "erf": "Erf", "logistic": "Sigmoid", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less",
    "le": "LessOrEqual", "eq": "Equal", "and": "And", "or": "Or", "not": "Not", "pow": "Pow",
}
# Primitives that leave the numbers as they are.
IDENTITY = ("stop_gradient", "copy", "copy_p", "optimization_barrier")
# Primitives that hold a jaxpr, and where.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
         "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
         "custom_vjp_call": "call_jaxpr"}
# Narrow integers are computed in 32 bits: not every runtime compares or adds bytes.
WIDENED = {np.dtype(t): np.dtype(np.int32) for t in ("int8", "uint8", "int16", "uint16", "uint32")}


def _dtype(dtype) -> np.dtype:
    return WIDENED.get(np.dtype(dtype), np.dtype(dtype))


class _Graph:
    """Nodes of ONNX for the equations of a jaxpr.

    A value is the name of a tensor (str), or a numpy array where it does not depend on the
    input: those are computed here, and stored where a node needs them.
    """

    def __init__(self, name: str, shape):
        import onnx

        self.onnx, self.nodes, self.stored = onnx, [], {}
        self.input, self.shape, self.count = name, shape, 0
        self.batch, self.batch_name = shape[0], None

    # --- writing ---

    def add(self, kind: str, *inputs, outputs: int = 1, **attributes):
        """A node; returns the name of its output, or of each."""
        self.count += 1
        names = [f"{kind.lower()}_{self.count}" + (f"_{i}" if outputs > 1 else "")
                 for i in range(outputs)]
        inputs = [x if isinstance(x, str) else self.store(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def store(self, array) -> str:
        """The name of a tensor that holds the array; equal ones are stored once."""
        array = np.asarray(array)
        array = np.asarray(array, _dtype(array.dtype), order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.stored:
            self.stored[key] = self.onnx.numpy_helper.from_array(
                array, f"constant_{len(self.stored)}")
        return self.stored[key].name

    def finish(self, result, name: str) -> bytes:
        """The model, whose output `result` gets a name."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        self.nodes.append(helper.make_node("Identity", [result], [name]))
        graph = helper.make_graph(
            self.nodes, "cellseg_jax",
            [helper.make_tensor_value_info(self.input, kind, _named(self.shape))],
            [helper.make_tensor_value_info(name, kind, None)], list(self.stored.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                  ir_version=IR_VERSION, producer_name="cellseg_jax")
        model = self.onnx.shape_inference.infer_shapes(model)
        self.onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    # --- reading ---

    def run(self, jaxpr, arguments) -> list:
        """The values of the outputs of a jaxpr, given those of its inputs."""
        constants = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        values = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
        values |= dict(zip(jaxpr.invars, arguments, strict=True))
        read = lambda x: (np.asarray(x.val, x.aval.dtype) if isinstance(x, Literal)
                          else values[x])
        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(x) for x in equation.invars])
            values |= dict(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, equation, inputs) -> list:
        """The values of the outputs of one equation."""
        name, parameters = equation.primitive.name, equation.params
        if name in CALLS:
            return self.run(parameters[CALLS[name]], inputs)
        if name in IDENTITY:
            return inputs
        known = not any(isinstance(x, str) for x in inputs)
        if known and all(isinstance(n, int) for x in equation.outvars for n in x.aval.shape):
            results = equation.primitive.bind(*map(jnp.asarray, inputs), **parameters)
            results = results if equation.primitive.multiple_results else [results]
            return [np.asarray(x) for x in results]
        if all(0 in x.aval.shape for x in equation.outvars):  # ONNX's Reshape reads 0 as "keep"
            empty = lambda shape: [n if isinstance(n, int) else 0 for n in shape]
            return [np.zeros(empty(x.aval.shape), x.aval.dtype) for x in equation.outvars]
        if name in SAME:
            return [self.add(SAME[name], *inputs)]
        rule = RULES.get(name)
        if rule is None:
            raise NotImplementedError(f"no rule for the primitive {name}")
        results = rule(self, equation, *inputs)
        return results if isinstance(results, list) else [results]

    # --- shapes ---

    def sizes(self, shape, keep=()) -> Any:
        """A tensor of the numbers of a shape, computed from the input where it names the batch.

        Axes in `keep` become 1, which Expand leaves alone.
        """
        numbers = [1 if axis in keep else n for axis, n in enumerate(shape)]
        if all(isinstance(n, int) for n in numbers):
            return np.array(numbers, np.int64)
        if self.batch_name is None:
            self.batch_name = self.add("Shape", self.input, start=0, end=1)
        one = lambda n: (np.array([n], np.int64) if isinstance(n, int) else
                         self.add("Mul", self.batch_name, np.array([self.batches(n)], np.int64)))
        return self.add("Concat", *map(one, numbers), axis=0)

    def batches(self, size) -> int:
        """How many batches an open size is."""
        factor = size // self.batch
        if not isinstance(factor, int) or factor * self.batch != size:
            raise NotImplementedError(f"a size {size} that is no multiple of the batch")
        return factor

    def reshape(self, x, shape):
        """At most one size is open; it takes what is left."""
        numbers = [n if isinstance(n, int) else -1 for n in shape]
        if numbers.count(-1) > 1:
            raise NotImplementedError(f"a shape {shape} with two open sizes")
        return self.add("Reshape", x, np.array(numbers, np.int64))

    def transpose(self, x, order):
        order = list(map(int, order))
        return x if order == sorted(order) else self.add("Transpose", x, perm=order)

    def slice(self, x, bounds: dict):
        """x with axes cut to {axis: (start, stop, step)}."""
        if not bounds:
            return x
        starts, stops, steps = (np.array(list(b), np.int64)
                                for b in zip(*bounds.values(), strict=True))
        return self.add("Slice", x, starts, stops, np.array(list(bounds), np.int64), steps)


def _broadcast_in_dim(graph, equation, x):
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    own = equation.invars[0].aval.shape
    aligned = [1] * len(shape)
    for place, size in zip(places, own, strict=True):
        aligned[place] = size
    if tuple(aligned) != tuple(own):
        x = graph.reshape(x, aligned) if isinstance(x, str) else np.reshape(x, aligned)
    if tuple(aligned) == tuple(shape):
        return x
    return graph.add("Expand", x, graph.sizes(shape, [
        axis for axis, size in enumerate(shape) if aligned[axis] == size]))


def _concatenate(graph, equation, *parts):
    parts = [x for x, v in zip(parts, equation.invars, strict=True) if 0 not in v.aval.shape]
    if len(parts) == 1:
        return parts
    return graph.add("Concat", *parts, axis=int(equation.params["dimension"]))


def _convert_element_type(graph, equation, x):
    new = _dtype(equation.params["new_dtype"])
    if _dtype(equation.invars[0].aval.dtype) == new:
        return x
    return graph.add("Cast", x, to=graph.onnx.helper.np_dtype_to_tensor_dtype(new))


def _convolution(graph, equation, image, kernel):
    """lax.conv_general_dilated; with a dilated image it is ONNX's ConvTranspose."""
    p = equation.params
    if isinstance(kernel, str) or p["batch_group_count"] != 1 or len(p["window_strides"]) != 2:
        raise NotImplementedError("a convolution other than of images with stored kernels")
    numbers = p["dimension_numbers"]
    image = graph.transpose(image, numbers.lhs_spec)
    kernel = np.transpose(kernel, numbers.rhs_spec)  # (out, in, height, width)
    size, pads = kernel.shape[2:], p["padding"]
    if set(p["lhs_dilation"]) == {1}:
        output = graph.add(
            "Conv", image, kernel, strides=p["window_strides"], dilations=p["rhs_dilation"],
            group=p["feature_group_count"], pads=[low for low, _ in pads] + [h for _, h in pads])
    else:
        if {*p["window_strides"], *p["rhs_dilation"], p["feature_group_count"]} != {1}:
            raise NotImplementedError("a transposed convolution with strides, dilation or groups")
        low, high = ([n - 1 - pad[side] for n, pad in zip(size, pads)] for side in (0, 1))
        if min(low) < 0:
            raise NotImplementedError("a transposed convolution padded by more than its kernel")
        output = graph.add(
            "ConvTranspose", image, kernel.swapaxes(0, 1)[:, :, ::-1, ::-1],
            strides=p["lhs_dilation"], pads=low + [max(n, 0) for n in high],
            output_padding=[max(-n, 0) for n in high])
    return graph.transpose(output, np.argsort(numbers.out_spec))


def _dot_general(graph, equation, left, right):
    """MatMul where it is one as it stands, else Einsum."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(x.aval.shape) for x in equation.invars]
    if not left_batch and ranks[1] == 2 and left_sum == (ranks[0] - 1,) and right_sum == (0,):
        return graph.add("MatMul", left, right)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[next(letters) for _ in range(rank)] for rank in ranks]
    for pair in (*zip(left_sum, right_sum), *zip(left_batch, right_batch)):
        names[1][pair[1]] = names[0][pair[0]]
    free = [[n for axis, n in enumerate(names[side]) if axis not in taken] for side, taken in
            enumerate(((*left_sum, *left_batch), (*right_sum, *right_batch)))]
    result = [names[0][axis] for axis in left_batch] + free[0] + free[1]
    left_names, right_names, result = map("".join, (*names, result))
    return graph.add("Einsum", left, right, equation=f"{left_names},{right_names}->{result}")


def _reduce(kind):
    def rule(graph, equation, x):
        axes = list(map(int, equation.params["axes"]))
        if kind == "ReduceSum":  # the first to take its axes as an input
            return graph.add(kind, x, np.array(axes, np.int64), keepdims=0)
        return graph.add(kind, x, axes=axes, keepdims=0)

    return rule


def _gather(graph, equation, x, indices):
    """A window at a fixed place, or fixed entries along one axis: what indexing makes of it."""
    p, own = equation.params, equation.invars[0].aval.shape
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if isinstance(indices, str) or numbers.operand_batching_dims:
        raise NotImplementedError("a gather at places that depend on the input")
    axes, whole = numbers.start_index_map, equation.outvars[0].aval.shape
    limits = [own[axis] - sizes[axis] for axis in axes]
    if any(isinstance(n, int) and ((i < 0) | (i > n)).any()
           for n, i in zip(limits, np.moveaxis(indices, -1, 0), strict=True)):
        raise NotImplementedError("a gather beyond the border")
    if indices.ndim == 1 and len(numbers.offset_dims) == len(whole):
        window = {int(axis): (int(start), int(start) + sizes[axis], 1)
                  for axis, start in zip(axes, indices, strict=True) if sizes[axis] != own[axis]}
        window |= {axis: (0, n, 1) for axis, n in enumerate(sizes)
                   if axis not in axes and n != own[axis]}
        return graph.reshape(graph.slice(x, window), whole)
    if indices.ndim == 2 and len(axes) == 1 and numbers.collapsed_slice_dims == axes and all(
            n == own[axis] for axis, n in enumerate(sizes) if axis != axes[0]):
        place = [axis for axis in range(len(whole)) if axis not in numbers.offset_dims]
        if place == [axes[0]]:
            return graph.add("Gather", x, indices[:, 0].astype(np.int64), axis=int(axes[0]))
    raise NotImplementedError("a gather of several axes")


def _pad(graph, equation, x, value):
    padding = equation.params["padding_config"]
    if any(inner for *_, inner in padding):
        raise NotImplementedError("padding between entries")
    pads = [low for low, *_ in padding] + [high for _, high, _ in padding]
    return graph.add("Pad", x, np.array(pads, np.int64), value)


def _slice(graph, equation, x):
    p, own = equation.params, equation.invars[0].aval.shape
    steps = p["strides"] or [1] * len(own)
    bounds = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return graph.slice(x, {axis: b for axis, b in enumerate(bounds) if b != (0, own[axis], 1)})


def _window_sum(graph, equation, x):
    """Sums of windows of the middle two of four axes: an average times its count."""
    p = equation.params
    rows, columns = p["window_dimensions"][1:3]
    outer = [p[k][axis] for k in ("window_dimensions", "window_strides") for axis in (0, 3)]
    if {*outer, *p["base_dilation"], *p["window_dilation"]} != {1} or np.any(p["padding"]):
        raise NotImplementedError("a window sum over other than height and width")
    average = graph.add("AveragePool", graph.transpose(x, (0, 3, 1, 2)),
                        kernel_shape=[rows, columns], strides=p["window_strides"][1:3])
    count = np.float32(rows * columns)
    return graph.transpose(graph.add("Mul", average, count), (0, 2, 3, 1))


def _split(graph, equation, x):
    sizes = np.array(equation.params["sizes"], np.int64)
    parts = graph.add("Split", x, sizes, outputs=len(sizes), axis=int(equation.params["axis"]))
    return parts if isinstance(parts, list) else [parts]


def _unstack(graph, equation, x):
    axis = int(equation.params["axis"])
    return [graph.add("Gather", x, np.int64(i), axis=axis) for i in range(len(equation.outvars))]


def _stack(graph, equation, *parts):
    axis = int(equation.params["axis"])
    parts = [graph.add("Unsqueeze", x, np.array([axis], np.int64)) for x in parts]
    return graph.add("Concat", *parts, axis=axis)


def _integer_power(graph, equation, x):
    power = equation.params["y"]
    return graph.add("Mul", x, x) if power == 2 else graph.add("Pow", x, np.float32(power))


RULES = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert_element_type,
    "dot_general": _dot_general,
    "erfc": lambda graph, equation, x: graph.add("Sub", np.float32(1), graph.add("Erf", x)),
    "gather": _gather,
    "integer_pow": _integer_power,
    "ne": lambda graph, equation, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_sum": _window_sum,
    "reshape": lambda graph, equation, x: graph.reshape(x, equation.outvars[0].aval.shape),
    "rsqrt": lambda graph, equation, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": lambda graph, equation, which, no, yes: graph.add("Where", which, yes, no),
    "slice": _slice,
    "split": _split,
    "square": lambda graph, equation, x: graph.add("Mul", x, x),
    "squeeze": lambda graph, equation, x: graph.reshape(x, equation.outvars[0].aval.shape),
    "stack": _stack,
    "transpose": lambda graph, equation, x: graph.transpose(x, equation.params["permutation"]),
    "unstack": _unstack,
}
