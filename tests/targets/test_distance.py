"""Targets of distances: definitions, cells of any shape back, touching cells, noise, torch-em."""

import heapq
import pathlib

import helpers_shapes
import jax
import numpy as np
import pytest
from golden import distance_torch_em
from scipy import ndimage

from cellseg_jax import losses
from cellseg_jax.metrics import match
from cellseg_jax.targets import TARGETS, components
from cellseg_jax.targets.distance import smoothed
from cellseg_jax.targets.geometry import peaks
from cellseg_jax.targets.object_distance import centre_distance, edge_distance
from cellseg_jax.targets.signed import LIMIT

distance, signed = TARGETS["distance"], TARGETS["signed"]
SIZE = 40
GOLDEN = pathlib.Path(distance_torch_em.__file__).with_suffix(".npz")


def rings_and_arms(rng):
    """A spiral, in arms of random width."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    width = rng.uniform(4, 9)
    return ((radius / width - angle / (2 * np.pi)) % 1 < rng.uniform(0.3, 0.8)) & (
        radius > rng.uniform(0, 5))


def separated_cells(seed):
    """(SIZE, SIZE) label of cells of any shape, which nowhere touch: 4-connected components."""
    rng = np.random.default_rng(seed)
    kinds = (lambda: rng.random((SIZE, SIZE)) < rng.uniform(0.1, 0.7),  # specks and lattices
             lambda: ndimage.gaussian_filter(
                 rng.normal(size=(SIZE, SIZE)), rng.uniform(0.7, 3)) > 0,
             lambda: rings_and_arms(rng))
    return components(kinds[seed % 3]())


def touching_cells(seed):
    """(SIZE, SIZE) label of cells that touch, some in several pieces, with unordered ids."""
    rng = np.random.default_rng(seed)
    seeds = np.where(rng.random((SIZE, SIZE)) < 0.02, rng.integers(1, 900, (SIZE, SIZE)), 0)
    away, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(away < 7, seeds[tuple(nearest)], 0).astype(np.int32)


LABELS = np.stack([*map(separated_cells, range(3)), *map(touching_cells, range(3))])


@pytest.fixture(scope="module")
def encoded():
    return np.asarray(distance.encode(LABELS))


def maps_of(target, *labels):
    """encode of a few labels, in the shape of LABELS, so that it is compiled once."""
    return np.asarray(target.encode(np.resize(np.stack(labels), LABELS.shape)))[:len(labels)]


def same_cells(one, other):
    """Whether two labels are equal but for the numbers of cells."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(one)) == len(np.unique(other)) and (
        ((pairs > 0).sum(0) != 1).all())


def slow_path(mask, centre):
    """Dijkstra's distance from the centre through the mask; a corner needs a pixel beside it."""
    inside = lambda y, x: 0 <= y < SIZE and 0 <= x < SIZE and mask[y, x]
    found, queue = {}, [(0.0, *centre)]
    while queue:
        length, y, x = heapq.heappop(queue)
        if (y, x) in found:
            continue
        found[y, x] = length
        for v in (-1, 0, 1):
            for u in (-1, 0, 1):
                if inside(y + v, x + u) and (inside(y + v, x) or inside(y, x + u)):
                    heapq.heappush(queue, (length + np.hypot(v, u), y + v, x + u))
    return found


def slow_encode(label):
    """The three maps, object by object."""
    out = np.stack([label > 0, np.ones(label.shape), np.ones(label.shape)], -1).astype(float)
    for i in np.unique(label[label > 0]):
        mask = label == i
        ys, xs = np.nonzero(mask)
        away = (ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2
        centre = np.flatnonzero(away <= away.min() + 1e-4)[0]
        path = slow_path(mask, (ys[centre], xs[centre]))
        for place, length in path.items():
            out[(*place, 1)] = length / max(1, *path.values()) if len(path) > 1 else 0
        rim = ndimage.distance_transform_edt(mask)[mask] - 1
        out[mask, 2] = 1 - rim / rim.max() if rim.max() else 0
    return out


def test_encode_matches_loops_over_objects(encoded):
    assert encoded.dtype == np.float32
    for label, maps in zip(LABELS, encoded, strict=True):
        # An object whose distance is undefined without an edge is not among them; rounding.
        np.testing.assert_allclose(maps, slow_encode(label), rtol=0, atol=2e-5)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_separated_cells_of_any_shape_come_back(encoded, smooth):
    for label, maps in zip(LABELS[:3], encoded, strict=False):
        assert same_cells(label, distance.decode(maps, smooth=smooth))


@pytest.mark.weekly
def test_300_images_of_separated_cells_come_back():
    labels = np.stack([separated_cells(seed) for seed in range(300)])
    for label, maps in zip(labels, np.asarray(distance.encode(labels)), strict=True):
        for smooth in (0.0, 1.0, 1.6):
            assert same_cells(label, distance.decode(maps, smooth=smooth))


@pytest.mark.slow
def test_every_pixel_but_the_centre_has_a_nearer_one_beside_it():
    path = np.pad(np.asarray(centre_distance(LABELS)), [(0, 0), (1, 1), (1, 1)])
    label = np.pad(LABELS, [(0, 0), (1, 1), (1, 1)])
    lower = np.zeros(label.shape, bool)
    for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2)):
        lower |= (np.roll(label, shift, axis) == label) & (np.roll(path, shift, axis) < path)
    reached = (label > 0) & np.isfinite(path)
    np.testing.assert_array_equal(lower[reached], path[reached] > 0)
    for one, far in zip(LABELS, path, strict=True):
        assert (far[1:-1, 1:-1][one > 0] == 0).sum() == len(np.unique(one[one > 0]))


def test_maps_of_extremes():
    empty, full, one = np.zeros((3, SIZE, SIZE), np.int32)
    full[:] = 7
    one[5, 5] = 3
    maps = maps_of(distance, empty, full, one)
    np.testing.assert_array_equal(maps[0], np.broadcast_to([0, 1, 1], (SIZE, SIZE, 3)))
    assert (maps[1, ..., 2] == 0).all() and maps[1, ..., 1].max() == 1  # no edge is seen
    np.testing.assert_array_equal(maps[2, 5, 5], [1, 0, 0])
    np.testing.assert_array_equal(distance.decode(maps), np.stack([empty, full > 0, one > 0]))


def test_distances_in_background_and_order_of_ids_change_nothing(encoded):
    spoiled = np.where(encoded[..., :1] > 0, encoded, np.random.default_rng(0).random(
        encoded.shape) * [0, 1, 1])
    np.testing.assert_array_equal(distance.decode(spoiled), distance.decode(encoded))


def test_touching_cells_are_cut_where_they_meet():
    label = np.zeros((SIZE, SIZE), np.int32)
    label[4:24, 4:16], label[4:24, 16:30], label[24:36, 8:26] = 5, 2, 9
    maps = maps_of(distance, label)[0]
    pred = distance.decode(maps)
    assert match(label, pred, iou=0.95).tp == 3 == pred.max()
    # Deeper than any valley: one cell.
    assert distance.decode(maps, seed_depth=1.0).max() == 1
    assert distance.decode(maps, min_size=230).max() == 2


def test_blurred_and_noisy_maps_of_touching_cells(encoded):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    label = np.where(np.hypot(y - 20, x - 12) < 9, 1, np.where(np.hypot(y - 20, x - 28) < 9, 2, 0))
    maps = ndimage.gaussian_filter(maps_of(distance, label)[0], (1, 1, 0))
    maps[..., 1:] += rng.normal(0, 0.1, (SIZE, SIZE, 2))
    logits = distance.logits(np.clip(maps, 1e-3, 1 - 1e-3))
    assert match(label, distance.decode(logits), iou=0.8).tp == 2
    assert distance.decode(logits).max() == 2
    assert distance.decode(logits, smooth=0.0, seed_depth=0.0).max() > 5


def test_smoothing_is_that_of_a_gaussian_and_stays_in_the_mask():
    point, all_ = np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE), bool)
    point[20, 20] = 1
    for sigma in (0.5, 1.0, 2.0):
        out = smoothed(point, all_, sigma)
        assert out.sum() == pytest.approx(1, abs=1e-5)
        variance = (out * (np.arange(SIZE) - 20) ** 2).sum()
        assert variance == pytest.approx(sigma**2, rel=1e-4)
    halves = all_.copy()
    halves[:, 21] = False
    out = smoothed(point, halves, 3.0)
    assert out[:, :21].sum() == pytest.approx(1, abs=1e-5) and not out[:, 21:].any()
    np.testing.assert_array_equal(smoothed(point, all_, 0.0), point)


def test_peaks_keep_one_in_every_component():
    rng = np.random.default_rng(0)
    mask, height = rng.random((2, SIZE, SIZE))
    mask = mask < 0.5
    for h in (0.0, 0.3, 5.0):
        found = peaks(height - 3, mask, h)
        assert not found[~mask].any()
        assert np.isin(components(mask), components(mask)[found > 0])[mask].all()
    assert found.max() == components(mask).max()  # no valley is 5 deep


def test_signed_matches_distances_and_limit():
    maps = np.asarray(signed.encode(LABELS))
    for label, (cell, away) in zip(LABELS, np.moveaxis(maps, -1, 1), strict=True):
        expected = -ndimage.distance_transform_edt(label == 0)
        for i in np.unique(label[label > 0]):
            expected[label == i] = ndimage.distance_transform_edt(label == i)[label == i]
        np.testing.assert_array_equal(cell, label > 0)
        np.testing.assert_allclose(away, np.clip(expected, -LIMIT, LIMIT), rtol=1e-6)
    assert (maps_of(signed, np.zeros_like(LABELS[0]))[..., 1] == -LIMIT).all()


def test_signed_cuts_necks_by_depth():
    y, x = np.mgrid[:SIZE, :SIZE]
    label = np.where(np.hypot(y - 20, x - 12) < 9, 1, np.where(np.hypot(y - 20, x - 27) < 9, 2, 0))
    maps = maps_of(signed, label)[0]
    assert match(label, signed.decode(maps), iou=0.9).tp == 2
    assert signed.decode(maps, method="components").max() == 1
    assert signed.decode(maps, h=30.0).max() == 1
    assert signed.decode(maps, min_size=1000).max() == 0
    logits = np.random.default_rng(0).normal(size=(SIZE, SIZE, 2))
    np.testing.assert_array_equal(signed.probs(logits)[..., 1], np.float32(logits[..., 1]))
    np.testing.assert_allclose(
        signed.rescaled(np.ones((1, 1, 2)), (2.0, 0.5 * 9))[0, 0], [1, 3])


@pytest.mark.slow
def test_edge_distance_below_a_limit_is_exact():
    whole, limited = (np.asarray(edge_distance(LABELS[3:], limit)) for limit in (np.inf, 3.0))
    np.testing.assert_array_equal(np.minimum(limited, 3), np.minimum(whole, 3))


@pytest.mark.slow
def test_losses_equal_torch_em():
    """Its loss is pooled over the batch, with squares in both Dice losses."""
    with np.load(GOLDEN) as golden:
        maps, theirs = golden["maps"], golden["loss"]
    probs = distance_torch_em.predicted(maps.shape)
    first = losses.LOSSES["dice"](distance.logits(probs)[..., :1], maps[..., :1], squared=True,
                                  smooth=0, pooled=True)
    others = losses.REGRESSION["distance_dice"](
        probs[..., 1:], maps[..., 1:], pixel_weight=distance.regression_weight(maps), pooled=True)
    weights = distance.losses
    np.testing.assert_allclose(
        weights["dice"] * first + weights["distance_dice"] * others, theirs, rtol=1e-5)


@pytest.mark.weekly
def test_an_image_of_3000_pixels_is_equal_to_its_parts():
    """Nothing depends on the image beyond a cell: a window decodes as the whole does."""
    rng = np.random.default_rng(0)
    label, count = np.zeros((3000, 3000), np.int32), 0
    disc = np.hypot(*np.mgrid[-12:13, -12:13]) < 11
    for y in range(20, 2980, 21):  # cells of a row touch those of the next
        for x in range(20, 2980, 24):
            count += 1
            label[y - 12:y + 13, x - 12:x + 13][disc] = count
    for target, options in ((distance, {}), (signed, {"h": 0.5})):
        maps = np.array(target.encode(label))
        maps[..., 1] += 0.01 * ndimage.gaussian_filter(rng.normal(size=label.shape), 1)
        whole = target.decode(maps, **options)
        assert match(label, whole, iou=0.7).tp == count == whole.max()
        part = target.decode(maps[872:1628, 372:1128], **options)[128:-128, 128:-128]
        window = whole[1000:1500, 500:1000]
        inner = np.setdiff1d(np.unique(window), np.concatenate(
            [window[0], window[-1], window[:, 0], window[:, -1]]))
        for i in inner[inner > 0]:
            ids = np.unique(part[window == i])
            assert len(ids) == 1 and (part == ids[0]).sum() == (window == i).sum()


def test_maps_are_close_to_those_of_torch_em_on_convex_cells():
    label = np.stack([distance_torch_em.convex_cells(seed) for seed in range(len(LABELS))])
    with np.load(GOLDEN) as golden:
        off = np.abs(golden["maps"] - np.asarray(distance.encode(label)))
    np.testing.assert_array_equal(off[label == 0], 0)
    np.testing.assert_array_equal(off[..., 0], 0)
    # Paths through corners instead of straight lines; distances to what lies beyond the rim, less
    # one, instead of those to the rim.
    assert (off[label > 0].mean(0)[1:] < 0.03).all() and off.max() < 0.25


@pytest.mark.parametrize("name, outputs", [("distance", 3), ("signed", 2)])
def test_decode_rejects_other_shapes(name, outputs):
    with helpers_shapes.unchecked(), pytest.raises(ValueError, match=f"expected .H, W, {outputs}."):
        TARGETS[name].decode(np.zeros((4, 4, 1)))


@pytest.mark.parametrize("name", ["distance", "signed"])
def test_encode_is_traced_where_devices_share_a_batch(name):
    spec = jax.P("data")
    encode = jax.shard_map(TARGETS[name].encode, mesh=jax.sharding.Mesh(jax.devices()[:1], "data"),
                           in_specs=spec, out_specs=spec)
    assert jax.eval_shape(encode, LABELS).shape[:3] == LABELS.shape


def test_encode_is_traced():
    shape = jax.eval_shape(distance.encode, jax.ShapeDtypeStruct((2, 8, 9), np.int32))
    assert shape.shape == (2, 8, 9, 3) and shape.dtype == np.float32
