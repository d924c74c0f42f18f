"""Report 1's "conv model": two 4x4 convolutions, then dense layers on single pixels.

In Keras' conventions (see small_unet). Its receptive field is 7x7 pixels; the report gives SEG 0.
"""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from cellseg_jax.models.conv import Conv, at_least_float32


class SimpleConv(nn.Module):
    """4x4 convolutions to 32 and 64 channels, dense layers of 32 and 64, all with ReLU, and K.

    Any height and width; no norm and no dropout, so that training and evaluation are equal.

    Args:
      num_outputs: K, channels of the logits.
      axis_name: not used, since no layer depends on the whole batch.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[ArrayLike, "n h w c"], *, train: bool
    ) -> Float[Array, "n h w {self.num_outputs}"]:
        """Logits of images, float32 or wider."""
        shared = dict(padding="same", dtype=self.dtype, weights_init="glorot")
        for index, (features, size) in enumerate(((32, 4), (64, 4), (32, 1), (64, 1))):
            image = nn.relu(Conv(features, size, name=f"conv_{index}", **shared)(image))
        logits = Conv(self.num_outputs, 1, name="out", **shared)(image)
        return at_least_float32(logits)
