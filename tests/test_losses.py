"""Losses: hand values, extremes, pooling over devices, golden values of MONAI and torch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cellseg_jax.losses import LOSSES, bce, dice, focal, jaccard, options

GOLDEN = pathlib.Path(__file__).parent / "golden" / "losses_monai.npz"
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
POOLS = pytest.mark.parametrize("loss", [dice, jaccard])


def sample(k=1, n=4, size=6, seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(n, size, size, k)), jnp.float32)
    target = jnp.asarray(rng.integers(0, 2, logits.shape), jnp.float32)
    return logits, target


def test_losses_equal_hand_value():
    # Two pixels with p = 3/4 and 1/4, the first one true.
    logits = jnp.log(jnp.array([3.0, 1 / 3])).reshape(1, 1, 2, 1)
    target = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)

    def check(value, expected):
        np.testing.assert_allclose(value, [expected], rtol=1e-6)

    check(dice(logits, target, smooth=0), 1 - 2 * 0.75 / 2)
    check(dice(logits, target, smooth=1), 1 - 2.5 / 3)
    check(dice(logits, target, smooth=0, squared=True), 1 - 1.5 / (10 / 16 + 1))
    check(jaccard(logits, target, smooth=0), 1 - 0.75 / 1.25)
    check(jaccard(logits, target, smooth=0, squared=True), 1 - 0.75 / (26 / 16 - 0.75))
    check(bce(logits, target), -np.log(0.75))
    check(focal(logits, target), -np.log(0.75) / 16)
    check(focal(logits, target, gamma=0.0), -np.log(0.75))


@EVERY
def test_loss_averages_channels(loss):
    logits, target = sample(k=3)
    value = loss(logits, target)
    assert value.shape == (4,) and value.dtype == jnp.float32
    each = [loss(logits[..., k : k + 1], target[..., k : k + 1]) for k in range(3)]
    np.testing.assert_allclose(value, sum(each) / 3, rtol=1e-5)


@EVERY
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_finite_at_extremes(loss, dtype):
    logit, true = np.meshgrid([-100.0, 0.0, 100.0], [0.0, 1.0])  # (2, 3): empty, full
    spread = lambda x: jnp.ones((6, 8, 8, 1)) * x.reshape(6, 1, 1, 1)
    logits, target = spread(logit).astype(dtype), spread(true)
    (_, value), gradient = jax.jit(
        jax.value_and_grad(lambda z: (loss(z, target).sum(), loss(z, target)), has_aux=True)
    )(logits)
    assert jnp.isfinite(value).all() and jnp.isfinite(gradient).all() and gradient.dtype == dtype
    assert (value[jnp.array([1, 2, 3, 4])] > 0.1).all()  # undecided or all wrong
    np.testing.assert_allclose(value[jnp.array([0, 5])], 0, atol=1e-6)  # all right


@EVERY
def test_loss_same_under_jit_and_vmap(loss):
    logits, target = sample(k=3)
    value = loss(logits, target)
    one = lambda z, y: loss(z[None], y[None])[0]
    # The compiler may sum in another order: rounding only.
    np.testing.assert_allclose(jax.jit(loss)(logits, target), value, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(one)(logits, target), value, rtol=1e-5)


@EVERY
def test_loss_gradient_matches_finite_difference(loss):
    with jax.enable_x64(True):
        logits, target = (np.asarray(x, np.float64) for x in sample(k=3, n=1, size=2))
        gradient = jax.grad(lambda z: loss(z, target).sum())(logits)
        steps = 1e-6 * np.eye(logits.size).reshape(-1, *logits.shape[1:])  # one entry a row
        rows = np.broadcast_to(target, steps.shape)
        slope = (loss(logits + steps, rows) - loss(logits - steps, rows)) / 2e-6
        np.testing.assert_allclose(gradient.ravel(), slope, atol=1e-8)


@EVERY
def test_loss_pixel_weight_of_one_changes_nothing_and_zero_hides(loss):
    logits, target = sample()
    ones = jnp.ones(logits.shape[:3], jnp.float16)
    np.testing.assert_allclose(
        loss(logits, target, pixel_weight=ones), loss(logits, target), rtol=1e-6
    )
    seen = ones.at[:, 3:].set(0)
    value = loss(logits, target, pixel_weight=seen)
    np.testing.assert_array_equal(
        value, loss(logits.at[:, 3:].set(9), target.at[:, 3:].set(0), pixel_weight=seen)
    )


@EVERY
def test_loss_rejects_shapes_that_would_broadcast(loss):
    logits, target = sample(n=1)
    with pytest.raises(ValueError, match="expected one shape"):
        loss(logits, target[..., 0])
    with pytest.raises(ValueError, match="pixel_weight"):
        loss(logits, target, pixel_weight=target)


@POOLS
def test_pooled_loss_is_one_image_of_all_pixels(loss):
    logits, target = sample(k=3)
    tall = lambda x: x.reshape(1, -1, *x.shape[2:])
    value = loss(logits, target, pooled=True, smooth=1.0)
    alone = loss(tall(logits), tall(target), smooth=1.0)[0]
    np.testing.assert_allclose(value, np.full(4, alone), rtol=1e-6)


@POOLS
def test_pooled_loss_over_devices_equals_one_device(loss):
    """Value and gradient: the psum stands inside the differentiated function, check_vma on."""
    logits, target = sample(n=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    scale = jnp.float32(1.5)

    def local(scale, logits, target):
        def mean(scale):
            rows = loss(scale * logits, target, pooled=True, axis_name="data")
            return jax.lax.psum(rows.sum(), "data") / 8

        return jax.value_and_grad(mean)(scale)

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=True
    )
    value, slope = jax.jit(mapped)(scale, logits, target)
    alone = lambda scale: loss(scale * logits, target, pooled=True).mean()
    expected, expected_slope = jax.value_and_grad(alone)(scale)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)


def test_options_lists_what_each_loss_reads():
    shape = {"smooth": 1e-5, "squared": False, "pooled": False}
    assert {name: options(name) for name in LOSSES} == {
        "dice": shape,
        "jaccard": shape,
        "focal": {"gamma": 2.0},
        "bce": {},
    }


def test_losses_match_golden_monai():
    """Made by: python tests/golden/losses_monai.py (float64, needs torch and monai)."""
    golden = np.load(GOLDEN)
    cases = {
        "dice": lambda z, y: dice(z, y),
        "dice_squared": lambda z, y: dice(z, y, squared=True),
        "dice_pooled": lambda z, y: dice(z, y, pooled=True),
        "jaccard": lambda z, y: jaccard(z, y, smooth=5e-6),
        "focal": lambda z, y: focal(z, y),
        "bce": lambda z, y: bce(z, y),
        "dice_focal": lambda z, y: dice(z, y) + focal(z, y),
    }
    with jax.enable_x64(True):
        for name, loss in cases.items():
            mean = lambda z: loss(z, golden["target"]).mean()
            value, gradient = jax.jit(jax.value_and_grad(mean))(golden["logits"])
            # MONAI computes its focal loss in float32 whatever it is given.
            tolerance = 1e-6 if "focal" in name else 1e-12
            np.testing.assert_allclose(value, golden[name], atol=tolerance)
            np.testing.assert_allclose(gradient, golden[name + "_grad"], atol=tolerance)
