import fractions

import numpy as np
import pytest

from cellseg_jax.data import resize
from cellseg_jax.data.resize import (
    center_crop,
    resize_image,
    resize_label,
    resize_rows,
    rows_needed,
)
from cellseg_jax.errors import InputError

SIZES = [((7, 9), (5, 13)), ((8, 8), (4, 4)), ((5, 6), (15, 12)), ((1, 4), (3, 2)),
         ((6, 5), (6, 5))]


def slow_resize(image, size):
    out = np.zeros((*size, image.shape[-1]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * image.shape[0] / size[0] - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * image.shape[1] / size[1] - 0.5, 0), image.shape[1] - 1)
            for yy in range(image.shape[0]):
                for xx in range(image.shape[1]):
                    out[i, j] += image[yy, xx] * max(0, 1 - abs(y - yy)) * max(0, 1 - abs(x - xx))
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape, size", SIZES)
def test_resize_image_matches_slow_reference(shape, size, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*shape, 3), dtype)
    resized = resize_image(image, size)
    assert resized.dtype == dtype and resized.shape == (*size, 3)
    # Rounding to integers plus float32 rounding of 16-bit values.
    np.testing.assert_allclose(resized, slow_resize(image, size), atol=0.51)


@pytest.mark.parity
@pytest.mark.parametrize("shape, size", SIZES + [((256, 320), (128, 128)), ((37, 64), (512, 512))])
def test_resize_matches_torch(shape, size):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    image = rng.random((*shape, 3), np.float32)
    label = rng.integers(0, 400, shape).astype(np.int32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(np.moveaxis(image, -1, 0)[None]), size=size, mode="bilinear",
        align_corners=False)[0]
    np.testing.assert_allclose(
        resize_image(image, size), np.moveaxis(expected.numpy(), 0, -1), atol=3e-6)
    expected = torch.nn.functional.interpolate(
        torch.tensor(label[None, None]).float(), size=size, mode="nearest-exact")[0, 0]
    np.testing.assert_array_equal(resize_label(label, size), expected.numpy())


def test_resize_keeps_image_and_label_aligned():
    yy, xx = np.mgrid[:256, :320]
    label = ((yy - 120.3) ** 2 + (xx - 170.8) ** 2 < 60**2).astype(np.int32)
    image = (label * 200).astype(np.uint8)[..., None]
    for size in ((127, 129), (512, 512)):  # an exact half ties between pixels: 1/4 pixel off
        centre = [np.mean(np.nonzero(mask), axis=1) for mask in (
            resize_image(image, size)[..., 0] > 100, resize_label(label, size))]
        np.testing.assert_allclose(*centre, atol=0.1)


def test_resize_label_is_exact_where_a_centre_lies_between_two_pixels():
    for old, new in ((2, 49), (64, 103), (84, 554), (320, 134), (480, 22), (696, 642)):
        label = np.arange(old, dtype=np.int32)[None]
        expected = [fractions.Fraction((2 * i + 1) * old, 2 * new).__floor__() for i in range(new)]
        assert resize_label(label, (1, new))[0].tolist() == expected, (old, new)


def test_resize_label_invents_no_values():
    label = np.random.default_rng(0).choice([0, 7, 1000], (31, 45)).astype(np.int32)
    assert set(np.unique(resize_label(label, (64, 64)))) <= {0, 7, 1000}


def test_center_crop_equals_hand_value():
    label = np.arange(42).reshape(6, 7)
    image, cropped = center_crop(label[..., None], label, (2, 3), "a")
    assert cropped.tolist() == [[16, 17, 18], [23, 24, 25]]
    np.testing.assert_array_equal(image[..., 0], cropped)


def test_center_crop_rejects_small_image():
    image = np.zeros((6, 7, 1), np.uint8)
    with pytest.raises(InputError, match="config.data.size: 8x4 is larger than image a1 of 6x7"):
        center_crop(image, image[..., 0], (8, 4), "a1")


@pytest.mark.parametrize("size", [(32, 32), (10, 200), (61, 20), (120, 90)])
def test_rows_of_a_resized_image_need_a_band_of_it(size, monkeypatch):
    image = np.random.default_rng(0).integers(0, 2**16, (61, 47, 2)).astype(np.uint16)
    whole = resize_image(image, size)
    for rows in ((0, 3), (2, size[0]), (size[0] - 1, size[0])):
        start, stop = rows_needed(rows, size[0], 61)
        band = resize_rows(image[start:stop], size, rows, 61, start)
        np.testing.assert_array_equal(band, whole[slice(*rows)])
    monkeypatch.setattr(resize, "BAND_PIXELS", 7 * size[1])  # as a large image is resized
    np.testing.assert_array_equal(resize_image(image, size), whole)
