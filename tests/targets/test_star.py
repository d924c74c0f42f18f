"""Target star: rays by marching, stardist's golden maps, polygons by rasters, turns and scales."""

import pathlib

import jax
import numpy as np
import pytest
from golden import star_stardist
from scipy import ndimage
from scipy.special import logit
from skimage.draw import polygon2mask

from cellseg_jax.inference.stitch_labels import Blocks, stitched
from cellseg_jax.inference.tile_blending import turns, turns_back
from cellseg_jax.metrics import match
from cellseg_jax.targets import TARGETS, polygons
from cellseg_jax.targets.geometry import in_reading_order

star = TARGETS["star"]
encode = jax.jit(star.encode, static_argnames="num_rays")  # of (64, 64): compiled once
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "star_stardist.npz"


def slow_encode(label, num_rays):
    """Every ray of every pixel by itself; distances to every pixel of other ids."""
    out = np.zeros((*label.shape, 1 + num_rays))
    for place in np.argwhere(label):
        for k in range(num_rays):
            angle = 2 * np.pi * k / num_rays
            direction = np.array([np.sin(angle), np.cos(angle)])
            steps = 0
            while True:
                y, x = np.rint(place + (steps + 1) * direction).astype(int)
                if not (0 <= y < label.shape[0] and 0 <= x < label.shape[1]):
                    break
                if label[y, x] != label[tuple(place)]:
                    break
                steps += 1
            out[(*place, 1 + k)] = steps + 0.5 / abs(direction).max()
    for i in np.unique(label[label > 0]):
        distance = ndimage.distance_transform_edt(label == i)
        out[label == i, 0] = (distance / distance.max())[label == i]
    return out


@pytest.mark.parametrize("num_rays", [pytest.param(7, marks=pytest.mark.slow), 32])
def test_encode_matches_rays_marched_one_by_one(num_rays):
    label = np.zeros((64, 64), np.int32)
    label[:26, :22], label[50, 63] = star_stardist.cells(5, (26, 22)), 90
    label[label == 2] = 2_000_000_000  # ids need not be small
    np.testing.assert_allclose(
        encode(label, num_rays=num_rays), slow_encode(label, num_rays), rtol=0, atol=1e-5)


def check_stardist(golden, seed):
    """Targets, kept polygons and labels equal those of stardist."""
    label = star_stardist.cells(seed).astype(np.int32)
    target = np.asarray(encode(label))
    np.testing.assert_allclose(target[..., 0], golden["probability"], rtol=0, atol=1e-6)
    # stardist adds up to 64 steps in float32.
    np.testing.assert_allclose(target[..., 1:], golden["rays"], rtol=0, atol=1e-4)
    noisy, rays = star_stardist.predicted(golden["probability"], golden["rays"], seed)
    points = np.argwhere(noisy > star_stardist.THRESHOLD)
    points = points[np.argsort(-noisy[tuple(points.T)])]
    stay = polygons.kept(points, rays[tuple(points.T)].astype(float), star_stardist.NMS)
    np.testing.assert_array_equal(points[stay], golden["points"])
    maps = np.concatenate([logit(noisy)[..., None], rays], -1)
    pred = star.decode(maps, threshold=star_stardist.THRESHOLD, nms=star_stardist.NMS)
    np.testing.assert_array_equal(pred, in_reading_order(golden["label"]))


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_golden_stardist(seed):
    """Made by: python tests/golden/star_stardist.py (needs stardist 0.9)."""
    golden = np.load(GOLDEN)
    check_stardist({name.removesuffix(str(seed)): golden[name] for name in golden.files
                    if name.endswith(str(seed))}, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_equals_installed_stardist(seed):
    pytest.importorskip("stardist")
    check_stardist(star_stardist.reference(seed), seed)


def random_stars(count, num_rays=32, seed=0, size=40, whole=True):
    """Points and rays, and the corners of their polygons."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, size, (count, 2))
    rays = rng.uniform(4, 14, (count, 1)) * rng.uniform(0.6, 1, (count, num_rays))
    corners = polygons.corners_of(points, rays)
    return points, rays, np.trunc(corners) if whole else corners


@pytest.mark.parametrize("whole", [True, False])
def test_overlap_matches_rasters(whole):
    """Tenths of pixels whose centres are in both polygons; corners may lie on one another."""
    *_, corners = random_stars(12, size=20, whole=whole)
    fine, shape = 10, (50, 50)
    masks = [polygon2mask((shape[0] * fine, shape[1] * fine), (c + 15) * fine - 0.37)
             for c in corners]
    found = polygons.doubled_overlap(corners[0], corners) / 2
    expected = [np.count_nonzero(masks[0] & mask) / fine**2 for mask in masks]
    assert np.count_nonzero(expected) > 6
    # About 100 pixels of outline, each wrong by a fraction of a fine pixel.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.6)


def test_overlap_of_squares_with_common_edges_is_exact():
    square = np.array([[4, 4], [4, 0], [0, 0], [0, 4]])[::-1]  # whose area is positive
    moved = np.array([(0, 0), (4, 0), (2, 0), (2, -1), (0, 5), (-4, -4)])
    found = polygons.doubled_overlap(square, square + moved[:, None])
    np.testing.assert_allclose(found, 2 * np.array([16, 0, 8, 6, 0, 0]), rtol=0, atol=1e-3)
    small = (square - 2) / 2 + 2
    np.testing.assert_allclose(polygons.doubled_overlap(square, small[None]), 8, atol=1e-3)
    np.testing.assert_allclose(polygons.doubled_overlap(small, square[None]), 8, atol=1e-3)


def test_kept_matches_every_pair_compared_in_order():
    points, rays, corners = random_stars(50, size=70, seed=3)
    area = [polygons.doubled_overlap(c, c[None])[0] for c in corners]
    expected = []
    for n in range(len(points)):
        overlap = [polygons.doubled_overlap(corners[m], corners[n : n + 1])[0]
                   / min(area[m], area[n]) for m in expected]
        if not (np.array(overlap) > 0.3).any():
            expected.append(n)
    assert 5 < len(expected) < 40
    np.testing.assert_array_equal(np.flatnonzero(polygons.kept(points, rays, 0.3)), expected)


def ellipses():
    """Label of star-convex cells that are apart: ellipses, a triangle, one cut by the border."""
    y, x = np.indices((64, 64))
    label = np.zeros((64, 64), np.int32)
    for i, (cy, cx, a, b, turn) in enumerate([
            (12, 14, 8, 12, 0.3), (15, 42, 5, 13, 1.0), (40, 18, 13, 8, 2.0), (62, 50, 9, 9, 0),
            (60, 10, 4, 4, 0), (56, 32, 3, 3, 0)], 1):
        v, u = (x - cx) * np.cos(turn) - (y - cy) * np.sin(turn), (
            y - cy) * np.cos(turn) + (x - cx) * np.sin(turn)
        label[(u / a) ** 2 + (v / b) ** 2 <= 1] = i
    label[polygon2mask(label.shape, [(30, 36), (30, 61), (49, 47)])] = 7
    label[5, 60] = 8  # one pixel
    return label


def test_separated_cells_come_back():
    label = ellipses()
    pred = star.decode(encode(label))
    assert pred.dtype == np.int32 and pred.max() == 8
    result = match(label, pred, iou=0.85)
    assert (result.tp, result.fp, result.fn) == (8, 0, 0)
    # Between two rays an edge is straight: some 2 % of the cells' pixels are lost, as many added.
    assert np.count_nonzero((label > 0) & (pred == 0)) <= 30
    assert np.count_nonzero((label == 0) & (pred > 0)) <= 30
    assert star.decode(encode(label), min_size=2).max() == 7


def test_touching_cells_come_back_apart():
    y, x = np.indices((64, 64))
    label = ((y - 20) ** 2 + (x - 18) ** 2 < 144).astype(np.int32)
    label[((y - 20) ** 2 + (x - 40) ** 2 < 144) & (x > 29)] = 2
    pred = star.decode(encode(label))
    assert pred.max() == 2 and match(label, pred, iou=0.9).tp == 2


def test_the_more_probable_of_two_is_kept_and_lies_on_top():
    maps = np.full((30, 40, 9), -20.0)
    maps[15, 12], maps[15, 20] = 6, 6
    maps[15, 12, 0], maps[15, 20, 0] = 1.0, 2.0
    shared = star.decode(maps, nms=0.9)
    assert shared.max() == 2 and shared[15, 16] == shared[15, 20] != shared[15, 8] > 0
    assert star.decode(maps, nms=0.05).max() == 1
    assert star.decode(maps, nms=0.05)[15, 7] == 0  # the less probable one is gone
    assert star.decode(maps, threshold=0.9).max() == 0  # neither exceeds it
    assert star.decode(maps * 0).shape == (30, 40)


def test_rims_of_cells_of_radius_20_count():
    y, x = np.mgrid[:50, :50]
    label = ((y - 25) ** 2 + (x - 25) ** 2 <= 19.5**2).astype(np.int32)  # 20 from the background
    np.testing.assert_array_equal(star.cell_mask(star.encode(label), 0.5)[..., 0], label > 0)


@pytest.mark.parametrize("view", range(8))
def test_turned_maps_are_those_of_the_image(view):
    label = star_stardist.cells(3).astype(np.int32)
    maps = np.asarray(encode(label))[None]
    seen = np.asarray(encode(turns(label[..., None], view)[..., 0]))[None]
    np.testing.assert_allclose(star.turned(turns_back(seen, view), view), maps, atol=1e-4)


def test_turned_rays_of_odd_numbers_lie_between():
    maps = np.ones((1, 1, 1, 6), np.float32)
    maps[..., 1:] = [4, 2, 2, 2, 2]
    flipped = star.turned(maps, 2)  # ray 0 of length 4 now points between rays 2 and 3
    np.testing.assert_allclose(flipped[0, 0, 0], [1, 2, 2, 3, 3, 2])


def test_rescaled_rays_end_at_the_same_places():
    y, x = np.indices((64, 64)) - 32
    maps = np.asarray(encode(7 * (y**2 + x**2 < 900)))[32:33, 32:33]
    np.testing.assert_allclose(star.rescaled(maps, (2.5, 2.5))[..., 1:], 2.5 * maps[..., 1:], 1e-6)
    tall = star.rescaled(maps, (2.0, 0.5))
    assert tall[..., 0] == maps[..., 0] and tall.dtype == maps.dtype
    angles = 2 * np.pi * np.arange(32) / 32
    radius = 30 / np.hypot(np.sin(angles) / 2, np.cos(angles) / 0.5)  # of an ellipse
    np.testing.assert_allclose(tall[0, 0, 1:], radius, rtol=0.05)


def test_maps_of_logits():
    logits = np.random.default_rng(0).normal(size=(2, 5, 6, 33)).astype(np.float32)
    for maps in (star.probs(logits), jax.jit(star.probs)(logits)):
        np.testing.assert_array_equal(maps[..., 1:], logits[..., 1:])
        np.testing.assert_allclose(maps[..., 0], 1 / (1 + np.exp(-logits[..., 0])), rtol=1e-6)
    np.testing.assert_allclose(star.logits(np.asarray(star.probs(logits))), logits, atol=1e-5)
    label = ellipses()
    cells = star.cell_mask(encode(label), 0.5)[..., 0]
    np.testing.assert_array_equal(cells, label > 0)  # no cell here has a radius of 20
    assert len(star.names(num_rays=7)) == 8 == star.num_outputs(num_rays=7)
    assert star.encode_options == ("num_rays",)
    with pytest.raises(ValueError, match="num_rays 2: expected at least 3"):
        star.encode(label, num_rays=2)


def test_regressed_outputs_weigh_by_the_object_probability():
    target = encode(ellipses())[None]
    np.testing.assert_array_equal(star.regression_weight(target), target[..., 0])


@pytest.mark.parametrize("grid", [2, 4])
def test_outlines_of_every_other_pixel_find_the_same_cells(grid):
    label = np.where(np.isin(ellipses(), [1, 3, 4, 5]), ellipses(), 0)
    maps = np.asarray(encode(label))
    pred = star.decode(maps, star_grid=grid)
    assert match(label, pred, iou=0.8).tp == 4 == pred.max()
    y, x = next(place for place in np.argwhere(maps[..., 0] > 0.5) if (place % 2).all())
    lone = np.full_like(maps, -9)  # a single pixel that is in no coarser grid
    lone[y, x] = maps[y, x]
    assert star.decode(lone).max() == 1 and star.decode(lone, star_grid=grid).max() == 0


def test_pairs_decided_by_boxes_are_those_of_the_exact_overlap():
    """Outlines of one cell, jittered, where the bounds decide most pairs."""
    rng = np.random.default_rng(4)
    points = rng.integers(0, 12, (150, 2)) + 30 * rng.integers(0, 2, (150, 2))
    rays = rng.uniform(9, 12, (150, 1)) * rng.uniform(0.85, 1, (150, 32))
    corners = np.trunc(polygons.corners_of(points, rays))
    area = np.array([polygons.doubled_overlap(c, c[None])[0] for c in corners])
    for nms in (0.2, 0.6, 0.9):
        expected = np.ones(150, bool)
        for n in range(150):
            if expected[n]:
                overlap = polygons.doubled_overlap(corners[n], corners[n + 1 :])
                expected[n + 1 :] &= overlap <= nms * np.minimum(area[n], area[n + 1 :])
        np.testing.assert_array_equal(polygons.kept(points, rays, nms), expected)


def test_blocks_of_a_large_image_are_decoded_as_the_whole(tmp_path):
    maps = np.asarray(encode(ellipses()))
    bands = np.split(maps, [10, 25, 60])
    label = stitched(bands, maps.shape[:2], star.decode, tmp_path, touching=False,
                     blocks=Blocks(size=32, margin=24))
    np.testing.assert_array_equal(label, star.decode(maps))
