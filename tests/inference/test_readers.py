"""What other programs' readers make of our label files: docs/formats.md has the table."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageSequence

from cellseg_jax.data import lazy
from cellseg_jax.data.stacks import StackAxes
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import tiff


def opencv(path):
    cv2 = pytest.importorskip("cv2")
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def opencv_stack(path):
    cv2 = pytest.importorskip("cv2")
    return np.stack(cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)[1])


def pillow(path):
    with Image.open(path) as image:
        return np.array(image)


def pillow_stack(path):
    with Image.open(path) as image:
        return np.stack([np.array(page) for page in ImageSequence.Iterator(image)])


def simpleitk(path):
    itk = pytest.importorskip("SimpleITK")
    return itk.GetArrayFromImage(itk.ReadImage(str(path)))


def scikit_image(path):
    io = pytest.importorskip("skimage.io")
    return io.imread(path)


def imageio(path):
    return pytest.importorskip("imageio.v3").imread(path)


def napari(path):
    reader = pytest.importorskip("napari_builtins.io").napari_get_reader(str(path))
    return np.asarray(reader(str(path))[0][0])


READERS = {"opencv": opencv, "pillow": pillow, "simpleitk": simpleitk,
           "scikit_image": scikit_image, "imageio": imageio, "tifffile": tifffile.imread,
           "napari": napari}


def cells(factor):
    """40 cells, with ids up to 39 times the factor."""
    ids = np.random.default_rng(0).integers(0, 40, (6, 10))
    return ids.repeat(4, 0).repeat(4, 1) * factor


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("pixel_size", [None, (0.5, 0.5)])
@pytest.mark.parametrize("factor", [1, 1600, 400_000], ids=["low", "uint16", "uint32"])
def test_label_tiffs_are_right_in_every_reader(tmp_path, reader, pixel_size, factor):
    label = cells(factor)
    image = lazy.from_array(np.zeros((*label.shape, 1), np.uint8), "a", pixel_size)
    path = outputs.write("tiff", tmp_path / "a", label, image)
    found = READERS[reader](path)
    assert found.shape == label.shape and found.dtype.kind in "ui"
    np.testing.assert_array_equal(found, label)


STACK_READERS = {**READERS, "opencv": opencv_stack, "pillow": pillow_stack}
del STACK_READERS["scikit_image"]


def stack(folder, count):
    planes = [cells(n + 1) for n in range(count)]
    for n, plane in enumerate(planes):
        tifffile.imwrite(folder / f"plane_{n}.tif", plane.astype(np.uint16))
    tiff.write_stack(folder / "stack.tif", sorted(folder.glob("plane_*.tif")),
                     StackAxes({"Z": count}), (0.5, 0.5))
    return folder / "stack.tif", np.stack(planes)


@pytest.mark.parametrize("reader", STACK_READERS)
@pytest.mark.parametrize("count", [3, 5])
def test_label_stacks_are_right_in_readers_of_all_planes(tmp_path, reader, count):
    path, planes = stack(tmp_path, count)
    np.testing.assert_array_equal(STACK_READERS[reader](path), planes)


def test_scikit_image_takes_three_or_four_planes_for_channels(tmp_path):
    """Why docs/formats.md says to read stacks with tifffile."""
    path, planes = stack(tmp_path, 3)
    np.testing.assert_array_equal(scikit_image(path), np.moveaxis(planes, 0, -1))


def test_opencv_without_its_flag_changes_labels(tmp_path):
    """Why docs/formats.md names the flag."""
    cv2 = pytest.importorskip("cv2")
    label = cells(1600)
    image = lazy.from_array(np.zeros((*label.shape, 1), np.uint8), "a")
    found = cv2.imread(str(outputs.write("tiff", tmp_path / "a", label, image)))
    assert found is None or found.dtype == np.uint8


@pytest.mark.parametrize("reader", [name for name in READERS if name != "tifffile"])
def test_png_of_16_bits_is_right(tmp_path, reader):
    """We write none, but labels come and go as such."""
    Image.fromarray(cells(1600).astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(READERS[reader](tmp_path / "a.png"), cells(1600))
