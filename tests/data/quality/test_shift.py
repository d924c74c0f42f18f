"""Masks that were moved against their images are found, others are left alone."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cellseg_jax import config as config_lib
from cellseg_jax.data.quality import shift
from cellseg_jax.data.quality.examine import examine


def pair(seed, blur=1.0):
    """A noisy image of round cells, not all equally bright, and their label."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :96]
    label = np.zeros((80, 96), np.int32)
    for n, (cy, cx) in enumerate(rng.uniform(8, (72, 88), (9, 2)), 1):
        label[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(5, 9) ** 2] = n
    bright = np.append(20, rng.uniform(60, 200, 9))[label]
    image = ndimage.gaussian_filter(bright, blur) + rng.normal(0, 8, label.shape)
    return np.clip(image, 0, 255).astype(np.uint8)[..., None], label


def found(moved, images=12, **options):
    pairs = [pair(seed, **options) for seed in range(images)]
    return shift.of_shifts([shift.border_gradients(image, np.roll(label, moved, (0, 1)))
                            for image, label in pairs])


@pytest.mark.parametrize("moved", [(1, 1), (2, 1), (0, -1), (-3, 2)])
def test_moved_masks_are_found_with_their_shift(moved):
    note, = found(moved)
    assert note.level == "warning"
    assert f"moved by {-moved[0]:+d} rows and {-moved[1]:+d} columns" in note.what


def test_masks_in_their_place_are_left_alone():
    for blur in (0.5, 1, 2):
        assert found((0, 0), blur=blur) == []
    assert found((1, 1), images=9) == []  # too few to say


def test_masks_that_are_drawn_too_large_or_without_edges_say_nothing():
    pairs = [pair(seed) for seed in range(12)]
    grown = [shift.border_gradients(image, ndimage.grey_dilation(label, (5, 5)))
             for image, label in pairs]
    assert shift.of_shifts(grown) == []
    rng = np.random.default_rng(0)
    noise = [shift.border_gradients(rng.integers(0, 255, (80, 96, 1), np.uint8), label)
             for _, label in pairs]
    assert shift.of_shifts(noise) == []


def test_little_to_see_gives_nothing():
    image, label = pair(0)
    assert shift.border_gradients(image * 0, label) is None
    assert shift.border_gradients(image, label * 0) is None
    assert shift.border_gradients(image[:5], label[:5]) is None


def test_the_doctor_says_it(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for seed in range(12):
        image, label = pair(seed)
        Image.fromarray(image[..., 0]).save(tmp_path / f"images/{seed}.png")
        Image.fromarray(np.roll(label, (2, 1), (0, 1)).astype(np.uint8)).save(
            tmp_path / f"masks/{seed}.png")
    config = config_lib.changed(config_lib.default(), {
        "data.name": "folder", "data.root": str(tmp_path), "data.channels": "gray"})
    said = [finding.what for finding in examine(config.data).findings]
    assert any("moved by -2 rows and -1 columns" in what for what in said), said
