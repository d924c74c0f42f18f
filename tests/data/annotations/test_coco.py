import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cellseg_jax.data.annotations import coco
from cellseg_jax.errors import InputError

H, W = 30, 40
IMAGE = {"id": 70, "file_name": "a.tif", "height": H, "width": W}


def annotation(segmentation, number=1, image_id=70):
    return {"id": number, "image_id": image_id, "segmentation": segmentation, "iscrowd": 0}


def write(path, annotations, images=(IMAGE,), **dump):
    path.write_text(json.dumps({"info": {"year": "2021"}, "images": list(images),
                                "annotations": annotations}, **dump))
    return path


def polygon(rng, points, low=0.0, high=1.0):
    """A polygon that may cross itself, coordinates as shares of the image."""
    return (rng.uniform(low, high, (points, 2)) * [W, H]).round(2).ravel().tolist()


def reference(tmp_path, annotations):
    """(n, H, W) bool as pycocotools itself reads them from a file."""
    read = COCO(write(tmp_path / "reference.json", annotations))
    return np.array([read.annToMask(a) > 0 for a in annotations])


def paint_slowly(masks):
    """The label image of `paint`: the smallest mask over a pixel, of equals the later."""
    label = np.zeros(masks.shape[1:], np.int32)
    areas = masks.sum((1, 2))
    for y, x in np.argwhere(masks.any(0)):
        inside = np.flatnonzero(masks[:, y, x])
        label[y, x] = 1 + max(inside, key=lambda i: (-areas[i], i))
    return label


def test_paint_matches_pycocotools_on_polygons(tmp_path):
    rng = np.random.default_rng(0)
    annotations = [annotation([polygon(rng, rng.integers(3, 9), -0.2, 1.2)
                               for _ in range(rng.integers(1, 3))], n) for n in range(40)]
    masks = reference(tmp_path, annotations)
    for a, mask in zip(annotations, masks, strict=True):
        np.testing.assert_array_equal(coco.paint([a], H, W)[0], mask)
    label, overlap, hidden, problems = coco.paint(annotations, H, W)
    np.testing.assert_array_equal(label, paint_slowly(masks))
    assert overlap == (masks.sum(0) > 1).sum() > 100
    assert hidden == len(masks) - np.count_nonzero(np.unique(label)) and not problems


def test_paint_matches_pycocotools_on_run_lengths(tmp_path):
    rng = np.random.default_rng(1)
    masks = rng.random((20, H, W)) < rng.random((20, 1, 1))
    masks[0], masks[1], masks[2] = True, False, False
    masks[1, :, 5:9], masks[2, -1, -1] = True, True
    compressed, runs = [], []
    for mask in masks:
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        compressed.append({"size": code["size"], "counts": code["counts"].decode()})
        flat = np.r_[0, mask.T.ravel(), 2]
        ends = np.flatnonzero(np.diff(flat))  # the first run is of background, perhaps empty
        runs.append({"size": [H, W], "counts": np.diff(np.r_[0, ends]).tolist()})
        runs[-1]["counts"][-1] += H * W - sum(runs[-1]["counts"])
    for codes in (compressed, runs):
        annotations = [annotation(code) for code in codes]
        np.testing.assert_array_equal(reference(tmp_path, annotations), masks)
        for a, mask in zip(annotations, masks, strict=True):
            np.testing.assert_array_equal(coco.paint([a], H, W)[0], mask)


SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def test_paint_small_over_large_and_later_over_equal():
    inner, outer = [4, 4, 6, 4, 6, 6, 4, 6], SQUARE
    for order in ([inner, outer], [outer, inner]):
        label, overlap, hidden, _ = coco.paint([annotation([p]) for p in order], H, W)
        assert label[5, 5] == 1 + order.index(inner) and label[3, 3] == 1 + order.index(outer)
        assert (overlap, hidden) == (4, 0)
    label, overlap, hidden, _ = coco.paint([annotation([SQUARE])] * 2, H, W)
    assert set(np.unique(label)) == {0, 2} and (overlap, hidden) == (36, 1)
    label, overlap, hidden, problems = coco.paint([], H, W)
    assert not label.any() and label.shape == (H, W) and (overlap, hidden, problems) == (0, 0, {})


def test_paint_clips_what_lies_partly_outside():
    label, _, _, problems = coco.paint([annotation([[-5, -5, 5, -5, 5, 5, -5, 5]])], H, W)
    expected = np.zeros((H, W))
    expected[:5, :5] = 1
    np.testing.assert_array_equal(label, expected)
    assert not problems


@pytest.mark.parametrize("segmentation, problem", [
    ([[1, 1, 5, 5]], "2-point polygon"),
    ([SQUARE, [1, 1]], "1-point polygon"),
    ([[1, 1, 5, 5, 3]], "polygon of 5 coordinates, x or y is missing"),
    ([[1, 1, 5, 5, 3, "a"]], "polygon is no list of numbers"),
    (SQUARE, "polygon is no list of numbers"),
    ([[1, 1, 5, 5, 3, float("nan")]], "polygon with a coordinate that is no number"),
    ([[1, 1, 5, 5, 3, float("inf")]], "polygon with a coordinate that is no number"),
    ([[W, 1, W + 5, 1, W + 5, 5]], "polygon outside the image"),
    ([[1, -1, 5, -1, 5, -9]], "polygon outside the image"),
    ([[1, 1, 5, 5, 1e9, 3]], "polygon outside the image"),
    ([[1, 1, 5, 1, 9, 1]], "covers no pixel"),
    ([[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "covers no pixel"),
    ({"size": [H, W], "counts": [H * W]}, "covers no pixel"),
    ({"size": [W, H], "counts": [0, H * W]}, f"run-length code of size [{W}, {H}] in an image of "
                                             f"[{H}, {W}]"),
    ({"size": [H, W], "counts": [3, 5]}, f"run-length code of 8 pixels, the image has {H * W}"),
    ({"size": [H, W], "counts": "35"}, f"run-length code of 8 pixels, the image has {H * W}"),
    ({"size": [H, W], "counts": [3, -5, 1202]}, "run-length code with runs that are no lengths"),
    ({"size": [H, W], "counts": None}, "run-length code with runs that are no lengths"),
    ({"size": [H, W], "counts": "3!"}, "run-length code with the character '!'"),
    ([], "no polygon and no run-length code"),
    (None, "no polygon and no run-length code"),
])
def test_paint_skips_what_cannot_be_drawn(segmentation, problem):
    annotations = [annotation([SQUARE]), annotation(segmentation), annotation([SQUARE])]
    label, _, _, problems = coco.paint(annotations, H, W)
    assert problems == {1: problem}
    assert set(np.unique(label)) == {0, 3}


@pytest.mark.parametrize("dump", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("as_dict", [False, True])
def test_index_finds_annotations_of_each_image(tmp_path, dump, as_dict):
    code = {"size": [H, W], "counts": [3, 5, 1192]}
    annotations = [
        annotation([SQUARE], 1, 9), annotation(code, 2, 70), annotation(code, 3, 9),
        {"segmentation": code, "image_id": 70, "id": 4}, {"image_id": 70, "segmentation": code},
        {"segmentation": code, "bbox": {"x": {"y": 1}}, "image_id": 70}, annotation([[]], 6, 5)]
    images = [IMAGE, IMAGE | {"id": 5}, IMAGE | {"id": 6, "file_name": "Zelle \u00e4.tif"}]
    for sort_keys in (False, True):  # sorted: annotations come before the images
        path = write(tmp_path / "a.json", {str(i): a for i, a in enumerate(annotations)}
                     if as_dict else annotations, images, sort_keys=sort_keys,
                     ensure_ascii=False, **dump)
        index = coco.index(path)
        assert index.images == images
        assert {i: coco.annotations(path, places) for i, places in index.places.items()} == {
            str(i): [a for a in annotations if a["image_id"] == i] for i in (9, 70, 5)}


@pytest.mark.parametrize("ids", [
    ["a", "b \"c", "Zelle \u00e4"], [1.5, -7, 2**70], [7.0, "8", 9], [0, -1, "x,}"]])
def test_index_finds_ids_of_any_kind(tmp_path, ids):
    images = [IMAGE | {"id": i, "file_name": f"{n}.tif"} for n, i in enumerate(ids)]
    written = [int(i) if isinstance(i, float) and i.is_integer() else i for i in ids]
    annotations = [annotation([SQUARE], n, written[n % 3]) for n in range(12)]
    index = coco.index(write(tmp_path / "a.json", annotations, images))
    found = [[a["id"] for a in coco.annotations(tmp_path / "a.json", index.of(image))]
             for image in index.images]
    assert found == [[n, n + 3, n + 6, n + 9] for n in range(3)] and not index.strays()


def test_index_counts_annotations_without_an_image(tmp_path):
    lone = [{"id": 9, "segmentation": [SQUARE]}, annotation([SQUARE], 10, None)]
    annotations = [annotation([SQUARE], 1), annotation([SQUARE], 2, "lost"), *lone]
    index = coco.index(write(tmp_path / "a.json", annotations))
    assert index.strays() == {"lost": 1, "None": 1, "none": 1} and len(index.of(IMAGE)) == 1


def test_index_without_annotations(tmp_path):
    index = coco.index(write(tmp_path / "a.json", []))
    assert index.images == [IMAGE] and index.places == {}


def test_index_rejects_other_files(tmp_path):
    path = write(tmp_path / "a.json", [annotation([SQUARE])])
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(InputError, match="a.json: is truncated, the last } is missing"):
        coco.index(path)
    path.write_text(text[:50] + "}")
    with pytest.raises(InputError, match="a.json: is no json, truncated or damaged"):
        coco.index(path)
    path.write_text('{"a": 1}')
    with pytest.raises(InputError, match='a.json: has no list "images"; expected a COCO'):
        coco.index(path)
    path.write_text("")
    with pytest.raises(InputError, match="a.json: is empty"):
        coco.index(path)
    with pytest.raises(InputError, match="b.json: cannot be read"):
        coco.index(tmp_path / "b.json")
    with pytest.raises(InputError, match="a.json: image .*'a.tif'.* lacks height, width"):
        coco.index(write(path, [], [{"id": 1, "file_name": "a.tif"}]))


def test_annotations_reject_changed_file(tmp_path):
    path = write(tmp_path / "a.json", [annotation([SQUARE])])
    places = coco.index(path).places["70"]
    path.write_text(path.read_text().replace("image_id", "image_no"))
    with pytest.raises(InputError, match="a.json: no annotation around byte [0-9]+"):
        coco.annotations(path, places)
    path.write_text("x" * 500)
    with pytest.raises(InputError, match="a.json: no annotation around byte"):
        coco.annotations(path, places)
