"""Normalisation: hand values, channels that say nothing, numpy and jax agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax.normalize import normalize


def random_batch(dtype=np.uint16):
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (3, 5, 4, 2)).astype(dtype)
    low = rng.integers(0, 50, (3, 2, 1))
    return image, np.concatenate([low, low + 100], -1).astype(np.float32)


def test_normalize_equals_hand_value():
    image = np.array([10, 15, 20, 30], np.uint8).reshape(1, 4, 1)
    out = normalize(image, np.array([[10.0, 20.0]], np.float32), np.float32)
    np.testing.assert_array_equal(out.ravel(), [0, 0.5, 1, 2])  # not clipped


def test_normalize_each_image_and_channel_by_its_own_range():
    image, range_ = random_batch()
    out = normalize(image, range_, np.float32)
    for n, c in np.ndindex(3, 2):
        alone = normalize(image[n, ..., c : c + 1], range_[n, c : c + 1], np.float32)
        np.testing.assert_array_equal(out[n, ..., c], alone[..., 0])


@pytest.mark.parametrize("high", [7.0, 3.0])
def test_normalize_is_zero_without_a_range(high):
    image, range_ = np.full((2, 2, 1), 7, np.uint8), np.array([[7.0, high]], np.float32)
    np.testing.assert_array_equal(normalize(image, range_, np.float32), 0)


@pytest.mark.parametrize("pixel", [np.uint8, np.uint16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_same_in_numpy_and_under_jit_and_vmap(pixel, dtype):
    image, range_ = random_batch(pixel)
    host = normalize(image, range_, dtype)
    assert isinstance(host, np.ndarray) and host.dtype == dtype
    device = jax.jit(normalize, static_argnums=2)(image, range_, dtype)
    assert device.dtype == dtype
    np.testing.assert_array_equal(device, host)
    each = jax.vmap(lambda image, range_: normalize(image, range_, dtype))
    np.testing.assert_array_equal(each(image, range_), host)


def test_normalize_rejects_a_range_of_another_image():
    image, range_ = random_batch()
    with pytest.raises(ValueError, match="expected"):
        normalize(image, range_[0], np.float32)
