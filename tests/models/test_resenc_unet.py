"""The planned residual U-Net: its plans, sizes, coarse logits and what training needs of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import models, train
from cellseg_jax.config import complete, default
from cellseg_jax.errors import InputError
from cellseg_jax.models.resenc_unet import encoder_stages

QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # a third of the time
TINY = dict(features_per_stage=(3, 4, 4, 5), blocks_per_stage=(1, 1, 1, 1))


def tiny(**changes):
    return models.make("unet_plan", **{"num_outputs": 2, **TINY, **changes})


def shapes_of(module, channels=3):
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def filled(shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.6, 0.9, x.shape), dtype), shapes)


def picture(n, height, width, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, height, width, 3)), dtype)


@pytest.mark.parametrize(
    ("size", "features", "blocks"),
    [
        (8, (32, 64), (1, 3)),
        (11, (32, 64), (1, 3)),  # 11, 6
        (32, (32, 64, 128, 256), (1, 3, 4, 6)),
        ((16, 20), (32, 64, 128), (1, 3, 4)),
        ((250, 400), (32, 64, 128, 256, 512, 512, 512), (1, 3, 4, 6, 6, 6, 6)),
        (512, (32, 64, 128, 256, 512, 512, 512, 512), (1, 3, 4, 6, 6, 6, 6, 6)),
    ],
)
def test_encoder_stages_equal_hand_value(size, features, blocks):
    assert tuple(zip(*encoder_stages(size), strict=True)) == (features, blocks)


def test_encoder_stages_start_at_base_and_end_at_max_features():
    stages = encoder_stages(64, base=3, max_features=13)
    assert [stage.features for stage in stages] == [3, 6, 12, 13, 13]


@pytest.mark.parametrize("size", [0, 7, (512, 6)])
def test_encoder_stages_reject_images_that_cannot_be_halved(size):
    with pytest.raises(InputError, match="config.model.image_size: got .* at least 8 pixels"):
        encoder_stages(size)


def test_parameter_count_is_the_sum_over_the_stages():
    """nnU-Net's two-dimensional network for 512x512 pixels, without what has no effect there."""
    def convolve(inputs, features, size=3):
        return size**2 * inputs * features + 2 * features

    widths, blocks = (32, 64, 128, 256, 512, 512, 512, 512), (1, 3, 4, 6, 6, 6, 6, 6)
    count = convolve(3, 32)
    for below, width, repeats in zip((32, *widths[:-1]), widths, blocks, strict=True):
        count += convolve(below, width) + (2 * repeats - 1) * convolve(width, width)
        count += convolve(below, width, 1) if below != width else 0
    for width, below in itertools.pairwise(widths):
        count += 4 * below * width + width + convolve(2 * width, width)
    count += sum(width + 1 for width in widths[:-2])
    leaves = jax.tree.leaves(shapes_of(models.make("unet_plan", num_outputs=1, image_size=512)))
    assert sum(leaf.size for leaf in leaves) == count == 139983910


def test_options_replace_the_stages():
    by_stage = lambda **options: {  # noqa: E731
        name for name in shapes_of(tiny(**options))["params"] if name.startswith("down")}
    assert by_stage(features_per_stage=(2, 2), blocks_per_stage=()) == {
        "down_0_0", "down_1_0", "down_1_1", "down_1_2"}
    assert by_stage(features_per_stage=(), blocks_per_stage=(1, 2), image_size=8) == {
        "down_0_0", "down_1_0", "down_1_1"}


@pytest.mark.parametrize(
    "options",
    [dict(blocks_per_stage=(1, 1)), dict(features_per_stage=(4,), blocks_per_stage=(1,)),
     dict(blocks_per_stage=(1, 0, 1, 1))],
)
def test_options_that_make_no_network_are_rejected(options):
    with pytest.raises(InputError, match="got features_per_stage .* expected as many of both"):
        shapes_of(tiny(**options))


@pytest.mark.parametrize("size", [
    (33, 47), *(pytest.param(n, marks=pytest.mark.slow) for n in ((32, 48), (16, 20), (1, 5)))])
def test_logits_have_the_size_of_any_image(size):
    """And the coarse ones of halves and quarters, rounded up."""
    module = tiny(features_per_stage=(3, 4, 4, 5, 5), blocks_per_stage=(1,) * 5)
    run = lambda v, x: module.apply(v, x, train=True, mutable=["intermediates"])  # noqa: E731
    logits, sown = jax.eval_shape(run, shapes_of(module), picture(2, *size))
    assert logits.shape == (2, *size, 2)
    sown = sown["intermediates"]["deep_supervision"]
    assert [x.shape for x in sown] == [
        (2, -(-size[0] // s), -(-size[1] // s), 2) for s in (2, 4)]


def test_without_deep_supervision_nothing_is_coarse():
    module = tiny(deep_supervision=False)
    shapes = shapes_of(module)
    assert "out_0" in shapes["params"] and "out_1" not in shapes["params"]
    assert set(shapes) == {"params"}
    run = lambda v, x: module.apply(v, x, train=True, mutable=["intermediates"])  # noqa: E731
    assert not jax.eval_shape(run, shapes, picture(1, 8, 8))[1]


@pytest.mark.slow
def test_every_image_is_evaluated_as_it_trains_and_by_itself():
    variables, image = filled(shapes_of(tiny())), picture(2, 16, 11)
    run = jax.jit(tiny().apply, static_argnames="train", compiler_options=QUICK_COMPILE)
    logits = run(variables, image, train=True)
    assert jnp.std(logits) > 0.05
    alone = run(variables, image.at[0].set(0), train=True)
    np.testing.assert_allclose(alone[1], logits[1], atol=1e-6)
    np.testing.assert_array_equal(run(variables, image, train=False), logits)
    half = jax.jit(tiny(dtype=jnp.bfloat16).apply, static_argnames="train",
                   compiler_options=QUICK_COMPILE)(variables, image, train=False)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1 * np.abs(logits).max())
    assert 0 < jnp.abs(half - logits).max()


def test_parameters_start_as_float32():
    with jax.enable_x64(True):
        assert {x.dtype for x in jax.tree.leaves(shapes_of(tiny()))} == {jnp.dtype("float32")}


@pytest.mark.weekly
def test_reduced_network_learns_synthetic_cells(tmp_path):
    config = default()
    config.data = dict(name="synthetic", size=(64, 64), image_size=(64, 64), count=60)
    config.model = dict(
        name="unet_plan", features_per_stage=(8, 16, 16), blocks_per_stage=(1, 1, 1))
    config.optimizer.lr = 3e-3
    config.train.update(epochs=15, batch_size=8)
    result, = train.train([complete(config)], [tmp_path / "run"])
    assert result.metrics["val_dice_mean"] > 0.85
