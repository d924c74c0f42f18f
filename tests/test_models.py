"""The networks: size, any image, dtypes, options, and the same numbers on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax import models
from cellseg_jax.errors import InputError

SMALL = {
    "unet": dict(channels=(4, 8, 16)),
    "unetr": dict(
        image_size=32, feature_size=4, hidden_size=16, mlp_dim=32, num_heads=2, num_layers=2
    ),
}
both = pytest.mark.parametrize("name", SMALL)


def small(name, **changes):
    return models.make(name, **{"num_outputs": 3, **SMALL[name], **changes})


def shapes_of(module):
    image = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
    init = lambda image: module.init(jax.random.key(0), image, train=False)  # noqa: E731
    return jax.eval_shape(init, image)


def variables_of(module, dtype=jnp.float32, seed=0):
    """Random variables without compiling `init`; variances and scales around 1."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(around + rng.uniform(-0.3, 0.3, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(module))


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


@both
def test_logits_have_the_size_of_any_image(name):
    module = small(name)
    variables = variables_of(module)
    for size in ((32, 32), (61, 47), (5, 33)):
        logits = jax.eval_shape(
            lambda v, x: module.apply(v, x, train=False), variables, picture(2, *size)
        )
        assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32


@both
def test_logits_ignore_padding_done_outside(name):
    """Zeros below and to the right change nothing: the model adds the same."""
    module = small(name)
    variables = variables_of(module)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
    image = picture(1, 29, 31)
    padded = jnp.pad(image, ((0, 0), (0, 3), (0, 1), (0, 0)))
    got, want = apply(variables, image), apply(variables, padded)[:, :29, :31]
    np.testing.assert_allclose(got, want, atol=1e-6)


@both
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


@both
def test_parameters_start_as_float32(name):
    with jax.enable_x64(True):
        shapes = shapes_of(small(name))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def train_step(name, rate, axis_name=None):
    """A function of variables, image, key: loss and new statistics, and gradients."""

    def step(variables, image, key):
        # Built inside the compiled function, with a rate that may be traced.
        module = small(name, dropout=rate, axis_name=axis_name)

        def loss(params):
            logits, updates = module.apply(
                {**variables, "params": params}, image, train=True,
                mutable=["batch_stats"], rngs={"dropout": key},
            )
            total = jnp.sin(logits).sum()
            return (total if axis_name is None else jax.lax.psum(total, axis_name)), updates

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return step


@pytest.mark.parametrize("name", ["unet", pytest.param("unetr", marks=pytest.mark.slow)])
def test_training_is_the_same_over_eight_devices(name):
    """Loss, statistics and gradients in float64, with dropout; the loss is summed inside."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        variables = variables_of(small(name), jnp.float64)
        image, key = picture(8, 32, 32, jnp.float64), jax.random.key(1)

        def run(rate, variables, image, key, axis_name=None):
            return train_step(name, rate, axis_name)(variables, image, key)

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
            member = jax.tree.map(lambda leaf: leaf[k], (rates, members, images, keys))
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a[k], b, rtol=1e-9, atol=1e-9),
                together, alone(*member),
            )


def test_options_are_the_models_own():
    assert models.options("unet") == {
        "channels": (16, 32, 64, 128, 256, 512), "num_res_units": 0, "dropout": 0.2,
    }
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
