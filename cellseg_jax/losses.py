"""Losses: how wrong the logits of each image are.

Every loss is `LOSSES[name](logits, target, **options) -> (N,)`, 0 is perfect. Probabilities p are
independent sigmoids per output channel and target g is 0 or 1 in each, unless a loss says
otherwise. Half-precision logits are lifted to float32 before anything is summed. Options that
several losses share mean the same everywhere:

  class_weights: K numbers; what channel k costs is multiplied by the k-th. They multiply, and do
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

import jax
import jax.numpy as jnp


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


def dice(
    logits,
    target,
    *,
    smooth=1e-5,
    squared=False,
    pooled=False,
    axis_name=None,
    class_weights=(),
    pixel_weight=None,
):
    """Soft Dice loss of each image, averaged over its channels.

    1 - (2 sum w p g + s) / (sum w p + sum w g + s), with s `smooth`. A channel that is empty in
    target and prediction costs 0.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      squared: p^2 and g^2 in the denominator (V-Net).
      smooth, pooled, axis_name, class_weights, pixel_weight: see the module.
    Returns: (N,) float32 or wider, in [0, 1].
    Source: Milletari et al. 2016, V-Net, section 3, whose form is `squared` with smooth 0.
      Equals MONAI DiceLoss(sigmoid=True), pooled=True its batch=True, class_weights its weight.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    either = p * p + g * g if squared else p + g
    both, either = _sums((p * g, either), w, pooled, axis_name)
    score = (2 * both + smooth) / (either + smooth)
    return _mean_of_channels(1 - score, class_weights, len(z))


def jaccard(
    logits,
    target,
    *,
    smooth=1e-5,
    squared=False,
    pooled=False,
    axis_name=None,
    class_weights=(),
    pixel_weight=None,
):
    """Soft Jaccard (IoU) loss of each image, averaged over its channels.

    1 - (sum w p g + s) / (sum w p + sum w g - sum w p g + s), symbols and options as in `dice`.
    A channel that is empty in target and prediction costs 0.

    Args: as `dice`.
    Returns: (N,) float32 or wider, in [0, 1].
    Source: Rahman & Wang 2016, Optimizing Intersection-Over-Union, plus `smooth`.
      Equals MONAI DiceLoss(sigmoid=True, jaccard=True) with twice this `smooth` there.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    either = p * p + g * g if squared else p + g
    both, either = _sums((p * g, either), w, pooled, axis_name)
    score = (both + smooth) / (either - both + smooth)
    return _mean_of_channels(1 - score, class_weights, len(z))


def tversky(
    logits,
    target,
    *,
    tversky_alpha=0.5,
    tversky_beta=0.5,
    smooth=1e-5,
    pooled=False,
    axis_name=None,
    class_weights=(),
    pixel_weight=None,
):
    """Tversky loss of each image: Dice that may count misses more than false alarms.

    1 - (TP + s) / (TP + alpha FP + beta FN + s) with TP = sum w p g, FP = sum w p (1 - g),
    FN = sum w (1 - p) g, averaged over channels. alpha = beta = 0.5 is `dice` with twice this
    `smooth`, alpha = beta = 1 is `jaccard`.

    Args: as `dice`, and
      tversky_alpha, tversky_beta: what a false positive and a false negative count.
    Returns: (N,) float32 or wider, in [0, 1].
    Source: Salehi et al. 2017, Tversky loss function, equation 4; beta above alpha finds more.
      Equals MONAI TverskyLoss(sigmoid=True).
    """
    z, g, w = _checked(logits, target, pixel_weight)
    p = jax.nn.sigmoid(z)
    either = tversky_alpha * p + tversky_beta * g
    both, either = _sums((p * g, either), w, pooled, axis_name)
    wrong = either - (tversky_alpha + tversky_beta) * both
    score = (both + smooth) / (both + wrong + smooth)
    return _mean_of_channels(1 - score, class_weights, len(z))


def lovasz(logits, target, *, lovasz_softmax=False, class_weights=(), pixel_weight=None):
    """Lovász hinge of each image: a convex bound of 1 - IoU of the mask where logits > 0.

    sum_i e_i (D_i - D_(i-1)) per channel, averaged over channels. e = max(0, 1 - z (2g - 1)) are
    the errors in falling order, and D_i is 1 - IoU if the i worst pixels were wrong and all
    others right, each pixel counting w. It wants a margin: logits of -1 and 1 cost nothing.
    An empty channel costs its one worst pixel.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in {0, 1}.
      lovasz_softmax: for K channels of which one is true. e = abs(g - p) with p the softmax, in
        [0, 1]; every channel counts, absent or not.
      class_weights, pixel_weight: see the module.
    Returns: (N,) float32 or wider, in [0, 1] with lovasz_softmax.
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
    logits,
    target,
    *,
    cldice_iterations=3,
    smooth=1e-5,
    pooled=False,
    axis_name=None,
    class_weights=(),
    pixel_weight=None,
):
    """Soft clDice loss of each image: are thin structures, such as membranes, in one piece?

    1 - 2 T S / (T + S) averaged over channels, with T = (sum w P g + s) / (sum w P + s) the part
    of the skeleton P of p that lies in the target, and S the same of the target's skeleton and
    p. A channel without a skeleton costs 0, and what fills the whole image has none: add another
    loss, as the authors add Dice.

    Args: as `dice`, and
      cldice_iterations: erosions that find the skeleton; at least half the width in pixels of
        the structures, since what is wider has no skeleton.
      pixel_weight: w above; skeletons are those of the whole image whatever it is.
    Returns: (N,) float32 or wider, in [0, 1].
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


def boundary(logits, target, *, class_weights=(), pixel_weight=None):
    """Boundary loss of each image: wrong pixels count by their distance to the true boundary.

    mean of w (p - g) d, with d the signed distance of `signed_distance`. A channel that is empty
    or full in the target has no boundary and costs 0 whatever is predicted, and pixels at the
    boundary are free: add another loss, as the authors add Dice.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in {0, 1}; at 0.5 it is cut for d.
      class_weights, pixel_weight: see the module; d is that of the whole image whatever they are.
    Returns: (N,) float32 or wider, in pixels.
    Source: Kervadec et al. 2019, Boundary loss, equations 4 and 5, half of 4 with the constant
      term kept that 5 leaves out, so that 0 is perfect. MONAI BoundaryLoss(sigmoid=True) is the
      same minus its own value at p = g.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    distance = jnp.moveaxis(signed_distance(jnp.moveaxis(g > 0.5, -1, 1), z.dtype), 1, -1)
    return _mean_of_pixels((jax.nn.sigmoid(z) - g) * distance, w, class_weights)


def signed_distance(mask, dtype=jnp.float32):
    """How far each pixel is from the mask's boundary, negative inside.

    Outside the Euclidean distance to the nearest pixel of the mask; inside 1 minus that to the
    nearest pixel outside, so 0 in the mask's outermost pixels. 0 everywhere where a mask is
    empty or full. Exact: equals scipy.ndimage.distance_transform_edt.

    Args:
      mask: (..., H, W) bool.
      dtype: of the result.
    Returns: (..., H, W), pixels.
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


def focal(logits, target, *, gamma=2.0, class_weights=(), pixel_weight=None):
    """Focal loss of each image: cross-entropy that forgets the pixels already right.

    mean of -w (1 - p_t)^gamma log p_t, with p_t = p where the target is 1 and 1 - p where it
    is 0. Defined for empty and full targets alike.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      gamma: how fast easy pixels lose their say; 0 gives `bce`.
      class_weights, pixel_weight: see the module.
    Returns: (N,) float32 or wider.
    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4, no alpha.
      Equals MONAI FocalLoss(gamma=2), for targets between 0 and 1 too.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    # (1 - p_t)^gamma through its logarithm: a power of exactly 0 has no finite gradient.
    modulation = jnp.exp(gamma * _log_sigmoid(z * (1 - 2 * g)))
    return _mean_of_pixels(modulation * _binary_cross_entropy(z, g), w, class_weights)


def bce(logits, target, *, pos_weight=1.0, class_weights=(), pixel_weight=None):
    """Binary cross-entropy of each image.

    mean of w (-a g log p - (1 - g) log(1 - p)). Defined for empty and full targets alike.

    Args:
      logits: (N, H, W, K), raw.
      target: (N, H, W, K) in [0, 1].
      pos_weight: a above, what a pixel of the target counts against one of the background.
      class_weights, pixel_weight: see the module.
    Returns: (N,) float32 or wider.
    Source: PyTorch BCEWithLogitsLoss(pos_weight); `pixel_weight` is its `weight`, and w(x) of
      Ronneberger et al. 2015, U-Net, equation 1.
    """
    z, g, w = _checked(logits, target, pixel_weight)
    loss = _binary_cross_entropy(z, g)
    if pos_weight != 1:
        loss -= (pos_weight - 1) * g * _log_sigmoid(z)
    return _mean_of_pixels(loss, w, class_weights)


def cross_entropy(logits, target, *, renormalised=False, class_weights=(), pixel_weight=None):
    """Categorical cross-entropy of each image: K channels of which one is true.

    mean over pixels of -w sum_k c_k g_k log q_k, with c the class weights and q the softmax of
    the logits. The largest q is the largest sigmoid too.

    Args:
      logits: (N, H, W, K), raw, K >= 2.
      target: (N, H, W, K), one-hot, or in [0, 1] with sum 1.
      renormalised: q_k = p_k / sum_j p_j with p the sigmoids, and clipped to [1e-7, 1 - 1e-7]:
        what is farther off has no gradient (Keras's categorical_crossentropy of sigmoids, and
        so report 1). Equals the softmax only where all p are small.
      class_weights, pixel_weight: see the module.
    Returns: (N,) float32 or wider.
    Raises: ValueError also for K = 1.
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
ZERO_ON_EMPTY = ("boundary", "cldice")  # cost nothing on empty images: another loss must stand beside


def options(name: str) -> dict:
    """The options of a loss with their defaults, numbers or tuples, read off its signature.

    What two losses call alike is one and the same option. Arrays and places (pixel_weight,
    axis_name) are given by the step, not by a config.
    """
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    given = ("logits", "target", "pixel_weight", "axis_name")
    return {p.name: p.default for p in parameters if p.name not in given}
