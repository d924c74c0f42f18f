"""Splitting of masks: component by component it gives what h-maxima of the whole image give."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction

from cellseg_jax.targets import geometry
from cellseg_jax.targets.geometry import peaks


def peaks_of_whole_image(height, mask, h):
    """The definition of `peaks`, in which every pixel of the image is sorted."""
    cross = ndimage.generate_binary_structure(2, 1)
    ground = np.min(height, where=mask, initial=0) - h - 1
    height = np.pad(np.where(mask, height, ground).astype(np.float64), 1, constant_values=ground)
    levelled = reconstruction(height - h, height, footprint=cross)
    return ndimage.label(local_maxima(levelled, connectivity=1)[1:-1, 1:-1] & mask)[0]


def random_mask(rng):
    noise = ndimage.gaussian_filter(rng.normal(size=rng.integers(1, 40, 2)), rng.uniform(0.3, 3))
    return noise > np.quantile(noise, rng.uniform(0, 1))


def distances(rng, mask):
    return ndimage.distance_transform_edt(mask)


def few_levels(rng, mask):
    """Ties everywhere, and heights that have nothing to do with the mask."""
    return rng.integers(-2, 3, mask.shape).astype(np.float32)


def smooth(rng, mask):
    return ndimage.gaussian_filter(rng.normal(size=mask.shape), 2).astype(np.float32)


@pytest.mark.parametrize("heights", [distances, few_levels, smooth])
@pytest.mark.parametrize("h", [0, 0.05, 1.0, 2.5])
def test_peaks_are_those_of_the_whole_image(heights, h):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        mask = random_mask(rng)
        height = heights(rng, mask)
        got = peaks(height, mask, h)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, peaks_of_whole_image(height, mask, h), err_msg=str(seed))


@pytest.mark.parametrize("mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool),
                                  np.ones((1, 1), bool)])
def test_peaks_of_flat_heights(mask):
    found = peaks(np.ones(mask.shape), mask, 1.0)
    np.testing.assert_array_equal(found, mask)  # all of it is one peak


@pytest.mark.parametrize("package", ["edt", None])
def test_distances_are_those_of_scipy(monkeypatch, package):
    if package:
        pytest.importorskip(package)
    else:
        monkeypatch.setattr(geometry, "edt", None)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mask = random_mask(rng)[:, ::-1]  # in another order in memory
        mask[rng.integers(len(mask)), rng.integers(len(mask[0]))] = False
        np.testing.assert_array_equal(
            geometry.background_distance(mask), ndimage.distance_transform_edt(mask))


@pytest.mark.parametrize("package", ["edt", None])
def test_a_mask_without_background_is_one_cell(monkeypatch, package):
    if not package:
        monkeypatch.setattr(geometry, "edt", None)
    assert (geometry.split_by_distance(np.ones((9, 30), bool)) == 1).all()
