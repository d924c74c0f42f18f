"""The U-Net of report 0: strided convolutions down, transposed convolutions up.

Source: MONAI `UNet`, which it equals weight for weight with act=LEAKYRELU and norm=BATCH. It has
no pooling: the first convolution of a level halves the size, and the last layer, up to the size
of the image, is a bare convolution when num_res_units is 0.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, ConvTranspose, at_least_float32
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.norm import BatchNorm, leaky_relu
from cellseg_jax.models.resample import pad_to_multiple


class ConvNorm(nn.Module):
    """Convolution, batch norm, dropout, leaky ReLU. Transposed where `up`."""

    features: int
    stride: int = 1
    up: bool = False
    dropout: Any = 0.0
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n _ _ {self.features}"]:
        """The image in `features` channels, its size divided (`up`: multiplied) by the stride."""
        if self.up:
            conv = ConvTranspose(self.features, stride=self.stride, dtype=self.dtype, name="conv")
        else:
            conv = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv")
        image = conv(image, bias_gradient=not train)
        image = BatchNorm(self.axis_name, dtype=self.dtype, name="norm")(image, train=train)
        return leaky_relu(Dropout(self.dropout, self.axis_name)(image, train=train))


class ResidualUnit(nn.Module):
    """`units` ConvNorms, plus the input: itself, or convolved where size or channels change."""

    features: int
    units: int
    stride: int = 1
    last_bare: bool = False  # the last unit is a bare convolution
    dropout: Any = 0.0
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n _ _ {self.features}"]:
        """The image in `features` channels, its size divided by the stride."""
        skip = image
        if self.stride != 1:
            skip = Conv(self.features, stride=self.stride, dtype=self.dtype, name="skip")(image)
        elif image.shape[-1] != self.features:
            point = Conv(self.features, kernel_size=1, padding=0, dtype=self.dtype, name="skip")
            skip = point(image)
        for unit in range(self.units):
            stride = self.stride if unit == 0 else 1
            name = f"unit_{unit}"
            if self.last_bare and unit == self.units - 1:
                image = Conv(self.features, stride=stride, dtype=self.dtype, name=name)(image)
            else:
                image = ConvNorm(
                    self.features, stride, dropout=self.dropout, axis_name=self.axis_name,
                    dtype=self.dtype, name=name,
                )(image, train=train)
        return image + skip


class UNet(nn.Module):
    """U-Net with one level per entry of `channels`; all but the last halve the size.

    Any height and width: the image is padded with zeros below and to the right to a multiple of
    the total stride, and the logits are cropped back.

    Args:
      num_outputs: K, channels of the logits.
      channels: features per level, top first.
      num_res_units: convolutions per residual unit; 0 is one plain convolution per level.
      dropout: rate after every batch norm; may be traced.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    channels: Sequence[int] = (16, 32, 64, 128, 256, 512)
    num_res_units: int = 0
    dropout: Any = 0.2
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        shared = dict(dropout=self.dropout, axis_name=self.axis_name, dtype=self.dtype)
        if len(self.channels) < 2:
            raise InputError(
                f"config.model.channels: got {tuple(self.channels)}; expected at least two levels"
            )
        *levels, bottom = self.channels
        height, width = image.shape[1:3]
        image = pad_to_multiple(image, 2 ** len(levels))

        def encode(image, features, stride, name):
            if self.num_res_units == 0:
                return ConvNorm(features, stride, name=name, **shared)(image, train=train)
            unit = ResidualUnit(features, self.num_res_units, stride, name=name, **shared)
            return unit(image, train=train)

        skips = []
        for level, features in enumerate(levels):
            image = encode(image, features, 2, f"down_{level}")
            skips.append(image)
        image = encode(image, bottom, 1, "bottom")

        for level, features in reversed(list(enumerate((self.num_outputs, *levels[:-1])))):
            image = jnp.concatenate([skips[level], image], axis=-1)
            name = f"up_{level}"
            if level == 0 and self.num_res_units == 0:
                image = ConvTranspose(features, dtype=self.dtype, name=name)(image)
                continue
            image = ConvNorm(features, 2, up=True, name=name, **shared)(image, train=train)
            if self.num_res_units > 0:
                name = f"refine_{level}"
                unit = ResidualUnit(features, 1, last_bare=level == 0, name=name, **shared)
                image = unit(image, train=train)
        return at_least_float32(image[:, :height, :width])
