import json
import math
import pathlib

import numpy as np
import pytest

from cellseg_jax.data.annotations import raster
from cellseg_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden/annotations.npz"
SHAPE = (40, 50)


def whole(pixels, shape=SHAPE):
    window, mask = pixels
    out = np.zeros(shape, bool)
    out[window] = mask
    return out


def as_imagej_fills(rings, shape):
    """The rule of ImageJ's PolygonFiller, line by line: rows from ceil(y - 0.5) on, and in each
    pixels between pairs of crossings, from int(x + 0.5) to before int(x + 0.5)."""
    mask = np.zeros(shape, bool)
    for row in range(shape[0]):
        crossings = []
        for ring in rings:
            for (xa, ya), (xb, yb) in zip(ring, [*ring[1:], ring[0]], strict=True):
                (ya, xa), (yb, xb) = sorted([(ya, xa), (yb, xb)])
                if math.ceil(ya - 0.5) <= row < math.ceil(yb - 0.5):
                    crossings.append(xa + (row + 0.5 - ya) * (xb - xa) / (yb - ya) + 1e-8)
        crossings.sort()
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            first, last = (min(max(math.floor(x + 0.5), 0), shape[1]) for x in (left, right))
            mask[row, first:last] = True
    return mask


def test_filled_matches_rasterio():
    golden = np.load(GOLDEN)
    polygons = json.loads(str(golden["polygons"]))
    for rings, expected in zip(polygons, golden["rasterio"], strict=True):
        np.testing.assert_array_equal(whole(raster.filled(rings, SHAPE)), expected)
    assert golden["rasterio"].any((1, 2)).mean() > 0.9


@pytest.mark.parametrize("step", [0.5, 1, 0.001])
def test_filled_matches_imagejs_rule(step):
    rng = np.random.default_rng(0)
    for _ in range(60):
        rings = [np.round(rng.uniform(-5, 45, (rng.integers(3, 8), 2)) / step) * step
                 for _ in range(rng.integers(1, 3))]
        np.testing.assert_array_equal(whole(raster.filled(rings, SHAPE)),
                                      as_imagej_fills(rings, SHAPE))


def test_polygons_that_share_edges_share_no_pixel_and_leave_none():
    rng = np.random.default_rng(1)
    for step in (0.5, 0.001):
        centre = np.round(rng.uniform(15, 25, 2) / step) * step
        corners = [(0, 0), (30, 0), (50, 0), (50, 17.5), (50, 40), (22.5, 40), (0, 40), (0, 20)]
        times = sum(whole(raster.filled([[a, b, centre]], SHAPE)).astype(int)
                    for a, b in zip(corners, corners[1:] + corners[:1], strict=True))
        assert (times == 1).all()


def test_filled_outside_of_the_image_is_empty():
    for ring in ([(60, 5), (70, 5), (65, 9)], [(-9, -9), (-2, -9), (-5, -1)],
                 [(5.1, 5.1), (5.2, 5.1), (5.2, 5.2)]):
        assert not raster.filled([ring], SHAPE)[1].any()
    assert whole(raster.filled([[(-99, -99), (99, -99), (99, 99), (-99, 99)]], SHAPE)).all()


def shape_of(name, box, kind=""):
    x0, y0, x1, y1 = box
    return raster.Shape(name, kind, *raster.filled(
        [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]], SHAPE))


def test_drawn_keeps_small_objects_and_names_every_one_that_is_not_there():
    shapes = [shape_of("7", (0, 0, 20, 20), "a"), shape_of("3", (5, 5, 9, 9), "b"),
              shape_of("9", (5, 5, 9, 9)), shape_of("12", (60, 5, 70, 9))]
    found = raster.drawn("f", shapes, ["8 (a line)"], SHAPE)
    assert np.unique(found.label).tolist() == [0, 7, 9] and found.label[6, 6] == 9
    assert found.kinds == {7: "a", 3: "b", 9: ""}
    warning, note = found.findings
    assert warning.what == ("2 of 5 annotations are left out: 8 (a line), 12 (no pixel in the "
                            "image)")
    assert note.what == ("16 pixels (0.80%) belong to two or more objects; the smaller one keeps "
                         "them, 1 objects keep none: 3")


def test_a_file_of_which_nothing_can_be_drawn_is_refused():
    with pytest.raises(InputError, match="f: none of its 2 annotations can be drawn: 8 .a line., 12"
                                         " .no pixel in the image.; expected areas in pixels"):
        raster.drawn("f", [shape_of("12", (60, 5, 70, 9))], ["8 (a line)"], SHAPE)
    assert not raster.drawn("f", [], [], SHAPE).label.any()


def test_outlines_of_another_scale_are_refused():
    inside, tiny = shape_of("1", (0, 0, 9, 9)), shape_of("2", (5.1, 5.1, 5.2, 5.2))
    outside = [shape_of("3", (60, 5, 70, 9)), shape_of("4", (5, 40, 9, 80))]
    for shapes in ([inside, outside[0]], [inside, tiny, tiny], [inside, tiny, *outside]):
        assert raster.drawn("f", shapes, [], SHAPE).label.any()
    with pytest.raises(InputError, match="f: 2 of its 3 annotations lie outside of the image of 40"
                                         "x50; were they drawn on it at another scale, or on a l"):
        raster.drawn("f", [inside, *outside], [], SHAPE)



@pytest.mark.parametrize("names, ids", [
    (["5", "2147483647"], [5, 2147483647]), (["5", "5"], [1, 2]), (["0", "1"], [1, 2]),
    (["2147483648", "1"], [1, 2]), (["0001-0034", "7"], [1, 2]), (["-3", "7"], [1, 2]), ([], [])])
def test_ids_are_names_that_are_different_numbers(names, ids):
    assert raster.ids_of(names).tolist() == ids
