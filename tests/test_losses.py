"""Losses: hand values, slow references, extremes, pooling over devices, golden numbers of torch."""

import pathlib

import helpers_shapes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import losses_ours
from helpers_tiers import slow_but
from jax.sharding import PartitionSpec as P
from jaxtyping import TypeCheckError
from scipy import ndimage

from cellseg_jax.losses import (
    LOSSES,
    REGRESSION,
    bce,
    boundary,
    cldice,
    coarse,
    cross_entropy,
    dice,
    distance_dice,
    focal,
    jaccard,
    lovasz,
    mae,
    mse,
    options,
    signed_distance,
    supervision_weights,
    tversky,
)

GOLDEN = pathlib.Path(__file__).parent / "golden" / "losses_monai.npz"
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
EVERY_QUICK = pytest.mark.parametrize(
    "loss", slow_but(set(LOSSES) - {"boundary", "cldice"}, LOSSES))  # long to compile
SHARED = {"smooth": 1e-5, "squared": False, "pooled": False, "class_weights": ()}


def sample(k=2, n=4, size=6, seed=0):
    """Logits and a target whose channels are independent."""
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(n, size, size, k)), jnp.float32)
    target = jnp.asarray(rng.integers(0, 2, logits.shape), jnp.float32)
    return logits, target


def test_losses_equal_hand_value():
    # Two pixels with p = 3/4 and 1/4, the first one true.
    z = jnp.log(jnp.array([3.0, 1 / 3])).reshape(1, 1, 2, 1)
    y = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)

    @jax.jit
    def values(z, y):
        pair = jnp.concatenate([z, -z], -1), jnp.concatenate([y, 1 - y], -1)
        uneven = dict(tversky_alpha=0.2, tversky_beta=0.4)
        return [
            (dice(z, y, smooth=0), 1 - 2 * 0.75 / 2),
            (dice(z, y, smooth=1), 1 - 2.5 / 3),
            (dice(z, y, smooth=0, squared=True), 1 - 1.5 / (10 / 16 + 1)),
            (jaccard(z, y, smooth=0), 1 - 0.75 / 1.25),
            (jaccard(z, y, smooth=0, squared=True), 1 - 0.75 / (26 / 16 - 0.75)),
            (tversky(z, y, smooth=0, **uneven), 1 - 0.75 / (0.75 + 0.2 / 4 + 0.4 / 4)),
            # Errors 1 - ln 3 < 0 twice; turned around 1 + ln 3 twice, which undo the whole IoU.
            (lovasz(z, y), 0),
            (lovasz(-z, y), 1 + np.log(3)),
            # softmax(ln 3, -ln 3) is 9/10 and 1/10: an error of 1/10 in every pixel.
            (lovasz(*pair, lovasz_softmax=True), 0.1),
            # The skeleton of y is y. Opening p leaves 1/4, so its skeleton is 1/2 and 0.
            (cldice(z, y, smooth=0), 1 - 2 * 1 * 0.75 / 1.75),
            (boundary(z, y), 0.25 / 2),  # d is 0 in the true pixel and 1 beside it
            (bce(z, y), -np.log(0.75)),
            (bce(z, y, pos_weight=3.0), -2 * np.log(0.75)),
            (focal(z, y), -np.log(0.75) / 16),
            (focal(z, y, gamma=0.0), -np.log(0.75)),
            (cross_entropy(*pair), -np.log(0.9)),
            (cross_entropy(*pair, class_weights=(3.0, 1.0)), -2 * np.log(0.9)),
            (cross_entropy(*pair, renormalised=True), -np.log(0.75)),
        ]

    for value, expected in values(z, y):
        np.testing.assert_allclose(value, [expected], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_loss_averages_channels_by_their_weights(name):
    loss, (logits, target) = LOSSES[name], sample(k=3)

    @jax.jit
    def values(z, y):
        each = [loss(z[..., k : k + 1], y[..., k : k + 1]) for k in range(3)]
        return loss(z, y), loss(z, y, class_weights=(0.0, 1.0, 0.5)), each

    value, weighted, each = values(logits, target)
    assert value.shape == (4,) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, sum(each) / 3, rtol=1e-5)
    np.testing.assert_allclose(weighted, (each[1] + 0.5 * each[2]) / 3, rtol=1e-5)
    with pytest.raises(ValueError, match="expected 3 numbers"):
        jax.eval_shape(lambda z: loss(z, z, class_weights=(1.0, 2.0)), logits)


@EVERY_QUICK
def test_loss_and_gradient_finite_at_extremes(loss):
    """One channel empty, full or half, the other one its complement; right, undecided or wrong."""
    half = np.arange(6) < 3
    target = np.stack([np.broadcast_to(x, (6, 6)) for x in (0 * half, half, 0 * half + 1)])
    target = np.stack([target, 1 - target], -1).astype(np.float32)
    sizes = np.array([-1e4, -100, 0, 100, 1e4], np.float32)
    logits = sizes[:, None, None, None, None] * (2 * target - 1)
    target = np.broadcast_to(target, logits.shape)
    graded = jax.jit(jax.vmap(jax.value_and_grad(
        lambda z, y: (lambda x: (x.sum(), x))(loss(z, y)), has_aux=True)))
    for dtype in (jnp.float32, jnp.bfloat16):
        (_, value), gradient = graded(logits.astype(dtype), target)
        assert jnp.isfinite(value).all() and jnp.isfinite(gradient.astype(jnp.float32)).all()
        assert gradient.dtype == dtype and value.dtype == jnp.float32
        assert (value[:3, 1] > 0.1).all()  # wrong or undecided
        if loss not in (boundary, cldice):  # blind where nothing has a boundary or skeleton
            assert (value[:3] > 0.1).all()
        np.testing.assert_allclose(value[3:], 0, atol=1e-5)


@EVERY_QUICK
def test_loss_gradient_matches_finite_difference_under_vmap(loss):
    with jax.enable_x64(True):
        logits, target = (np.asarray(x, np.float64) for x in sample(k=2, n=2, size=3))
        steps = 1e-6 * np.eye(logits[0].size).reshape(-1, *logits.shape[1:])  # one entry a row

        @jax.jit
        def values(z, y):
            one = lambda z, y: loss(z[None], y[None])[0]
            rows = jnp.broadcast_to(y[0], steps.shape)
            both = jnp.concatenate([z[0] + steps, z[0] - steps])
            up, down = jnp.split(loss(both, jnp.concatenate([rows, rows])), 2)
            return loss(z, y), jax.vmap(jax.value_and_grad(one))(z, y), (up - down) / 2e-6

        value, (mapped, gradient), slope = values(logits, target)
    np.testing.assert_allclose(mapped, value, rtol=1e-12)
    np.testing.assert_allclose(gradient[0].ravel(), slope, atol=1e-8)


@EVERY
def test_loss_pixel_weight_of_one_changes_nothing_and_zero_hides(loss):
    logits, target = sample()
    weighted = jax.jit(lambda z, y, w: loss(z, y, pixel_weight=w))
    ones = jnp.ones(logits.shape[:3], jnp.float16)
    value = weighted(logits, target, ones)
    np.testing.assert_allclose(value, jax.jit(loss)(logits, target), rtol=1e-5)
    hidden = weighted(logits, target, ones.at[:, 4:].set(0))
    assert (hidden != value).all()
    # Distance and skeleton are those of the whole image.
    other = logits.at[:, 4:].set(9), target if loss is boundary else target.at[:, 4:].set(0)
    if loss is not cldice:
        np.testing.assert_allclose(weighted(*other, ones.at[:, 4:].set(0)), hidden, rtol=1e-6)
    np.testing.assert_allclose(weighted(logits, target, 0 * ones), 0, atol=1e-6)


@EVERY
def test_loss_rejects_shapes_that_would_broadcast(loss):
    """By their annotations in tests, by themselves in production, where none are checked."""
    logits, target = sample(n=1)
    with pytest.raises(TypeCheckError, match="parameter 'target'"):
        loss(logits, target[..., 0])
    with helpers_shapes.unchecked():
        with pytest.raises(ValueError, match="expected one shape"):
            loss(logits, target[..., 0])
        with pytest.raises(ValueError, match="pixel_weight"):
            loss(logits, target, pixel_weight=target)


def test_losses_of_classes_reject_a_single_channel():
    logits, target = sample(k=1)
    with pytest.raises(ValueError, match="cross_entropy of 1 output channel: expected at least 2"):
        cross_entropy(logits, target)
    with pytest.raises(ValueError, match="lovasz_softmax of 1"):
        lovasz(logits, target, lovasz_softmax=True)


def test_tversky_is_dice_and_jaccard_between():
    logits, target = sample()
    np.testing.assert_allclose(tversky(logits, target, smooth=0.5),
                               dice(logits, target, smooth=1.0), rtol=1e-5)
    np.testing.assert_allclose(tversky(logits, target, tversky_alpha=1.0, tversky_beta=1.0),
                               jaccard(logits, target), rtol=1e-5)


def lovasz_by_sets(errors, true, weight):
    """The Lovász extension of 1 - IoU by its definition, for flat arrays of one channel."""
    order, before, total = np.argsort(-errors), 0.0, 0.0
    for i in range(len(order)):
        wrong = np.zeros(len(order), bool)
        wrong[order[: i + 1]] = True
        mask = true ^ wrong
        either = weight[true | mask].sum()
        after = 1 - weight[true & mask].sum() / either if either else 0.0
        total += errors[order[i]] * (after - before)
        before = after
    return total


@pytest.mark.parametrize("softmax", [False, True])
def test_lovasz_matches_its_definition(softmax):
    rng = np.random.default_rng(0)
    logits, weight = rng.normal(size=(4, 3, 4, 2)), rng.integers(0, 3, (4, 3, 4)).astype(float)
    target = rng.integers(0, 2, logits.shape).astype(float)
    target[0] = 0
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    errors = np.abs(target - q) if softmax else np.maximum(0, 1 - logits * (2 * target - 1))
    expected = [np.mean([lovasz_by_sets(e[..., k].ravel(), t[..., k].ravel() > 0, w.ravel())
                         for k in range(2)]) for e, t, w in zip(
                     errors, target, weight, strict=True)]
    with jax.enable_x64(True):
        value = lovasz(logits, target, lovasz_softmax=softmax, pixel_weight=weight)
    np.testing.assert_allclose(value, expected, atol=1e-12)


def test_signed_distance_equals_scipy():
    rng = np.random.default_rng(0)
    masks = rng.random((12, 37, 22)) < np.linspace(0, 1, 12)[:, None, None]
    masks[1:4] = False  # one pixel at a corner, one row, one column
    masks[1, -1, 0] = masks[2, 30] = masks[3, :, 4] = True
    masks[4] = ~masks[1]
    masks[5] = ndimage.binary_opening(masks[8], iterations=2)
    outside, inside = ndimage.distance_transform_edt, lambda m: ndimage.distance_transform_edt(~m)
    expected = np.stack([np.where(m, 1 - outside(m), inside(m)) if 0 < m.mean() < 1 else 0 * m
                         for m in masks])
    assert expected.max() > 40
    np.testing.assert_allclose(jax.jit(signed_distance)(masks), expected, rtol=1e-6)
    np.testing.assert_array_equal(signed_distance(masks[:, :1, :1]), 0)


def test_cldice_sees_a_cut_that_dice_does_not():
    line = np.zeros((1, 9, 16, 1), np.float32)
    line[:, 3:6] = 1
    cut, thin = line.copy(), line.copy()
    cut[:, :, 7:9] = 0  # six pixels in the way
    thin[:, 3, 4:10] = 0  # six pixels from the side
    logits = lambda mask: 100 * (2 * mask - 1)
    np.testing.assert_allclose(dice(logits(cut), line), dice(logits(thin), line), rtol=1e-6)
    assert cldice(logits(cut), line) > 2 * cldice(logits(thin), line)


@pytest.mark.parametrize("loss", [dice, jaccard, tversky])
def test_pooled_loss_is_one_image_of_all_pixels(loss):
    logits, target = sample(k=3)
    tall = lambda x: x.reshape(1, -1, *x.shape[2:])
    value = loss(logits, target, pooled=True, smooth=1.0)
    alone = loss(tall(logits), tall(target), smooth=1.0)[0]
    np.testing.assert_allclose(value, np.full(4, alone), rtol=1e-6)


def test_pooled_cldice_is_one_image_of_all_sums():
    logits, target = sample()
    alike = lambda x: jnp.broadcast_to(x[:1], x.shape)
    value = cldice(alike(logits), alike(target), pooled=True, smooth=1.0)
    alone = cldice(logits[:1], target[:1], smooth=0.25)
    np.testing.assert_allclose(value, np.full(4, alone), rtol=1e-5)


@pytest.mark.slow
def test_losses_over_devices_equal_one_device():
    """Value and gradient: the psum stands inside the differentiated function, check_vma on."""
    logits, target = sample(n=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    scale = jnp.float32(1.5)
    names = ("dice", "jaccard", "tversky", "cldice", "lovasz", "boundary")  # sums, sorts, loops

    def means(scale, logits, target, axis_name=None):
        def one(name):
            pooled = dict(pooled=True, axis_name=axis_name) if "pooled" in options(name) else {}
            return LOSSES[name](scale * logits, target, **pooled).sum() / 8

        each = jnp.stack([one(name) for name in names])
        each = each if axis_name is None else jax.lax.psum(each, axis_name)
        return each @ (1.0 + jnp.arange(len(names))), each

    def local(scale, logits, target):
        return jax.value_and_grad(means, has_aux=True)(scale, logits, target, "data")

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=True
    )
    (_, value), slope = jax.jit(mapped)(scale, logits, target)
    (_, expected), expected_slope = jax.jit(
        jax.value_and_grad(means, has_aux=True))(scale, logits, target)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)


def test_options_lists_what_each_loss_reads():
    pooled = {k: v for k, v in SHARED.items() if k != "squared"}
    assert {name: options(name) for name in LOSSES} == {
        "dice": SHARED,
        "jaccard": SHARED,
        "tversky": {"tversky_alpha": 0.5, "tversky_beta": 0.5} | pooled,
        "lovasz": {"lovasz_softmax": False, "class_weights": ()},
        "cldice": {"cldice_iterations": 3} | pooled,
        "boundary": {"class_weights": ()},
        "focal": {"gamma": 2.0, "class_weights": ()},
        "bce": {"pos_weight": 1.0, "class_weights": ()},
        "cross_entropy": {"renormalised": False, "class_weights": ()},
    }


@pytest.mark.parametrize("name", losses_ours.OURS)
def test_loss_matches_golden_torch(name):
    """Made by: python tests/golden/losses_monai.py (float64, needs torch and monai)."""
    golden = np.load(GOLDEN)
    losses_ours.check(name, golden, golden[name], golden[name + "_grad"])


def test_coarse_equals_a_loop_over_squares():
    rng = np.random.default_rng(0)
    for height, width, level in ((8, 12, 1), (9, 7, 2), (1, 3, 3)):
        array, side = rng.uniform(size=(2, height, width, 3)), 2**level
        want = [[array[:, min(i + side // 2, height - 1), min(j + side // 2, width - 1)]
                 for j in range(0, width, side)] for i in range(0, height, side)]
        want = np.moveaxis(np.array(want), 2, 0)
        np.testing.assert_array_equal(coarse(array, level), want)
        np.testing.assert_array_equal(coarse(array[..., 0], level), want[..., 0])
    np.testing.assert_array_equal(coarse(array, 0), array)


def test_supervision_weights_equal_hand_value():
    assert supervision_weights(1) == (1.0,)
    np.testing.assert_allclose(supervision_weights(3), (4 / 7, 2 / 7, 1 / 7))


# --- regressed outputs ---------------------------------------------------------------------------


def regression_sample(seed=0):
    rng = np.random.default_rng(seed)
    outputs, target = rng.normal(size=(2, 3, 5, 6, 4)).astype(np.float32)
    weight = rng.random((3, 5, 6)).astype(np.float32) * (rng.random((3, 5, 6)) > 0.3)
    weight[2] = 0  # an image without cells
    return outputs, target, weight


@pytest.mark.parametrize("loss, error", [(mae, np.abs), (mse, np.square)])
def test_errors_of_regression_are_weighted_means(loss, error):
    outputs, target, weight = regression_sample()
    each = error(outputs - target).mean(-1)
    wanted = [np.average(e, weights=w) if w.any() else 0 for e, w in zip(each, weight, strict=True)]
    np.testing.assert_allclose(loss(outputs, target, pixel_weight=weight), wanted, rtol=1e-5)
    np.testing.assert_allclose(loss(outputs, target), each.mean((1, 2)), rtol=1e-5)
    pooled = loss(outputs, target, pixel_weight=weight, pooled=True)
    np.testing.assert_allclose(pooled, np.full(3, np.average(each, weights=weight)), rtol=1e-5)


def test_distance_dice_by_the_formula_and_zero_where_both_are():
    outputs, target, weight = (np.abs(x) for x in regression_sample())
    w = weight[..., None]
    score = 2 * (w * outputs * target).sum((1, 2)) / np.maximum(
        (w * (outputs**2 + target**2)).sum((1, 2)), 1e-30)
    wanted = (1 - score).mean(-1)
    wanted[2] = 0
    np.testing.assert_allclose(distance_dice(outputs, target, pixel_weight=weight), wanted,
                               rtol=1e-5)
    np.testing.assert_allclose(distance_dice(target, target), 0, atol=1e-6)


@pytest.mark.parametrize("loss", REGRESSION.values(), ids=REGRESSION.keys())
def test_gradients_of_regression_are_finite_where_nothing_counts(loss):
    outputs, target, _ = regression_sample()
    grads = jax.grad(lambda x: loss(x, target, pixel_weight=jnp.zeros((3, 5, 6))).sum())(outputs)
    np.testing.assert_array_equal(grads, 0)
