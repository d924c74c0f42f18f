"""Losses against MONAI and torch on random images, value and gradient in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax.losses import bce, dice, focal, jaccard

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.losses")

CASES = {
    "dice": (lambda z, y: dice(z, y), monai.DiceLoss(sigmoid=True)),
    "dice_squared": (
        lambda z, y: dice(z, y, squared=True),
        monai.DiceLoss(sigmoid=True, squared_pred=True),
    ),
    "dice_pooled": (
        lambda z, y: dice(z, y, pooled=True, smooth=1.0),
        monai.DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0),
    ),
    # MONAI doubles numerator and denominator of Jaccard, but not the smoothing.
    "jaccard": (
        lambda z, y: jaccard(z, y, smooth=0.5),
        monai.DiceLoss(sigmoid=True, jaccard=True, smooth_nr=1.0, smooth_dr=1.0),
    ),
    "focal": (lambda z, y: focal(z, y), monai.FocalLoss(gamma=2)),
    "focal_3": (lambda z, y: focal(z, y, gamma=3.0), monai.FocalLoss(gamma=3.0)),
    "dice_focal": (lambda z, y: dice(z, y) + focal(z, y), monai.DiceFocalLoss(sigmoid=True)),
    "bce": (lambda z, y: bce(z, y), torch.nn.BCEWithLogitsLoss()),
}


# For soft targets MONAI's overlap losses have another formula (soft_label).
KINDS = [(name, kind) for name in CASES for kind in ("binary", "empty", "full")]
KINDS += [("focal", "soft"), ("focal_3", "soft"), ("bce", "soft")]


@pytest.mark.parametrize("name, kind", KINDS)
@pytest.mark.parametrize("k", [1, 3])
def test_loss_matches_monai(name, k, kind):
    ours, theirs = CASES[name]
    rng = np.random.default_rng(k)
    logits = 4 * rng.normal(size=(3, 9, 7, k))
    target = {
        "binary": rng.integers(0, 2, logits.shape).astype(float),
        "empty": np.zeros_like(logits),
        "full": np.ones_like(logits),
        "soft": rng.random(logits.shape),
    }[kind]
    z = torch.tensor(np.moveaxis(logits, -1, 1), requires_grad=True)
    expected = theirs(z, torch.tensor(np.moveaxis(target, -1, 1)))
    expected.backward()
    with jax.enable_x64(True):
        mean = lambda z: ours(z, target).mean()
        value, gradient = jax.jit(jax.value_and_grad(mean))(logits)
        assert value.dtype == jnp.float64
    # MONAI computes its focal loss in float32 whatever it is given.
    tolerance = 1e-6 if "focal" in name else 1e-12
    np.testing.assert_allclose(value, expected.item(), atol=tolerance)
    np.testing.assert_allclose(gradient, np.moveaxis(z.grad.numpy(), 1, -1), atol=tolerance)


@pytest.mark.parametrize("k", [1, 3])
def test_bce_pixel_weight_matches_torch(k):
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 5, 5, k)), rng.random((2, 5, 5, k))
    weight = rng.random((2, 5, 5))
    theirs = torch.nn.BCEWithLogitsLoss(weight=torch.tensor(weight[..., None]))
    with jax.enable_x64(True):
        value = bce(*map(jnp.asarray, (logits, target)), pixel_weight=jnp.asarray(weight)).mean()
    expected = theirs(torch.tensor(logits), torch.tensor(target))
    np.testing.assert_allclose(value, expected.item(), atol=1e-12)
