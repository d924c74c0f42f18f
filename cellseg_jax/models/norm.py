"""Batch and group norm, and activations, equal to torch's."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cellseg_jax.errors import InputError


class BatchNorm(nn.Module):
    """torch's BatchNorm2d over the global batch: epsilon 1e-5, momentum 0.1.

    Statistics are taken in one pass around a pivot (the mean of the central pixels), which
    keeps the variance exact where the mean is large beside the spread. As in torch, pixels are
    normalised with the biased variance and the running one is the unbiased, n/(n-1) of it.
    Variables: params scale, bias; batch_stats mean, var.
    """

    axis_name: str | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, image, *, train: bool):
        channels = image.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        if train:
            mean, var, count = _batch_moments(image, self.axis_name)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return ((image - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias).astype(dtype)


class GroupNorm(nn.Module):
    """torch's GroupNorm: every image by its own mean and biased variance, in training as later.

    Statistics are over height, width and the channels of a group; groups=0 makes each channel
    a group, which is torch's InstanceNorm2d(affine=True), and groups=1 takes all together,
    which is layer norm. One pass around a pivot, as in BatchNorm. Params: scale, bias.
    """

    groups: int = 0
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, image):
        n, height, width, channels = image.shape
        groups = self.groups or channels
        if channels % groups:
            raise InputError(
                f"config.model.groups: got {groups}; expected a divisor of the {channels} channels"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = image.astype(jnp.promote_types(image.dtype, jnp.float32))
        grouped = image.reshape(n, height, width, groups, channels // groups)
        pivot = grouped[:, height // 2, width // 2].mean(-1)[:, None, None, :, None]
        mean, var = _moments(grouped, (1, 2, 4), lax.stop_gradient(pivot))
        normalized = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(image.shape)
        return (normalized * scale + bias).astype(dtype)


def _moments(image, axes, pivot):
    """Mean and biased variance over `axes`, which stay with size 1, in one pass."""
    shifted = image - pivot
    mean = shifted.mean(axes, keepdims=True)
    var = jnp.maximum((shifted * shifted).mean(axes, keepdims=True) - mean * mean, 0)
    return mean + pivot, var


def _batch_moments(image, axis_name):
    """Mean and biased variance per channel over the global batch, and the number of pixels."""
    n, height, width, _ = image.shape
    pivot = lax.stop_gradient(image[:, height // 2, width // 2].mean(0))
    mean, var = (moment.reshape(-1) for moment in _moments(image, (0, 1, 2), pivot))
    if axis_name is None:
        return mean, var, n * height * width
    global_mean = lax.pmean(mean, axis_name)
    var = lax.pmean(var + (mean - global_mean) ** 2, axis_name)
    return global_mean, var, n * height * width * lax.axis_size(axis_name)


def leaky_relu(image):
    """max(x, 0.01 x): torch's default slope."""
    return nn.leaky_relu(image, 0.01)
