"""JAX primitives as nodes of ONNX: one function each, and those that need none.

A rule takes (graph, equation of the jaxpr, values of its inputs) and returns the value of its
output, or a list of several; see `onnx_graph.Graph`. A new primitive is one function and one line
in RULES.
"""

import numpy as np

from cellseg_jax.interop.onnx_graph import stored_dtype

# Primitives that are one node of ONNX.
ONE_NODE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "abs": "Abs",
    "erf": "Erf", "logistic": "Sigmoid", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less",
    "le": "LessOrEqual", "eq": "Equal", "and": "And", "or": "Or", "not": "Not", "pow": "Pow",
}
# Primitives that leave the numbers as they are.
IDENTITY = ("stop_gradient", "copy", "copy_p", "optimization_barrier")
# Primitives that hold a jaxpr, by the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
         "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
         "custom_vjp_call": "call_jaxpr"}


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
    new = stored_dtype(equation.params["new_dtype"])
    if stored_dtype(equation.invars[0].aval.dtype) == new:
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
    pads = p["padding"]
    if set(p["lhs_dilation"]) == {1}:
        output = graph.add(
            "Conv", image, kernel, strides=p["window_strides"], dilations=p["rhs_dilation"],
            group=p["feature_group_count"], pads=[low for low, _ in pads] + [h for _, h in pads])
    else:
        output = _transposed_convolution(graph, p, image, kernel)
    return graph.transpose(output, np.argsort(numbers.out_spec))


def _transposed_convolution(graph, p, image, kernel):
    """ConvTranspose of a convolution whose image is dilated; `p` are its parameters."""
    if {*p["window_strides"], *p["rhs_dilation"], p["feature_group_count"]} != {1}:
        raise NotImplementedError("a transposed convolution with strides, dilation or groups")
    low, high = ([n - 1 - pad[side] for n, pad in zip(kernel.shape[2:], p["padding"], strict=True)]
                 for side in (0, 1))
    if min(low) < 0:
        raise NotImplementedError("a transposed convolution padded by more than its kernel")
    return graph.add(
        "ConvTranspose", image, kernel.swapaxes(0, 1)[:, :, ::-1, ::-1],
        strides=p["lhs_dilation"], pads=low + [max(n, 0) for n in high],
        output_padding=[max(-n, 0) for n in high])


def _dot_general(graph, equation, left, right):
    """MatMul where it is one as it stands, else Einsum."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(x.aval.shape) for x in equation.invars]
    if not left_batch and ranks[1] == 2 and left_sum == (ranks[0] - 1,) and right_sum == (0,):
        return graph.add("MatMul", left, right)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [[next(letters) for _ in range(rank)] for rank in ranks]
    joined = zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True)
    for left_axis, right_axis in joined:
        names[1][right_axis] = names[0][left_axis]
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
    """A window at a fixed place, or fixed entries along one axis: the forms of indexing."""
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
