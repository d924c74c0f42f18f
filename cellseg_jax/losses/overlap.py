"""Losses of the overlap of regions: Dice, Jaccard, Tversky, Lovász, clDice."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cellseg_jax.losses.shared import (
    Logits,
    Loss,
    PixelWeight,
    Target,
    checked,
    mean_of_channels,
    need_classes,
    sums_over_pixels,
)


def overlap_loss(
    logits, target, either, score, *, pooled=False, axis_name=None, class_weights=(),
    pixel_weight=None,
):
    """Mean over channels of 1 - score(sum w p g, sum w either(p, g)), the sums over pixels."""
    z, g, w = checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    union = either(p, g)  # in this order, in which the gradients of both are summed
    sums = sums_over_pixels((p * g, union), w, pooled, axis_name)
    return mean_of_channels(1 - score(*sums), class_weights, len(z))


def _either(squared):
    """The (p, g) term whose sum is the size of prediction and target together."""
    return (lambda p, g: p * p + g * g) if squared else (lambda p, g: p + g)


def dice(
    logits: Logits,
    target: Target,
    *,
    smooth=1e-5,
    squared: bool = False,
    pooled: bool = False,
    axis_name: str | None = None,
    class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Soft Dice loss of each image, averaged over its channels.

    1 - (2 sum w p g + s) / (sum w p + sum w g + s), with s `smooth`. A channel that is empty in
    target and prediction costs 0.

    Args:
      target: in [0, 1].
      squared: p^2 and g^2 in the denominator (V-Net).
      smooth, pooled, axis_name, class_weights, pixel_weight: see losses.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as losses says.
    Source: Milletari et al. 2016, V-Net, section 3, whose form is `squared` with smooth 0.
      Equals MONAI DiceLoss(sigmoid=True), pooled=True its batch=True, class_weights its weight.
    """
    return overlap_loss(
        logits, target, _either(squared),
        lambda both, either: (2 * both + smooth) / (either + smooth), pooled=pooled,
        axis_name=axis_name, class_weights=class_weights, pixel_weight=pixel_weight)


def jaccard(
    logits: Logits,
    target: Target,
    *,
    smooth=1e-5,
    squared: bool = False,
    pooled: bool = False,
    axis_name: str | None = None,
    class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Soft Jaccard (IoU) loss of each image, averaged over its channels.

    1 - (sum w p g + s) / (sum w p + sum w g - sum w p g + s), symbols and options as in `dice`.
    A channel that is empty in target and prediction costs 0.

    Args: as `dice`.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as losses says.
    Source: Rahman & Wang 2016, Optimizing Intersection-Over-Union, plus `smooth`.
      Equals MONAI DiceLoss(sigmoid=True, jaccard=True) with twice this `smooth` there.
    """
    return overlap_loss(
        logits, target, _either(squared),
        lambda both, either: (both + smooth) / (either - both + smooth), pooled=pooled,
        axis_name=axis_name, class_weights=class_weights, pixel_weight=pixel_weight)


def tversky(
    logits: Logits, target: Target, *, tversky_alpha=0.5, tversky_beta=0.5, smooth=1e-5, **shared
) -> Loss:
    """Tversky loss of each image: Dice with separate weights of false positives and negatives.

    1 - (TP + s) / (TP + alpha FP + beta FN + s) with TP = sum w p g, FP = sum w p (1 - g),
    FN = sum w (1 - p) g, averaged over channels. alpha = beta = 0.5 is `dice` with twice this
    `smooth`, alpha = beta = 1 is `jaccard`. A channel that is empty in target and prediction
    costs 0.

    Args:
      target: in [0, 1].
      tversky_alpha, tversky_beta: weight of a false positive and of a false negative.
      smooth: see losses.
      shared: pooled, axis_name, class_weights, pixel_weight: see losses.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as losses says.
    Source: Salehi et al. 2017, Tversky loss function, equation 4; beta above alpha finds more.
      Equals MONAI TverskyLoss(sigmoid=True).
    """

    def score(both, either):
        wrong = either - (tversky_alpha + tversky_beta) * both
        return (both + smooth) / (both + wrong + smooth)

    return overlap_loss(
        logits, target, lambda p, g: tversky_alpha * p + tversky_beta * g, score, **shared)


def lovasz(
    logits: Logits, target: Target, *, lovasz_softmax: bool = False, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Lovász hinge of each image: a convex bound of 1 - IoU of the mask where logits > 0.

    sum_i e_i (D_i - D_(i-1)) per channel, averaged over channels. e = max(0, 1 - z (2g - 1)) are
    the errors in falling order, and D_i is 1 - IoU if the i worst pixels were wrong and all
    others right, each pixel counting w. It needs a margin: only logits beyond -1 and 1 cost 0.
    A channel that is empty in the target costs its one worst pixel.

    Args:
      target: in {0, 1}.
      lovasz_softmax: for K channels of which one is true. e = abs(g - p) with p the softmax, in
        [0, 1]; every channel counts, absent or not.
      class_weights, pixel_weight: see losses.
    Returns: float32 or wider, in [0, 1] with lovasz_softmax.
    Raises: ValueError as losses says, and for K = 1 with lovasz_softmax.
    Source: Berman et al. 2018, The Lovász-Softmax loss, equations 8 and 9 (the hinge), 11 and 12
      (softmax, its classes="all"); w is added here.
    """
    z, g, w = checked(logits, target, pixel_weight)
    if lovasz_softmax:
        need_classes(z, "lovasz_softmax")
        errors = jnp.abs(g - jax.nn.softmax(z))
    else:
        errors = jnp.maximum(0, 1 - z * (2 * g - 1))
    flat = lambda x: jnp.moveaxis(x, -1, 1).reshape(z.shape[0], z.shape[-1], -1)
    errors, g, w = flat(errors), flat(g), flat(jnp.broadcast_to(w, z.shape))
    falling, true, weight = jax.lax.sort((-errors, w * g, w), is_stable=False, num_keys=1)
    total = true.sum(-1, keepdims=True)
    both = total - jnp.cumsum(true, -1)
    either = total + jnp.cumsum(weight - true, -1)
    # Empty until the first pixel that counts: nothing wrong yet.
    loss = jnp.where(either > 0, 1 - both / jnp.where(either > 0, either, 1), 0)
    steps = jnp.diff(loss, axis=-1, prepend=0)
    return mean_of_channels((-falling * steps).sum(-1), class_weights, len(z))


def cldice(
    logits: Logits,
    target: Target,
    *,
    cldice_iterations: int = 3,
    smooth=1e-5,
    pooled: bool = False,
    axis_name: str | None = None,
    class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Soft clDice loss of each image: whether thin structures, such as membranes, are connected.

    1 - 2 T S / (T + S) averaged over channels, with T = (sum w P g + s) / (sum w P + s) the part
    of the skeleton P of p that lies in the target, and S the same of the target's skeleton and
    p. A channel without a skeleton costs 0, and what fills the whole image has none: add another
    loss, as the authors add Dice.

    Args:
      target: in [0, 1].
      cldice_iterations: erosions that find the skeleton; at least half the width in pixels of
        the structures, since what is wider has no skeleton.
      pixel_weight: w above; skeletons are those of the whole image whatever it is.
      smooth, pooled, axis_name, class_weights: see losses.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as losses says.
    Source: Shit et al. 2021, clDice, algorithms 1 and 2. Equals MONAI SoftclDiceLoss(sigmoid=True,
      smooth_nr=smooth, smooth_dr=smooth, smooth=0) at K = 1; it sums over channels together.
    """
    z, g, w = checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    skeleton, true = _skeleton(p, cldice_iterations), _skeleton(g, cldice_iterations)
    hit, found, covered, wanted = sums_over_pixels((skeleton * g, skeleton, true * p, true),
                                        w, pooled, axis_name)
    precision, recall = (hit + smooth) / (found + smooth), (covered + smooth) / (wanted + smooth)
    score = 2 * precision * recall / (precision + recall)
    return mean_of_channels(1 - score, class_weights, len(z))


def _skeleton(x, iterations):
    """Soft skeleton of (N, H, W, K): what opening by one pixel takes away, at every thickness.

    A loop, because XLA would fuse unrolled erosions into one and compute each many times over.
    """

    def thinner(carry, _):
        x, skeleton = carry
        eroded = _smaller(_among(x, 1, _smaller, jnp.inf), _among(x, 2, _smaller, jnp.inf))
        opened = _among(_among(eroded, 1, _larger, -jnp.inf), 2, _larger, -jnp.inf)
        new = jax.nn.relu(x - opened)
        return (eroded, skeleton + jax.nn.relu(new - skeleton * new)), None

    return jax.lax.scan(thinner, (x, jnp.zeros_like(x)), length=iterations + 1)[0][1]


# jnp.minimum would share the gradient of equals at the price of two more passes.
def _smaller(a, b):
    return jnp.where(a < b, a, b)


def _larger(a, b):
    return jnp.where(a > b, a, b)


def _among(x, axis, choose, outside):
    """choose of each pixel and its two neighbours along the axis."""
    pads = [[(0, 0, 0)] * x.ndim for _ in range(2)]
    pads[0][axis], pads[1][axis] = (1, -1, 0), (-1, 1, 0)
    fill = jnp.asarray(outside, x.dtype)
    before, after = (jax.lax.pad(x, fill, pad) for pad in pads)
    return choose(choose(x, before), after)
