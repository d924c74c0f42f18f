"""Losses: how wrong the logits of each image are.

Every loss is `LOSSES[name](logits, target, **options) -> (N,)`, 0 is perfect. All work on
independent sigmoids per output channel and weigh the K channels alike. Half-precision logits
are lifted to float32 before anything is summed.
"""

import inspect

import jax
import jax.numpy as jnp


def _checked(logits, target, pixel_weight):
    """(logits, target, weight) in one dtype, float32 or wider; weight is None or (N, H, W, 1).

    The shapes are compared here because (N, H, W, 1) and (N, H, W) would broadcast silently.
    """
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ValueError(
            f"logits {logits.shape} and target {target.shape}: expected one shape (N, H, W, K)"
        )
    if pixel_weight is not None and pixel_weight.shape != logits.shape[:3]:
        raise ValueError(f"pixel_weight {pixel_weight.shape}: expected {logits.shape[:3]}")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    weight = None if pixel_weight is None else pixel_weight.astype(dtype)[..., None]
    return logits.astype(dtype), target.astype(dtype), weight


def _overlaps(logits, target, squared, pooled, axis_name, pixel_weight):
    """(sum p g, sum p + sum g), each (N, K), or (1, K) if pooled over the (global) batch."""
    logits, target, weight = _checked(logits, target, pixel_weight)
    p, g = jax.nn.sigmoid(logits), target
    both, either = p * g, p * p + g * g if squared else p + g
    if weight is not None:
        both, either = both * weight, either * weight
    sums = jnp.stack([both.sum((1, 2)), either.sum((1, 2))])
    if pooled:
        sums = sums.sum(1, keepdims=True)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
    return sums


def dice(
    logits,
    target,
    *,
    smooth=1e-5,
    squared=False,
    pooled=False,
    axis_name=None,
    pixel_weight=None,
):
    """Soft Dice loss of each image, averaged over its channels.

    1 - (2 sum w p g + s) / (sum w p + sum w g + s), with p the sigmoid of the logits, g the
    target and s `smooth`. A channel that is empty in target and prediction costs 0.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      smooth: pixels added to numerator and denominator; 0 makes an empty channel undefined.
      squared: p^2 and g^2 in the denominator (V-Net).
      pooled: one score from sums over the whole batch, returned for every image. A row with
        `pixel_weight` 0 takes no part in it.
      axis_name: with `pooled`, the mapped axis that the batch is spread over. The sums are
        reduced here, so this must stand inside the differentiated function.
      pixel_weight: (N, H, W), w above; None weighs all pixels by 1.
    Returns: (N,) float32 or wider, in [0, 1].
    Raises: ValueError if shapes differ.
    Source: Milletari et al. 2016, V-Net, section 3, whose form is `squared` with smooth 0.
      Equals MONAI DiceLoss(sigmoid=True), pooled=True its batch=True.
    """
    both, either = _overlaps(logits, target, squared, pooled, axis_name, pixel_weight)
    score = (2 * both + smooth) / (either + smooth)
    return jnp.broadcast_to(1 - score.mean(-1), logits.shape[:1])


def jaccard(
    logits,
    target,
    *,
    smooth=1e-5,
    squared=False,
    pooled=False,
    axis_name=None,
    pixel_weight=None,
):
    """Soft Jaccard (IoU) loss of each image, averaged over its channels.

    1 - (sum w p g + s) / (sum w p + sum w g - sum w p g + s), symbols and options as in `dice`.
    A channel that is empty in target and prediction costs 0.

    Args: as `dice`.
    Returns: (N,) float32 or wider, in [0, 1].
    Raises: ValueError if shapes differ.
    Source: Rahman & Wang 2016, Optimizing Intersection-Over-Union, plus `smooth`.
      Equals MONAI DiceLoss(sigmoid=True, jaccard=True) with twice this `smooth` there.
    """
    both, either = _overlaps(logits, target, squared, pooled, axis_name, pixel_weight)
    score = (both + smooth) / (either - both + smooth)
    return jnp.broadcast_to(1 - score.mean(-1), logits.shape[:1])


def _tail(z):
    """log(1 + exp(-|z|)), which neither overflows nor cancels.

    Written out because jax.nn.log_sigmoid makes focal four times slower on CPU, and with the
    same accuracy. |z| and the maxima below split their gradients evenly at 0, as they should.
    """
    return jnp.log1p(jnp.exp(-jnp.abs(z)))


def _cross_entropy(z, g):
    """-g log p - (1 - g) log(1 - p) with p the sigmoid of z."""
    return jnp.maximum(z, 0) - z * g + _tail(z)


def _log_sigmoid(z):
    return jnp.minimum(z, 0) - _tail(z)


def _mean(loss, weight):
    """Mean over pixels and channels; weights multiply, and do not change what it is divided by."""
    return (loss if weight is None else loss * weight).mean((1, 2, 3))


def focal(logits, target, *, gamma=2.0, pixel_weight=None):
    """Focal loss of each image: cross-entropy that forgets the pixels already right.

    mean of -w (1 - p_t)^gamma log p_t, with p_t = p where the target is 1 and 1 - p where it
    is 0. Defined for empty and full targets alike.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      gamma: how fast easy pixels lose their say; 0 gives `bce`.
      pixel_weight: (N, H, W), w above; the mean still divides by the number of pixels.
    Returns: (N,) float32 or wider.
    Raises: ValueError if shapes differ.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, no alpha.
      Equals MONAI FocalLoss(gamma=2), for targets between 0 and 1 too.
    """
    logits, target, weight = _checked(logits, target, pixel_weight)
    # (1 - p_t)^gamma through its logarithm: a power of exactly 0 has no finite gradient.
    modulation = jnp.exp(gamma * _log_sigmoid(logits * (1 - 2 * target)))
    return _mean(modulation * _cross_entropy(logits, target), weight)


def bce(logits, target, *, pixel_weight=None):
    """Binary cross-entropy of each image.

    mean of w (-g log p - (1 - g) log(1 - p)). Defined for empty and full targets alike.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      pixel_weight: (N, H, W), w above; the mean still divides by the number of pixels.
    Returns: (N,) float32 or wider.
    Raises: ValueError if shapes differ.
    Source: PyTorch BCEWithLogitsLoss; `pixel_weight` is its `weight`, and w(x) of
      Ronneberger et al. 2015, U-Net, equation 1.
    """
    logits, target, weight = _checked(logits, target, pixel_weight)
    return _mean(_cross_entropy(logits, target), weight)


LOSSES = {"dice": dice, "jaccard": jaccard, "focal": focal, "bce": bce}


def options(name: str) -> dict:
    """The scalar options of a loss with their defaults, read off its signature.

    smooth, squared, pooled belong to dice and jaccard, gamma to focal; bce has none. Arrays and
    places (pixel_weight, axis_name) are given by the step, not by a config.
    """
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    given = ("logits", "target", "pixel_weight", "axis_name")
    return {p.name: p.default for p in parameters if p.name not in given}
