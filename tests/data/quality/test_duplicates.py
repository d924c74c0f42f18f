import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from cellseg_jax.data.quality import duplicates
from cellseg_jax.data.quality.duplicates import (
    FINE,
    MIN_COMMON,
    Pair,
    fingerprints,
    near_duplicates,
)
from cellseg_jax.data.read import read_image


def cells(seed, size=(72, 90), channels=3):
    """(H, W, C) uint8, blobs on a dark ground."""
    rng = np.random.default_rng(seed)
    blobs = gaussian_filter((rng.random(size) < 0.01).astype(float), 3)
    shades = rng.uniform(0.6, 1, channels)
    return np.clip(8 + 150 * blobs[..., None] / blobs.max() * shades, 0, 255).astype(np.uint8)


IMAGES = [cells(seed) for seed in range(18)]
GENERATOR = np.random.default_rng(0)
COPIES = {
    "exact": lambda image: image,
    "noise": lambda image: image + GENERATOR.integers(0, 6, image.shape).astype(np.uint8),
    "brighter": lambda image: image + np.uint8(60),
    "low contrast": lambda image: (image * 0.4 + 50).astype(np.uint8),
    "16 bit": lambda image: image.astype(np.uint16) * 257,
    "gray": lambda image: image.mean(-1, keepdims=True).astype(np.uint8),
    "half size": lambda image: image[::2, ::2],
    "turned": lambda image: np.rot90(image),
    "flipped and turned": lambda image: np.rot90(image[::-1], 3),
}


def test_near_duplicates_looks_at_the_last_channel_unless_it_is_alpha():
    last = [image[..., :1] for image in IMAGES]
    same = [np.concatenate([IMAGES[0], one], -1) for one in last]
    assert len(near_duplicates(same, alpha=True)) == 18 * 17 // 2
    only = [np.concatenate([np.full_like(IMAGES[0], 9), one], -1) for one in [*last, last[7]]]
    assert [pair[:2] for pair in near_duplicates(only)] == [(7, 18)]
    assert near_duplicates(only, alpha=True) == []


@pytest.mark.parametrize("copy", COPIES)
def test_near_duplicates_finds_a_copy_and_nothing_else(copy):
    images = [*IMAGES, COPIES[copy](IMAGES[7])]
    [pair] = near_duplicates(images)
    assert (pair.first, pair.second) == (7, 18) and 0.9 < pair.similarity <= 1


def test_near_duplicates_turned_only_where_asked():
    images = [*IMAGES, IMAGES[3][:, ::-1]]
    assert len(near_duplicates(images)) == 1
    assert near_duplicates(images, symmetries=False) == []


def test_near_duplicates_equals_slow_comparison_over_blocks(monkeypatch):
    """All pairs in all symmetries at full thumbnails, one after the other."""
    rng = np.random.default_rng(1)
    images = [np.clip(IMAGES[i % 9] + rng.normal(0, 12, IMAGES[0].shape), 0, 255).astype(np.uint8)
              for i in range(14)]
    prints = fingerprints(images)
    slow = {}
    for i in range(14):
        for j in range(i + 1, 14):
            turned = [np.rot90(p, k) for k in range(4) for p in (prints[j], prints[j].T)]
            slow[i, j] = max(float((prints[i] * t).sum()) for t in turned)
    expected = {k: v for k, v in slow.items() if v >= 0.7}
    assert 0 < len(expected) < len(slow)
    for block in (512, 5):
        monkeypatch.setattr("cellseg_jax.data.quality.duplicates.BLOCK", block)
        pairs = near_duplicates(images, threshold=0.7)
        assert {(p.first, p.second) for p in pairs} == set(expected)
        assert [p.similarity for p in pairs] == sorted((p.similarity for p in pairs), reverse=True)
        for pair in pairs:
            assert pair.similarity == pytest.approx(expected[pair[:2]], abs=1e-5)


def test_near_duplicates_ignores_flat_images_and_slow_light():
    yy, xx = np.mgrid[:72, :90] / 75
    lamp = (200 - 60 * (yy - 0.5) ** 2 - 40 * xx)[..., None]
    rng = np.random.default_rng(2)
    light = [(lamp + rng.normal(0, 2, lamp.shape)).astype(np.uint8) for _ in range(3)]
    flat = [np.full((72, 90, 3), value, np.uint8) for value in (0, 0, 97, 255)]
    assert near_duplicates([*flat, *light, *IMAGES[:3]]) == []
    assert (fingerprints(flat) == 0).all()


def test_near_duplicates_leaves_out_a_frame_that_all_share_but_finds_copies_in_it():
    yy, xx = np.mgrid[:72, :90]
    inside = (np.hypot(yy - 36, xx - 45) < 34)[..., None]
    images = [np.where(inside, image // 4 + 120, 0).astype(np.uint8) for image in IMAGES]
    pairs = near_duplicates([*images, images[5] + inside.astype(np.uint8) * np.uint8(9)])
    assert [pair[:2] for pair in pairs] == [(5, 18)] and pairs.common > 0.9
    assert near_duplicates(IMAGES).common < 0.5


def test_near_duplicates_of_one_image_many_times_and_of_few():
    pairs = near_duplicates([IMAGES[0]] * (MIN_COMMON + 1))
    assert len(pairs) == MIN_COMMON * (MIN_COMMON + 1) // 2 and pairs.common > 0.99
    assert near_duplicates([IMAGES[0]] * 2) == [Pair(0, 1, pytest.approx(1, abs=1e-5))]
    assert near_duplicates(IMAGES[:1]) == []
    assert near_duplicates([]) == []


def test_near_duplicates_ends_at_a_limit(monkeypatch):
    monkeypatch.setattr("cellseg_jax.data.quality.duplicates.MAX_PAIRS", 10)
    assert len(near_duplicates([IMAGES[0]] * 8)) == 10


def test_near_duplicates_takes_known_prints_and_leaves_them():
    images = [*IMAGES, IMAGES[2]]
    prints = fingerprints(images)
    before = prints.copy()
    assert near_duplicates(images, prints=prints) == near_duplicates(images)
    np.testing.assert_array_equal(prints, before)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (63, 65)])
def test_fingerprints_of_any_size_turn_with_the_image(size):
    image = np.random.default_rng(0).integers(0, 65536, (*size, 1), dtype=np.uint16)
    prints = fingerprints([image, image[::-1], np.rot90(image)])
    assert prints.shape == (3, FINE, FINE) and np.isfinite(prints).all()
    np.testing.assert_allclose(prints[1], prints[0][::-1], atol=1e-5)
    np.testing.assert_allclose(prints[2], np.rot90(prints[0]), atol=1e-5)


def test_fingerprints_of_whole_factors_are_means_without_polynomials():
    """Reference: block means, then the least squares fit of y^a x^b with a + b <= 4 taken off."""
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 1), dtype=np.uint8)
    thumbnail = image.reshape(FINE, 2, FINE, 3).mean((1, 3)).reshape(-1)
    y, x = (axis.reshape(-1) for axis in np.mgrid[-1 : 1 : FINE * 1j, -1 : 1 : FINE * 1j])
    terms = np.stack([y**a * x**b for a in range(5) for b in range(5 - a)], 1)
    rest = thumbnail - terms @ np.linalg.lstsq(terms, thumbnail)[0]
    expected = (rest / np.linalg.norm(rest)).reshape(FINE, FINE)
    np.testing.assert_allclose(fingerprints([image])[0], expected, atol=1e-5)


def test_near_duplicates_on_real_images(real_data):
    """Nuclei of several modalities, biopsies and neighbouring slices: what was saved again as
    JPEG is found, and no neighbour."""
    paths = sorted((real_data / "dsb2018/sample24").glob("stage1_train/*/images/*.png"))[::2]
    paths += sorted((real_data / "ebhi-seg/sample24").glob("EBHI-SEG/*/image/*.png"))[::6]
    images = [read_image(path)[..., :3] for path in paths]
    volume = tifffile.imread(real_data / "isbi2012/train-volume.tif", key=range(6))
    images += list(np.repeat(volume[..., None], 3, -1))
    n, again = len(images), range(0, len(images), 4)
    for i in again:
        file = io.BytesIO()
        Image.fromarray(images[i]).save(file, "JPEG", quality=50)
        images.append(np.asarray(Image.open(file)))
    pairs = near_duplicates(images)
    assert {pair[:2] for pair in pairs} == {(i, n + k) for k, i in enumerate(again)}


class Decoded:
    """What pairs_of reads of decoded arrays; counts how often the images are looked at."""

    def __init__(self, images, folder=None):
        self.image_names, self.folder = tuple(map(str, range(len(images)))), folder
        self.images, self.looked = images, 0

    def whole_images(self):
        self.looked += 1
        return self.images


def test_pairs_of_a_dataset_are_searched_once(tmp_path):
    images = [*IMAGES, IMAGES[3]]
    expected = near_duplicates(images)
    assert len(expected) == 1 and expected.common > 0
    first, second = Decoded(images, tmp_path), Decoded(images, tmp_path)
    for arrays in (first, second, second):
        pairs = duplicates.pairs_of(arrays)
        assert pairs == expected and pairs.common == expected.common
        assert isinstance(pairs[0], Pair)
    assert (first.looked, second.looked) == (1, 0)


@pytest.mark.parametrize("text", ["{half", "{}", "[]", '{"method": [0], "pairs": [], "common": 0}'])
def test_pairs_that_are_damaged_or_of_another_method_are_searched_again(text, tmp_path):
    (tmp_path / duplicates.KEPT_FILE).write_text(text)
    arrays = Decoded([*IMAGES, IMAGES[3]], tmp_path)
    assert len(duplicates.pairs_of(arrays)) == 1 and arrays.looked == 1
    assert len(duplicates.pairs_of(arrays)) == 1 and arrays.looked == 1


def test_pairs_without_a_folder_and_of_too_many_images(monkeypatch, tmp_path):
    arrays = Decoded([*IMAGES, IMAGES[3]])
    assert len(duplicates.pairs_of(arrays)) == 1
    assert len(duplicates.pairs_of(Decoded(arrays.images, tmp_path / "gone"))) == 1
    monkeypatch.setattr(duplicates, "MAX_IMAGES", 3)
    assert duplicates.pairs_of(arrays) is None
