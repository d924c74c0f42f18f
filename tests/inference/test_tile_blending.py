"""Tiles: every pixel covered, seams that vanish, one shape for the network."""

import numpy as np
import pytest

from cellseg_jax.inference.tile_blending import (
    predict_bands,
    predict_tiled,
    spread,
    tile_starts,
    turns,
    turns_back,
)

SIZES = pytest.mark.parametrize("size", [(61, 47), (300, 200), (128, 128), (129, 40), (1, 500)])
OVERLAPS = pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])


def test_tile_starts_equal_hand_value():
    assert tile_starts(10, 4, 0.0) == [0, 4, 8]  # the last reaches beyond
    assert tile_starts(10, 4, 0.2) == [0, 3, 6]
    assert tile_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert tile_starts(12, 4, 0.0) == [0, 4, 8]
    assert tile_starts(4, 4, 0.5) == [0] == tile_starts(3, 4, 0.5)


@OVERLAPS
@pytest.mark.parametrize("tile", [1, 7, 32])
def test_tile_starts_cover_with_the_overlap_asked_for(tile, overlap):
    for length in range(1, 150):
        starts = tile_starts(length, tile, overlap)
        last = max(0, length - tile) if overlap else (length - 1) // tile * tile
        assert starts[0] == 0 and starts[-1] == last
        gaps = np.diff(starts)
        assert (gaps > 0).all() and (gaps <= max(1, tile * (1 - overlap))).all()


@OVERLAPS
@pytest.mark.parametrize("length", [1, 8, 50, 133])
def test_blending_weights_are_smooth_and_sum_to_one(length, overlap):
    tiles = spread(length, 20, overlap=overlap)
    total = np.zeros(tiles[-1][0] + 20)
    assert len(total) >= length
    for start, weights in tiles:
        assert (weights > 0).all() and weights.shape == (20,)
        total[start : start + 20] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    first = tiles[0][1]
    if len(tiles) > 1 and overlap:  # 1 where it is alone, then falling
        assert first[0] == 1 and (np.diff(first) <= 1e-12).all() and first[-1] < 0.1


@pytest.mark.parametrize("size", [(24, 40), (29, 33), (5, 8)])
def test_without_overlap_predictions_are_a_loop_over_grid_cells(size):
    """Every cell alone, whatever the network: in images that tiles do not divide, mirrored ones."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*size, 2)).astype(np.float32)
    network = lambda tiles: tiles[..., :1] * tiles.mean((1, 2), keepdims=True)[..., 1:]
    padded = np.pad(image, ((0, -size[0] % 8), (0, -size[1] % 8), (0, 0)), mode="reflect")
    expected = np.zeros((*padded.shape[:2], 1), np.float32)
    for y in range(0, size[0], 8):
        for x in range(0, size[1], 8):
            cell = padded[y : y + 8, x : x + 8]
            expected[y : y + 8, x : x + 8] = network(cell[None])[0]
    found, = predict_tiled(lambda tiles, n: network(tiles), [image], tile=(8, 8), overlap=0.0,
                           batch_size=3)
    np.testing.assert_array_equal(found, expected[: size[0], : size[1]])


@pytest.mark.parametrize("length", [16, 64, 96, 160, 400])
def test_with_a_halo_each_pixel_is_of_one_tile_that_sees_around_it(length):
    tiles = spread(length, 64, halo=13, align=16)
    total = np.zeros(max(length, 64))
    for start, weights in tiles:
        assert start % 16 == 0 and set(weights) <= {0, 1}
        used = start + np.flatnonzero(weights)
        assert used[0] == start == 0 or used[0] >= start + 13
        assert used[-1] == start + 63 or used[-1] < start + 64 - 13
        total[used] += 1
    assert (total == 1).all() and tiles[-1][0] + 64 == max(length, 64)


@SIZES
@OVERLAPS
def test_predict_tiled_returns_a_constant_exactly(size, overlap):
    constant = np.array([0.3, 1 / 3], np.float32)
    predict = lambda x, n: np.broadcast_to(constant, (*x.shape[:3], 2))
    (out,) = predict_tiled(
        predict, [np.zeros((*size, 3), np.uint8)], tile=(128, 128), overlap=overlap, batch_size=4
    )
    assert out.shape == (*size, 2) and out.dtype == np.float32
    np.testing.assert_array_equal(out, np.broadcast_to(constant, out.shape))


@SIZES
@OVERLAPS
def test_predict_tiled_returns_the_image_of_an_identity(size, overlap):
    image = np.random.default_rng(0).random((*size, 2)).astype(np.float32)
    (out,) = predict_tiled(
        lambda x, n: x, [image], tile=(128, 96), overlap=overlap, batch_size=3)
    np.testing.assert_allclose(out, image, atol=1e-6)


def test_all_tiles_have_one_shape_and_dtype():
    seen = []

    def predict(x, n):
        seen.append((x.shape[1:], x.dtype))
        assert len(x) <= 5
        return x[..., :1]

    for size in [(20, 20), (33, 70), (100, 9)]:
        image = np.zeros((*size, 3), np.uint16)
        predict_tiled(predict, [image], tile=(32, 24), overlap=0.25, batch_size=5)
    assert set(seen) == {((32, 24, 3), np.dtype(np.uint16))}


def test_predict_tiled_pads_by_reflection():
    image = np.arange(3.0).reshape(1, 3, 1)
    seen = []
    predict_tiled(
        lambda x, n: seen.append(x) or x, [image], tile=(1, 6), overlap=0.0, batch_size=1)
    np.testing.assert_array_equal(seen[0].ravel(), [0, 1, 2, 1, 0, 1])


def test_tiles_reject_what_cannot_be():
    with pytest.raises(ValueError, match="share of the tile"):
        tile_starts(10, 4, 1.0)
    with pytest.raises(ValueError, match="one image"):
        predict_tiled(lambda x, n: x, [np.zeros((4, 4))], tile=(2, 2), overlap=0.0, batch_size=1)


def test_tiles_of_several_images_share_batches():
    rng = np.random.default_rng(1)
    images = [rng.random((*size, 1)) for size in [(10, 12), (40, 33), (5, 60), (16, 16)]]
    seen = []

    def predict(batch, number):
        seen.append(number)
        return batch + number[:, None, None, None]

    outs = predict_tiled(predict, images, tile=(16, 16), overlap=0.25, batch_size=4)
    for n, (image, out) in enumerate(zip(images, outs, strict=True)):
        np.testing.assert_allclose(out, image + n, atol=1e-6)
    assert set(map(len, seen[:-1])) == {4} and any(len(set(batch)) > 1 for batch in seen)


@pytest.mark.parametrize("halo", [0, 3])
def test_bands_equal_the_whole(halo):
    rng = np.random.default_rng(2)
    image = rng.random((100, 60, 2)).astype(np.float32)
    plan = {"halo": halo, "align": 4} if halo else {"overlap": 0.3}
    rows, columns = spread(100, 16, **plan), spread(60, 20, **plan)
    read = []

    def read_rows(start, stop):
        read.append(stop - start)
        return image[start:stop]

    bands = list(predict_bands(lambda x: x * 2, read_rows, rows, columns, batch_size=3))
    np.testing.assert_allclose(np.concatenate(bands), 2 * image, atol=1e-6)
    assert max(read) == 16 and len(bands) == len(rows) > 5


def test_turns_are_the_eight_symmetries():
    image = np.arange(12).reshape(1, 3, 4, 1)
    seen = {turns(image, n).tobytes() + bytes(turns(image, n).shape) for n in range(8)}
    assert len(seen) == 8
    for n in range(8):
        np.testing.assert_array_equal(turns_back(turns(image, n), n), image)
