"""models/kernel_gradient.py against the gradients that JAX derives, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax.models import kernel_gradient
from cellseg_jax.models.conv import plain_convolution

CASES = {  # sizes of image and kernel, stride, pads
    "3x3": ((9, 8), (3, 3, 4, 5), 1, ((1, 1), (1, 1))),
    "no pads": ((9, 8), (3, 3, 4, 5), 1, ((0, 0), (0, 0))),
    "4x4": ((13, 8), (4, 4, 3, 5), 1, ((1, 2), (1, 2))),
    "5x2 one channel": ((17, 6), (5, 2, 1, 7), 1, ((0, 4), (2, 0))),
    "stride 2": ((15, 11), (3, 3, 4, 5), 2, ((1, 1), (1, 1))),
    "stride 2 of 6x4": ((16, 12), (6, 4, 3, 2), 2, ((2, 2), (1, 1))),
    "stride 3 of 4x7": ((20, 19), (4, 7, 2, 3), 3, ((1, 2), (3, 3))),
    "stride beyond kernel": ((11, 10), (2, 2, 3, 4), 3, ((0, 0), (0, 0))),
    "cut": ((9, 8), (3, 3, 4, 5), 1, ((-1, 1), (1, -2))),
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arrays(case, *leading):
    size, shape, stride, pads = CASES[case]
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(*leading, 2, *size, shape[2])), np.zeros(shape)
    single = image[(0,) * len(leading)]
    out = plain_convolution(single, kernel, stride, 1, pads).shape
    return *map(jnp.asarray, (image, rng.normal(size=(*leading, *out)))), kernel


def derived(image, cotangent, kernel, stride, pads):
    form = lambda kernel: plain_convolution(image, kernel, stride, 1, pads)
    return jax.vjp(form, kernel)[1](cotangent)[0]


@pytest.mark.parametrize("bytes_of_block", [2000, 2**21])
@pytest.mark.parametrize("case", CASES)
def test_shifts_are_what_jax_derives(case, bytes_of_block, monkeypatch):
    """For blocks of some rows, and whole images."""
    monkeypatch.setattr(kernel_gradient, "BLOCK_BYTES", bytes_of_block)
    _, shape, stride, pads = CASES[case]
    image, cotangent, kernel = arrays(case)
    got = kernel_gradient.by_shifts(image, cotangent, shape[:2], stride, pads)
    want = derived(image, cotangent, kernel, stride, pads)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["4x4", "stride 2"])
def test_shifts_of_members(case):
    _, shape, stride, pads = CASES[case]
    images, cotangents, kernel = arrays(case, 3)
    form = lambda x, y: kernel_gradient.by_shifts(x, y, shape[:2], stride, pads)
    want = [derived(x, y, kernel, stride, pads)
            for x, y in zip(images, cotangents, strict=True)]
    got = jax.jit(jax.vmap(form))(images, cotangents)
    np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-10, atol=1e-10)


def test_loops_count_as_the_products_of_a_convolution(monkeypatch):
    monkeypatch.setattr(kernel_gradient, "BLOCK_BYTES", 2**17)
    image, cotangent = (jnp.ones((2, 70, 33, n), jnp.float32) for n in (24, 32))
    form = lambda x, y: kernel_gradient.by_shifts(x, y, (3, 3), 1, ((1, 1), (1, 1)))
    convolution = 2 * cotangent.size * 9 * 24

    def counted(form, *arrays):
        compiled = jax.jit(form).lower(*arrays).compile()
        return compiled.cost_analysis()["flops"] + kernel_gradient.flops(compiled.as_text())

    assert counted(form, image, cotangent) == pytest.approx(convolution, rel=0.05)
    three = counted(jax.vmap(form), *(jnp.stack([x] * 3) for x in (image, cotangent)))
    assert three == pytest.approx(3 * convolution, rel=0.05)
