"""FLOPs by a trace: against sums by hand, and against what XLA counts in the lowered network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax import models
from cellseg_jax.models import onednn
from cellseg_jax.models.conv import convolution, plain_convolution
from cellseg_jax.models.flops import forward_flops
from cellseg_jax.step import memory


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


def test_loops_over_tiles_count_as_the_convolution_they_are(monkeypatch):
    """XLA counts the first block of each loop alone. Its count leaves out what is padding."""
    monkeypatch.setattr(onednn, "usable", lambda *arrays: False)
    image, kernel = np.ones((2, 70, 33, 48), np.float32), np.ones((3, 3, 48, 50), np.float32)
    geometry = dict(stride=1, dilation=1, pads=((1, 1), (1, 1)))

    def step(form):
        return jax.value_and_grad(lambda x, k: form(x, k, **geometry).sum(), argnums=(0, 1))

    def count(form, *arrays):
        return memory.flops(jax.jit(form).lower(*arrays).compile())

    plain = count(step(plain_convolution), image, kernel)
    assert count(step(convolution), image, kernel) == pytest.approx(plain, rel=0.03)
    three = count(jax.vmap(step(convolution)), *(np.stack([x] * 3) for x in (image, kernel)))
    assert three == pytest.approx(3 * plain, rel=0.03)
    with onednn.disabled():  # as plans for GPUs count, before anything is compiled
        lowered = jax.jit(step(convolution)).lower(image, kernel)
    assert lowered.cost_analysis()["flops"] == pytest.approx(plain, rel=1e-3)
