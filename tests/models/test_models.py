"""The networks: size, any image, dtypes, options, and the same numbers on eight devices."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax import models
from cellseg_jax.errors import InputError
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.small_unet import KerasBlock

SMALL = {
    "unet": dict(channels=(4, 8, 16)),
    "unetr": dict(
        image_size=32, feature_size=4, hidden_size=16, mlp_dim=32, num_heads=2, num_layers=2
    ),
    "unet_classic": dict(channels=(4, 8)),
    "small_unet": dict(channels=(4, 8)),
    "simple_conv": {},
}
every = pytest.mark.parametrize("name", SMALL)


def small(name, **changes):
    return models.make(name, **{"num_outputs": 3, **SMALL[name], **changes})


def shapes_of(module, channels=4):
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    init = lambda image: module.init(jax.random.key(0), image, train=False)  # noqa: E731
    return jax.eval_shape(init, image)


def variables_of(module, dtype=jnp.float32, seed=0, channels=4):
    """Random variables without compiling `init`; variances and scales around 1."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(around + rng.uniform(-0.3, 0.3, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(module, channels))


def picture(n, height, width, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(n, height, width, 4)), dtype)


@pytest.mark.parametrize(
    ("name", "options", "count", "monai"),
    [
        ("unet", {}, 2654209, 2654209),
        ("unet", dict(num_res_units=2), 6523101, 6523101),
        # MONAI's UNETR holds the layer norm of a cross attention it never uses: 12 * 2 * 768.
        ("unetr", {}, 88497553, 88515985),
    ],
)
def test_parameter_count_is_monais(name, options, count, monai):
    module = models.make(name, num_outputs=1, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module)["params"])) == count
    assert count == monai - (12 * 2 * 768 if name == "unetr" else 0)


def block(inputs, features):
    """Parameters of a KerasBlock: two 3x3 convolutions with bias, two batch norms."""
    return 9 * inputs * features + 9 * features**2 + 2 * (features + 2 * features)


def up(inputs, features):
    return 9 * inputs * features + features


def dense(*widths):
    return sum((below + 1) * width for below, width in itertools.pairwise(widths))


SMALL_UNET = (
    block(1, 16) + block(16, 32) + block(32, 32)
    + up(32, 32) + block(32, 32) + up(32, 16) + block(16, 16)
)
UNET_ADD = (
    block(1, 16) + block(16, 32) + block(32, 64) + block(64, 128) + block(128, 256)
    + sum(up(2 * f, f) + block(f, f) for f in (16, 32, 64, 128))
)
# The U-Net of zhixuhao, published with 31,031,685, has a 3x3 convolution from 64 to 2 channels
# and a 1x1 from 2 to 1 where the paper has one from 64 to 2.
KERAS_UNET = 31031685 - (9 * 64 * 2 + 2) - (2 + 1) + (64 * 2 + 2)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "options", "count"),
    [
        ("unet_classic", 3, 1, {}, 31037633),  # milesial, and report 4's
        ("unet_classic", 3, 1, dict(norm="double_instance"), 31037633),
        ("unet_classic", 3, 2, dict(up="bilinear"), 17263042),  # milesial's bilinear=True
        ("unet_classic", 3, 1, dict(channels=(32, 64, 128, 256, 512)), 7763041),  # brain U-Net
        ("unet_classic", 1, 2, dict(norm="none", padding="valid"), KERAS_UNET),
        ("small_unet", 1, 3, {}, SMALL_UNET + dense(16, 32, 64, 3)),
        ("small_unet", 1, 3, dict(dense=False), SMALL_UNET + dense(16, 3)),
        ("small_unet", 1, 3, dict(batch_norm=False),
         SMALL_UNET - 2 * 2 * (16 + 32 + 32 + 32 + 16) + dense(16, 32, 64, 3)),
        ("unet_add", 1, 3, {}, UNET_ADD + dense(16, 32, 64, 3)),
        ("simple_conv", 1, 3, {}, 16 * 32 + 32 + 16 * 32 * 64 + 64 + dense(64, 32, 64, 3)),
    ],
)
def test_parameter_count_is_published(name, inputs, outputs, options, count):
    module = models.make(name, num_outputs=outputs, **options)
    leaves = jax.tree.leaves(shapes_of(module, inputs)["params"])
    assert sum(leaf.size for leaf in leaves) == count


@every
def test_logits_have_the_size_of_any_image(name):
    module = small(name)
    variables = variables_of(module)
    for size in ((32, 32), (61, 47), (5, 33)):
        logits = jax.eval_shape(
            lambda v, x: module.apply(v, x, train=False), variables, picture(2, *size)
        )
        assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    "name", ["unet", "unet_classic", "small_unet", pytest.param("unetr", marks=pytest.mark.slow)])
def test_logits_ignore_padding_done_outside(name):
    """Zeros below and to the right change nothing: the model adds the same."""
    module = small(name)
    variables = variables_of(module)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
    image = picture(1, 31, 15)
    padded = jnp.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))
    got, want = apply(variables, image), apply(variables, padded)[:, :31, :15]
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", [
    name if name == "unet" else pytest.param(name, marks=pytest.mark.slow) for name in SMALL])
def test_dtype_follows_inputs_and_parameters(name):
    def logits(variable_dtype, image_dtype, **options):
        variables = variables_of(small(name), variable_dtype)
        image = picture(1, 32, 32, image_dtype)
        return jax.jit(small(name, **options).apply, static_argnames="train")(
            variables, image, train=False
        )

    single = logits(jnp.float32, jnp.float32)
    half = logits(jnp.float32, jnp.float32, dtype=jnp.bfloat16)
    assert single.dtype == half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, atol=0.05 * np.abs(single).max())
    with jax.enable_x64(True):
        double = logits(jnp.float64, jnp.float64)
        np.testing.assert_allclose(double, single, atol=1e-5 * np.abs(single).max())
        assert double.dtype == jnp.float64


@every
def test_parameters_start_as_float32(name):
    with jax.enable_x64(True):
        shapes = shapes_of(small(name))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def train_step(name, rate, axis_name=None, **options):
    """A function of variables, image, key: loss and new statistics, and gradients."""

    def step(variables, image, key):
        # Built inside the compiled function, with a rate that may be traced.
        module = small(name, dropout=rate, axis_name=axis_name, **options)

        def loss(params):
            logits, updates = module.apply(
                {**variables, "params": params}, image, train=True,
                mutable=["batch_stats"], rngs={"dropout": key},
            )
            total = jnp.sin(logits).sum()
            return (total if axis_name is None else jax.lax.psum(total, axis_name)), dict(updates)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return step


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        slow("unet", {}),
        slow("unetr", {}),
        slow("unet_classic", {}),
        slow("unet_classic", dict(norm="double_instance", up="bilinear", odd="resize_up")),
        slow("unet_classic", dict(norm="layer", padding="valid", bias="always")),
        slow("small_unet", {}),
    ],
)
def test_training_is_the_same_over_eight_devices(name, options):
    """Loss, statistics and gradients in float64, with dropout; the loss is summed inside."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        variables = variables_of(small(name, **options), jnp.float64)
        size = (32, 32) if name.startswith("unetr") else (19, 22)
        image, key = picture(8, *size, jnp.float64), jax.random.key(1)

        def run(rate, variables, image, key, axis_name=None):
            return train_step(name, rate, axis_name, **options)(variables, image, key)

        want = jax.jit(run)(0.3, variables, image, key)
        mapped = jax.shard_map(
            lambda *args: run(*args, axis_name="data"),
            mesh=mesh, in_specs=(P(), P(), P("data"), P()), out_specs=P(),
        )
        got = jax.jit(mapped)(0.3, variables, image, key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)


@pytest.mark.slow
def test_training_is_the_same_for_vmapped_members():
    """Two members with their own weights, dropout rates and keys, as alone."""
    with jax.enable_x64(True):
        members = [variables_of(small("unet"), jnp.float64, seed) for seed in range(2)]
        members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        images = picture(4, 32, 32, jnp.float64).reshape(2, 2, 32, 32, 4)
        rates, keys = jnp.array([0.0, 0.4]), jax.random.split(jax.random.key(1))

        def run(rate, variables, image, key):
            return train_step("unet", rate)(variables, image, key)

        together = jax.jit(jax.vmap(run))(rates, members, images, keys)
        alone = jax.jit(run)
        for k in range(2):
            member = jax.tree.map(lambda leaf, k=k: leaf[k], (rates, members, images, keys))
            jax.tree.map(
                lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-9, atol=1e-9),
                together, alone(*member),
            )


def test_options_are_the_models_own():
    assert models.options("unet") == {
        "channels": (16, 32, 64, 128, 256, 512), "num_res_units": 0, "dropout": 0.2,
    }
    assert models.options("unet_add")["channels"] == (16, 32, 64, 128, 256)
    assert models.options("simple_conv") == {}
    assert list(models.options("unetr")) == [
        "image_size", "feature_size", "hidden_size", "mlp_dim", "num_heads", "num_layers",
        "dropout",
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unetr2", {}, "config.model.name: got 'unetr2'.*did you mean unetr"),
        ("unet", dict(chanels=(1, 2)), "config.model.chanels: .*did you mean channels"),
        ("unet", dict(parent=None), "config.model.parent: unet has no such option"),
    ],
)
def test_make_rejects_unknown_names_and_options(name, options, message):
    with pytest.raises(InputError, match=message):
        models.make(name, num_outputs=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=100), "config.model.image_size: got .* expected multiples of 16"),
        (dict(hidden_size=15), "config.model.hidden_size: got 15; expected a multiple"),
    ],
)
def test_unetr_rejects_sizes_that_do_not_divide(options, message):
    with pytest.raises(InputError, match=message):
        variables_of(small("unetr", **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(dict(padding="valid", norm="none", drop_skips=(0, 2)), marks=pytest.mark.slow),
        pytest.param(dict(odd="pad_up", up="bilinear", norm="group"), marks=pytest.mark.slow),
        pytest.param(dict(odd="resize_up", skip="none", norm="layer"), marks=pytest.mark.slow),
    ],
)
def test_classic_unet_takes_any_size(options):
    """Report 4's images, report 1's smallest patches, and less than 2**4 pixels."""
    module = models.make("unet_classic", num_outputs=2, channels=(8, 16, 32, 64, 128), **options)
    variables = shapes_of(module)
    for size in ((333, 434), (16, 20), (1, 7)):
        image = jax.ShapeDtypeStruct((1, *size, 4), jnp.float32)
        apply = lambda v, x: module.apply(v, x, train=False)  # noqa: E731
        assert jax.eval_shape(apply, variables, image).shape == (1, *size, 2)


def test_classic_unet_of_single_images_trains_as_it_evaluates():
    """Instance norm has no running statistics: each image by itself, in both."""
    module = small("unet_classic", norm="instance")
    variables, image = variables_of(module), picture(2, 8, 6)
    assert "batch_stats" not in variables
    apply = jax.jit(module.apply, static_argnames="train")
    evaluated = apply(variables, image, train=False)
    np.testing.assert_array_equal(apply(variables, image, train=True), evaluated)
    alone = apply(variables, image.at[0].set(0), train=False)
    np.testing.assert_allclose(alone[1], evaluated[1], atol=1e-6)


@pytest.mark.slow
def test_classic_unet_bottom_dropout_leaves_the_top_skip():
    """Its places are the end of the contracting path: with one pooling, that skip and below."""
    module = small("unet_classic", channels=(4, 8, 8), dropout=0.99)
    variables, image = variables_of(module), picture(1, 8, 8)
    apply = partial(
        module.apply, train=True, rngs={"dropout": jax.random.key(0)},
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, Dropout),
    )
    kept = jax.jit(apply)(variables, image)[1]["intermediates"]
    dropped = [kept[f"Dropout_{index}"]["__call__"][0] for index in range(2)]
    assert [array.shape for array in dropped] == [(1, 4, 4, 8), (1, 2, 2, 8)]
    assert all((array == 0).mean() > 0.9 for array in dropped)


def test_simple_conv_equals_sums_over_taps():
    module = models.make("simple_conv", num_outputs=2)
    variables, image = variables_of(module), picture(1, 6, 5)
    want = np.asarray(image, np.float64)
    for name in ("conv_0", "conv_1", "conv_2", "conv_3", "out"):
        kernel, bias = (np.asarray(variables["params"][name][leaf]) for leaf in ("kernel", "bias"))
        size, (_, height, width, _) = len(kernel), want.shape
        low = (size - 1) // 2
        padded = np.pad(want, ((0, 0), (low, size - 1 - low), (low, size - 1 - low), (0, 0)))
        want = bias + sum(
            padded[:, u : u + height, v : v + width] @ kernel[u, v]
            for u in range(size) for v in range(size)
        )
        want = want if name == "out" else np.maximum(want, 0)
    got = jax.jit(module.apply, static_argnames="train")(variables, image, train=False)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(norm="bacth"), "config.model.norm: got 'bacth'; .*did you mean batch"),
        (dict(up="nearest"), "config.model.up: got 'nearest'; expected one of transposed"),
        (dict(channels=(4,)), r"config.model.channels: got \(4,\); expected at least two levels"),
        (dict(drop_skips=(1,)), r"config.model.drop_skips: got \(1,\); .* to 0"),
        (dict(norm="group", groups=3), "config.model.groups: got 3; expected a divisor of the 4"),
        (dict(weights_init="he"), "config.model.weights_init: got 'he'"),
        (
            dict(channels=(4, 4), up="bilinear", skip="add"),
            "config.model.skip: got 'add' for 2 and 4 channels; expected channels that double",
        ),
    ],
)
def test_classic_unet_rejects_options_that_make_no_network(options, message):
    with pytest.raises(InputError, match=message):
        shapes_of(small("unet_classic", **options))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        slow("simple_conv", {}, 7),
        ("unet", dict(channels=(2, 2, 2)), 19),
        slow("unet_classic", dict(channels=(2, 2)), 18),
        slow("unet_classic", dict(channels=(2, 2, 2), up="bilinear"), 52),
        slow("unet_classic", dict(channels=(2, 2), padding="valid", skip="add"), 18),
    ],
)
def test_receptive_field_is_what_a_brighter_pixel_changes(name, options, size):
    """With positive weights, ReLU and max-pool let every brighter pixel through."""
    assert models.receptive_field(name, **options) == size
    with jax.enable_x64(True):
        module = models.make(name, num_outputs=1, **options)
        variables = jax.tree.map(jnp.abs, variables_of(module, jnp.float64, channels=1))
        images = np.ones((129, 128, 16, 1))
        images[np.arange(128), np.arange(128), 8] += 10  # the last stays as it is
        logits = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
        changed = (np.abs(logits[:-1] / logits[-1] - 1) > 1e-12).any((2, 3))
        extents = [np.ptp(np.flatnonzero(column)) + 1 for column in changed.T[40:88]]
        assert max(extents) == size


def test_windows_reach_farther_to_one_side_than_to_the_other():
    """Keras's transposed convolutions do; a halo of half of the window would be too small."""
    options = dict(channels=(2, 2, 2))
    assert models.reach("small_unet", **options) == 26 > 48 / 2


@pytest.mark.slow
def test_receptive_field_of_a_stride_of_64_is_one_window():
    assert models.receptive_field("small_unet", channels=(2, 2, 2)) == 48
    assert models.receptive_field("unet", channels=(2,) * 7) == 5 * 64 - 1


def test_receptive_field_of_all_of_the_image_is_none():
    options = dict(channels=(2, 2), norm="instance")
    assert models.receptive_field("unet_classic", largest=64, **options) is None


@pytest.mark.parametrize("activation", ["relu", "elu", "leaky_relu", "tanh"])
def test_blocks_of_small_unet_are_without_norm_what_flax_computes(activation):
    """Two convolutions, each followed by the activation; their biases learn."""
    block = KerasBlock(4, False, activation, None, None)
    image = picture(1, 6, 8)
    variables = block.init(jax.random.key(0), image, train=True)
    expected = image
    for index in (1, 2):
        kernel, bias = (variables["params"][f"conv_{index}"][name] for name in ("kernel", "bias"))
        expected = getattr(jax.nn, activation)(jax.lax.conv_general_dilated(
            expected, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias)
    out = block.apply(variables, image, train=True)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    gradient = jax.grad(lambda v: block.apply(v, image, train=True).sum())(variables)
    assert jnp.abs(gradient["params"]["conv_1"]["bias"]).max() > 0


def test_an_unknown_activation_is_named():
    with pytest.raises(InputError, match="config.model.activation: .*relu6"):
        variables_of(models.make("small_unet", num_outputs=1, activation="relu6"))
