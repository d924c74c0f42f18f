"""The target flow: equal to Cellpose, to slow loops, and labels of any shape come back."""

import functools

import jax
import numpy as np
import pytest
from golden import flow_cellpose
from scipy import ndimage

from cellseg_jax import losses
from cellseg_jax.inference.stitch_labels import stitched
from cellseg_jax.inference.tile_blending import turns, turns_back
from cellseg_jax.metrics import match
from cellseg_jax.targets import TARGETS
from cellseg_jax.targets.flow_masks import follow
from cellseg_jax.targets.heat import object_flows

FLOW = TARGETS["flow"]


def encode(label):
    """The maps of a label, to be changed."""
    return np.array(FLOW.encode(label))


@pytest.fixture(scope="module")
def golden():
    with np.load(flow_cellpose.FILE) as file:
        return dict(file)


def slow_flow(label):
    """The flow of each object by loops over rounds and neighbours, in float64."""
    out = np.zeros((*label.shape, 2))
    padded = np.pad(label, 1)
    for number in np.unique(label[label > 0]):
        mask = padded == number
        y, x = np.nonzero(mask)
        centre = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
        heat = np.zeros(mask.shape)
        for _ in range(2 * (np.ptp(y) + 3 + np.ptp(x) + 3)):
            heat[y[centre], x[centre]] += 1
            heat = mask * ndimage.uniform_filter(heat, 3, mode="constant")
        heat[~mask] = 0
        step = np.stack([heat[y + 1, x] - heat[y - 1, x], heat[y, x + 1] - heat[y, x - 1]], -1)
        length = np.linalg.norm(step, axis=-1, keepdims=True)
        out[y - 1, x - 1] = step / np.where(length > 0, length, 1)
    return out


def slow_follow(flow, points, steps):
    """Euler steps of points one after the other, interpolated by hand."""
    height, width = flow.shape[:2]
    points = np.array(points, float)
    for point in points:
        for _ in range(steps):
            (y, x), step = point.astype(int), 0
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (1 - abs(point[0] - y - dy)) * (1 - abs(point[1] - x - dx))
                    step += weight * flow[min(y + dy, height - 1), min(x + dx, width - 1)]
            point[:] = np.clip(point + step, 0, [height - 1, width - 1])
    return points


def random_shape(rng, size):
    """A mask of one 8-connected disc, ring, crescent, line, pixel, blob or random walk."""
    y, x = np.mgrid[:size, :size]
    mask, centre, radius = np.zeros((size, size), bool), rng.integers(-2, size + 2, 2), 0
    radius, kind = rng.uniform(1, 14), rng.integers(7)
    distance = np.hypot(y - centre[0], x - centre[1])
    if kind == 0:
        mask = distance <= radius
    elif kind == 1:
        mask = (distance <= radius) & (distance >= radius * rng.uniform(0.3, 0.9))
    elif kind == 2:
        mask = (distance <= radius) & (
            np.hypot(y - centre[0] - radius / 2, x - centre[1]) > 0.9 * radius)
    elif kind == 3:
        along, angle = np.linspace(0, rng.integers(1, 50), 400), rng.uniform(0, 7)
        line = np.stack([centre[0] + along * np.sin(angle) + rng.uniform(0, 6) * np.sin(
            along * rng.uniform(0, 0.5)), centre[1] + along * np.cos(angle)]).round().astype(int)
        mask[tuple(line[:, ((line >= 0) & (line < size)).all(0)])] = True
    elif kind == 4:
        mask[tuple(centre.clip(0, size - 1))] = True
    elif kind == 5:
        mask = (ndimage.gaussian_filter(rng.normal(size=mask.shape), rng.uniform(1, 4)) > 0) & (
            distance < 2 * radius)
    else:
        walk = centre + np.cumsum(rng.integers(-1, 2, (rng.integers(1, 200), 2)), 0)
        mask[tuple(walk[((walk >= 0) & (walk < size)).all(1)].T)] = True
    pieces = ndimage.label(mask, np.ones((3, 3)))[0]
    return mask & (pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=2)[1:]))


def separated_cells(seed, size=64, tries=20):
    """A label of random shapes that do not touch, with ids of any size."""
    rng, label = np.random.default_rng(seed), np.zeros((size, size), np.int32)
    for number in rng.choice(2**31 - 2, tries, replace=False) + 1:
        mask = random_shape(rng, size)
        if not (ndimage.binary_dilation(mask, np.ones((3, 3))) & (label > 0)).any():
            label[mask] = number
    return label


def assert_same_cells(pred, label):
    """Equal but for the ids."""
    pairs = np.unique(np.stack([pred.ravel(), label.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(label)) == len(np.unique(pred))
    np.testing.assert_array_equal(pred > 0, label > 0)


def check_cellpose(pred, masks):
    """Cells are those of Cellpose, and those that match have a mean Dice above 0.99."""
    result = match(masks, pred, iou=0.5)
    assert (result.fp, result.fn) == (0, 0)
    dice = []
    for number in np.unique(masks[masks > 0]):
        cell, found = masks == number, pred == np.bincount(pred[masks == number]).argmax()
        dice.append(2 * (cell & found).sum() / (cell.sum() + found.sum()))
    assert np.mean(dice) > 0.99  # pixels that Cellpose leaves out belong to the nearest cell here


def test_encode_equals_cellpose(golden):
    label = golden["label"].astype(np.int32)
    maps = encode(label)
    np.testing.assert_array_equal(maps[..., 0], label > 0)
    inside = label > 0
    flow = golden["flow"].transpose(1, 2, 0)
    assert np.corrcoef(maps[inside, 1:].ravel(), flow[inside].ravel())[0, 1] > 0.999999
    np.testing.assert_allclose(maps[..., 1:], flow, atol=1e-3)  # float32 of heat


@pytest.mark.slow
def test_encode_is_the_same_in_a_mapped_step(golden):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    label = golden["label"].astype(np.int32)[None]
    mapped = jax.jit(jax.shard_map(FLOW.encode, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(mapped(label), encode(label), atol=1e-6)


def test_decode_equals_cellpose(golden):
    pred = FLOW.decode(golden["maps"].astype(np.float32), min_size=15)
    check_cellpose(pred, golden["masks"])


def test_encode_and_object_flows_match_loops_over_objects(golden):
    label = separated_cells(7)
    label[golden["label"] > 6] = golden["label"][golden["label"] > 6]  # some touch
    ids = np.unique(label, return_inverse=True)[1].reshape(label.shape)
    slow, fast = slow_flow(label), encode(label)[..., 1:]
    # Where heat is symmetric, flows are roundings of 0 that were normalised.
    turns_over = np.abs(fast - slow).max(-1) > 1e-2
    assert turns_over.sum() < 0.005 * (label > 0).sum()
    np.testing.assert_allclose(fast[~turns_over], slow[~turns_over], atol=1e-2)
    np.testing.assert_allclose(object_flows(ids), fast, atol=1e-6)  # another order of sums


def test_follow_matches_a_loop():
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(7, 9, 2)).astype(np.float32)
    points = rng.uniform(0, [6, 8], (20, 2)).astype(np.float32)
    down, right = np.pad(flow.reshape(-1, 2), ((0, 10), (0, 0))).T
    moved = follow(down, right, np.array([7, 9], np.int32), points, steps=5)
    np.testing.assert_allclose(moved, slow_follow(flow, points, 5), atol=1e-4)


def test_follow_copies_no_image():
    """It is called for 1,024 points at a time: a copy in each call took 9 of 10 seconds."""
    pixels, points = 2**16, 2**5
    image = jax.ShapeDtypeStruct((pixels,), np.float32)
    memory = follow.lower(image, image, jax.ShapeDtypeStruct((2,), np.int32),
                          jax.ShapeDtypeStruct((points, 2), np.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < pixels * 4


@pytest.mark.parametrize("seed", [0, 1, *(
    pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 60))])
def test_roundtrip_of_separated_cells_of_any_shape(seed):
    label = separated_cells(seed)
    assert_same_cells(FLOW.decode(encode(label)), label)


def test_touching_cells_come_apart(golden):
    label = golden["label"].astype(np.int32)
    result = match(label, FLOW.decode(encode(label)), iou=0.9)
    assert ndimage.label(label)[1] < label.max() - 3  # many touch
    assert result.tp >= label.max() - 1  # one that others cut is in two pieces


def test_cells_lost_by_their_flow_by_their_size_and_by_the_threshold():
    label = np.zeros((64, 64), np.int32)
    label[5:20, 5:20], label[40:60, 30:50] = 1, 2
    maps = encode(label)
    maps[label == 2, 1:] *= -1  # out of the cell
    np.testing.assert_array_equal(FLOW.decode(maps), label == 1)
    np.testing.assert_array_equal(FLOW.decode(maps, flow_error=0) > 0, label > 0)
    assert not FLOW.decode(encode(label), min_size=401).any()
    assert not FLOW.decode(encode(label), threshold=0.9).any()
    assert not FLOW.decode(np.zeros((64, 64, 3))).any()
    assert not encode(np.zeros((64, 64), np.int32)).any()


def test_holes_are_filled_where_the_flow_goes_on():
    label = np.zeros((64, 64), np.int32)
    label[5:30, 5:30] = 3
    maps = encode(label)
    maps[8, 8, 0] = maps[12:14, 12, 0] = 0
    maps[8, 8, 1:] = 0  # here is background
    expected = label > 0
    expected[8, 8] = False
    np.testing.assert_array_equal(FLOW.decode(maps), expected)


@pytest.mark.parametrize("view", range(8))
def test_turned_maps_are_those_of_the_image(view, golden):
    label = golden["label"].astype(np.int32)[None, ..., None]
    maps = encode(turns(label, view)[..., 0])
    expected, back = encode(label[..., 0]), FLOW.turned(turns_back(maps, view), view)
    np.testing.assert_allclose(back, expected, atol=1e-3)


def test_rescaled_vectors_keep_their_lengths():
    maps = np.array([[[1, 0.6, 0.8], [0, 0, 0], [0.5, 0.3, 0.3]]], np.float32)
    np.testing.assert_allclose(FLOW.rescaled(maps, (2.0, 2.0)), maps, rtol=1e-6)
    moved = FLOW.rescaled(maps, (4.0, 1.0))
    np.testing.assert_allclose(np.hypot(moved[..., 1], moved[..., 2]), [[1, 0, 0.18**0.5]],
                               rtol=1e-6)
    np.testing.assert_allclose(moved[0, 0, 1] / moved[0, 0, 2], 3, rtol=1e-6)
    np.testing.assert_array_equal(moved[..., 0], maps[..., 0])


def test_losses_equal_cellposes():
    rng = np.random.default_rng(0)
    target = encode(separated_cells(0))[None]
    output = rng.normal(size=target.shape).astype(np.float32)  # as its network: 5 flows
    p, y = 1 / (1 + np.exp(-output[..., 0])), target[..., 0]
    bce = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    expected = 0.5 * ((output[..., 1:] - 5 * target[..., 1:]) ** 2).mean() + bce

    @jax.jit
    def total(output, target):
        mse = losses.REGRESSION["mse"](FLOW.probs(output)[..., 1:], target[..., 1:])
        bce = losses.LOSSES["bce"](output[..., :1], target[..., :1])
        return FLOW.losses["bce"] * bce + FLOW.losses["mse"] * mse

    np.testing.assert_allclose(total(output, target), [expected], rtol=1e-5)


@pytest.mark.slow
def test_flows_and_masks_equal_the_library():
    dynamics = pytest.importorskip("cellpose.dynamics")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        label = flow_cellpose.cells(rng, 128, 60)
        flow, inside = dynamics.masks_to_flows(label), label > 0
        ours = encode(label)[..., 1:]
        assert np.corrcoef(ours[inside].ravel(),
                           flow.transpose(1, 2, 0)[inside].ravel())[0, 1] > 0.999
        maps = flow_cellpose.blurred(label, flow, rng).astype(np.float32)
        check_cellpose(FLOW.decode(maps, min_size=15), flow_cellpose.of_cellpose(maps))


@pytest.mark.slow
@pytest.mark.weekly
def test_blocks_of_a_large_image_find_every_cell_once(tmp_path):
    rng, size, step = np.random.default_rng(0), 3000, 24
    label = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:step, :step] - step / 2
    for number, (top, left) in enumerate(np.ndindex(size // step, size // step), 1):
        a, b = rng.uniform(3, 11, 2)
        place = np.s_[top * step : (top + 1) * step, left * step : (left + 1) * step]
        label[place] = number * ((y / a) ** 2 + (x / b) ** 2 < 1)
    maps = np.concatenate([encode(rows) for rows in np.split(label, 5)])
    found = stitched(np.split(maps, 10), label.shape, functools.partial(FLOW.decode, min_size=0),
                     tmp_path, touching=False)
    assert_same_cells(np.asarray(found).astype(np.int64), label)
