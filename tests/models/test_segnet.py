"""SegNet: pooling by hand, parameters, any size, dtypes, devices, and that it learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax import config as config_lib
from cellseg_jax import models, train
from cellseg_jax.errors import InputError
from cellseg_jax.models.segnet import max_pool_with_index, max_unpool

SMALL = dict(channels=(4, 6), convs=(1, 2))


def shapes_of(module, channels=3):
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def variables_of(module, dtype=jnp.float32):
    """Random variables without compiling `init`; variances and scales around 1."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(around + rng.uniform(-0.3, 0.3, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(module))


def picture(n, height, width, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, height, width, 3)), dtype)


def test_pooling_remembers_the_first_largest_and_unpooling_puts_it_back():
    image = np.random.default_rng(0).integers(0, 3, (2, 4, 6, 2)).astype(np.float32)
    pooled, index = max_pool_with_index(image)
    back = max_unpool(pooled, index)
    assert index.dtype == jnp.uint8 and back.shape == image.shape
    want = np.zeros_like(image)
    for n, i, j, c in itertools.product(range(2), range(2), range(3), range(2)):
        window = image[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].reshape(-1).tolist()
        place = window.index(max(window))
        assert (pooled[n, i, j, c], index[n, i, j, c]) == (max(window), place)
        want[n, 2 * i + place // 2, 2 * j + place % 2, c] = max(window)
    np.testing.assert_array_equal(back, want)


def test_parameter_count_is_published():
    """29.45 million in the paper, for the 11 classes of CamVid."""
    module = models.make("segnet", num_outputs=11)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module)["params"])) == 29449355


def test_logits_have_the_size_of_any_image():
    module = models.make("segnet", num_outputs=2, channels=(4, 4, 6), convs=(1, 2, 1))
    for size in ((16, 24), (61, 47), (1, 5)):
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        apply = lambda v, x: module.apply(v, x, train=False)  # noqa: E731
        logits = jax.eval_shape(apply, shapes_of(module), image)
        assert logits.shape == (2, *size, 2) and logits.dtype == jnp.float32


def test_receptive_field_holds_what_the_indices_depend_on():
    """The two windows that the last convolution's three rows lie in, and a row on each side."""
    assert models.receptive_field("segnet", channels=(2,), convs=(1,)) == 6


@pytest.mark.slow
def test_bfloat16_is_close_and_parameters_stay_float32():
    module = models.make("segnet", num_outputs=2, **SMALL)
    variables, image = variables_of(module), picture(2, 9, 14)
    single = jax.jit(module.apply, static_argnames="train")(variables, image, train=False)
    module = models.make("segnet", num_outputs=2, dtype=jnp.bfloat16, **SMALL)
    half = jax.jit(module.apply, static_argnames="train")(variables, image, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(module))} == {jnp.dtype("float32")}
    assert half.dtype == single.dtype == jnp.float32
    # Where two of four pixels are as good as equal, rounding changes the place of one value.
    assert np.mean(np.abs(half - single)) < 0.02 * np.abs(single).max()


@pytest.mark.slow
def test_dropout_is_traced_and_lies_at_the_deep_stages():
    @jax.jit
    def logits(rate, variables, image):
        module = models.make("segnet", num_outputs=2, dropout=rate, **SMALL)
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    variables = variables_of(models.make("segnet", num_outputs=2, **SMALL))
    image = picture(1, 8, 8)
    exact, dropped = (logits(rate, variables, image) for rate in (0.0, 0.5))
    assert np.isfinite(dropped).all() and np.abs(dropped - exact).max() > 0.1

    def places(channels):
        module = models.make("segnet", num_outputs=2, dropout=0.5, channels=channels,
                             convs=(1,) * len(channels))
        run = lambda v, x: module.apply(  # noqa: E731
            v, x, train=True, mutable=["intermediates", "batch_stats"], capture_intermediates=True,
            rngs={"dropout": jax.random.key(0)})[1]["intermediates"]
        kept = jax.eval_shape(run, shapes_of(module), image)
        return [kept[name]["__call__"][0].shape[1] for name in sorted(kept) if "Dropout" in name]

    # After each of the three deepest stages, down and up; pooled or unpooled size.
    assert places((2, 2, 2, 2)) == [4, 2, 1, 2, 4, 8]


@pytest.mark.parametrize("convs", [(1,), (1, 0), (1, 1, 1)])
def test_segnet_rejects_stages_that_do_not_fit(convs):
    with pytest.raises(InputError, match="config.model.convs: got .* each of the 2 channels"):
        shapes_of(models.make("segnet", num_outputs=2, channels=(4, 4), convs=convs))


@pytest.mark.slow
def test_training_is_the_same_over_eight_devices():
    """Loss, statistics and gradients in float64, with dropout; the loss is summed inside."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        variables = variables_of(models.make("segnet", num_outputs=2, **SMALL), jnp.float64)
        image, key = picture(8, 9, 10, jnp.float64), jax.random.key(1)

        def run(rate, variables, image, key, axis_name=None):
            module = models.make(
                "segnet", num_outputs=2, dropout=rate, axis_name=axis_name, **SMALL)

            def loss(params):
                logits, updates = module.apply(
                    {**variables, "params": params}, image, train=True, mutable=["batch_stats"],
                    rngs={"dropout": key})
                total = jnp.sin(logits).sum()
                total = total if axis_name is None else jax.lax.psum(total, axis_name)
                return total, dict(updates)

            return jax.value_and_grad(loss, has_aux=True)(variables["params"])

        want = jax.jit(run)(0.3, variables, image, key)
        mapped = jax.shard_map(
            lambda *args: run(*args, axis_name="data"),
            mesh=mesh, in_specs=(P(), P(), P("data"), P()), out_specs=P())
        got = jax.jit(mapped)(0.3, variables, image, key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)


def cells_config(model):
    """64 steps on bright cells of 64 pixels."""
    config = config_lib.default()
    config.data = dict(
        name="synthetic", size=(64, 64), count=40, image_size=(64, 64), looks=("fluorescence",))
    config.model = model
    config.augment.flip_horizontal = (0.5, 1.0)
    config.optimizer.lr, config.optimizer.schedule = 1e-2, "polynomial"
    config.train.epochs, config.train.batch_size, config.eval.every = 16, 8, 4
    return config_lib.complete(config)


@pytest.mark.weekly
def test_segnet_learns_synthetic_cells(tmp_path):
    """Three narrow stages, under a minute on two cores."""
    model = dict(name="segnet", channels=(8, 16, 32), convs=(1, 1, 1))
    result = train.train([cells_config(model)], [tmp_path / "run"])[0]
    assert result.metrics["val_dice_mean"] > 0.85
