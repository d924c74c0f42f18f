"""nnU-Net's residual encoder U-Net (ResEnc), with stages that follow from the image size.

Sources: Isensee et al., nnU-Net, Nature Methods 2021; Isensee et al., nnU-Net Revisited,
arXiv:2404.09556 (the ResEnc presets); He et al., Bag of Tricks, arXiv:1812.01187 (the pooled
skips of its blocks). Differences from nnU-Net: convolutions before a norm have no bias, which
instance norm would remove; weights are initialised uniformly, not normally, with He's variance;
every norm starts as the identity, where nnU-Net starts the last norm of a block with scale 0; and
the coarsest supervised logits, whose weight is 0, are not computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError
from cellseg_jax.models.conv import Conv, ConvTranspose, at_least_float32
from cellseg_jax.models.norm import GroupNorm, leaky_relu
from cellseg_jax.models.resample import pad_to_multiple

SMALLEST_MAP = 4  # pixels along the shorter side of the last feature map


class Stage(NamedTuple):
    """One resolution of the encoder."""

    features: int
    blocks: int


def encoder_stages(image_size, *, base: int = 32, max_features: int = 512) -> tuple[Stage, ...]:
    """The stages of the encoder for images of this size, top first; each halves the size.

    As nnU-Net: the size is halved (odd ones upwards) while the map is at least 8 pixels, so that
    at least 4 stay; features double up to max_features; 1, 3, 4, 6, 6, ... residual blocks. Of
    nnU-Net's planning (Isensee 2021, Methods; its ResEnc planner) this leaves out all that
    follows from the memory of a GPU and from the data's resolution: patch and batch size are the
    run's own, pixels are square, and both sides are halved together, where nnU-Net goes on along
    the longer side of oblong images by itself.

    Args:
      image_size: pixels, one number or (H, W), at least 8.
      base: features of the first stage.
    Returns: one Stage per resolution.
    Raises: InputError for smaller images.
    """
    sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    shorter, depth = min(sides), 1
    if shorter < 2 * SMALLEST_MAP:
        raise InputError(
            f"config.model.image_size: got {image_size}; expected at least {2 * SMALLEST_MAP} "
            "pixels to plan from (a run takes those of data.size), or set features_per_stage"
        )
    while shorter >= 2 * SMALLEST_MAP:
        shorter, depth = -(-shorter // 2), depth + 1
    return tuple(Stage(min(base * 2**k, max_features), _blocks(k)) for k in range(depth))


def _blocks(level: int) -> int:
    return (1, 3, 4, 6)[min(level, 3)]


class ConvNorm(nn.Module):
    """Convolution and instance norm, without an activation."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "n h w c"]) -> Float[Array, "n _ _ {self.features}"]:
        """The image in `features` channels, its size divided by the stride."""
        image = Conv(
            self.features, self.kernel_size, self.stride, self.kernel_size // 2, use_bias=False,
            dtype=self.dtype, weights_init="kaiming", name="conv",
        )(image)
        return GroupNorm(dtype=self.dtype, name="norm")(image)


class ResidualBlock(nn.Module):
    """Two convolutions, plus the input, average-pooled and 1x1 convolved to the same shape."""

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[ArrayLike, "n h w c"]) -> Float[Array, "n _ _ {self.features}"]:
        """The image in `features` channels, its size divided by the stride."""
        skip = image if self.stride == 1 else nn.avg_pool(image, (2, 2), (2, 2))
        if image.shape[-1] != self.features:
            skip = ConvNorm(self.features, kernel_size=1, dtype=self.dtype, name="skip")(skip)
        image = ConvNorm(self.features, stride=self.stride, dtype=self.dtype, name="conv_1")(image)
        image = ConvNorm(self.features, dtype=self.dtype, name="conv_2")(leaky_relu(image))
        return leaky_relu(image + skip)


class ResEncUNet(nn.Module):
    """U-Net with a residual encoder and one convolution per level of the decoder.

    With deep_supervision, training sows coarse logits, (N, ceil(H / s), ceil(W / s), K) with
    s = 2, 4, ..., under "deep_supervision" in `intermediates`, a tuple with the finest first, of
    all levels but the lowest two. Their targets and weights are `losses.coarse` and
    `losses.supervision_weights`.

    Any height and width: the image is padded with zeros below and to the right to a multiple of
    the total stride, and the logits are cropped back.

    Args:
      num_outputs: K, channels of the logits.
      image_size: pixels, one number or (H, W), from which `encoder_stages` derives the stages; 0
        in a config stands for the size in training.
      features_per_stage: top first; empty is that of `encoder_stages`.
      blocks_per_stage: residual blocks; empty is nnU-Net's 1, 3, 4, 6, 6, ...
      deep_supervision: whether there are coarse logits.
      axis_name: not used: every image is normalised by itself.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    image_size: int | tuple[int, int] = 0
    features_per_stage: Sequence[int] = ()
    blocks_per_stage: Sequence[int] = ()
    deep_supervision: bool = True
    axis_name: str | None = None
    dtype: Any = None

    def _stages(self) -> tuple[Stage, ...]:
        """The stages of `encoder_stages`, except where an option sets them."""
        features = tuple(self.features_per_stage)
        features = features or tuple(stage.features for stage in encoder_stages(self.image_size))
        blocks = tuple(self.blocks_per_stage) or tuple(map(_blocks, range(len(features))))
        if len(features) < 2 or len(blocks) != len(features) or min(features + blocks) < 1:
            raise InputError(
                f"config.model: got features_per_stage {features} and blocks_per_stage {blocks}; "
                "expected as many of both, at least two, all positive"
            )
        return tuple(map(Stage, features, blocks))

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        del train  # instance norm does the same in both, and there is no dropout
        stages = self._stages()
        height, width = image.shape[1:3]
        image = pad_to_multiple(image, 2 ** (len(stages) - 1))

        image = leaky_relu(ConvNorm(stages[0].features, dtype=self.dtype, name="stem")(image))
        skips = []
        for level, (features, blocks) in enumerate(stages):
            for index in range(blocks):
                stride = 2 if level > 0 and index == 0 else 1
                block = ResidualBlock(features, stride, self.dtype, name=f"down_{level}_{index}")
                image = block(image)
            skips.append(image)

        logits = {}
        for level, (features, _) in reversed(list(enumerate(stages[:-1]))):
            up = ConvTranspose(
                features, kernel_size=2, padding=0, output_padding=0, dtype=self.dtype,
                weights_init="kaiming", name=f"up_{level}",
            )
            image = jnp.concatenate([up(image), skips[level]], axis=-1)
            image = leaky_relu(ConvNorm(features, dtype=self.dtype, name=f"merge_{level}")(image))
            if level == 0 or (self.deep_supervision and level < len(stages) - 2):
                out = Conv(
                    self.num_outputs, kernel_size=1, padding=0, dtype=self.dtype,
                    weights_init="kaiming", name=f"out_{level}",
                )(image)
                out = out[:, : -(-height // 2**level), : -(-width // 2**level)]
                logits[level] = at_least_float32(out)
        for level in sorted(logits)[1:]:
            self.sow("intermediates", "deep_supervision", logits[level])
        return logits[0]
