"""MedT: moments by hand, parameters, any size, dtypes, devices, and that it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax import config as config_lib
from cellseg_jax import models, train
from cellseg_jax.errors import InputError
from cellseg_jax.models import medt
from cellseg_jax.models.medt import _content_moments, _position_moments, _relative_positions

SMALL = dict(image_size=8, features=4, stem_features=4, num_heads=2, blocks=(1, 1), patch_grid=2)


def shapes_of(module, size=32):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def variables_of(module, dtype=jnp.float32):
    """Random variables without compiling `init`; variances and scales around 1."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "var", "gates") else 0.0
        return jnp.asarray(around + rng.uniform(-0.3, 0.3, leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes_of(module))


def picture(n, height, width, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, height, width, 3)), dtype)


def test_moments_equal_those_of_all_pairs():
    rng = np.random.default_rng(0)
    query, key = rng.normal(0.5, 1, (2, 2, 3, 5, 2, 4)).astype(np.float32)
    embedding = rng.normal(0.5, 1, (5, 5, 4)).astype(np.float32)
    content = np.einsum("nrihc,nrjhc->nrhij", query, key)
    placed = np.einsum("nrihc,ijc->nrhij", query, embedding)
    for scores, (mean, square, count) in (
        (content, _content_moments(query, key)),
        (placed, _position_moments(query, embedding)),
    ):
        assert count == scores.size / 2
        np.testing.assert_allclose(mean, scores.mean((0, 1, 3, 4)), rtol=1e-5)
        np.testing.assert_allclose(square, (scores**2).mean((0, 1, 3, 4)), rtol=1e-5)


def test_parameter_count_is_the_authors_less_what_has_no_effect():
    """Their code has 1,560,116, and 24 gates that are frozen at first (UNeXt's paper: 1.60 M).

    Of these, a 1x1 convolution in each local block and a second last layer are never called,
    and softmax takes the biases of the norms of the scores out again.
    """
    blocks = {16: 1, 32: 2, 64: 4, 128: 1}  # of the local branch, by features
    uncalled = sum(count * (width * width + width) for width, count in blocks.items()) + 34
    biases = 8 * (3 * 2 * 3 + 2 * 8)  # heads: of 3 global and 8 local blocks, two attentions each
    module = models.make("medt", num_outputs=2)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(module, 128)["params"]))
    assert count == 1560116 + 24 - uncalled - biases == 1524298


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(image_size=(20, 9), branches=("global",))])
def test_logits_have_the_size_of_any_image(options):
    """With parameters that depend on `image_size`, not on the image that makes them."""
    module = models.make("medt", num_outputs=2, **{**SMALL, **options})
    variables = shapes_of(module)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes_of(module, 9))
    for size in ((61, 47), (1, 5)):
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        apply = lambda v, x: module.apply(v, x, train=False)  # noqa: E731
        logits = jax.eval_shape(apply, variables, image)
        assert logits.shape == (2, *size, 2) and logits.dtype == jnp.float32


def test_positions_are_resized_about_no_offset():
    table = jnp.arange(7.0)[:, None]  # of 4 pixels
    place = np.arange(4)
    own = _relative_positions(table, 4)[..., 0]
    np.testing.assert_array_equal(own, place[:, None] - place + 3)
    larger = _relative_positions(table, 8)[..., 0]
    assert larger.shape == (8, 8)
    np.testing.assert_allclose(np.diagonal(larger), 3)
    np.testing.assert_allclose(np.diff(larger[:, 4])[1:6], 7 / 15, rtol=1e-5)  # rows per row


@pytest.mark.slow
def test_local_branch_sees_its_own_patch_only():
    module = models.make("medt", num_outputs=2, **SMALL, branches=("local",))
    variables = variables_of(module)
    apply = jax.jit(module.apply, static_argnames="train")
    image = picture(1, 16, 16)
    changed = apply(variables, image.at[0, :8, :8].set(0), train=False)
    moved = np.abs(changed - apply(variables, image, train=False)).max((0, 3)) > 1e-6
    assert moved[:8, :8].all() and not moved[9:].any() and not moved[:, 9:].any()  # fuse: 1 pixel


@pytest.mark.slow
def test_parameters_and_logits_of_bfloat16_are_float32():
    module = models.make("medt", num_outputs=2, dtype=jnp.bfloat16, **SMALL)
    variables = shapes_of(module)
    apply = lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])  # noqa: E731
    shapes = jax.eval_shape(apply, variables, jnp.zeros((2, 9, 14, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, shapes))} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_bfloat16_is_close():
    variables, image = variables_of(models.make("medt", num_outputs=2, **SMALL)), picture(2, 9, 14)

    @partial(jax.jit, static_argnums=0)
    def logits(dtype):
        module = models.make("medt", num_outputs=2, dtype=dtype, **SMALL)
        return module.apply(variables, image, train=False)

    single, half = logits(None), logits(jnp.bfloat16)
    np.testing.assert_allclose(half, single, atol=0.05 * np.abs(single).max())
    assert np.abs(half - single).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=0), "config.model.image_size: got 0; expected one or two positive"),
        (dict(features=6), r"config.model.features: got 6; .* twice num_heads \(2\)"),
        (dict(blocks=(1,)), r"config.model.blocks: got \(1,\); expected two or more"),
        (dict(patch_grid=0), "config.model.patch_grid: got 0; expected a positive number"),
        (dict(branches=("lokal",)), r"config.model.branches: got \('lokal',\); .* global, local"),
        (dict(gates="after"), "config.model.gates: got 'after'; expected one of before_norm"),
    ],
)
def test_medt_rejects_options_that_make_no_network(options, message):
    with pytest.raises(InputError, match=message):
        shapes_of(models.make("medt", num_outputs=2, **{**SMALL, **options}))


@pytest.mark.weekly
def test_training_is_the_same_over_eight_devices(monkeypatch):
    """Loss, statistics and gradients in float64; the loss is summed inside. Three rows at once."""
    monkeypatch.setattr(medt, "PAIRS", 3 * 2 * 4**2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True):
        variables = variables_of(models.make("medt", num_outputs=2, **SMALL), jnp.float64)
        image = picture(8, 7, 8, jnp.float64)

        def run(variables, image, axis_name=None):
            module = models.make("medt", num_outputs=2, axis_name=axis_name, **SMALL)

            def loss(params):
                logits, updates = module.apply(
                    {**variables, "params": params}, image, train=True, mutable=["batch_stats"])
                total = jnp.sin(logits).sum()
                total = total if axis_name is None else jax.lax.psum(total, axis_name)
                return total, dict(updates)

            return jax.value_and_grad(loss, has_aux=True)(variables["params"])

        want = jax.jit(run)(variables, image)
        mapped = jax.shard_map(
            lambda *args: run(*args, axis_name="data"),
            mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        got = jax.jit(mapped)(variables, image)
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
def test_medt_learns_synthetic_cells(tmp_path):
    """Two levels, eight channels and two heads; about a minute on two cores."""
    model = dict(name="medt", image_size=64, features=8, stem_features=16, num_heads=2,
                 blocks=(1, 1))
    result = train.train([cells_config(model)], [tmp_path / "run"])[0]
    assert result.metrics["val_dice_mean"] > 0.85
