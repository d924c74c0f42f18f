"""The U-Net of 2015 and its descendants: two convolutions per level, pooling, upsampling, skips.

Source: Ronneberger, Fischer, Brox, arXiv:1505.04597. The options make the paper's network, those
of reports 2, 3 and 4, and, weight for weight, milesial's Pytorch-UNet and mateuszbuda's brain
U-Net (see interop).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.errors import InputError, pick
from cellseg_jax.models.conv import Conv, ConvTranspose, at_least_float32
from cellseg_jax.models.dropout import Dropout
from cellseg_jax.models.norm import BatchNorm, GroupNorm
from cellseg_jax.models.resample import max_pool, pad_to_multiple, stretch_by_one, upsample_bilinear

KINDS = ("batch", "instance", "group", "layer")
CHOICES = {
    "norm": ("none", *KINDS, *(f"double_{kind}" for kind in KINDS)),
    "skip": ("concat", "add", "none"),
    "padding": ("same", "valid"),
    "up": ("transposed", "bilinear"),
    "odd": ("pad_input", "pad_up", "resize_up"),
    "bias": ("auto", "always", "never"),
}


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with ReLU, to `middle` and then `features` channels.

    The other fields are those of UNetClassic.
    """

    features: int
    middle: int
    norm: str
    groups: int
    padding: str
    bias: str
    weights_init: str
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n _ _ {self.features}"]:
        """The image in `features` channels."""
        kind = self.norm.removeprefix("double_")
        use_bias = kind == "none" if self.bias == "auto" else self.bias == "always"
        for index, features in ((1, self.middle), (2, self.features)):
            normed = kind != "none" and (index == 2 or kind != self.norm)
            conv = Conv(
                features, padding=1 if self.padding == "same" else 0, use_bias=use_bias,
                dtype=self.dtype, weights_init=self.weights_init, name=f"conv_{index}",
            )
            # These two norms remove a bias again: see Conv.
            removed = train and normed and kind in ("batch", "instance")
            image = conv(image, bias_gradient=not removed)
            if normed:
                image = self._normalize(image, kind, f"norm_{index}", train)
            image = nn.relu(image)
        return image

    def _normalize(self, image, kind, name, train):
        if kind == "batch":
            return BatchNorm(self.axis_name, dtype=self.dtype, name=name)(image, train=train)
        groups = {"instance": 0, "group": self.groups, "layer": 1}[kind]
        return GroupNorm(groups, dtype=self.dtype, name=name)(image)


class UNetClassic(nn.Module):
    """U-Net with one level per entry of `channels`; a 2x2 max-pool lies between two levels.

    The paper's network: norm="none", padding="valid". Report 2's: every `norm`, `channels`,
    `weights_init` and `drop_skips`. Report 3's (milesial's): odd="pad_up", three or four
    poolings. Report 4's: odd="resize_up". The brain U-Net: channels=(32, 64, 128, 256, 512).

    Any height and width. With padding="valid" the image is mirrored at its borders until the
    logits cover all of it (the paper's overlap-tile strategy: 388 pixels need 572).

    Args:
      num_outputs: K, channels of the logits.
      channels: features per level, top first; the last are the bottom's.
      norm: none; or batch, instance, group or layer after the second convolution of each block;
        or double_batch, ... after both. Only batch differs between training and evaluation.
      groups: of group norm. Layer norm is one group: a whole image by itself.
      skip: concat (skip first), add, or none.
      drop_skips: levels without their skip, 0 at the top.
      padding: of the convolutions, same or valid.
      up: transposed, a 2x2 convolution that halves the channels; or bilinear, twice the size
        with corners aligned, where the block before halves them, as milesial's does.
      odd: where sizes do not divide by 2**poolings (padding="same"). pad_input: zeros below and
        to the right of the image. pad_up: the upsampled map gets zeros around it up to the size
        of its skip. resize_up: it is resized to it, bilinearly. The last two pad images below
        2**poolings to that.
      bias: of the 3x3 convolutions: auto is only without norm. Other layers always have one.
      weights_init: default (torch's), kaiming or glorot: uniform, zero bias. As in report 2,
        transposed convolutions keep torch's. Norms start as the identity.
      dropout: rate after the last block before the bottom and after the bottom ("at the end of
        the contracting path"); may be traced.
      axis_name: mesh axis that shares the batch, used in training.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    channels: Sequence[int] = (64, 128, 256, 512, 1024)
    norm: str = "double_batch"
    groups: int = 8
    skip: str = "concat"
    drop_skips: Sequence[int] = ()
    padding: str = "same"
    up: str = "transposed"
    odd: str = "pad_input"
    bias: str = "auto"
    weights_init: str = "default"
    dropout: Any = 0.0
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        self._check()
        *levels, bottom = self.channels
        height, width = image.shape[1:3]
        image = self._padded(image, len(levels))
        narrow = 2 if self.up == "bilinear" else 1  # bilinear has no weights to halve channels

        def block(image, features, name, middle=None):
            shared = {field: getattr(self, field) for field in (
                "norm", "groups", "padding", "bias", "weights_init", "axis_name", "dtype")}
            double = DoubleConv(features, middle or features, name=name, **shared)
            return double(image, train=train)

        def drop(image):
            return Dropout(self.dropout, self.axis_name)(image, train=train)

        skips = []
        for level, features in enumerate(levels):
            image = block(image, features, f"down_{level}")
            skips.append(image if level < len(levels) - 1 else drop(image))
            image = max_pool(skips[-1])
        image = drop(block(image, bottom // narrow, "bottom"))

        for level, features in reversed(list(enumerate(levels))):
            if self.up == "bilinear":
                image = upsample_bilinear(image)
            else:
                image = ConvTranspose(
                    features, kernel_size=2, padding=0, output_padding=0, dtype=self.dtype,
                    name=f"up_{level}",
                )(image)
            image = self._merge(image, skips[level], level)
            out = features if level == 0 else features // narrow
            image = block(image, out, f"merge_{level}", middle=features)
        conv = Conv(
            self.num_outputs, kernel_size=1, padding=0, dtype=self.dtype,
            weights_init=self.weights_init, name="out",
        )
        logits = conv(image)[:, :height, :width]
        return at_least_float32(logits)

    def _check(self):
        for field, choices in CHOICES.items():
            pick(dict.fromkeys(choices), getattr(self, field), f"config.model.{field}")
        levels = len(self.channels) - 1
        if levels < 1:
            raise InputError(
                f"config.model.channels: got {tuple(self.channels)}; expected at least two levels"
            )
        if not set(self.drop_skips) <= set(range(levels)):
            raise InputError(
                f"config.model.drop_skips: got {tuple(self.drop_skips)}; expected levels from 0 "
                f"(top) to {levels - 1}"
            )

    def _padded(self, image, poolings):
        """The image, padded as far as its size and the options need it."""
        stride = 2**poolings
        if self.padding == "valid":
            margin = 6 * stride - 4  # pixels that the convolutions remove at every side
            sizes = image.shape[1:3]
            covers = [4 + stride * max(0, -(-(size - 4) // stride)) for size in sizes]
            pads = [
                (margin, margin + cover - size)
                for cover, size in zip(covers, sizes, strict=True)
            ]
            return jnp.pad(image, ((0, 0), *pads, (0, 0)), mode="reflect")
        if self.odd == "pad_input":
            return pad_to_multiple(image, stride)
        high = [max(0, stride - size) for size in image.shape[1:3]]
        return jnp.pad(image, ((0, 0), (0, high[0]), (0, high[1]), (0, 0)))

    def _merge(self, image, skip, level):
        """The upsampled map and its skip brought to one size and joined."""
        if self.padding == "valid":
            sizes = zip(skip.shape[1:3], image.shape[1:3], strict=True)
            top, left = ((s - i) // 2 for s, i in sizes)
            skip = skip[:, top : top + image.shape[1], left : left + image.shape[2]]
        missing = [s - i for s, i in zip(skip.shape[1:3], image.shape[1:3], strict=True)]
        if self.odd == "resize_up":
            for axis in (1, 2):
                image = stretch_by_one(image, axis) if missing[axis - 1] else image
        elif any(missing):
            pads = [(size // 2, size - size // 2) for size in missing]
            image = jnp.pad(image, ((0, 0), *pads, (0, 0)))
        if self.skip == "none" or level in self.drop_skips:
            return image
        if self.skip == "concat":
            return jnp.concatenate([skip, image], axis=-1)
        if skip.shape != image.shape:
            raise InputError(
                f"config.model.skip: got 'add' for {image.shape[-1]} and {skip.shape[-1]} "
                "channels; expected channels that double at every level, or up='transposed'"
            )
        return skip + image
