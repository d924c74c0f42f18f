"""Targets: labels survive the round trip, touching cells are cut, masks agree with labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cellseg_jax.errors import InputError
from cellseg_jax.metrics import match
from cellseg_jax.targets import TARGETS, components, remove_small, split_by_distance

foreground, classes = TARGETS["foreground"], TARGETS["classes"]


def discs(*centres, radius=8, shape=(48, 64)):
    """Label image of discs, numbered in the order given; later ones lie on top."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    label = np.zeros(shape, np.int32)
    for i, (cy, cx) in enumerate(centres, 1):
        label[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = i
    return label


@pytest.mark.parametrize("method", ["components", "watershed"])
def test_foreground_roundtrip_of_separated_cells(method):
    label = discs((10, 10), (12, 40), (36, 20), (38, 50))
    label[30:, 63] = 5  # one pixel wide, at the border
    pred = foreground.decode(foreground.encode(label), method=method)
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


def test_foreground_decodes_batches_image_by_image():
    logits = np.random.default_rng(0).normal(size=(3, 8, 9, 1))
    pred = foreground.decode(logits)
    np.testing.assert_array_equal(pred, np.stack([foreground.decode(one) for one in logits]))


def test_classes_roundtrip_and_mask():
    semantic = np.random.default_rng(0).integers(0, 3, (6, 5)).astype(np.int32)
    target = classes.encode(semantic, 3)
    assert target.shape == (6, 5, 3) and target.dtype == jnp.float32
    np.testing.assert_array_equal(target.sum(-1), 1)
    np.testing.assert_array_equal(classes.decode(target), semantic)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 5, 3)))
    mask = classes.mask(classes.probs(logits), 0.5)
    np.testing.assert_array_equal(mask.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(mask.sum(-1), 1)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_same_under_jit_on_batches(name):
    target = TARGETS[name]
    label = np.random.default_rng(0).integers(0, 3, (2, 6, 5)).astype(np.int32)
    encoded = jax.jit(lambda x: target.encode(x, 3))(label)
    assert encoded.shape == (2, 6, 5, target.num_outputs(3))
    np.testing.assert_array_equal(encoded, np.stack([target.encode(x, 3) for x in label]))
    mask = jax.jit(target.mask)(encoded, 0.5)
    np.testing.assert_array_equal(mask, encoded == 1)


def test_targets_reject_what_they_cannot_mean():
    with pytest.raises(InputError, match="did you mean watershed"):
        foreground.decode(np.zeros((4, 4, 1)), method="watersheds")
    with pytest.raises(ValueError, match="expected .H, W, 1."):
        foreground.decode(np.zeros((4, 4)))
