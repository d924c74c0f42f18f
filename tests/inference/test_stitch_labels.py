"""Labels of large images: as of the whole image, whatever the blocks, and none left behind."""

import numpy as np
import pytest
from scipy import ndimage

from cellseg_jax import config as config_lib
from cellseg_jax import targets
from cellseg_jax.inference import stitch_labels
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.inference.stitch_labels import Blocks, stitched


def bands_of(image, rng):
    cuts = np.sort(rng.choice(np.arange(1, len(image)), 5, replace=False))
    return np.split(image, cuts)


def discs(rng, size=(260, 230), count=60):
    """(label, mask) of discs of radius 5 to 11 that may touch, each with a centre of its own."""
    centres = []
    while len(centres) < count:
        y, x, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(5, 12)
        if all(np.hypot(y - v, x - u) > r + s for v, u, s in centres):
            centres.append((y, x, r))
    label = np.zeros(size, np.int32)
    yy, xx = np.mgrid[: size[0], : size[1]]
    for n, (y, x, r) in enumerate(centres, 1):
        label[(yy - y) ** 2 + (xx - x) ** 2 <= r**2] = n
    return label


@pytest.mark.parametrize("block, margin", [(64, 16), (50, 1), (300, 20), (37, 37)])
def test_components_are_those_of_the_whole_image(tmp_path, block, margin):
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.random((200, 230)), 2)
    noise[100:104] = 1  # long objects, and one that turns back through many blocks
    noise[104:200, 20::24] = 1
    mask = noise > 0.52
    whole = targets.remove_small(targets.components(mask), 9)
    decode = lambda probs: targets.components(probs[..., 0] > 0.5)
    label = stitched(bands_of(mask[..., None].astype(np.float32), rng), mask.shape, decode,
                     tmp_path, touching=True, min_size=9, blocks=Blocks(block, margin))
    np.testing.assert_array_equal(label, whole)
    assert whole.max() > 20 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["foreground", "boundary", "signed"])
def test_a_component_of_many_blocks_is_one_object(target):
    config = config_lib.changed(config_lib.default(), {
        "data.name": "synthetic", "data.target": target, "eval.decode": "components"})
    predictor = object.__new__(Predictor)
    predictor.config, predictor.target = config, targets.TARGETS[target]
    comb = np.zeros((1500, 600), bool)
    comb[100:140, 40:560] = comb[100:1400, 40:560:52] = True
    maps = np.stack([np.where(comb, 0.9, 0.1), np.where(comb, 1.0, -1.0)], -1).astype(np.float32)
    maps = maps if target == "signed" else maps[..., :1]
    assert predictor.decode(maps).max() == 1
    assert predictor.decode_bands(iter([maps]), comb.shape).max() == 1


@pytest.mark.parametrize("method, most_values", [
    ("watershed", 2**28), ("components", 2**28), ("watershed", 230 * 100)])  # the last: 36 rows
def test_cells_on_seams_keep_one_id(tmp_path, method, most_values, monkeypatch):
    monkeypatch.setattr(stitch_labels, "MOST_VALUES", most_values)
    rng = np.random.default_rng(1)
    truth = discs(rng)
    decode = lambda probs: targets.TARGETS["foreground"].decode(probs, method=method)
    logits = np.where(truth > 0, 3.0, -3.0)[..., None].astype(np.float32)
    whole = decode(logits)
    label = stitched(bands_of(logits, rng), truth.shape, decode, tmp_path,
                     touching=method == "components", blocks=Blocks(64, 32))
    assert label.max() == whole.max() == len(np.unique(label)) - 1
    if method == "watershed":
        assert label.max() == truth.max() == 60
    for i in range(1, int(label.max()) + 1):  # the same objects under other numbers
        inside = whole[label == i]
        assert (inside == inside[0]).all() and (whole == inside[0]).sum() == len(inside)


def test_of_two_pieces_only_the_larger_is_the_object_that_the_other_block_saw(tmp_path):
    ones = np.ones((10, 30), np.int32)
    said = iter([ones, np.where(np.arange(30) < 14, ones, 2 * ones)])  # of columns 0-29 and 10-39
    label = stitched([np.zeros((10, 40, 1))], (10, 40), lambda probs: next(said), tmp_path,
                     touching=False, blocks=Blocks(20, 10))
    np.testing.assert_array_equal(label, np.tile(np.repeat([1, 2], [24, 16]), (10, 1)))


def test_nothing_to_label(tmp_path):
    label = stitched(iter([np.zeros((7, 9, 1))]), (7, 9), lambda p: np.zeros(p.shape[:2], np.int32),
                     tmp_path, touching=True)
    assert label.shape == (7, 9) and not label.any() and label.dtype == np.uint32


def test_wide_maps_have_shorter_blocks(monkeypatch):
    monkeypatch.setattr(stitch_labels, "MOST_VALUES", 1000)
    tall = lambda values: [span[1] - span[0] for span in Blocks(30, 10).spans(60, values)]
    assert tall(10) == [30, 30]  # 50 rows of 10 values are in memory
    assert tall(25) == [20, 20, 20]  # 40 rows of 25
    assert tall(500) == [10] * 6  # never shorter than the margin
