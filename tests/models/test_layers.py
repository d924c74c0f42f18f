"""The shared blocks: exact values, exact gradients, and the same result under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_tiers import slow_but
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, ConvTranspose, convolution, plain_convolution
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.norm import BatchNorm, GroupNorm
from cellseg_jax.models.resample import max_pool, pad_to_multiple, stretch_by_one, upsample_bilinear

GEOMETRIES = {
    "3x3": ((9, 8), (3, 3, 4, 5), dict(stride=1, dilation=1, pads=((1, 1), (1, 1)))),
    "1x1": ((5, 4), (1, 1, 4, 5), dict(stride=1, dilation=1, pads=((0, 0), (0, 0)))),
    "wide": ((12, 11), (3, 3, 128, 130), dict(stride=1, dilation=1, pads=((1, 1), (1, 1)))),
    "few pixels": ((6, 4), (3, 3, 128, 130), dict(stride=1, dilation=1, pads=((1, 1), (1, 1)))),
    "few, uneven": ((4, 6), (2, 3, 130, 128), dict(stride=1, dilation=1, pads=((0, 2), (1, 0)))),
    "tiles": ((70, 33), (3, 3, 48, 50), dict(stride=1, dilation=1, pads=((0, 3), (2, 1)))),
    "stride even": ((8, 10), (3, 3, 4, 5), dict(stride=2, dilation=1, pads=((1, 1), (1, 1)))),
    "stride odd": ((9, 7), (3, 3, 4, 5), dict(stride=2, dilation=1, pads=((1, 1), (1, 1)))),
    "stride 1x1": ((8, 7), (1, 1, 4, 5), dict(stride=2, dilation=1, pads=((0, 0), (0, 0)))),
    "stride wide": ((8, 7), (3, 3, 16, 5), dict(stride=2, dilation=1, pads=((1, 1), (1, 1)))),
    "up wide": ((4, 5), (3, 3, 5, 16), dict(stride=1, dilation=2, pads=((1, 2), (1, 2)))),
    "stride 5x5": ((11, 8), (5, 5, 2, 3), dict(stride=2, dilation=1, pads=((2, 2), (2, 2)))),
    "up 3x3": ((4, 5), (3, 3, 4, 5), dict(stride=1, dilation=2, pads=((1, 2), (1, 2)))),
    "up 2x2": ((4, 5), (2, 2, 4, 5), dict(stride=1, dilation=2, pads=((1, 1), (1, 1)))),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def data_mesh(devices=8):
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def loss_and_gradients(form, geometry):
    """A function of image and kernel whose gradient depends on every output differently."""

    def loss(image, kernel):
        return jnp.sin(form(image, kernel, **geometry)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))


def assert_close(got, want, atol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=atol), got, want)


@pytest.mark.parametrize(
    "case", slow_but(("3x3", "tiles", "stride odd", "up 2x2"), list(GEOMETRIES)))
def test_convolution_matches_lax_in_value_and_gradient(case):
    size, kernel_shape, geometry = GEOMETRIES[case]
    image, kernel = normal(0, 2, *size, kernel_shape[2]), normal(1, *kernel_shape)
    got = jax.jit(loss_and_gradients(convolution, geometry))(image, kernel)
    assert_close(got, loss_and_gradients(plain_convolution, geometry)(image, kernel))


@pytest.mark.parametrize("case", slow_but(("3x3",), ["3x3", "tiles", "stride odd", "up 3x3"]))
def test_convolution_same_under_vmap_and_scan(case):
    size, kernel_shape, geometry = GEOMETRIES[case]
    images, kernels = normal(0, 3, 2, *size, kernel_shape[2]), normal(1, 3, *kernel_shape)
    ours = loss_and_gradients(convolution, geometry)
    plain = loss_and_gradients(plain_convolution, geometry)
    want = [plain(*pair) for pair in zip(images, kernels, strict=True)]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *want)
    assert_close(jax.jit(jax.vmap(ours))(images, kernels), want)
    scan = jax.jit(lambda *pairs: jax.lax.scan(lambda c, p: (c, ours(*p)), 0, pairs)[1])
    assert_close(scan(images, kernels), want)


@pytest.mark.parametrize("case", slow_but(("3x3",), ["3x3", "tiles", "stride even", "up 3x3"]))
def test_convolution_same_over_eight_devices(case):
    """Replicated kernel, image split over "data", loss summed inside: gradients need no psum."""
    size, kernel_shape, geometry = GEOMETRIES[case]
    image, kernel = normal(0, 8, *size, kernel_shape[2]), normal(1, *kernel_shape)

    def step(image, kernel):
        def loss(image, kernel):
            return jax.lax.psum(jnp.sin(convolution(image, kernel, **geometry)).sum(), "data")

        return jax.value_and_grad(loss, argnums=(0, 1))(image, kernel)

    specs = (P(), (P("data"), P()))
    mapped = jax.shard_map(step, mesh=data_mesh(), in_specs=(P("data"), P()), out_specs=specs)
    plain = loss_and_gradients(plain_convolution, geometry)
    assert_close(jax.jit(mapped)(image, kernel), plain(image, kernel))


def test_conv_bias_gradient_is_zero_where_asked_for():
    image = normal(0, 1, 4, 4, 2)
    conv = Conv(3)
    variables = conv.init(jax.random.key(0), image)

    def loss(variables, bias_gradient):
        return (conv.apply(variables, image, bias_gradient=bias_gradient) ** 2).sum()

    exact, cut = (jax.grad(loss)(variables, flag)["params"] for flag in (True, False))
    assert_close(cut["kernel"], exact["kernel"])
    assert not cut["bias"].any() and exact["bias"].any()


def test_conv_starts_within_bounds_of_torch():
    kernel = Conv(64).init(jax.random.key(0), normal(0, 1, 8, 8, 16))["params"]["kernel"]
    bound = 1 / np.sqrt(9 * 16)
    assert kernel.dtype == jnp.float32
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.03)


def batch_norm(image, axis_name=None, train=True):
    """Output and new running statistics, from a running mean and variance of 0.5 and 2."""
    norm = BatchNorm(axis_name)
    channels = jnp.ones(image.shape[-1], image.dtype)
    variables = {
        "params": {"scale": 1.5 * channels, "bias": 0.25 * channels},
        "batch_stats": {"mean": 0.5 * channels, "var": 2 * channels},
    }
    return norm.apply(variables, image, train=train, mutable=["batch_stats"])


def test_batch_norm_equals_formula():
    image = normal(0, 3, 4, 5, 2)
    mean, var = image.mean((0, 1, 2)), image.var((0, 1, 2))
    output, updates = batch_norm(image)
    assert_close(output, 1.5 * (image - mean) / np.sqrt(var + 1e-5) + 0.25)
    assert_close(updates["batch_stats"]["mean"], 0.9 * 0.5 + 0.1 * mean)
    assert_close(updates["batch_stats"]["var"], 0.9 * 2 + 0.1 * var * 60 / 59)
    output, updates = batch_norm(image, train=False)
    assert_close(output, 1.5 * (image - 0.5) / np.sqrt(2 + 1e-5) + 0.25)
    assert_close(updates["batch_stats"]["mean"], jnp.full(2, 0.5))


@pytest.mark.parametrize("mean", [0.0, 1000.0, -1000.0])
def test_batch_norm_precise_where_mean_is_large(mean):
    """At mean 1000 float32 pixels are rounded to 6e-5: more precision does not exist."""
    image = (normal(0, 4, 16, 16, 3) + mean).astype(jnp.float32)
    exact = np.asarray(image, np.float64)
    exact = 1.5 * (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5) + 0.25
    np.testing.assert_allclose(batch_norm(image)[0], exact, atol=5e-4 if mean else 5e-6)


def test_batch_norm_same_over_eight_devices():
    image = normal(0, 8, 4, 5, 3) + 10 * normal(1, 8, 1, 1, 1)  # devices see different means
    step = jax.shard_map(
        lambda image: batch_norm(image, "data"),
        mesh=data_mesh(), in_specs=P("data"), out_specs=(P("data"), P()),
    )
    assert_close(jax.jit(step)(image), batch_norm(image))


def test_batch_norm_gradient_same_over_eight_devices_and_matches_two_passes():
    image = normal(0, 8, 4, 5, 3) + 10 * normal(1, 8, 1, 1, 1)

    def two_passes(image):
        mean, var = image.mean((0, 1, 2)), image.var((0, 1, 2))
        return jnp.sin(1.5 * (image - mean) / jnp.sqrt(var + 1e-5) + 0.25).sum()

    def one_device(image):
        return jnp.sin(batch_norm(image)[0]).sum()

    def mapped(image):
        return jax.lax.psum(jnp.sin(batch_norm(image, "data")[0]).sum(), "data")

    sharded = jax.shard_map(
        jax.grad(mapped), mesh=data_mesh(), in_specs=P("data"), out_specs=P("data")
    )
    want = jax.grad(two_passes)(image)
    assert_close(jax.grad(one_device)(image), want)
    assert_close(jax.jit(sharded)(image), want)


def dropout(rate, inputs, axis_name=None):
    return Dropout(rate, axis_name).apply(
        {}, inputs, train=True, rngs={"dropout": jax.random.key(3)}
    )


@pytest.mark.slow
def test_dropout_keeps_expectation_and_its_rate():
    output = dropout(0.2, jnp.ones((64, 1001)))
    assert abs((output == 0).mean() - 0.2) < 0.01
    assert abs(output.mean() - 1) < 0.01
    assert set(np.unique(output.astype(jnp.float32))) == {np.float32(0), np.float32(2**16 / 52429)}


def test_dropout_entries_are_independent():
    """Rates of rows and columns, and correlations of neighbours, rows, keys: all within noise."""
    kept = np.asarray(dropout(0.5, jnp.ones((256, 64, 63))) > 0, np.float64) - 0.5
    other = Dropout(0.5).apply(
        {}, jnp.ones((256, 64, 63)), train=True, rngs={"dropout": jax.random.key(4)}
    )
    noise = 0.25 / np.sqrt(kept.size)
    for shifted in (np.roll(kept, 1, 0), np.roll(kept, 1, 1), np.roll(kept, 1, 2),
                    np.roll(kept, 2, 2), np.asarray(other > 0) - 0.5):
        assert abs((kept * shifted).mean()) < 4 * noise
    for axis in range(3):
        means = kept.mean(tuple({0, 1, 2} - {axis}))
        expected = 0.5 / np.sqrt(kept.size / kept.shape[axis])
        assert 0.8 < means.std() / expected < 1.2 and np.abs(means).max() < 5 * expected


def test_dropout_zero_is_identity():
    inputs = normal(0, 4, 7, 3)
    traced = jax.jit(lambda rate: dropout(rate, inputs))
    np.testing.assert_array_equal(traced(0.0), inputs)
    assert "threefry" not in str(jax.make_jaxpr(lambda x: dropout(0.0, x))(inputs))
    assert traced(0.5).all() != traced(0.0).all() and traced._cache_size() == 1


def test_dropout_mask_is_one_over_eight_devices():
    inputs = jnp.ones((16, 5, 3))
    step = jax.shard_map(
        lambda rate, inputs: dropout(rate, inputs, "data"),
        mesh=data_mesh(), in_specs=(P(), P("data")), out_specs=P("data"),
    )
    np.testing.assert_array_equal(jax.jit(step)(0.3, inputs), dropout(0.3, inputs))


def test_pad_to_multiple_pads_below_and_right():
    padded = pad_to_multiple(jnp.ones((1, 5, 8, 2)), 4)
    assert padded.shape == (1, 8, 8, 2)
    assert padded[:, :5].all() and not padded[:, 5:].any()


@pytest.mark.parametrize(("name", "bound"), [("kaiming", 6 / 32), ("glorot", 6 / (32 + 64 * 4))])
def test_weights_init_is_uniform_within_its_bound(name, bound):
    conv = Conv(64, kernel_size=2, weights_init=name)
    params = conv.init(jax.random.key(0), normal(0, 1, 4, 4, 8))["params"]
    assert 0.99 * bound**0.5 < np.abs(params["kernel"]).max() <= bound**0.5
    assert not params["bias"].any()
    with pytest.raises(InputError, match="config.model.weights_init: .* did you mean kaiming"):
        Conv(2, weights_init="kaimin").init(jax.random.key(0), normal(0, 1, 4, 4, 8))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_same_padding_is_tensorflows(size):
    image, kernel = normal(0, 1, 6, 5, 2), normal(1, size, size, 2, 3)
    conv = Conv(3, size, padding="same", use_bias=False)
    got = conv.apply({"params": {"kernel": kernel}}, image)
    layout = ("NHWC", "HWIO", "NHWC")
    want = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout)
    assert_close(got, want)


def test_same_padding_of_transposed_convolutions_is_tensorflows():
    """It is the gradient of the "SAME" convolution with stride 2, by definition."""
    image, kernel = normal(0, 1, 3, 4, 2), normal(1, 3, 3, 2, 5)
    up = ConvTranspose(5, padding=0, output_padding=-1, use_bias=False)
    got = up.apply({"params": {"kernel": kernel}}, image)

    def down(large):
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            large, turned, (2, 2), "SAME", dimension_numbers=layout
        )

    assert_close(got, jax.vjp(down, jnp.zeros((1, 6, 8, 5)))[1](image)[0])


def group_norm(image, groups):
    channels = image.shape[-1]
    params = {
        "scale": jnp.linspace(0.5, 1.5, channels, dtype=image.dtype),
        "bias": jnp.linspace(-1, 1, channels, dtype=image.dtype),
    }
    return GroupNorm(groups).apply({"params": params}, image)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_group_norm_equals_formula(groups):
    """0 groups are instance norm, 1 is layer norm."""
    image = normal(0, 2, 3, 5, 4) + 3
    want = np.empty(image.shape)
    for n in range(2):
        for group in np.array_split(np.arange(4), groups or 4):
            pixels = image[n][..., group]
            want[n][..., group] = (pixels - pixels.mean()) / np.sqrt(pixels.var() + 1e-5)
    want = want * np.linspace(0.5, 1.5, 4) + np.linspace(-1, 1, 4)
    assert_close(group_norm(image, groups), want)


@pytest.mark.slow
def test_group_norm_precise_where_mean_is_large():
    image = (normal(0, 1, 16, 16, 2) + 1000).astype(jnp.float32)
    exact = group_norm(image.astype(jnp.float64), 0)
    np.testing.assert_allclose(group_norm(image, 0), exact, atol=5e-4)


def test_group_norm_rejects_groups_that_do_not_divide():
    with pytest.raises(InputError, match="config.model.groups: got 3; expected a divisor of the 4"):
        group_norm(normal(0, 1, 2, 2, 4), 3)


@pytest.mark.parametrize("size", [
    (5, 7), *(pytest.param(size, marks=pytest.mark.slow) for size in ((4, 6), (2, 3)))])
def test_max_pool_matches_reduce_window_in_value_and_gradient(size):
    image = normal(0, 2, *size, 3)

    def plain(image):
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, window, window, "VALID")

    for form in (max_pool, jax.jit(max_pool)):
        assert_close(form(image), plain(image))
    gradients = [jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(image) for f in (max_pool, plain)]
    assert_close(*gradients)


def resized(image, axis, positions):
    """Linear interpolation at `positions`, clamped at the ends."""
    line = lambda values: np.interp(positions, np.arange(len(values)), values)  # noqa: E731
    return np.apply_along_axis(line, axis, image)


@pytest.mark.parametrize("size", [(1, 2), (3, 5)])
def test_upsample_bilinear_keeps_the_corners(size):
    image = normal(0, 2, *size, 3)
    want = np.asarray(image)
    for axis in (1, 2):
        last = want.shape[axis] - 1
        want = resized(want, axis, np.linspace(0, last, 2 * last + 2))
    assert_close(upsample_bilinear(image), want)


@pytest.mark.parametrize(("axis", "size"), [(1, 1), (2, 2), (1, 5)])
def test_stretch_by_one_interpolates_between_centres(axis, size):
    image = normal(0, 2, size, size, 3)
    centres = (np.arange(size + 1) + 0.5) * size / (size + 1) - 0.5
    assert_close(stretch_by_one(image, axis), resized(np.asarray(image), axis, centres))
