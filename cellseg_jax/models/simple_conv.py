"""Report 1's "conv model": two 4x4 convolutions, then dense layers on single pixels.

In Keras' conventions (see small_unet). It sees 7x7 pixels, and scored SEG 0 in the report.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cellseg_jax.models.conv import Conv


class SimpleConv(nn.Module):
    """4x4 convolutions to 32 and 64 channels, dense layers of 32 and 64, all with ReLU, and K.

    Any height and width; no norm and no dropout, so that training is as evaluation.

    Args:
      num_outputs: K, channels of the logits.
      axis_name: not needed, since no layer looks over the batch.
      dtype: of the computation; None follows image and parameters.
    """

    num_outputs: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, image, *, train: bool):
        shared = dict(padding="same", dtype=self.dtype, weights_init="glorot")
        for index, (features, size) in enumerate(((32, 4), (64, 4), (32, 1), (64, 1))):
            image = nn.relu(Conv(features, size, name=f"conv_{index}", **shared)(image))
        logits = Conv(self.num_outputs, 1, name="out", **shared)(image)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
