"""What losses share: their types, checks of shapes, sums over pixels and means over channels."""


import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

Logits = Target = Float[ArrayLike, "n h w k"]
PixelWeight = Float[ArrayLike, "n h w"] | None
Loss = Float[jax.Array, " n"]


def checked(logits, target, pixel_weight):
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


def sums_over_pixels(terms, weight, pooled, axis_name):
    """Sums over pixels of each term (N, H, W, K): each (N, K), or (1, K) if pooled."""
    sums = jnp.stack([(term * weight).sum((1, 2)) for term in terms])
    if pooled:
        sums = sums.sum(1, keepdims=True)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
    return sums


def weighted(loss, class_weights):
    """(..., K) times the weights of its channels."""
    if not len(class_weights):
        return loss
    if len(class_weights) != loss.shape[-1]:
        raise ValueError(f"class_weights {tuple(class_weights)}: expected {loss.shape[-1]} "
                         "numbers, one per output channel")
    return loss * jnp.asarray(class_weights, loss.dtype)


def mean_of_channels(loss, class_weights, count):
    """(count,) of (count, K), or of the (1, K) of a pooled loss."""
    return jnp.broadcast_to(weighted(loss, class_weights).mean(-1), (count,))


def mean_of_pixels(loss, weight, class_weights):
    """(N,) of (N, H, W, K)."""
    return weighted(loss * weight, class_weights).mean((1, 2, 3))


def need_classes(logits, name):
    """ValueError for logits of a single channel: `name` is a loss of classes."""
    if logits.shape[-1] < 2:
        raise ValueError(f"{name} of {logits.shape[-1]} output channel: expected at least 2, of "
                         "which one is true; bce is the loss of a single one")
