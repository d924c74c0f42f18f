"""Losses against MONAI and torch on 200 random batches each, value and gradient in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import losses_ours
from helpers_tiers import slow_but

from cellseg_jax.losses import bce, cldice, cross_entropy, dice, focal

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.losses")
losses_monai = pytest.importorskip("golden.losses_monai")


LONG = {"cldice", "lovasz_softmax", "boundary"}


@pytest.mark.parametrize("name", slow_but(
    set(losses_monai.LOSSES) - LONG, [*losses_monai.LOSSES]))
def test_loss_matches_torch_on_200_batches(name):
    logits, target, one_hot = cases = losses_monai.cases(200, seed=1)
    value, gradient = losses_monai.references(name, *cases)
    assert np.isfinite(value).all() and np.abs(gradient).max() > 1e-3
    losses_ours.check(name, dict(logits=logits, target=target, one_hot=one_hot), value, gradient)


def torch_value(loss, logits, target):
    """Of channel-last arrays, with the gradient."""
    z = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    value = loss(z, torch.tensor(np.moveaxis(target, -1, 1).copy()))
    value.backward()
    return value.item(), np.moveaxis(z.grad.numpy(), 1, -1)


WEIGHT = np.random.default_rng(3).random((3, 9, 7))
CHANNELS = (0.2, 1.0, 3.0)
MORE = {
    "focal_3": (
        1, lambda z, y: focal(z, y, gamma=3.0), monai.FocalLoss(gamma=3.0), 1e-6),
    "focal_soft": (3, focal, monai.FocalLoss(gamma=2), 1e-6),
    "bce_soft": (
        3,
        lambda z, y: bce(z, y, pixel_weight=jnp.asarray(WEIGHT)),
        torch.nn.BCEWithLogitsLoss(weight=torch.tensor(WEIGHT[:, None])),
        1e-12,
    ),
    "bce_class_weights": (
        3,
        lambda z, y: bce(z, y, class_weights=CHANNELS),
        torch.nn.BCEWithLogitsLoss(weight=torch.tensor(CHANNELS, dtype=float)[:, None, None]),
        1e-12,
    ),
    "cross_entropy_soft": (3, cross_entropy, torch.nn.CrossEntropyLoss(), 1e-12),
    "cldice_5": (
        1,
        lambda z, y: cldice(z, (y > 0.5) * 1.0, cldice_iterations=5, smooth=0.5),
        lambda z, y: monai.SoftclDiceLoss(
            iter_=5, sigmoid=True, smooth_nr=0.5, smooth_dr=0.5, smooth=1e-300,
            reduction="none")(z, (y > 0.5) * 1.0).mean(),
        1e-12,
    ),
    "dice_pooled_smooth": (
        3,
        lambda z, y: dice(z, (y > 0.5) * 1.0, pooled=True, smooth=1.0),
        lambda z, y: monai.DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(
            z, (y > 0.5) * 1.0),
        1e-12,
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_loss_option_matches_torch_on_soft_targets(name):
    k, ours, theirs, tolerance = MORE[name]
    rng = np.random.default_rng(k)
    logits, target = 4 * rng.normal(size=(3, 9, 7, k)), rng.random((3, 9, 7, k))
    if name == "cross_entropy_soft":
        target /= target.sum(-1, keepdims=True)
    expected = torch_value(theirs, logits, target)
    with jax.enable_x64(True):
        got = jax.jit(jax.value_and_grad(lambda z: ours(z, target).mean()))(logits)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
