"""FLOPs by a trace: against sums by hand, and against what XLA counts in the lowered network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cellseg_jax import models
from cellseg_jax.models import onednn
from cellseg_jax.models.flops import forward_flops


class Parts(nn.Module):
    """A strided and a transposed convolution, and a product, scanned over five rows."""

    @nn.compact
    def __call__(self, image, train):
        down = nn.Conv(6, (3, 3), (2, 2), use_bias=False)(image)
        up = nn.ConvTranspose(4, (2, 2), (2, 2), use_bias=False)(down)
        rows = jnp.ones((5, 7))
        matrix = self.param("matrix", nn.initializers.ones, (7, 7))
        _, summed = jax.lax.scan(lambda carry, row: (carry, row @ matrix), 0.0, rows)
        return up.sum() + summed.sum()


def test_parts_are_counted_as_by_hand():
    down = 2 * (8 * 10) * 6 * (3 * 3 * 2)
    up = 2 * (16 * 20) * 4 * (2 * 2 * 6) / 4
    product = 5 * 2 * 7 * 7
    assert forward_flops(Parts(), (16, 20, 2)) == down + up + product


SLOW = ("medt", "segformer", "unet_plan", "unetr")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in sorted(models.MODELS)])
def test_networks_have_about_what_xla_counts(name):
    """XLA leaves out products with padding and counts norms and activations."""
    options = {"image_size": (64, 64)} if "image_size" in models.options(name) else {}
    module = models.make(name, num_outputs=2, **options)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    with onednn.disabled():
        lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, image)
    counted = lowered.cost_analysis()["flops"]
    found = forward_flops(module, (64, 64, 3))
    assert 0.7 < found / counted < 1.3
