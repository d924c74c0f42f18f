"""Losses: how wrong the logits of each image are.

Every loss is `LOSSES[name](logits, target, **options) -> (N,)`, 0 is perfect. Probabilities p are
independent sigmoids per output channel and target g is 0 or 1 in each, unless a loss says
otherwise. Half-precision logits are converted to float32 before anything is summed. Options that
several losses share mean the same everywhere:

  class_weights: K numbers; the loss of channel k is multiplied by the k-th. They multiply, and do
    not change what a mean divides by (torch's CrossEntropyLoss(weight) divides by their sum
    over the batch). () weighs all channels by 1.
  pixel_weight: (N, H, W), w in the formulas; None weighs all pixels by 1. A mean still divides
    by the number of pixels.
  smooth: pixels added to numerator and denominator; 0 makes an empty channel undefined.
  pooled: one score from sums over the whole batch, returned for every image. A row with
    `pixel_weight` 0 takes no part in it.
  axis_name: with `pooled`, the mapped axis that the batch is spread over. The sums are reduced
    here, so this must stand inside the differentiated function.

All raise ValueError where shapes differ, and where class_weights are not one per channel.
"""

import inspect
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Shaped

Logits = Target = Float[ArrayLike, "n h w k"]
PixelWeight = Float[ArrayLike, "n h w"] | None
Loss = Float[jax.Array, " n"]


def _checked(logits, target, pixel_weight):
    """(logits, target, weight) in one dtype, float32 or wider; weight is 1 or (N, H, W, 1).

    The shapes are compared here because (N, H, W, 1) and (N, H, W) would broadcast silently.
    """
    if logits.ndim != 4 or logits.shape != target.shape:
        raise ValueError(
            f"logits {logits.shape} and target {target.shape}: expected one shape (N, H, W, K)"
        )
    if pixel_weight is not None and pixel_weight.shape != logits.shape[:3]:
        raise ValueError(f"pixel_weight {pixel_weight.shape}: expected {logits.shape[:3]}")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    weight = 1 if pixel_weight is None else pixel_weight.astype(dtype)[..., None]
    return logits.astype(dtype), target.astype(dtype), weight


def _sums(terms, weight, pooled, axis_name):
    """Sums over pixels of each term (N, H, W, K): each (N, K), or (1, K) if pooled."""
    sums = jnp.stack([(term * weight).sum((1, 2)) for term in terms])
    if pooled:
        sums = sums.sum(1, keepdims=True)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
    return sums


def _weighted(loss, class_weights):
    """(..., K) times the weights of its channels."""
    if not len(class_weights):
        return loss
    if len(class_weights) != loss.shape[-1]:
        raise ValueError(f"class_weights {tuple(class_weights)}: expected {loss.shape[-1]} "
                         "numbers, one per output channel")
    return loss * jnp.asarray(class_weights, loss.dtype)


def _mean_of_channels(loss, class_weights, count):
    """(count,) of (count, K), or of the (1, K) of a pooled loss."""
    return jnp.broadcast_to(_weighted(loss, class_weights).mean(-1), (count,))


def _mean_of_pixels(loss, weight, class_weights):
    """(N,) of (N, H, W, K)."""
    return _weighted(loss * weight, class_weights).mean((1, 2, 3))


# --- overlap of regions --------------------------------------------------------------------------


def _overlap(
    logits, target, either, score, *, pooled=False, axis_name=None, class_weights=(),
    pixel_weight=None,
):
    """Mean over channels of 1 - score(sum w p g, sum w either(p, g)), the sums over pixels."""
    z, g, w = _checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    union = either(p, g)  # in this order, in which the gradients of both are summed
    sums = _sums((p * g, union), w, pooled, axis_name)
    return _mean_of_channels(1 - score(*sums), class_weights, len(z))


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
      smooth, pooled, axis_name, class_weights, pixel_weight: see the module.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as the module says.
    Source: Milletari et al. 2016, V-Net, section 3, whose form is `squared` with smooth 0.
      Equals MONAI DiceLoss(sigmoid=True), pooled=True its batch=True, class_weights its weight.
    """
    return _overlap(
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
    Raises: ValueError as the module says.
    Source: Rahman & Wang 2016, Optimizing Intersection-Over-Union, plus `smooth`.
      Equals MONAI DiceLoss(sigmoid=True, jaccard=True) with twice this `smooth` there.
    """
    return _overlap(
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
      smooth: see the module.
      shared: pooled, axis_name, class_weights, pixel_weight: see the module.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as the module says.
    Source: Salehi et al. 2017, Tversky loss function, equation 4; beta above alpha finds more.
      Equals MONAI TverskyLoss(sigmoid=True).
    """

    def score(both, either):
        wrong = either - (tversky_alpha + tversky_beta) * both
        return (both + smooth) / (both + wrong + smooth)

    return _overlap(
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
      class_weights, pixel_weight: see the module.
    Returns: float32 or wider, in [0, 1] with lovasz_softmax.
    Raises: ValueError as the module says, and for K = 1 with lovasz_softmax.
    Source: Berman et al. 2018, The Lovász-Softmax loss, equations 8 and 9 (the hinge), 11 and 12
      (softmax, its classes="all"); w is added here.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    if lovasz_softmax:
        _needs_classes(z, "lovasz_softmax")
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
    return _mean_of_channels((-falling * steps).sum(-1), class_weights, len(z))


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
      smooth, pooled, axis_name, class_weights: see the module.
    Returns: in [0, 1], float32 or wider.
    Raises: ValueError as the module says.
    Source: Shit et al. 2021, clDice, algorithms 1 and 2. Equals MONAI SoftclDiceLoss(sigmoid=True,
      smooth_nr=smooth, smooth_dr=smooth, smooth=0) at K = 1; it sums over channels together.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    skeleton, true = _skeleton(p, cldice_iterations), _skeleton(g, cldice_iterations)
    hit, found, covered, wanted = _sums((skeleton * g, skeleton, true * p, true),
                                        w, pooled, axis_name)
    precision, recall = (hit + smooth) / (found + smooth), (covered + smooth) / (wanted + smooth)
    score = 2 * precision * recall / (precision + recall)
    return _mean_of_channels(1 - score, class_weights, len(z))


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


# --- distance between boundaries -----------------------------------------------------------------


def boundary(
    logits: Logits, target: Target, *, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Boundary loss of each image: wrong pixels count by their distance to the true boundary.

    mean of w (p - g) d, with d the signed distance of `signed_distance`. A channel that is empty
    or full in the target has no boundary and costs 0 whatever is predicted, and pixels at the
    boundary cost nothing: add another loss, as the authors add Dice.

    Args:
      target: in {0, 1}; d is that of target > 0.5.
      class_weights, pixel_weight: see the module; d is that of the whole image whatever they are.
    Returns: pixels, float32 or wider.
    Raises: ValueError as the module says.
    Source: Kervadec et al. 2019, Boundary loss, equations 4 and 5, half of 4 with the constant
      term kept that 5 leaves out, so that 0 is perfect. MONAI BoundaryLoss(sigmoid=True) is the
      same minus its own value at p = g.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    distance = jnp.moveaxis(signed_distance(jnp.moveaxis(g > 0.5, -1, 1), z.dtype), 1, -1)
    return _mean_of_pixels((jax.nn.sigmoid(z) - g) * distance, w, class_weights)


def signed_distance(
    mask: Bool[ArrayLike, "*n h w"], dtype=jnp.float32
) -> Float[jax.Array, "*n h w"]:
    """The distance of each pixel from the mask's boundary, negative inside.

    Outside the Euclidean distance to the nearest pixel of the mask; inside 1 minus that to the
    nearest pixel outside, so 0 in the mask's outermost pixels. 0 everywhere where a mask is
    empty or full. Exact: equals scipy.ndimage.distance_transform_edt.

    Args:
      dtype: of the result.
    Returns: pixels.
    Source: Felzenszwalb & Huttenlocher 2012, Distance transforms of sampled functions, section
      2.1: along one axis, then the minimum of parabolas along the other. These are tried from
      near to far, in whole images at a time, until none can be lower.
    """
    height, rows = mask.shape[-2], mask.ndim - 2
    sign = jnp.where(mask, -1, 1).astype(dtype)
    # Squared distances along rows, with the sign of the pixel they belong to: a pixel needs of
    # another row the positive part of what has its own sign, and 0 where the kinds differ.
    along = sign * jnp.swapaxes(_run_distance(jnp.swapaxes(mask, -1, -2), dtype), -1, -2) ** 2
    some = mask.any((-1, -2), keepdims=True) & ~mask.all((-1, -2), keepdims=True)
    squared = jnp.where(some, jnp.abs(along), 0)
    # Beyond its borders an image repeats: those rows are nearer in truth, so they do no harm.
    padded = jnp.pad(along, [(0, 0)] * rows + [(height, height), (0, 0)], mode="edge")
    together = 8  # offsets tried in one pass over memory

    def farther(carry):
        offset, squared = carry
        return (offset < height) & ((offset**2).astype(dtype) < squared.max())

    def lower(carry):
        offset, squared = carry
        for step in range(together):
            k = offset + step
            above, below = (sign * jax.lax.dynamic_slice_in_dim(padded, start, height, rows)
                            for start in (height - k, height + k))
            nearest = jnp.maximum(jnp.minimum(above, below), 0)
            squared = jnp.minimum(squared, nearest + (k**2).astype(dtype))
        return offset + together, squared

    _, squared = jax.lax.while_loop(farther, lower, (jnp.int32(1), squared))
    distance = jnp.sqrt(squared)
    return jnp.where(mask, jnp.minimum(1 - distance, 0), distance)


def _run_distance(mask, dtype):
    """(..., L, M): distance along L to the nearest pixel of the other kind, inf without one."""
    axis = mask.ndim - 2
    place = jax.lax.broadcasted_iota(dtype, mask.shape, axis)
    change = jnp.diff(mask, axis=axis)
    pad = lambda before, after: jnp.pad(
        change, [(0, 0)] * axis + [(before, after), (0, 0)])
    start = jax.lax.cummax(jnp.where(pad(1, 0), place, -jnp.inf), axis)
    end = jax.lax.cummin(jnp.where(pad(0, 1), place, jnp.inf), axis, reverse=True)
    return 1 + jnp.minimum(place - start, end - place)


# --- pixel by pixel ------------------------------------------------------------------------------


def _tail(z):
    """log(1 + exp(-|z|)), which neither overflows nor cancels.

    Written out because jax.nn.log_sigmoid makes focal four times slower on CPU, and with the
    same accuracy. |z| and the maxima below split their gradients evenly at 0, as they should.
    """
    return jnp.log1p(jnp.exp(-jnp.abs(z)))


def _binary_cross_entropy(z, g):
    """-g log p - (1 - g) log(1 - p) with p the sigmoid of z."""
    return jnp.maximum(z, 0) - z * g + _tail(z)


def _log_sigmoid(z):
    return jnp.minimum(z, 0) - _tail(z)


def focal(
    logits: Logits, target: Target, *, gamma=2.0, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Focal loss of each image: cross-entropy that down-weights well-classified pixels.

    mean of -w (1 - p_t)^gamma log p_t, with p_t = p where the target is 1 and 1 - p where it
    is 0. Defined for empty and full targets alike.

    Args:
      target: in [0, 1].
      gamma: focusing parameter: larger down-weights well-classified pixels more; 0 gives `bce`.
      class_weights, pixel_weight: see the module.
    Returns: float32 or wider.
    Raises: ValueError as the module says.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, no alpha.
      Equals MONAI FocalLoss(gamma=2), for targets between 0 and 1 too.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    # (1 - p_t)^gamma through its logarithm: a power of exactly 0 has no finite gradient.
    modulation = jnp.exp(gamma * _log_sigmoid(z * (1 - 2 * g)))
    return _mean_of_pixels(modulation * _binary_cross_entropy(z, g), w, class_weights)


def bce(
    logits: Logits, target: Target, *, pos_weight=1.0, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Binary cross-entropy of each image.

    mean of w (-a g log p - (1 - g) log(1 - p)). Defined for empty and full targets alike.

    Args:
      target: in [0, 1].
      pos_weight: a above, the weight of a pixel of the target relative to one of the background.
      class_weights, pixel_weight: see the module.
    Returns: float32 or wider.
    Raises: ValueError as the module says.
    Source: PyTorch BCEWithLogitsLoss(pos_weight); `pixel_weight` is its `weight`, and w(x) of
      Ronneberger et al. 2015, U-Net, equation 1.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    loss = _binary_cross_entropy(z, g)
    if pos_weight != 1:
        loss -= (pos_weight - 1) * g * _log_sigmoid(z)
    return _mean_of_pixels(loss, w, class_weights)


def cross_entropy(
    logits: Logits, target: Target, *, renormalised: bool = False, class_weights: Sequence = (),
    pixel_weight: PixelWeight = None,
) -> Loss:
    """Categorical cross-entropy of each image: K channels of which one is true.

    mean over pixels of -w sum_k c_k g_k log q_k, with c the class weights and q the softmax of
    the logits. The largest q is the largest sigmoid too.

    Args:
      logits: K >= 2.
      target: one-hot, or in [0, 1] with sum 1.
      renormalised: q_k = p_k / sum_j p_j with p the sigmoids, and clipped to [1e-7, 1 - 1e-7]:
        what lies outside has no gradient (Keras's categorical_crossentropy of sigmoids, and
        so report 1). Equals the softmax only where all p are small.
      class_weights, pixel_weight: see the module.
    Returns: float32 or wider.
    Raises: ValueError as the module says, and for K = 1.
    Source: PyTorch CrossEntropyLoss(weight), but for the division: see the module.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    _needs_classes(z, "cross_entropy")
    if renormalised:
        log_q = jnp.clip(jax.nn.log_softmax(_log_sigmoid(z)), jnp.log(1e-7), jnp.log1p(-1e-7))
    else:
        log_q = jax.nn.log_softmax(z)
    return _weighted(-w * g * log_q, class_weights).sum(-1).mean((1, 2))


def _needs_classes(logits, name):
    if logits.shape[-1] < 2:
        raise ValueError(f"{name} of {logits.shape[-1]} output channel: expected at least 2, of "
                         "which one is true; bce is the loss of a single one")


LOSSES = {
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "lovasz": lovasz,
    "cldice": cldice,
    "boundary": boundary,
    "focal": focal,
    "bce": bce,
    "cross_entropy": cross_entropy,
}
# These are 0 on images without foreground, whatever is predicted: another loss must stand beside.
ZERO_ON_EMPTY = ("boundary", "cldice")


def options(name: str) -> dict:
    """The options of a loss with their defaults, numbers or tuples, from its signature.

    An option name that two losses share means one and the same option. pixel_weight and axis_name
    are given by the step, not by a config.
    """
    parameters = dict(inspect.signature(LOSSES[name]).parameters)
    if parameters.pop("shared", None):
        parameters |= inspect.signature(_overlap).parameters
    return {name: p.default for name, p in parameters.items()
            if p.default is not p.empty and name not in ("pixel_weight", "axis_name")}


# --- deep supervision ----------------------------------------------------------------------------


def supervision_weights(levels: int) -> tuple[float, ...]:
    """The weight of the loss at each of `levels` sizes, full size first: 1, 1/2, 1/4, ... of all.

    Source: nnU-Net, which makes one level more and gives it the weight 0.
    """
    weights = [2.0**-level for level in range(levels)]
    return tuple(weight / sum(weights) for weight in weights)


def coarse(array: Shaped[ArrayLike, "n h w *k"], level: int) -> Shaped[ArrayLike, "n _ _ *k"]:
    """The pixels at the centres of squares of 2**level pixels, as nnU-Net resizes its labels.

    Args:
      array: target or weights.
    Returns: (N, ceil(H / 2**level), ceil(W / 2**level), ...): the last centre of a size that does
      not divide may be the last pixel.
    """
    size = 2**level
    if size == 1:
        return array
    for axis in (1, 2):
        length = array.shape[axis]
        centres = jnp.minimum(jnp.arange(0, length, size) + size // 2, length - 1)
        array = array.take(centres, axis)
    return array
