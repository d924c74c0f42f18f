"""What the references of losses_monai.py are called in cellseg_jax."""

import jax
import jax.numpy as jnp
import numpy as np

from cellseg_jax.losses import (
    bce,
    boundary,
    cldice,
    cross_entropy,
    dice,
    focal,
    jaccard,
    lovasz,
    tversky,
)

WEIGHTS = (0.3, 1.05)

# Name: loss, and which target it was given.
OURS = {
    "dice": (dice, "target"),
    "dice_squared": (lambda z, y: dice(z, y, squared=True), "target"),
    "dice_pooled": (lambda z, y: dice(z, y, pooled=True), "target"),
    "dice_weighted": (lambda z, y: dice(z, y, class_weights=WEIGHTS), "target"),
    # MONAI doubles numerator and denominator of Jaccard, but not the smoothing.
    "jaccard": (lambda z, y: jaccard(z, y, smooth=5e-6), "target"),
    "tversky": (lambda z, y: tversky(z, y, tversky_alpha=0.3, tversky_beta=0.7), "target"),
    "lovasz": (lovasz, "target"),
    "boundary": (boundary, "target"),
    "cldice": (lambda z, y: cldice(z, y, smooth=1.0), "target"),
    "focal": (focal, "target"),
    "bce": (bce, "target"),
    "bce_positive": (lambda z, y: bce(z, y, pos_weight=3.0), "target"),
    "dice_focal": (lambda z, y: dice(z, y) + focal(z, y), "target"),
    "cross_entropy": (lambda z, y: cross_entropy(z, y, class_weights=WEIGHTS), "one_hot"),
    "renormalised": (
        lambda z, y: cross_entropy(z, y, renormalised=True, class_weights=WEIGHTS), "one_hot"),
    "lovasz_softmax": (lambda z, y: lovasz(z, y, lovasz_softmax=True), "one_hot"),
}
# MONAI has focal loss, distances and class weights in float32 whatever it is given.
ROUGH = ("focal", "dice_focal", "boundary", "dice_weighted")


def check(name: str, arrays, value, gradient) -> None:
    """Assert our float64 values and gradients of all cases (count, N, H, W, K) are the given."""
    loss, key = OURS[name]
    with jax.enable_x64(True):
        mean = lambda z, y: loss(z, y).mean()
        ours = jax.jit(jax.vmap(jax.value_and_grad(mean)))(arrays["logits"], arrays[key])
    assert ours[0].dtype == jnp.float64
    for got, expected in zip(ours, (value, gradient), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 if name in ROUGH else 1e-12)
