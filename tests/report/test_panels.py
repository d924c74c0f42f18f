"""Pictures: sizes, colours that mean what the legend says, and outlines."""

import time

import numpy as np
import pytest
from PIL import Image

from cellseg_jax.report import panels


def two_cells(height=40, width=50):
    label = np.zeros((height, width), np.int32)
    label[5:15, 5:15] = 1
    label[5:15, 15:25] = 2  # touches 1
    return label


def tile_of(picture, n, columns=4):
    """The n-th tile of a panel with square tiles that are wider than the least cell."""
    width = (picture.shape[1] - panels.GAP) // columns - panels.GAP
    x = panels.GAP + n * (width + panels.GAP)
    y = (picture.shape[0] - width) // 2
    return picture[y : y + width, x : x + width]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (61, 47), (30, 900), (2000, 300)])
def test_panel_any_image(shape, dtype, channels):
    image = np.random.default_rng(0).integers(0, 200, (*shape, channels)).astype(dtype)
    label = (image[..., 0] > 100).astype(np.int32)
    picture = panels.panel(image, label, 1 - label, "a caption " * 100)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    width = (picture.shape[1] - panels.GAP) // 4 - panels.GAP
    assert max(width, picture.shape[0] - 100) >= panels.MIN_TILE
    assert max(width, picture.shape[0] - 100) <= panels.MAX_TILE


def test_panel_error_tile_shows_missed_and_spurious():
    truth, pred = np.zeros((200, 200), np.int32), np.zeros((200, 200), np.int32)
    truth[20:60, 20:60] = 1
    pred[120:160, 120:160] = 1
    error = tile_of(panels.panel(np.zeros((200, 200, 1), np.uint8), truth, pred), 3).astype(int)
    assert error.shape == (200, 200, 3)
    assert np.abs(error[40, 40] - panels.MISSED).max() < 40
    assert np.abs(error[140, 140] - panels.SPURIOUS).max() < 40
    assert error[100, 100].max() == 0


def test_panel_prediction_has_the_colour_of_its_truth():
    truth = two_cells(200, 200)
    pred = np.where(truth > 0, 3 - truth, 0)  # the same objects, ids exchanged
    picture = panels.panel(np.zeros((200, 200, 1), np.uint8), truth, pred)
    np.testing.assert_array_equal(tile_of(picture, 1), tile_of(picture, 2))
    assert (tile_of(picture, 1)[10, 10] != tile_of(picture, 1)[10, 20]).any()


def test_panel_caption_shows_letters_beyond_ascii():
    blank = np.zeros((200, 200), np.int32)
    draw = lambda caption: panels.panel(blank[..., None].astype(np.uint8), blank, blank, caption)
    assert (draw("Zelle \u00e4 7") != draw("Zelle \u00f6 7")).any()  # two boxes would be equal


def test_panel_classes_show_confusion():
    truth = np.full((200, 200), 1)
    picture = panels.panel(np.zeros((200, 200, 3), np.uint8), truth, truth + 1,
                           classes=("tumour", "stroma", "absent"))
    error = tile_of(picture, 3).astype(int)
    assert np.abs(error[100, 100] - panels.WRONG_CLASS).max() < 40
    assert (tile_of(picture, 1)[100, 100] != tile_of(picture, 2)[100, 100]).any()
    legend = picture[-40:]
    there = [(legend == colour).all(-1).any() for colour in panels.PALETTE[:3]]
    assert there == [True, True, False]  # of the classes that are there


def test_outline_equals_hand_value():
    label = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    expected = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(panels.outline(label), expected)


def test_outline_parts_touching_objects():
    edge = panels.outline(two_cells())
    assert edge[10, 14] and edge[10, 15] and not edge[10, 10] and not edge[0].any()


def test_overlay_keeps_size_and_colours_outlines_only():
    label = two_cells()
    image = np.full((*label.shape, 3), 100, np.uint16)
    image[0, 0] = 4095
    out = panels.overlay(image, label)
    assert out.shape == (*label.shape, 3)
    changed = (out != panels.stretch(image)).any(-1)
    np.testing.assert_array_equal(changed, panels.outline(label))


def test_stretch_shows_twelve_bit_images_and_constant_ones():
    image = np.linspace(0, 4095, 100).astype(np.uint16).reshape(10, 10, 1)
    assert panels.stretch(image).min() == 0 and panels.stretch(image).max() == 255
    assert panels.stretch(np.full((3, 3, 4), 65535, np.uint16)).max() == 0


def test_stretch_like_another_image_shows_what_differs():
    image = np.random.default_rng(0).integers(9, 90, (20, 30, 3), np.uint8)
    for one in (image, image // 8 * (image > 80)):  # which is mostly dark
        same = panels.stretch(one)
        np.testing.assert_array_equal(panels.stretch(one.astype(np.float32), one), same)
        assert panels.stretch(0.5 * one, one).mean() < 0.8 * same.mean()
        assert panels.stretch(4.0 * one, one).max() == 255  # clipped


def test_contact_sheet_holds_every_tile():
    tiles = [np.full((10 + n, 20, 3), n, np.uint8) for n in range(5)]
    sheet = panels.contact_sheet(tiles, 2)
    assert sheet.shape == (3 * 22 + panels.GAP, 2 * 28 + panels.GAP, 3)
    assert all((sheet == n).all(-1).sum() == tile.shape[0] * 20 for n, tile in enumerate(tiles))


def test_write_png_roundtrip(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    panels.write_png(tmp_path / "a.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_panel_is_fast_with_many_instances():
    label = np.arange(64 * 64).reshape(64, 64).repeat(8, 0).repeat(8, 1)  # 4095 that all touch
    started = time.monotonic()
    panels.panel(np.zeros((512, 512, 1), np.uint8), label, label[::-1])
    assert time.monotonic() - started < 5  # about 0.2 s alone


def test_tiles_are_those_that_were_drawn(tmp_path):
    for size in ((40, 60), (700, 900)):  # enlarged, reduced
        truth = np.zeros(size, np.int32)
        truth[3:30, 5:40] = 1
        image = np.random.default_rng(0).integers(0, 255, (*size, 1)).astype(np.uint8)
        panels.write_png(tmp_path / "a.png", panels.panel(image, truth, truth * 0, "caption"))
        drawn = panels._fit(panels.stretch(image), truth)[0]
        found = panels.tiles(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(found[0])[: drawn.shape[0], : drawn.shape[1]],
                                      drawn)
        assert found[1].size == found[2].size == found[0].size
        assert abs(found[0].height - drawn.shape[0]) <= panels.GAP


def test_stains_are_stretched_one_by_one():
    image = np.zeros((4, 5, 2), np.uint16)
    image[0, 0], image[1, 1] = (5000, 0), (0, 3)  # a bright and a faint one
    picture = panels.stretch(image)
    assert picture[0, 0].tolist() == [255, 0, 255] and picture[1, 1].tolist() == [0, 255, 0]
    five = np.dstack([image, image[..., ::-1], image[..., :1]])
    assert panels.stretch(five)[1, 1].tolist() == [0, 255, 255]
