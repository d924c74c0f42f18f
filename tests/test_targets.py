"""Targets: labels survive the round trip, touching cells are cut, masks agree with labels."""

import functools

import helpers_shapes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cellseg_jax.data.datasets import dsb2018
from cellseg_jax.errors import InputError
from cellseg_jax.metrics import match
from cellseg_jax.targets import (
    TARGETS,
    components,
    remove_small,
    split_by_distance,
    unet_weight_map,
)
from cellseg_jax.targets.geometry import basins, whole

foreground, classes = TARGETS["foreground"], TARGETS["classes"]
contour, boundary = TARGETS["contour"], TARGETS["boundary"]


def discs(*centres, radius=8, shape=(48, 64)):
    """Label image of discs, numbered in the order given; later ones lie on top."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    label = np.zeros(shape, np.int32)
    for i, (cy, cx) in enumerate(centres, 1):
        label[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = i
    return label


@pytest.mark.parametrize("method", ["components", "watershed"])
@pytest.mark.parametrize("name", ["foreground", "boundary", "contour"])
def test_roundtrip_of_separated_cells(name, method):
    label = discs((10, 10), (12, 40), (36, 20), (38, 50))
    label[30:, 63] = 5  # one pixel wide, at the border
    label[0, 0], label[22, 20:60], label[24:26, 5:60] = 6, 7, 8  # nothing but contour
    pred = TARGETS[name].decode(TARGETS[name].encode(label), method=method)
    assert pred.dtype == np.int32
    np.testing.assert_array_equal(pred > 0, label > 0)
    assert match(label, pred, iou=1.0).ap == 1


def test_components_number_in_reading_order_and_join_no_diagonals():
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(components(mask), [[1, 0, 0], [0, 2, 2], [0, 0, 2]])


def test_watershed_cuts_touching_cells():
    label = discs((20, 15), (20, 29), (40, 50))  # the first two overlap by three columns
    pred = foreground.decode(foreground.encode(label), method="watershed")
    assert foreground.decode(foreground.encode(label)).max() == 2
    result = match(label, pred, iou=0.9)
    assert (result.tp, result.fp, result.fn) == (3, 0, 0)
    np.testing.assert_array_equal(
        pred, foreground.decode(foreground.encode(label), method="watershed")
    )
    # No neck is as deep as 100 pixels: nothing is cut.
    assert foreground.decode(foreground.encode(label), method="watershed", h=100.0).max() == 2


@pytest.mark.parametrize("h", [0.0, 1.0, 3.0])
def test_watershed_loses_no_pixel_and_stays_within_components(h):
    mask = np.random.default_rng(0).random((60, 60)) < 0.6  # every awkward shape there is
    label, whole = split_by_distance(mask, h), components(mask)
    np.testing.assert_array_equal(label > 0, mask)
    assert len(np.unique(np.stack([label[mask], whole[mask]]), axis=1).T) == label.max()


@pytest.mark.parametrize("rows, columns", [
    ((0, 60), (0, 60)), ((3, 41), (0, 60)), ((0, 7), (9, 60))])
def test_watershed_looks_only_where_the_mask_is(rows, columns):
    mask = np.zeros((60, 60), bool)
    inside = np.s_[slice(*rows), slice(*columns)]
    mask[inside] = np.random.default_rng(1).random(mask[inside].shape) < 0.8
    np.testing.assert_array_equal(
        split_by_distance(mask), basins(ndimage.distance_transform_edt(mask), mask, 1.0))


def test_remove_small_renumbers():
    label = np.array([[1, 1, 0, 2], [0, 0, 0, 0], [3, 3, 3, 0]], np.int32)
    np.testing.assert_array_equal(
        remove_small(label, 2), [[1, 1, 0, 0], [0, 0, 0, 0], [2, 2, 2, 0]]
    )
    probs = foreground.encode(label)
    assert foreground.decode(probs, min_size=2).max() == 2
    assert foreground.decode(probs, min_size=4).max() == 0


@pytest.mark.parametrize("method", ["components", "watershed"])
@pytest.mark.parametrize("value, count", [(0.0, 0), (1.0, 1)])
def test_foreground_decodes_empty_and_full_images(method, value, count):
    assert foreground.decode(np.full((9, 7, 1), value), method=method).max() == count


def test_foreground_mask_is_the_decoded_foreground():
    logits = jnp.linspace(-4, 4, 63).reshape(7, 9, 1)
    probs = foreground.probs(logits)
    for threshold in (0.2, 0.5, 0.9):
        mask = foreground.mask(probs, threshold)[..., 0]
        np.testing.assert_array_equal(mask, foreground.decode(logits, threshold=threshold) > 0)
    assert not foreground.mask(jnp.full((1, 1, 1), 0.5), 0.5).any()  # it must be exceeded


@pytest.mark.parametrize("name", TARGETS)
def test_targets_decode_batches_image_by_image(name):
    target = TARGETS[name]
    classes = {"num_classes": 3} if "num_classes" in target.encode_options else {}
    logits = np.random.default_rng(0).normal(size=(3, 8, 9, target.num_outputs(**classes)))
    options = dict(threshold=0.4, method="watershed", min_size=2, h=0.5)
    options = {key: value for key, value in options.items() if key in target.decode_options}
    options = {name: options[name] for name in target.decode_options if name in options}
    pred = target.decode(logits, **options)
    assert pred.shape == (3, 8, 9) and pred.dtype == np.int32
    np.testing.assert_array_equal(pred, [target.decode(one, **options) for one in logits])


def test_classes_roundtrip_and_mask():
    semantic = np.random.default_rng(0).integers(0, 3, (6, 5)).astype(np.int32)
    target = classes.encode(semantic, num_classes=3)
    assert target.shape == (6, 5, 3) and target.dtype == jnp.float32
    np.testing.assert_array_equal(target.sum(-1), 1)
    np.testing.assert_array_equal(classes.decode(target), semantic)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 5, 3)))
    mask = classes.mask(classes.probs(logits), 0.5)
    np.testing.assert_array_equal(mask.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(mask.sum(-1), 1)


def random_blobs(seed, shape=(40, 33)):
    """Label of ragged cells that touch one another, the border and themselves."""
    rng = np.random.default_rng(seed)
    seeds = np.where(rng.random(shape) < 0.03, rng.integers(1, 40, shape), 0)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < rng.normal(4, 1, shape), seeds[tuple(nearest)], 0).astype(np.int32)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_contour_matches_distances_to_every_other_pixel(width):
    label = random_blobs(width)
    y, x = np.indices(label.shape)
    expected = np.zeros((*label.shape, 3))
    for i, j in np.ndindex(label.shape):
        near = abs(y - i) + abs(x - j) <= width
        inner = (label[near] == label[i, j]).all()
        expected[i, j, 0 if label[i, j] == 0 else 1 if inner else 2] = 1
    np.testing.assert_array_equal(contour.encode(label, contour_width=width), expected)
    np.testing.assert_array_equal(contour.encode(jnp.asarray(label), contour_width=width), expected)


def test_contour_of_full_empty_and_single_pixel_images():
    for value, kind in ((0, 0), (7, 1)):  # the border of the image makes no contour
        for shape in ((5, 4), (1, 1), (1, 6)):
            target = contour.encode(np.full(shape, value), contour_width=3)
            assert (target.argmax(-1) == kind).all() and (target.sum(-1) == 1).all()
            assert (contour.decode(target) == (value > 0)).all()
    with pytest.raises(ValueError, match="contour_width 0: expected at least 1"):
        contour.encode(np.zeros((2, 2), int), contour_width=0)


@pytest.mark.parametrize("width", [1, 2])
def test_contour_keeps_touching_cells_apart(width):
    label = discs((20, 15), (20, 29), (33, 22), (40, 50))  # the first three touch
    pred = contour.decode(contour.encode(label, contour_width=width))
    result = match(label, pred, iou=0.9)
    assert (result.tp, result.fp, result.fn) == (4, 0, 0)
    moved = pred != np.array([0, 1, 2, 3, 4])[label]  # numbered in reading order, as drawn
    assert not (moved & (contour.encode(label, contour_width=width)[..., 2] == 0)).any()


def test_contour_pixels_go_to_the_nearest_nucleus_they_are_connected_to():
    winner = np.array([[0, 2, 2, 2, 2, 0, 1],
                       [0, 1, 0, 0, 1, 0, 2],
                       [0, 0, 0, 0, 2, 0, 0],
                       [2, 2, 0, 0, 0, 0, 2]])
    # In the first row column 3 is two steps from the right nucleus and three from the left.
    expected = np.array([[0, 1, 1, 2, 2, 0, 3],
                         [0, 1, 0, 0, 2, 0, 3],
                         [0, 0, 0, 0, 2, 0, 0],
                         [4, 4, 0, 0, 0, 0, 5]])
    logits = np.eye(3)[winner]
    np.testing.assert_array_equal(contour.decode(logits), expected)
    kept = contour.decode(logits, min_size=3)  # of contour and nucleus together
    np.testing.assert_array_equal(kept, np.where(expected < 3, expected, 0))


def test_contour_numbers_cells_in_reading_order_of_all_their_pixels():
    winner = np.zeros((6, 9), int)
    winner[1:6, 1:3], winner[4, 1] = 2, 1  # starts higher, its nucleus lies lower
    winner[2:6, 5:8], winner[3, 6] = 2, 1
    pred = contour.decode(np.eye(3)[winner])
    assert pred[1, 1] == 1 and pred[2, 5] == 2


def test_contour_watershed_cuts_nuclei_without_contour_between_them():
    label = discs((20, 15), (20, 29))
    fused = contour.encode((label > 0).astype(int))
    assert contour.decode(fused).max() == 1
    assert match(label, contour.decode(fused, method="watershed"), iou=0.9).tp == 2


def test_boundary_leaves_a_gap_where_cells_touch_and_only_there():
    label = discs((20, 15), (20, 29), (40, 50))
    lost = (foreground.encode(label) - boundary.encode(label))[..., 0] == 1
    padded = np.pad(label, 1)
    others = [np.roll(padded, s, a)[1:-1, 1:-1] for s in (1, -1) for a in (0, 1)]
    touching = np.any([(o > 0) & (o != label) & (label > 0) for o in others], 0)
    np.testing.assert_array_equal(lost, touching)
    assert lost.any()
    assert match(label, boundary.decode(boundary.encode(label)), iou=0.9).tp == 3


def test_instances_of_real_nuclei_survive(real_data):
    total, found = 0, dict.fromkeys(("foreground", "boundary", "contour"), 0)
    for record in dsb2018.records(real_data / "dsb2018/sample24/stage1_train")[::3]:
        label = record.read().label
        total += len(np.unique(label)) - 1
        for name in found:
            pred = TARGETS[name].decode(TARGETS[name].encode(label))
            found[name] += int(match(label, pred, iou=0.9).tp)
    assert total == 245
    assert found == {"foreground": 160, "boundary": 225, "contour": 233}


def slow_weight_map(label, w0, sigma):
    """Equation 2 by distances of every pixel to every cell, on the gap-separated label."""
    label = np.where(boundary.encode(label)[..., 0] == 1, label, 0)
    distances = [ndimage.distance_transform_edt(label != i) for i in np.unique(label[label > 0])]
    d1, d2 = np.sort([*distances, *np.full((2, *label.shape), np.inf)], 0)[:2]
    return 1 + np.where(label == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)


@pytest.mark.parametrize("seed, sigma", [(0, 5.0), (1, 2.0), (2, 1.3)])
def test_unet_weight_map_matches_distances_to_every_cell(seed, sigma):
    label = random_blobs(seed, (90, 61))
    label[label == 3] = 2_000_000_000  # ids need not be small
    label[:30, :30] = 0
    weight = unet_weight_map(label, w0=10.0, sigma=sigma)
    assert weight.dtype == np.float32 and weight.shape == label.shape and weight.max() > 1.5
    # The bound of the docstring, and float32 rounding of weights up to 11.
    np.testing.assert_allclose(
        weight, slow_weight_map(label, 10.0, sigma), rtol=0, atol=4e-5 + 2e-6)


def test_unet_weight_map_equals_hand_value():
    label = np.zeros((1, 6), int)
    label[0, 0], label[0, 4:] = 1, 2
    gap = lambda total: 1 + 10 * np.exp(-(total**2) / 50)
    np.testing.assert_allclose(unet_weight_map(label)[0], [1, gap(4), gap(4), gap(4), 1, 1],
                               rtol=1e-6)
    touching = np.array([[1, 1, 2, 2]])  # the inner two become the gap
    np.testing.assert_allclose(unet_weight_map(touching)[0], [1, gap(3), gap(3), 1], rtol=1e-6)


@pytest.mark.parametrize("cells", [0, 1])
def test_unet_weight_map_of_fewer_than_two_cells_is_the_class_weight(cells):
    label = np.zeros((20, 10), int)
    label[4:9, 3:7] = cells
    np.testing.assert_array_equal(unet_weight_map(label), 1)
    np.testing.assert_array_equal(
        unet_weight_map(label, class_weights=(0.5, 3.0)), np.where(label, 3.0, 0.5))
    np.testing.assert_array_equal(unet_weight_map(np.full((3, 2), cells)), 1)
    balanced = unet_weight_map(label, class_weights="balanced")
    assert balanced.mean() == pytest.approx(1)
    np.testing.assert_allclose(balanced, np.where(label, 5.0, 5 / 9) if cells else 1.0)


def test_only_the_boundary_target_weighs_pixels():
    assert [name for name in TARGETS if TARGETS[name].pixel_weight] == ["boundary"]
    label = discs((20, 15), (20, 29))
    weight = boundary.pixel_weight(label, w0=4.0, sigma=2.0)
    np.testing.assert_array_equal(weight, unet_weight_map(label, w0=4.0, sigma=2.0))
    assert (weight[boundary.encode(label)[..., 0] == 1] == 1).all()
    with pytest.raises(ValueError, match="sigma 0: expected above 0"):
        boundary.pixel_weight(label, w0=4.0, sigma=0)


@pytest.mark.parametrize("name", [  # those that regress take seconds to compile
    pytest.param(name, marks=[pytest.mark.slow] * (target.num_binary is not None))
    for name, target in TARGETS.items()])
def test_targets_same_under_jit_on_batches(name):
    target = TARGETS[name]
    label = np.random.default_rng(0).integers(0, 3, (2, 6, 5)).astype(np.int32)
    chosen = {"num_classes": 3, "contour_width": 1}
    options = {name: chosen[name] for name in target.encode_options if name in chosen}
    encode = functools.partial(target.encode, **options)
    encoded = jax.jit(encode)(label)
    assert encoded.shape == (2, 6, 5, target.num_outputs(**options))
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, np.stack([encode(x) for x in label]))
    np.testing.assert_array_equal(encoded, jax.vmap(encode)(label))
    mask, cells = jax.jit(lambda x: (target.mask(x, 0.5), target.cell_mask(x, 0.5)))(encoded)
    np.testing.assert_array_equal(mask, encoded[..., :target.num_binary] > 0.5)
    if name == "boundary":  # which gives up a pixel where cells touch
        assert not (cells & (label == 0)[..., None]).any()
    else:
        np.testing.assert_array_equal(cells, foreground.encode(label) == 1)


def test_targets_reject_what_they_cannot_mean():
    with pytest.raises(InputError, match="did you mean watershed"):
        foreground.decode(np.zeros((4, 4, 1)), method="watersheds")
    with pytest.raises(InputError, match="did you mean watershed"):
        contour.decode(np.zeros((4, 4, 3)), method="watersheds")
    with helpers_shapes.unchecked():  # as in production
        with pytest.raises(ValueError, match="expected .H, W, 1."):
            foreground.decode(np.zeros((4, 4)))
        with pytest.raises(ValueError, match="expected .H, W, 3."):
            contour.decode(np.zeros((4, 4, 1)))


def test_objects_that_touch_unknown_pixels_are_found_at_the_cost_of_a_sort():
    rng = np.random.default_rng(0)
    label = rng.integers(-1, 40, (2, 30, 41)) * (rng.uniform(size=(2, 30, 41)) < 0.3)
    label = np.repeat(np.repeat(label, 2, 1), 2, 2).astype(np.int32)
    want = label >= 0
    for one, known in zip(label, want, strict=True):
        padded = np.pad(one, 1, mode="edge")
        beside = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2],
                           padded[1:-1, 2:]]) < 0
        for number in np.unique(one[beside.any(0) & (one > 0)]):
            known &= one != number
    assert 0 < want.sum() < (label >= 0).sum()
    compiled = jax.jit(whole).lower(label).compile()
    np.testing.assert_array_equal(compiled(label), want)
    pixels = label[0].size
    assert compiled.cost_analysis()["flops"] < label.size * pixels / 10  # not all pairs
