import numpy as np
import pytest

from cellseg_jax.errors import InputError
from cellseg_jax.normalize import RANGES, band_ranges, image_ranges, range_of
from cellseg_jax.normalize import normalize as normalize_


@pytest.fixture(params=[np.uint8, np.uint16])
def image(request):
    rng = np.random.default_rng(0)
    image = rng.integers(3, 200, (20, 30, 4)).astype(request.param)
    image[0, 0, 0], image[1, 1, 2] = 3, 201
    image[..., 3] = np.iinfo(image.dtype).max
    return image


def test_image_ranges_equal_definitions(image):
    high = np.iinfo(image.dtype).max
    assert image_ranges(image, "minmax").tolist() == [[3, 201]] * 3 + [[0, high]]
    assert image_ranges(image, "minmax_joint").tolist() == [[3, high]] * 4
    assert image_ranges(image, "dtype").tolist() == [[0, high]] * 4
    ordered = np.sort(image[..., :3].ravel())
    low, top = image_ranges(image, "percentile")[0]
    assert np.mean(ordered < low) == pytest.approx(0.01, abs=0.01)
    assert np.mean(ordered <= top) == pytest.approx(0.998, abs=0.006)
    assert image_ranges(image, "percentile")[3].tolist() == [0, high]


@pytest.mark.parametrize("normalize", RANGES)
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_image_ranges_shape(image, normalize, num_channels):
    ranges = image_ranges(image[..., :num_channels], normalize)
    assert ranges.shape == (num_channels, 2) and ranges.dtype == np.float32


def test_image_ranges_keep_constant_image():
    image = np.full((4, 5, 1), 9, np.uint8)
    for normalize in ("minmax", "minmax_joint", "percentile"):
        assert image_ranges(image, normalize).tolist() == [[9, 9]]


def test_image_ranges_reject_unknown_name():
    with pytest.raises(InputError, match="config.data.normalize: got 'min_max'.*mean minmax"):
        image_ranges(np.zeros((4, 5, 1), np.uint8), "min_max")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("normalize", list(RANGES))
def test_ranges_of_bands_equal_those_of_the_whole(normalize, dtype):
    rng = np.random.default_rng(3)
    image = (rng.random((61, 23, 4)) ** 3 * 255).astype(dtype)
    whole = image_ranges(image, normalize)
    bands = band_ranges(iter(np.split(image, [7, 8, 40])), 4, image.dtype, normalize)
    np.testing.assert_array_equal(whole, bands)
    if normalize == "percentile":
        expected = np.percentile(image[..., :3], (1, 99.8)).astype(np.float32)
        np.testing.assert_array_equal(whole[:3], np.broadcast_to(expected, (3, 2)))


def test_symmetric_ranges_bring_pixels_to_between_minus_one_and_one():
    """Report 2's norm_input, (x - 0.5) / 0.5 of pixels in [0, 1]."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    made = normalize_(image, image_ranges(image, "symmetric"), np.float32)
    np.testing.assert_allclose(made, (image / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_percentiles_are_those_asked_for_and_do_not_clip(dtype):
    image = (np.random.default_rng(5).random((40, 31, 1)) ** 2 * 250).astype(dtype)
    found = image_ranges(image, "percentile", (20, 90.5))
    np.testing.assert_allclose(found[0], np.percentile(image, (20, 90.5)), rtol=1e-6)
    bands = band_ranges(iter(np.split(image, [7, 30])), 1, image.dtype, "percentile", (20, 90.5))
    np.testing.assert_array_equal(bands, found)
    made = normalize_(image, found, np.float32)
    assert made.min() < 0 and made.max() > 1
    expected = (image - found[0, 0]) / (found[0, 1] - found[0, 0])  # csbdeep.utils.normalize
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert "percentiles 20 and 90.5" in range_of("percentile", (20, 90.5)).words
    assert (image_ranges(image, "minmax", (20, 90.5)) == image_ranges(image, "minmax")).all()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("count", [2, 4, 5])
def test_stains_have_a_range_each_in_bands_too(name, count):
    rng = np.random.default_rng(0)
    image = np.stack([rng.integers(c, 50 * (c + 1), (40, 30)) for c in range(count)], -1)
    image = image.astype(np.uint16)
    whole = image_ranges(image, name, (2, 95), each=True)
    alone = [image_ranges(image[..., c : c + 1], name, (2, 95))[0] for c in range(count)]
    np.testing.assert_array_equal(whole, alone)
    bands = iter(np.split(image, [7, 8, 33]))
    np.testing.assert_array_equal(
        band_ranges(bands, count, image.dtype, name, (2, 95), each=True), whole)
