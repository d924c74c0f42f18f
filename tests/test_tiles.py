"""Tiles: every pixel covered, seams that vanish, one shape for the network."""

import numpy as np
import pytest

from cellseg_jax.tiles import blend_window, predict_tiled, tile_starts

SIZES = pytest.mark.parametrize("size", [(61, 47), (300, 200), (128, 128), (129, 40), (1, 500)])
OVERLAPS = pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])


def test_tile_starts_equal_hand_value():
    assert tile_starts(10, 4, 0.0) == [0, 3, 6]
    assert tile_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert tile_starts(12, 4, 0.0) == [0, 4, 8]
    assert tile_starts(4, 4, 0.5) == [0] == tile_starts(3, 4, 0.5)


@OVERLAPS
@pytest.mark.parametrize("tile", [1, 7, 32])
def test_tile_starts_cover_with_the_overlap_asked_for(tile, overlap):
    for length in range(1, 150):
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0 and starts[-1] == max(0, length - tile)
        gaps = np.diff(starts)
        assert (gaps > 0).all() and (gaps <= max(1, tile * (1 - overlap))).all()


@OVERLAPS
def test_blend_window_is_positive_smooth_and_symmetric(overlap):
    window = blend_window((8, 20), overlap)
    assert window.shape == (8, 20) and window.dtype == np.float32
    assert (window > 0).all() and window.max() <= 1
    np.testing.assert_array_equal(window, window[::-1, ::-1])
    if overlap == 0:
        np.testing.assert_array_equal(window, 1)
    else:
        assert window[4, 0] < window[4, 1] < window[4, 2]


def test_blend_windows_at_exact_overlap_sum_to_one():
    """sin^2 up and cos^2 down: where two tiles overlap, no pixel counts more than another."""
    row = blend_window((1, 8), 0.5)[0]
    np.testing.assert_allclose(row[4:] + row[:4], 1, rtol=1e-6)


@SIZES
@OVERLAPS
def test_predict_tiled_returns_a_constant_exactly(size, overlap):
    constant = np.array([0.3, 1 / 3], np.float32)
    predict = lambda x: np.broadcast_to(constant, (*x.shape[:3], 2))
    out = predict_tiled(
        predict, np.zeros((*size, 3), np.uint8), tile=(128, 128), overlap=overlap, batch_size=4
    )
    assert out.shape == (*size, 2) and out.dtype == np.float32
    np.testing.assert_array_equal(out, np.broadcast_to(constant, out.shape))


@SIZES
@OVERLAPS
def test_predict_tiled_returns_the_image_of_an_identity(size, overlap):
    image = np.random.default_rng(0).random((*size, 2)).astype(np.float32)
    out = predict_tiled(lambda x: x, image, tile=(128, 96), overlap=overlap, batch_size=3)
    np.testing.assert_allclose(out, image, atol=1e-6)


def test_predict_tiled_calls_with_one_shape_and_dtype():
    seen = []

    def predict(x):
        seen.append((x.shape, x.dtype))
        return x[..., :1]

    for size in [(20, 20), (33, 70), (100, 9)]:
        image = np.zeros((*size, 3), np.uint16)
        predict_tiled(predict, image, tile=(32, 24), overlap=0.25, batch_size=5)
    assert set(seen) == {((5, 32, 24, 3), np.dtype(np.uint16))}


def test_predict_tiled_pads_by_reflection():
    image = np.arange(3.0).reshape(1, 3, 1)
    seen = []
    predict_tiled(lambda x: seen.append(x) or x, image, tile=(1, 6), overlap=0.0, batch_size=1)
    np.testing.assert_array_equal(seen[0].ravel(), [0, 1, 2, 1, 0, 1])


def test_tiles_reject_what_cannot_be():
    with pytest.raises(ValueError, match="share of the tile"):
        tile_starts(10, 4, 1.0)
    with pytest.raises(ValueError, match="one image"):
        predict_tiled(lambda x: x, np.zeros((4, 4)), tile=(2, 2), overlap=0.0, batch_size=1)
