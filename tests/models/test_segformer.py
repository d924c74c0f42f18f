"""SegFormer: published sizes, any image, its depthwise convolution, its two kinds of dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax import models, train
from cellseg_jax.config import complete, default
from cellseg_jax.errors import InputError
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.segformer import depthwise

QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # a third of the time
TINY = dict(widths=(2, 4, 10, 16), depths=(1, 1, 1, 1), decoder_width=6)
jit = partial(jax.jit, compiler_options=QUICK_COMPILE)


def tiny(**changes):
    return models.make("segformer", **{"num_outputs": 2, **TINY, **changes})


def shapes_of(module, channels=3):
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def filled(shapes, dtype=jnp.float32):
    """Random variables; variances and scales around 1."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(around + rng.uniform(-0.4, 0.4, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def picture(n, height, width, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, height, width, 3)), dtype)


@pytest.mark.parametrize(
    ("variant", "millions", "count"),  # the paper's table 1, 150 outputs
    [("b0", 3.8, 3752694), *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("b1", 13.7, 13715798), ("b2", 27.5, 27461974)))],
)
def test_parameter_count_is_published(variant, millions, count):
    module = models.make("segformer", num_outputs=150, variant=variant)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module)["params"])) == count
    assert round(count / 1e6, 1) == millions


@pytest.mark.slow
def test_logits_have_the_size_of_any_image():
    shapes = shapes_of(tiny())
    run = partial(tiny().apply, train=False)
    for size in ((32, 64), (16, 20), (33, 47), (1, 5)):
        logits = jax.eval_shape(run, shapes, picture(2, *size))
        assert logits.shape == (2, *size, 2) and logits.dtype == jnp.float32


@pytest.mark.slow
def test_dtype_of_the_computation_is_an_option():
    variables, image = filled(shapes_of(tiny())), picture(1, 16, 20)
    single, half = (
        jit(partial(tiny(dtype=dtype).apply, train=False))(variables, image)
        for dtype in (None, jnp.bfloat16))
    assert jnp.std(single) > 0.05 and half.dtype == jnp.float32
    assert 0 < jnp.abs(half - single).max() < 0.1 * jnp.abs(single).max()
    with jax.enable_x64(True):
        assert {x.dtype for x in jax.tree.leaves(shapes_of(tiny()))} == {jnp.dtype("float32")}


def test_depthwise_equals_a_grouped_convolution():
    def grouped(image, kernel):
        return lax.conv_general_dilated(
            image, kernel[:, :, None], (1, 1), "SAME", feature_group_count=image.shape[-1],
            dimension_numbers=("NHWC", "HWIO", "NHWC"))

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        image, kernel = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(3, 3, 3))
        loss = lambda image, kernel, form: jnp.sin(form(image, kernel)).sum()
        values = [jit(jax.value_and_grad(partial(loss, form=form), (0, 1)))(image, kernel)
                  for form in (depthwise, grouped)]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), *values)


@pytest.mark.slow
def test_images_skip_blocks_and_lose_channels_at_their_rates():
    """One factor per image for every half of a block, then one per channel."""
    module, n = partial(tiny, drop_path=0.6), 200
    variables, image = filled(shapes_of(module())), picture(1, 4, 4).repeat(n, 0)

    def run(rate, key):
        return module(dropout=rate).apply(
            variables, image, train=True, rngs={"dropout": key},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Dropout))

    logits, sown = jit(run)(0.25, jax.random.key(0))
    factors = [sown["intermediates"][f"Dropout_{index}"]["__call__"][0] for index in range(9)]
    for index, factor in enumerate(factors[:8]):
        rate = 0.6 * (index // 2) / 3
        assert factor.shape == (n, 1, 1, 1)
        assert abs((factor == 0).mean() - rate) < 0.12
        np.testing.assert_allclose(factor.max(), 1 / (1 - rate), rtol=1e-4)
    assert factors[8].shape == (n, 1, 1, 6) and abs((factors[8] == 0).mean() - 0.25) < 0.06
    assert len(np.unique(logits[:, 0, 0, 0])) > n / 2  # of equal images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(variant="b9"), "config.model.variant: got 'b9'; expected one of b0, b1, b2"),
        (dict(widths=(2, 3, 10, 16)), "config.model.widths: got .* expected four multiples of"),
        (dict(widths=(2, 4)), "config.model.widths: got .* expected four multiples of"),
        (dict(depths=(1, 1, 0, 1)), "config.model.depths: got .* expected four positive"),
    ],
)
def test_options_that_make_no_network_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        shapes_of(tiny(**options))


@pytest.mark.slow
def test_training_is_the_same_over_eight_devices():
    """Loss, statistics and gradients in float64, with both kinds of dropout."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        variables = filled(shapes_of(tiny()), jnp.float64)
        image, key = picture(8, 19, 22, jnp.float64), jax.random.key(1)

        def run(rate, variables, image, key, axis_name=None):
            module = tiny(drop_path=0.5, dropout=rate, axis_name=axis_name)

            def loss(params):
                logits, updates = module.apply(
                    {**variables, "params": params}, image, train=True,
                    mutable=["batch_stats"], rngs={"dropout": key})
                total = jnp.sin(logits).sum()
                return (total if axis_name is None else lax.psum(total, axis_name)), dict(updates)

            return jax.value_and_grad(loss, has_aux=True)(variables["params"])

        want = jit(run)(0.3, variables, image, key)
        mapped = jax.shard_map(
            partial(run, axis_name="data"), mesh=mesh, in_specs=(P(), P(), P("data"), P()),
            out_specs=P())
        got = jit(mapped)(0.3, variables, image, key)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), got, want)


@pytest.mark.weekly
def test_reduced_network_learns_synthetic_cells(tmp_path):
    config = default()
    config.data = dict(name="synthetic", size=(64, 64), image_size=(64, 64), count=60)
    config.model = dict(
        name="segformer", widths=(16, 32, 40, 64), depths=(1, 1, 1, 1), decoder_width=64)
    config.optimizer.update(lr=3e-3, schedule="polynomial")
    config.train.update(epochs=14, batch_size=8)
    result, = train.train([complete(config)], [tmp_path / "run"])
    assert result.metrics["val_dice_mean"] > 0.85
