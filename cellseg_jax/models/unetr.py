"""UNETR, the second network of report 0: a vision transformer with a convolutional decoder.

Source: Hatamizadeh et al., UNETR, arXiv:2103.10504. Equal to MONAI's `UNETR` (two dimensions,
norm_name="batch", residual blocks), whose skips come out after blocks 4, 7 and 10 of 12.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, ConvTranspose, at_least_float32, torch_uniform
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.linear import Dense, matmul
from cellseg_jax.models.norm import conv_norm, leaky_relu
from cellseg_jax.models.resample import pad_to_multiple

PATCH = 16


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input (1x1 convolved to other channels)."""

    features: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.features}"]:
        """The image in `features` channels."""
        def convolved(image, index, kernel_size=3):
            conv = Conv(
                self.features, kernel_size, padding=kernel_size // 2, use_bias=False,
                dtype=self.dtype, name=f"conv_{index}",
            )
            return conv_norm(self, image, conv, f"norm_{index}", train=train)

        output = convolved(leaky_relu(convolved(image, 1)), 2)
        if image.shape[-1] != self.features:
            image = convolved(image, 3, kernel_size=1)
        return leaky_relu(output + image)


def double(features: int, dtype, name: str) -> ConvTranspose:
    """A 2x2 transposed convolution: twice the height and width."""
    return ConvTranspose(
        features, kernel_size=2, padding=0, output_padding=0, use_bias=False, dtype=dtype, name=name
    )


class SkipPath(nn.Module):
    """Upsamples a grid of tokens by 2**doublings, the size at which it enters the decoder."""

    features: int
    doublings: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, grid: Float[ArrayLike, "n h w e"], *, train: bool
    ) -> Float[Array, "n _ _ {self.features}"]:
        """The grid of tokens, 2**doublings times as large, in `features` channels."""
        grid = double(self.features, self.dtype, "up_0")(grid)
        for index in range(1, self.doublings):
            grid = double(self.features, self.dtype, f"up_{index}")(grid)
            block = ResidualBlock(self.features, self.axis_name, self.dtype, name=f"block_{index}")
            grid = block(grid, train=train)
        return grid


class Decoder(nn.Module):
    """Doubles the image, joins the skip and convolves both."""

    features: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], skip: Float[ArrayLike, "n 2*h 2*w k"], *,
        train: bool
    ) -> Float[Array, "n 2*h 2*w {self.features}"]:
        """The image, twice as large, in `features` channels."""
        image = double(self.features, self.dtype, "up")(image)
        image = jnp.concatenate([image, skip], axis=-1)
        block = ResidualBlock(self.features, self.axis_name, self.dtype, name="block")
        return block(image, train=train)


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after its layer norm and with its skip."""

    num_heads: int
    mlp_dim: int
    dropout: Any = 0.0
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Float[ArrayLike, "n p e"], *, train: bool) -> Float[Array, "n p e"]:
        """The tokens after attention and perceptron."""
        width = tokens.shape[-1]

        def linear(inputs, features, name, use_bias=True):
            start = torch_uniform(inputs.shape[-1])
            return Dense(
                features, use_bias, self.dtype, kernel_init=start, bias_init=start, name=name
            )(inputs)

        def drop(inputs):
            return Dropout(self.dropout, self.axis_name)(inputs, train=train)

        def norm(inputs, name):
            return nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name=name)(inputs)

        joint = linear(norm(tokens, "norm_attention"), 3 * width, "qkv", use_bias=False)
        joint = joint.reshape(*tokens.shape[:2], 3, self.num_heads, width // self.num_heads)
        query, key, value = (joint[:, :, index] for index in range(3))
        scores = jnp.einsum("nphd,nqhd->nhpq", query, key) * query.shape[-1] ** -0.5
        scores = at_least_float32(scores)
        attention = drop(jax.nn.softmax(scores).astype(value.dtype))
        mixed = jnp.einsum("nhpq,nqhd->nphd", attention, value).reshape(tokens.shape)
        tokens = tokens + drop(linear(mixed, width, "project"))

        hidden = linear(norm(tokens, "norm_mlp"), self.mlp_dim, "expand")
        hidden = drop(jax.nn.gelu(hidden, approximate=False))
        return tokens + drop(linear(hidden, width, "contract"))


class UNETR(nn.Module):
    """Vision transformer on 16x16 patches; its blocks feed a convolutional decoder.

    Any height and width: the image is padded with zeros below and to the right to a multiple of
    16 and the logits are cropped back. Where the token grid is not that of `image_size`, the
    position grid is resized bilinearly.

    Args:
      num_outputs: K, channels of the logits.
      image_size: pixels, one number or (H, W), multiples of 16: sets the position grid.
      feature_size: channels at full size; doubled with every halving.
      hidden_size: width of a token, a multiple of num_heads.
      mlp_dim: width between the perceptron's layers.
      num_layers: transformer blocks.
      dropout: rate in the transformer; may be traced.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    image_size: int | tuple[int, int] = 512
    feature_size: int = 16
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    num_layers: int = 12
    dropout: Any = 0.2
    axis_name: str | None = None
    dtype: Any = None

    def _position(self, rows: int, columns: int):
        """The position embedding (rows, columns, E), resized where it was made for another grid."""
        size = self.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if any(side < PATCH or side % PATCH for side in size):
            raise InputError(f"config.model.image_size: got {size}; expected multiples of {PATCH}")
        own = (size[0] // PATCH, size[1] // PATCH, self.hidden_size)
        position = self.param("position", nn.initializers.normal(0.02), own, jnp.float32)
        wanted = (rows, columns, self.hidden_size)
        return position if own == wanted else jax.image.resize(position, wanted, "bilinear", False)

    def _tokens(self, image, train):
        """One token per patch, (N, rows, columns, E), with its position added."""
        n, height, width, channels = image.shape
        rows, columns = height // PATCH, width // PATCH
        shape = (PATCH, PATCH, channels, self.hidden_size)
        start = torch_uniform(PATCH * PATCH * channels)
        kernel = self.param("patch_kernel", start, shape)
        bias = self.param("patch_bias", start, shape[-1:])
        position = self._position(rows, columns)
        image, kernel, bias, position = nn.dtypes.promote_dtype(
            image, kernel, bias, position, dtype=self.dtype
        )
        patches = image.reshape(n, rows, PATCH, columns, PATCH, channels).swapaxes(2, 3)
        patches = patches.reshape(n, rows, columns, -1)
        tokens = matmul(patches, kernel.reshape(-1, self.hidden_size)) + bias + position
        return Dropout(self.dropout, self.axis_name)(tokens, train=train)

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"config.model.hidden_size: got {self.hidden_size}; expected a multiple of "
                f"num_heads ({self.num_heads})"
            )
        height, width = image.shape[1:3]
        image = pad_to_multiple(image, PATCH)
        shared = dict(axis_name=self.axis_name, dtype=self.dtype)

        grid = self._tokens(image, train)
        tokens = grid.reshape(grid.shape[0], -1, self.hidden_size)
        skips = {}
        for index in range(self.num_layers):
            block = TransformerBlock(
                self.num_heads, self.mlp_dim, self.dropout, name=f"block_{index}", **shared
            )
            tokens = block(tokens, train=train)
            for level in (2, 3, 4):  # a quarter, half and three quarters of the way
                if index == self.num_layers * (level - 1) // 4:
                    skips[level] = tokens.reshape(grid.shape)
        tokens = nn.LayerNorm(1e-5, self.dtype, use_fast_variance=False, name="norm")(tokens)

        features = {level: self.feature_size * 2 ** (level - 1) for level in (1, 2, 3, 4)}
        for level in skips:
            path = SkipPath(features[level], 5 - level, name=f"encoder_{level}", **shared)
            skips[level] = path(skips[level], train=train)
        skips[1] = ResidualBlock(features[1], name="encoder_1", **shared)(image, train=train)

        output = tokens.reshape(grid.shape)
        for level in (4, 3, 2, 1):
            decoder = Decoder(features[level], name=f"decoder_{level}", **shared)
            output = decoder(output, skips[level], train=train)
        out = Conv(self.num_outputs, kernel_size=1, padding=0, dtype=self.dtype, name="out")
        output = out(output)
        return at_least_float32(output[:, :height, :width])
