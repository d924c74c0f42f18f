"""Report 1's U-Nets, in Keras' conventions: skips are added, and dense layers work on pixels.

Source: figure 1 of report 1. Keras' conventions: Glorot-uniform kernels with zero bias, batch
norm with epsilon 1e-3 whose running statistics keep 0.99, dropout of single entries. The report's
last layer ends in a sigmoid; here it gives logits.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import pick
from cellseg_jax.models.conv import Conv, ConvTranspose, at_least_float32
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.norm import BatchNorm
from cellseg_jax.models.resample import max_pool, pad_to_multiple

ACTIVATIONS = {"relu": nn.relu, "elu": nn.elu, "leaky_relu": nn.leaky_relu, "tanh": nn.tanh}


class KerasBlock(nn.Module):
    """Twice: 3x3 convolution, batch norm, activation."""

    features: int
    batch_norm: bool
    activation: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.features}"]:
        """The image in `features` channels."""
        activate = pick(ACTIVATIONS, self.activation, "config.model.activation")
        for index in (1, 2):
            conv = Conv(
                self.features, dtype=self.dtype, weights_init="glorot", name=f"conv_{index}"
            )
            # A bias before a batch norm has no effect in training.
            image = conv(image, bias_gradient=not (train and self.batch_norm))
            if self.batch_norm:
                norm = BatchNorm(self.axis_name, momentum=0.01, epsilon=1e-3, dtype=self.dtype,
                                 name=f"norm_{index}")
                image = norm(image, train=train)
            image = activate(image)
        return image


class SmallUNet(nn.Module):
    """Report 1's small-UNET: two levels of 16 and 32 channels above a bottom of 32.

    Down: block, 2x2 max-pool, dropout. Up: 3x3 transposed convolution with stride 2, plus the
    skip, dropout, block. Then, per pixel, dense layers of 32 and 64 with ReLU and one of K.
    Any height and width: zeros below and to the right, cropped back.

    Args:
      num_outputs: K, channels of the logits.
      channels: features per level, top first; the last are the bottom's.
      dense: False leaves out the dense layers of 32 and 64 ("no fully connected").
      batch_norm: False leaves out all batch norms.
      activation: of the blocks: relu | elu | leaky_relu | tanh. Dense layers have ReLU.
      dropout: rate after every pooling and every sum; may be traced.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    channels: Sequence[int] = (16, 32, 32)
    dense: bool = True
    batch_norm: bool = True
    activation: str = "relu"
    dropout: Any = 0.3
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        *levels, bottom = self.channels
        height, width = image.shape[1:3]
        image = pad_to_multiple(image, 2 ** len(levels))

        def block(image, features, name):
            return KerasBlock(features, self.batch_norm, self.activation, self.axis_name,
                              self.dtype, name=name)(image, train=train)

        def drop(image):
            return Dropout(self.dropout, self.axis_name)(image, train=train)

        def dense(image, features, name):
            conv = Conv(
                features, 1, padding=0, dtype=self.dtype, weights_init="glorot", name=name
            )
            return conv(image)

        skips = []
        for level, features in enumerate(levels):
            skips.append(block(image, features, f"down_{level}"))
            image = drop(max_pool(skips[-1]))
        image = block(image, bottom, "bottom")
        for level, features in reversed(list(enumerate(levels))):
            up = ConvTranspose(
                features, padding=0, output_padding=-1, dtype=self.dtype, weights_init="glorot",
                name=f"up_{level}",
            )
            image = block(drop(up(image) + skips[level]), features, f"merge_{level}")
        for index, features in enumerate((32, 64) if self.dense else ()):
            image = nn.relu(dense(image, features, f"dense_{index}"))
        logits = dense(image, self.num_outputs, "out")[:, :height, :width]
        return at_least_float32(logits)


class UNetAdd(SmallUNet):
    """Report 1's UNet: its small-UNET with four levels and a bottom of 256 channels."""

    channels: Sequence[int] = (16, 32, 64, 128, 256)
