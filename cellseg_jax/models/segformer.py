"""SegFormer: a transformer of four resolutions, and a decoder that only mixes channels.

Source: Xie et al., SegFormer, arXiv:2105.15203. The transformer baseline of this package, before
Swin UNETR: its decoder only mixes channels, so that its scores measure the encoder; B0 has
3.7 million parameters, the smallest Swin UNETR (24 features, two dimensions) 6.3; and it takes
images of any size as they are, since it has neither attention windows that must divide the
image nor a table of positions: the zero padding of its convolutions encodes positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError, pick
from cellseg_jax.models.conv import INITS, Conv, at_least_float32, vary_alike
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.linear import Dense, matmul
from cellseg_jax.models.norm import BatchNorm
from cellseg_jax.models.resample import pad_to_multiple

# Widths and blocks per stage, and the width of the decoder.
VARIANTS = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
}
HEADS = (1, 2, 5, 8)  # per stage
REDUCTIONS = (8, 4, 2, 1)  # per stage: pixels along a side of the map that share key and value
EXPANSION = 4  # of the perceptron between its layers


def depthwise(
    image: Float[ArrayLike, "n h w c"], kernel: Float[ArrayLike, "3 3 c"]
) -> Float[Array, "n h w c"]:
    """Every channel convolved with its own 3x3 kernel; as many pixels out as in.

    Nine shifted products: on a CPU a grouped convolution and its gradients take 7 to 13 times
    longer (2 images of 32x32 pixels with 128 channels, 8x8 with 640).

    Args:
      kernel: correlated with the image (not turned over).
    """
    # Replicated parameters become varying out here, so that autodiff sums their gradients.
    return _depthwise(*vary_alike(image, kernel))


def _shifted(image):
    """The nine images that a 3x3 kernel sees, row by row."""
    height, width = image.shape[1:3]
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, u : u + height, v : v + width] for u in range(3) for v in range(3)]


@jax.custom_vjp
def _depthwise(image, kernel):
    taps = kernel.reshape(9, -1)
    return sum(pixels * taps[i] for i, pixels in enumerate(_shifted(image)))


def _depthwise_backward(arrays, cotangent):
    """The gradient of the image in the same nine products; derived, it is nine padded images."""
    image, kernel = arrays
    # The barriers keep XLA from computing these within what reads them, again and again.
    cotangent = lax.optimization_barrier(cotangent)
    gradient = jnp.stack([(pixels * cotangent).sum((0, 1, 2)) for pixels in _shifted(image)])
    turned = _depthwise(cotangent, jnp.flip(kernel, (0, 1)))
    return lax.optimization_barrier(turned), gradient.reshape(kernel.shape)


_depthwise.defvjp(lambda *arrays: (_depthwise(*arrays), arrays), _depthwise_backward)


def resize_bilinear(
    image: Float[ArrayLike, "n h w c"], height: int, width: int
) -> Float[Array, "n {height} {width} c"]:
    """torch's interpolate(mode="bilinear", align_corners=False) to a larger or equal size."""
    n, *size, channels = image.shape
    if tuple(size) == (height, width):
        return image
    return jax.image.resize(image, (n, height, width, channels), "bilinear", antialias=False)


def _linear(features, dtype, name):
    start = nn.initializers.normal(0.02)
    return Dense(features, dtype=dtype, kernel_init=start, name=name)


def _norm(dtype, name):
    return nn.LayerNorm(1e-6, dtype, use_fast_variance=False, name=name)


def _patches(image, size: int):
    """Squares of size x size pixels, (N, ceil(H / size), ceil(W / size), size * size * C)."""
    image = pad_to_multiple(image, size)
    n, height, width, channels = image.shape
    image = image.reshape(n, height // size, size, width // size, size, channels).swapaxes(2, 3)
    return image.reshape(*image.shape[:3], size * size * channels)


class Attention(nn.Module):
    """Self-attention of all pixels of a map to a map `reduction` times smaller (section 3.1).

    A map whose sides do not divide is padded with zeros for keys and values alone; the authors'
    code leaves the rest of the pixels out.
    """

    num_heads: int
    reduction: int
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "n h w c"]) -> Float[Array, "n h w c"]:
        """The map after attention."""
        n, height, width, channels = image.shape
        shape = (n, -1, self.num_heads, channels // self.num_heads)
        query = _linear(channels, self.dtype, "query")(image).reshape(shape)
        if self.reduction > 1:
            image = _linear(channels, self.dtype, "reduce")(_patches(image, self.reduction))
            image = _norm(self.dtype, "norm")(image)
        both = _linear(2 * channels, self.dtype, "key_value")(image)
        key, value = (half.reshape(shape) for half in jnp.split(both, 2, axis=-1))
        scores = jnp.einsum("nphd,nqhd->nhpq", query, key) * query.shape[-1] ** -0.5
        scores = at_least_float32(scores)
        attention = jax.nn.softmax(scores).astype(value.dtype)
        mixed = jnp.einsum("nhpq,nqhd->nphd", attention, value)
        return _linear(channels, self.dtype, "project")(mixed.reshape(n, height, width, channels))


class MixPerceptron(nn.Module):
    """Two linear layers of every pixel, with a depthwise convolution between (Mix-FFN)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "n h w c"]) -> Float[Array, "n h w c"]:
        """The map after the perceptron."""
        channels = image.shape[-1]
        hidden = _linear(EXPANSION * channels, self.dtype, "expand")(image)
        start = nn.initializers.normal(math.sqrt(2 / 9))
        kernel = self.param("kernel", start, (3, 3, hidden.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, hidden.shape[-1:], jnp.float32)
        hidden, kernel, bias = nn.dtypes.promote_dtype(hidden, kernel, bias, dtype=self.dtype)
        hidden = jax.nn.gelu(depthwise(hidden, kernel) + bias, approximate=False)
        return _linear(channels, self.dtype, "contract")(hidden)


class Fuse(nn.Module):
    """The 1x1 convolution of maps that are resized to the size of the first and joined.

    Both act on other axes, so that each map is convolved at its own size and then resized: a
    third of the products, and the joined map is never made.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[ArrayLike, "n _ _ _"]]) -> Float[Array, "n h w k"]:
        """(N, H, W, features), H and W of the first map."""
        channels = [level.shape[-1] for level in maps]
        start, _ = INITS["kaiming"](sum(channels), self.features)
        kernel = self.param("kernel", start, (1, 1, sum(channels), self.features), jnp.float32)
        *maps, kernel = nn.dtypes.promote_dtype(*maps, kernel, dtype=self.dtype)
        parts = jnp.split(kernel[0, 0], np.cumsum(channels)[:-1])
        size = maps[0].shape[1:3]
        return sum(resize_bilinear(matmul(level, part), *size)
                   for level, part in zip(maps, parts, strict=True))


class SegFormer(nn.Module):
    """MiT encoder with maps at 1/4, 1/8, 1/16 and 1/32 of the size, and the all-MLP decoder.

    The logits, of a quarter of the size, are enlarged bilinearly. Any height and width.

    Args:
      num_outputs: K, channels of the logits.
      variant: b0, b1 or b2, the paper's.
      widths: channels of the four maps, multiples of 1, 2, 5 and 8 heads; empty is the variant's.
      depths: transformer blocks per map; empty is the variant's.
      decoder_width: channels of the decoder; 0 is the variant's.
      drop_path: rate at which an image skips the last block in training; it grows linearly from
        0 at the first.
      dropout: rate of whole channels before the last layer; may be traced.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    variant: str = "b0"
    widths: Sequence[int] = ()
    depths: Sequence[int] = ()
    decoder_width: int = 0
    drop_path: float = 0.1
    dropout: Any = 0.1
    axis_name: str | None = None
    dtype: Any = None

    def _sizes(self):
        widths, depths, decoder_width = pick(VARIANTS, self.variant, "config.model.variant")
        widths, depths = tuple(self.widths) or widths, tuple(self.depths) or depths
        if len(widths) != 4 or any(
            w < 1 or w % heads for w, heads in zip(widths, HEADS, strict=True)
        ):
            raise InputError(
                f"config.model.widths: got {widths}; expected four multiples of {HEADS}, the "
                "heads"
            )
        if len(depths) != 4 or min(depths) < 1:
            raise InputError(f"config.model.depths: got {depths}; expected four positive numbers")
        return widths, depths, self.decoder_width or decoder_width

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        widths, depths, decoder_width = self._sizes()
        n, height, width, _ = image.shape

        def drop(rate, shape):
            """Factors of 0 or 1 / (1 - rate), that dropout makes of ones."""
            ones = jnp.ones(shape, image.dtype)
            return Dropout(rate, self.axis_name)(ones, train=train)

        maps, passed = [], 0
        for stage in range(4):
            place = f"{stage}_embed"
            image = Conv(
                widths[stage], *((7, 4, 3) if stage == 0 else (3, 2, 1)), dtype=self.dtype,
                weights_init="kaiming", name=f"conv_{place}",
            )(image)
            image = _norm(self.dtype, f"norm_{place}")(image)
            for index in range(depths[stage]):
                place = f"{stage}_{index}"
                rate = self.drop_path * passed / max(sum(depths) - 1, 1)
                for kind, layer in (
                    ("attention", Attention(
                        HEADS[stage], REDUCTIONS[stage], self.dtype, name=f"attention_{place}")),
                    ("perceptron", MixPerceptron(self.dtype, name=f"perceptron_{place}")),
                ):
                    output = layer(_norm(self.dtype, f"norm_{kind}_{place}")(image))
                    image += output * drop(rate, (n, 1, 1, 1))
                passed += 1
            image = _norm(self.dtype, f"norm_{stage}")(image)
            maps.append(image)

        levels = [
            _linear(decoder_width, self.dtype, f"level_{stage}")(level)
            for stage, level in enumerate(maps)
        ]
        fused = Fuse(decoder_width, self.dtype, name="fuse")(levels)
        fused = nn.relu(
            BatchNorm(self.axis_name, dtype=self.dtype, name="norm_fuse")(fused, train=train)
        )
        fused *= drop(self.dropout, (n, 1, 1, decoder_width))
        logits = _linear(self.num_outputs, self.dtype, "out")(fused)
        logits = at_least_float32(logits)
        return resize_bilinear(logits, height, width)
