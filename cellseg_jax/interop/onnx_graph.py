"""An ONNX graph under construction."""

from typing import Any

import numpy as np

from cellseg_jax.interop.stablehlo import named

OPSET = 17  # of 2022, which the runtimes of other tools support too
IR_VERSION = 8  # of the same release
# Narrow integers are computed in 32 bits: not every runtime compares or adds bytes.
WIDENED = {np.dtype(t): np.dtype(np.int32) for t in ("int8", "uint8", "int16", "uint16", "uint32")}


def stored_dtype(dtype) -> np.dtype:
    """The dtype in ONNX of an array of `dtype`."""
    return WIDENED.get(np.dtype(dtype), np.dtype(dtype))


class Graph:
    """Nodes and constants of an ONNX model with one input, whose first size may be open.

    A value is the name of a tensor (str), or a numpy array where it does not depend on the
    input: those are stored in the model where a node needs them.

    Args:
      name: of the input.
      shape: of the input; the first size may be a symbol.
    """

    def __init__(self, name: str, shape):
        import onnx  # of the extra `export`

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
        array = np.asarray(array, stored_dtype(array.dtype), order="C")
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
            [helper.make_tensor_value_info(self.input, kind, named(self.shape))],
            [helper.make_tensor_value_info(name, kind, None)], list(self.stored.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)],
                                  ir_version=IR_VERSION, producer_name="cellseg_jax")
        model = self.onnx.shape_inference.infer_shapes(model)
        self.onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

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
        """The number of batches that an open size is.

        Raises: NotImplementedError where it is no multiple.
        """
        factor = size // self.batch
        if not isinstance(factor, int) or factor * self.batch != size:
            raise NotImplementedError(f"a size {size} that is no multiple of the batch")
        return factor

    def reshape(self, x, shape):
        """x in another shape, of which at most one size is dynamic (-1).

        Raises: NotImplementedError where two are.
        """
        numbers = [n if isinstance(n, int) else -1 for n in shape]
        if numbers.count(-1) > 1:
            raise NotImplementedError(f"a shape {shape} with two open sizes")
        return self.add("Reshape", x, np.array(numbers, np.int64))

    def transpose(self, x, order):
        """x with its axes in another order."""
        order = list(map(int, order))
        return x if order == sorted(order) else self.add("Transpose", x, perm=order)

    def slice(self, x, bounds: dict):
        """x with axes cut to {axis: (start, stop, step)}."""
        if not bounds:
            return x
        starts, stops, steps = (np.array(list(b), np.int64)
                                for b in zip(*bounds.values(), strict=True))
        return self.add("Slice", x, starts, stops, np.array(list(bounds), np.int64), steps)
