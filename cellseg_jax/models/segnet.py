"""SegNet: a VGG16 encoder, and a decoder that unpools with the indices of the max pooling.

Source: Badrinarayanan, Kendall, Cipolla, arXiv:1511.00561; dropout as in Bayesian SegNet (Kendall
et al., arXiv:1511.02680). A baseline of the EBHI-SEG paper.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, UInt8

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, at_least_float32
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.norm import BatchNorm
from cellseg_jax.models.resample import pad_to_multiple


def max_pool_with_index(
    image: Float[ArrayLike, "n h w c"],
) -> tuple[Float[Array, "n h//2 w//2 c"], UInt8[Array, "n h//2 w//2 c"]]:
    """The largest of every 2x2 pixels, and which of the four it was.

    As torch's MaxPool2d(return_indices=True): of equal pixels it is the first in reading order,
    which also takes the whole gradient, and a NaN counts as larger than all numbers.

    Args:
      image: of even height and width.
    Returns: the largest; and 0 or 1 where it was above, 2 or 3 where it was below.
    """
    n, height, width, channels = image.shape
    windows = image.reshape(n, height // 2, 2, width // 2, 2, channels)
    above, right_above = _larger(windows[:, :, 0, :, 0], windows[:, :, 0, :, 1])
    below, right_below = _larger(windows[:, :, 1, :, 0], windows[:, :, 1, :, 1])
    pooled, lower = _larger(above, below)
    return pooled, jnp.where(lower, 2 + right_below, right_above).astype(jnp.uint8)


def _larger(first, second):
    """The larger of both, and whether it is the second."""
    is_second = (second > first) | jnp.isnan(second)
    return jnp.where(is_second, second, first), is_second


def max_unpool(
    image: Float[ArrayLike, "n h w c"], index: UInt8[ArrayLike, "n h w c"]
) -> Float[Array, "n 2*h 2*w c"]:
    """Every value at its place among 2x2 pixels, zeros at the other three.

    A NaN goes to all four, since any of them may receive it: then the receptive field, which is
    measured with NaNs, is correct.

    Args:
      index: of `max_pool_with_index`.
    """
    n, height, width, channels = image.shape
    places = jnp.arange(4, dtype=index.dtype).reshape(2, 1, 2, 1)
    image = image[:, :, None, :, None]
    image = jnp.where(index[:, :, None, :, None] == places, image, 0 * image)
    return image.reshape(n, 2 * height, 2 * width, channels)


class SegNet(nn.Module):
    """One stage per entry of `channels`, each ending in a 2x2 max pooling, and its mirror image.

    Every 3x3 convolution has a bias, batch norm and ReLU, except the last, which makes the
    logits. Any height and width: the image is padded with zeros below and to the right to a
    multiple of 2**stages, and the logits are cropped back.

    Args:
      num_outputs: K, channels of the logits.
      channels: features per stage, top first.
      convs: convolutions per stage of the encoder, and of the decoder.
      dropout: rate after the three deepest stages of encoder and decoder; may be traced.
      weights_init: default (torch's), kaiming (the paper's) or glorot.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    channels: Sequence[int] = (64, 128, 256, 512, 512)
    convs: Sequence[int] = (2, 2, 3, 3, 3)
    dropout: Any = 0.0
    weights_init: str = "kaiming"
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        if len(self.convs) != len(self.channels) or min(self.convs, default=0) < 1:
            raise InputError(
                f"config.model.convs: got {tuple(self.convs)}; expected a positive number for "
                f"each of the {len(self.channels)} channels, at least one"
            )
        height, width = image.shape[1:3]
        stages = list(enumerate(zip(self.channels, self.convs, strict=True)))
        image = pad_to_multiple(image, 2 ** len(stages))

        def conv(features, name):
            return Conv(features, dtype=self.dtype, weights_init=self.weights_init, name=name)

        def conv_norm(image, features, place):
            image = conv(features, f"conv_{place}")(image, bias_gradient=not train)
            norm = BatchNorm(self.axis_name, dtype=self.dtype, name=f"norm_{place}")
            return nn.relu(norm(image, train=train))

        def drop(image, stage):
            deep = stage >= len(stages) - 3
            return Dropout(self.dropout, self.axis_name)(image, train=train) if deep else image

        indices = []
        for stage, (features, convs) in stages:
            for place in range(convs):
                image = conv_norm(image, features, f"down_{stage}_{place}")
            image, index = max_pool_with_index(image)
            indices.append(index)
            image = drop(image, stage)

        for stage, (features, convs) in reversed(stages):
            image = max_unpool(image, indices[stage])
            for place in reversed(range(1, convs)):
                image = conv_norm(image, features, f"up_{stage}_{place}")
            if stage > 0:
                image = drop(conv_norm(image, self.channels[stage - 1], f"up_{stage}_0"), stage)
        logits = conv(self.num_outputs, "out")(image)[:, :height, :width]
        return at_least_float32(logits)
