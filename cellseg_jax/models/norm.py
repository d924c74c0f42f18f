"""Batch and group norm, and the leaky ReLU, equal to torch's; a convolution with its norm."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, at_least_float32


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
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w c"]:
        """The image normalised by the batch in training, by running statistics in evaluation."""
        channels = image.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = at_least_float32(image)
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
    """torch's GroupNorm: every image by its own mean and biased variance, in training too.

    Statistics are over height, width and the channels of a group; groups=0 makes each channel
    a group, which is torch's InstanceNorm2d(affine=True), and groups=1 takes all together,
    which is layer norm. One pass around a pivot, as in BatchNorm. Params: scale, bias.
    """

    groups: int = 0
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "n h w c"]) -> Float[Array, "n h w c"]:
        """The image normalised by itself."""
        n, height, width, channels = image.shape
        groups = self.groups or channels
        if channels % groups:
            raise InputError(
                f"config.model.groups: got {groups}; expected a divisor of the {channels} channels"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        dtype = self.dtype or jnp.result_type(image, scale)
        image = at_least_float32(image)
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


def conv_norm(
    module: nn.Module, image: Float[ArrayLike, "n h w c"], conv: Conv, norm_name: str, *,
    train: bool,
) -> Float[Array, "n _ _ k"]:
    """The image through a convolution and a batch norm, which both become parts of `module`.

    Args:
      module: whose axis_name and dtype the norm takes.
      conv: has no bias, which the norm would remove again.
    """
    norm = BatchNorm(module.axis_name, dtype=module.dtype, name=norm_name)
    return norm(conv(image), train=train)


def leaky_relu(image: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """max(x, 0.01 x): torch's default slope."""
    return nn.leaky_relu(image, 0.01)
