import base64
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from cellseg_jax.data.annotations import labelme
from cellseg_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden/annotations.npz"
SHAPE = (40, 50)


def read(tmp_path, shapes, **content):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "5.5.0", "flags": {}, "shapes": shapes,
                                "imageData": None, "imagePath": "a.png", "imageHeight": SHAPE[0],
                                "imageWidth": SHAPE[1]} | content))
    return labelme.read(path, SHAPE)


def shape(points, kind="polygon", label="cell", group=None, **more):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind} | more


def test_shapes_match_labelmes_own_function(tmp_path):
    golden = np.load(GOLDEN)
    drawn = 0
    for one, expected in zip(json.loads(str(golden["shapes"])), golden["labelme"], strict=True):
        if not expected.any():
            with pytest.raises(InputError, match="no pixel in the image"):
                read(tmp_path, [one])
            continue
        np.testing.assert_array_equal(read(tmp_path, [one]).label > 0, expected)
        drawn += 1
    assert drawn > 20


def test_rectangles_of_four_corners_are_those_of_two(tmp_path):
    for corners in ([[2, 3], [10, 3], [10, 9], [2, 9]], [[10, 9], [2, 9], [2, 3], [10, 3]]):
        found = read(tmp_path, [shape(corners, "rectangle")])
        expected = read(tmp_path, [shape([[10, 3], [2, 9]], "rectangle")])
        np.testing.assert_array_equal(found.label, expected.label)
        assert np.count_nonzero(found.label) == 9 * 7
    turned = [[10, 2], [16, 8], [10, 14], [4, 8]]
    np.testing.assert_array_equal(read(tmp_path, [shape(turned, "rotation")]).label,
                                  read(tmp_path, [shape(turned, "oriented_rectangle")]).label)


def test_shapes_of_a_group_are_one_object_and_labels_are_classes(tmp_path):
    triangle = lambda x: [[x, 2], [x + 8, 2], [x, 9]]
    found = read(tmp_path, [
        shape(triangle(1), group=4), shape(triangle(12), label="other", group=4),
        shape(triangle(24), group=4), shape(triangle(36))])
    assert [found.label[3, x] for x in (2, 13, 25, 37)] == [1, 2, 1, 3]
    assert found.kinds == {1: "cell", 2: "other", 3: "cell"}


def test_masks_are_their_own_pixels(tmp_path):
    bitmap = np.random.default_rng(0).random((5, 7)) > 0.4
    file = io.BytesIO()
    Image.fromarray(bitmap).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    found = read(tmp_path, [shape([[3, 4], [9, 8]], "mask", mask=data)])
    np.testing.assert_array_equal(found.label[4:9, 3:10] > 0, bitmap)
    assert np.count_nonzero(found.label) == bitmap.sum()
    found = read(tmp_path, [shape([[45, 38], [51, 42]], "mask", mask=data)])
    np.testing.assert_array_equal(found.label[38:, 45:] > 0, bitmap[:2, :5])
    found = read(tmp_path, [shape([[3, 4], [9, 9]], "mask", mask=data), shape([[1, 1], [9, 1],
                                                                               [1, 9]])])
    assert "shape 1 (a mask of 5x7 pixels for a box of 6x7)" in found.findings[0].what


def test_what_has_no_area_is_named(tmp_path):
    found = read(tmp_path, [
        shape([[3, 4]], "point"), shape([[3, 4], [9, 9]], "linestrip"), shape([[1, 1], [2, 2]]),
        shape([[3, 4], [9, 9], [3, 9]]), shape([[3, 4]], "cuboid"), shape([[1, "a"]] * 3)])
    assert found.findings[0].what == (
        "5 of 6 annotations are left out: shape 1 (a point, which has no area), shape 2 (a "
        "linestrip, which has no area), shape 3 (a polygon of 2 points), shape 5 (a cuboid), "
        "shape 6 (could not convert string to float: 'a')")
    assert np.unique(found.label).tolist() == [0, 1]


def test_other_images_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="made for an image of 41x50, its image is 40x50"):
        read(tmp_path, [], imageHeight=41)
    (tmp_path / "a.json").write_text('{"shapes": 3')
    with pytest.raises(InputError, match="a.json: is no labelme file, truncated or damaged"):
        labelme.read(tmp_path / "a.json", SHAPE)
