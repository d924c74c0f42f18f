"""StableHLO and ONNX of functions: what they compute is what the function computes."""

import helpers_shapes
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cellseg_jax import models
from cellseg_jax.interop import onnx, stablehlo
from cellseg_jax.interop.onnx_rules import ONE_NODE, RULES

TINY = {
    "unet": dict(channels=(4, 8, 8)),
    "unetr": dict(image_size=32, hidden_size=24, mlp_dim=32, num_heads=2, num_layers=4,
                  feature_size=4),
    "unet_classic": dict(channels=(4, 8, 8)),
    "small_unet": dict(channels=(4, 8, 8)),
    "unet_add": dict(channels=(4, 8, 8)),
    "segnet": dict(channels=(4, 8), convs=(2, 2)),
    "unet_plan": dict(image_size=32, features_per_stage=(4, 8, 8)),
    "medt": dict(image_size=32, features=4, stem_features=8, num_heads=2, blocks=(1, 1)),
    "segformer": dict(widths=(2, 4, 10, 16), depths=(1, 1, 1, 1), decoder_width=6),
}
FIXED_BATCH = ("medt",)  # chunks its batch by size
FIXED_SIZE = ("medt", "unet_plan")  # the latter asks instance norm's pivot for a fixed pixel


def convolve(image, stride=1, dilation=1, pads=((1, 1), (1, 1)), **options):
    kernel = jnp.linspace(-1, 1, 3 * 3 * 3 * 4).reshape(3, 3, 3, 4)
    return lax.conv_general_dilated(image, kernel, (stride, stride), pads, (dilation, dilation),
                                    dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


# Functions of a (N, 4, 6, 3) image that hold all primitives with a rule, between them.
FUNCTIONS = {
    "arithmetic": lambda x: (x + 1) * (x - 2) / (x * x + 3) - lax.neg(x) + lax.square(x),
    "powers": lambda x: x**2 + x**3 + jnp.abs(x) ** 1.5 + lax.rsqrt(jnp.abs(x) + 1),
    "functions": lambda x: jnp.exp(x) + jnp.log(jnp.abs(x) + 1) + jnp.sqrt(jnp.abs(x))
    + jnp.tanh(x) + lax.erf(x) + lax.erfc(x) + jax.nn.sigmoid(x),
    "logic": lambda x: jnp.where(((x > 0) & (x < 1)) | ~(x >= -1) | (x <= -2), x, 2 * x),
    "equality": lambda x: jnp.where(x == x[:, :1], 1.0, 0.0) + (x != 0.0) + jnp.minimum(x, 0),
    "integers": lambda x: (jnp.uint8(2) + (x > 0).astype(jnp.uint8)).astype(jnp.float32),
    "sums": lambda x: jnp.maximum(x.sum((1, 2), keepdims=True), x.max(-1, keepdims=True)),
    "shapes": lambda x: jnp.concatenate([x.reshape(-1, 4, 18), x.reshape(-1, 4, 18)[:, ::2]], 1),
    "axes": lambda x: jnp.stack([x, x + 1], 2).transpose(0, 2, 1, 4, 3)[:, :1].squeeze(1),
    "parts": lambda x: jnp.split(x, (1, 3), axis=2)[1] + sum(lax.slice_in_dim(x, i, 4 + i, 2, 2)
                                                            for i in (0, 1)),
    "window": lambda x: x[:, 1:3, 2:5] + x[:, 1, 2][:, None, None],
    "take": lambda x: jnp.take(x, jnp.array([3, 0, 0]), axis=1, mode="clip"),
    "unstack": lambda x: sum(jnp.unstack(x, axis=1)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=2.0),
    "crop": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (1, -2, 0), (0, 0, 0))),
    "expand": lambda x: jnp.concatenate(
        [x, jnp.broadcast_to(jnp.arange(3.0), x.shape), jnp.broadcast_to(x[:, :1], x.shape)], 1),
    "empty": lambda x: jnp.concatenate([x[:, :0] * 2, x, x[:, 4:] + 1], 1),
    "matmul": lambda x: x @ jnp.arange(6.0).reshape(3, 2),
    "einsum": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, jnp.exp(-x)),
    "convolution": lambda x: convolve(x, stride=2, pads=((1, 0), (2, 1))),
    "dilated": lambda x: convolve(x, rhs_dilation=(2, 1)),
    "transposed": lambda x: convolve(x, dilation=2, pads=((1, 2), (1, 2))),
    "transposed beyond": lambda x: convolve(x, dilation=2, pads=((0, 1), (2, 3))),
    "average": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3, 1), (1, 2, 3, 1), "VALID"),
    "identity": lambda x: lax.optimization_barrier(lax.stop_gradient(jnp.copy(x))),
    "calls": jax.checkpoint(lambda x: jax.nn.relu(jax.jit(lambda y: 2 * y)(x))),
}


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("onnxruntime", reason="needs the extra export")


@pytest.fixture
def run_onnx(runtime):
    """run_onnx(program, image) -> the one output."""
    def run(program, image):
        session = runtime.InferenceSession(program.data, providers=["CPUExecutionProvider"])
        return session.run(None, {"input": np.asarray(image)})[0]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnx_equals_the_function_for_any_batch(run_onnx, name):
    image = np.random.default_rng(0).normal(size=(5, 4, 6, 3)).astype(np.float32)
    program = onnx.to_onnx(FUNCTIONS[name], (1, 4, 6, 3))
    assert program.shape == ("b", 4, 6, 3)
    for n in (1, 5):
        wanted = FUNCTIONS[name](jnp.asarray(image[:n]))
        np.testing.assert_allclose(run_onnx(program, image[:n]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_rule_is_tested():
    seen, shape = set(), jax.export.symbolic_shape("b, 4, 6, 3")

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            seen.add(equation.primitive.name)
            for value in equation.params.values():
                if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                    walk(getattr(value, "jaxpr", value))

    for function in FUNCTIONS.values():
        walk(jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr)
    assert not {*ONE_NODE, *RULES} - seen


@pytest.mark.parity
@pytest.mark.parametrize("function, message", [
    (lambda x: jnp.sort(x), "no rule for the primitive sort"),
    (lambda x: jnp.take(x[0, 0], x[0, 0, :, 0].astype(int), axis=0), "depend on the input"),
])
def test_what_onnx_cannot_say_is_named(function, message):
    pytest.importorskip("onnx", reason="needs the extra export")
    with pytest.raises(NotImplementedError, match=message):
        onnx.to_onnx(function, (1, 4, 6, 3))


def network(name):
    """(function, images): a tiny network of that name with statistics that are not its first."""
    module = models.make(name, num_outputs=2, **TINY.get(name, {}))
    images = np.random.default_rng(0).normal(size=(3, 96, 160, 3)).astype(np.float32)
    variables = jax.jit(lambda: module.init(jax.random.key(0), images[:1, :32, :32],
                                            train=False))()
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda x: x * 1.3 + 0.1, variables["batch_stats"])
    return lambda image: module.apply(variables, image, train=False), images


@pytest.mark.weekly
@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_becomes_onnx(run_onnx, name):
    function, images = network(name)
    program = onnx.to_onnx(function, (1, 32, 64, 3))
    batch = 1 if name in FIXED_BATCH else "b"
    assert program.shape == (batch, 32, 64, 3)
    images = images[: 1 if batch == 1 else 3, :32, :64]
    wanted = jax.jit(function)(images)
    np.testing.assert_allclose(run_onnx(program, images), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.weekly
@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_becomes_stablehlo(name):
    pytest.importorskip("flatbuffers", reason="needs the extra export")
    function, images = network(name)
    with helpers_shapes.unchecked():  # annotations cannot compare sizes that stay open
        program = stablehlo.to_stablehlo(function, (1, 32, 64, 3))
    call = jax.jit(jax.export.deserialize(bytearray(program.data)).call)
    sizes = [(3, 32, 64)]
    if name in FIXED_SIZE:
        assert program.shape == (1 if name in FIXED_BATCH else "b", 32, 64, 3)
        sizes = [(1, 32, 64)] if name in FIXED_BATCH else [(1, 32, 64), (3, 32, 64)]
    else:
        multiple = 1 if program.shape[1] == "h" else int(program.shape[1].split("*")[0])
        assert multiple <= 32
        sizes = [(3, 32, 64), (1, 96, 160)] + [(2, 37, 51)] * (multiple == 1)
    for n, height, width in sizes:
        image = images[:n, :height, :width]
        wanted = jax.jit(function)(image)
        np.testing.assert_allclose(call(image), wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
