import zipfile

import numpy as np
import pytest
import roifile
from golden import imagej as golden_imagej

from cellseg_jax.data import lazy
from cellseg_jax.data.annotations import imagej
from cellseg_jax.data.annotations.raster import Plane
from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.errors import InputError
from cellseg_jax.inference import outputs

SHAPE = (40, 50)
T = roifile.ROI_TYPE


def written(path, *rois):
    with zipfile.ZipFile(path, "w") as archive:
        for n, roi in enumerate(rois):
            archive.writestr(f"{n}.roi", roi if isinstance(roi, bytes) else roi.tobytes())
    return path


def box(kind, left, top, right, bottom, **options):
    return roifile.ImagejRoi(roitype=kind, left=left, top=top, right=right, bottom=bottom,
                             **options)


def polygon(points, kind=T.POLYGON, name="x", **options):
    roi = roifile.ImagejRoi.frompoints(points, name=name)
    roi.roitype = kind
    for key, value in options.items():
        setattr(roi, key, value)
    return roi


@pytest.fixture(scope="module")
def golden():
    with np.load(golden_imagej.FILE) as arrays:
        return dict(arrays)


def test_rois_have_the_pixels_that_imagej_gives_them(tmp_path, golden):
    names = [name.removeprefix("roi_") for name in golden if name.startswith("roi_")]
    assert len(names) == 18 * golden_imagej.EACH
    for name in names:
        (tmp_path / "a.roi").write_bytes(golden[f"roi_{name}"])
        expected = np.unpackbits(golden[f"mask_{name}"]).reshape(64, 64)
        label = imagej.read(tmp_path / "a.roi", (64, 64)).label
        np.testing.assert_array_equal(label, expected, name)


@pytest.mark.parametrize("kind", [T.POLYGON, T.FREEHAND, T.TRACED])
@pytest.mark.parametrize("dtype", [int, float])
def test_outlines_are_the_pixels_whose_centre_is_inside(tmp_path, kind, dtype):
    points = np.array([(3, 2), (20, 4), (14, 18), (5, 12)], dtype) + (0.25 if dtype is float else 0)
    label = imagej.read(written(tmp_path / "a.zip", polygon(points, kind)), SHAPE).label
    for y, x in np.ndindex(SHAPE):  # a convex polygon, corners clockwise on a screen
        edges = np.roll(points, -1, 0) - points
        to = np.array([x + 0.5, y + 0.5]) - points
        side = edges[:, 0] * to[:, 1] - edges[:, 1] * to[:, 0]
        assert label[y, x] == (side > 0).all() or (side == 0).any()


def test_ovals_and_rectangles_are_those_of_imagej(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(30):
        left, top, width, height = rng.integers(0, 15, 4) + [0, 0, 1, 1]
        bounds = [int(n) for n in (left, top, left + width, top + height)]
        label = imagej.read(written(tmp_path / "a.zip", box(T.OVAL, *bounds)), SHAPE).label
        a, b = width / 2, height / 2
        expected = [((x - left - a + 0.5) / a) ** 2 + ((y - top - b + 0.5) / b) ** 2 <= 1
                    for y, x in np.ndindex(SHAPE)]
        np.testing.assert_array_equal(label.ravel(), expected)
        label = imagej.read(written(tmp_path / "a.zip", box(T.RECT, *bounds)), SHAPE).label
        assert label.sum() == width * height == label[top : top + height, left:left + width].sum()


def test_a_single_roi_and_composites_with_holes(tmp_path):
    label = np.zeros(SHAPE, np.int32)
    label[4:20, 5:30], label[8:12, 9:14], label[9, 10] = 7, 0, 7
    outputs.write("roi", tmp_path / "a", label, lazy.from_array(np.zeros((*SHAPE, 1), np.uint8)))
    with zipfile.ZipFile(tmp_path / "a_rois.zip") as archive:
        archive.extract("7.roi", tmp_path)
    for name in ("a_rois.zip", "7.roi"):
        np.testing.assert_array_equal(imagej.read(tmp_path / name, SHAPE).label, label)


def test_curves_of_composites_are_drawn(tmp_path):
    points = [(5, 5), (40, 5), (40, 30), (5, 30), (1, 20), (5, 5)]
    steps = [0, *points[0], 2, *points[1], *points[2], 3, *points[3], *points[4], *points[5], 4]
    roi = box(T.RECT, 5, 5, 40, 30, shape_roi_size=len(steps),
              multi_coordinates=np.array(steps, np.float32))
    label = imagej.read(written(tmp_path / "a.zip", roi), SHAPE).label
    a, b, c, d, e, f = np.array(points, float)
    s = np.linspace(0, 1, 3000)[:, None]
    exact = [(1 - s) ** 2 * a + 2 * s * (1 - s) * b + s**2 * c,
             (1 - s) ** 3 * c + 3 * s * (1 - s) ** 2 * d + 3 * s**2 * (1 - s) * e + s**3 * f]
    expected = imagej.read(written(tmp_path / "b.zip", polygon(np.concatenate(exact))), SHAPE).label
    assert np.count_nonzero(label != expected) <= 2 < 300 < expected.sum()


def test_what_has_no_area_is_named(tmp_path):
    points = np.array([(3, 2), (20, 4), (14, 18)])
    found = imagej.read(written(
        tmp_path / "a.zip", polygon(points, name="cell"), polygon(points, T.POINT, "dots"),
        polygon(points, T.POLYLINE, "way"), polygon(points[:2], name="edge"),
        polygon(points + 90, name="far")), SHAPE)
    warning, = found.findings
    assert warning.what == (
        "4 of 5 annotations are left out: dots (a point, which has no area), way (a polyline, "
        "which has no area), edge (an outline of 2 points), far (no pixel in the "
        "image)")
    assert np.unique(found.label).tolist() == [0, 1]


def test_groups_are_classes_and_names_ids(tmp_path):
    points = np.array([(3, 2), (20, 4), (14, 18)])
    found = imagej.read(written(tmp_path / "a.zip", polygon(points, name="12", group=2),
                                polygon(points + 20, name="5")), SHAPE)
    assert found.kinds == {12: "2", 5: ""} and np.unique(found.label).tolist() == [0, 5, 12]


def test_planes_and_other_files_are_refused(tmp_path):
    points = np.array([(3, 2), (20, 4), (14, 18)])
    slices = [polygon(points, name=str(n), position=n) for n in (1, 2)]
    with pytest.raises(InputError, match="a.zip: its ROIs lie on 2 planes of a stack"):
        imagej.read(written(tmp_path / "a.zip", *slices), SHAPE)
    assert imagej.read(written(tmp_path / "a.zip", slices[1]), SHAPE).label.any()
    everywhere = polygon(points + 20, name="9")
    written(tmp_path / "a.zip", *slices, everywhere)
    ids = [np.unique(imagej.read(tmp_path / "a.zip", SHAPE, Plane(n, StackAxes({"Z": 3}))).label)
           for n in range(3)]
    assert [i.tolist() for i in ids] == [[0, 1, 9], [0, 2, 9], [0, 9]]
    with pytest.raises(InputError, match="a.zip: 0.roi cannot be read as an ImageJ ROI"):
        imagej.read(written(tmp_path / "a.zip", b"Iout"), SHAPE)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="a.zip: is no zip file"):
        imagej.read(tmp_path / "a.zip", SHAPE)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/a.png", b"")
    with pytest.raises(InputError, match="a.zip: holds 1 files, none of them a .roi"):
        imagej.read(tmp_path / "a.zip", SHAPE)


@pytest.mark.parametrize("place", [60_530, 61_000, 65_530, 70_000])
def test_rois_far_to_the_right_come_back(tmp_path, place):
    label = np.zeros((12, 70_040), np.int32)
    label[2:9, place : place + 20], label[4:6, place + 5 : place + 9] = 1, 0
    label[3:7, place + 22 : place + 30] = 2
    image = lazy.from_array(np.zeros((*label.shape, 1), np.uint8))
    for made, turned in ((label, "x"), (label.T, "y")):
        image = lazy.from_array(np.zeros((*made.shape, 1), np.uint8))
        path = outputs.write("roi", tmp_path / turned, made, image)
        np.testing.assert_array_equal(imagej.read(path, made.shape).label, made)
