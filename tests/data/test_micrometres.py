"""Pixel sizes in all kinds of headers: believed, or a note and pixels; none ends the reading."""

import struct

import numpy as np
import pytest
import tifffile

from cellseg_jax.data import lazy, micrometres, scale
from cellseg_jax.data.datasets import folder
from cellseg_jax.data.stacks import AS_IT_IS
from cellseg_jax.inference import outputs, stacks_out

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="3"
SizeZ="1" SizeC="1" SizeT="1" {}><Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/>
</Pixels></Image></OME>"""


def check_size(image, size):
    """`size` is believed, or stands in the only note; None: nothing is said."""
    if isinstance(size, float):
        assert image.pixel_size == (size, size) and not image.notes
    else:
        assert image.pixel_size is None and [size in note for note in image.notes] == (
            [True] if size else [])


@pytest.mark.parametrize("pixel_size, expected", [
    ((0.5, 0.5), 0.5), ((0.5, 0.503), 0.5015), ((0.5, 0.51), None), ((1e-6, 1e-6), None),
    ((2e4, 2e4), None), ((np.nan, 1), None), ((np.inf, np.inf), None), ((0, 0), None),
    (None, None)])
def test_a_pixel_size_is_believed_if_square_and_possible(pixel_size, expected):
    assert micrometres.believed(pixel_size) == (expected and pytest.approx(expected, rel=1e-4))


def opened(path):
    image, = lazy.open_images(path)
    np.testing.assert_array_equal(image.read()[..., 0], PIXELS)
    np.testing.assert_equal(lazy.pixel_size_of(path), image.pixel_size)
    return image.calibrated()


def write_two(path, sizes, ome):
    """Two images of one file, the second of which is smaller if they have no OME-XML."""
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        for n, size in enumerate(sizes):
            said = {} if size is None else dict(
                resolution=(1e4 / size, 1e4 / size), resolutionunit="CENTIMETER")
            metadata = {"axes": "YX"} | ({} if size is None else {
                f"PhysicalSize{axis}": size for axis in "XY"})
            tiff.write(PIXELS if ome else PIXELS[n:], metadata=metadata if ome else None, **said)


@pytest.mark.parametrize("ome", [True, False])
@pytest.mark.parametrize("sizes", [(0.5, 2.0), (0.5, 0.5), (None, 2.0)])
def test_images_of_a_file_have_their_own_sizes(tmp_path, sizes, ome):
    write_two(tmp_path / "a.tif", sizes, ome)
    write_two(tmp_path / "a_label.tif", sizes, ome)
    found = [micrometres.believed(image.pixel_size)
             for image in lazy.open_images(tmp_path / "a.tif")]
    assert found == [size and pytest.approx(size) for size in sizes]
    records = folder.records(tmp_path, z="slices")
    assert [scale.pixel_size_of(record) for record in records] == found


@pytest.mark.parametrize("sizes, joined", [((0.5, 2.0), None), ((0.5, 0.5), 0.5)])
def test_labels_of_several_magnifications_are_joined_without_one(tmp_path, sizes, joined):
    write_two(tmp_path / "a.tif", sizes, True)
    images = lazy.open_images(tmp_path / "a.tif")
    paths = tuple(outputs.write("tiff", tmp_path / image.name, PIXELS, image) for image in images)
    stacks_out.write([stacks_out.StackOut(tmp_path / "a.tif", tmp_path / "b", "tiff", paths)],
                     AS_IT_IS)
    found = lazy.pixel_size_of(tmp_path / "b_label.tif")
    assert found == (joined and (joined, joined))


@pytest.mark.parametrize("x, y, unit, size", [
    ("0.5", "0.5", "um", 0.5), ("5000", "5000", "\u00c5", 0.5), ("500", "500", "nm", 0.5),
    ("0.5", "0.504", "um", 0.502),
    ("0.5", "1.0", "um", "1 x 0.5 um"), ("inf", "inf", "um", "inf"), ("nan", "nan", "um", "nan"),
    ("-1", "-1", "um", "-1 x -1 um"), ("1e300", "1e300", "um", "1e+300"),
    ("1e-6", "1e-6", "um", "1e-06"), ("abc", "0.5", "um", "0.5 x nan um"),
    ("0.5", None, "um", "nan x 0.5 um"), ("0.5", "0.5", "pixel", None), (None, None, "um", None)])
def test_sizes_in_ome(tmp_path, x, y, unit, size):
    words = "".join(f'PhysicalSize{axis}="{value}" PhysicalSize{axis}Unit="{unit}" '
                    for axis, value in (("X", x), ("Y", y)) if value)
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, description=OME.format(words).encode(),
                     metadata=None, photometric="minisblack")
    image = opened(tmp_path / "a.ome.tif")
    if isinstance(size, float):
        assert micrometres.believed(image.pixel_size) == pytest.approx(size, rel=1e-3)
        assert not image.notes
    else:
        assert image.pixel_size is None
        assert [size in note and "lengths are in pixels" in note for note in image.notes] == (
            [True] if size else [])


@pytest.mark.parametrize("resolution, size", [
    ((20000, 20000), 0.5), ((20000, 40000), "0.25 x 0.5 um"), (((4 * 10**9, 1),) * 2, "2.5e-06"),
    (((1, 4 * 10**9),) * 2, "4e+13"), (((0, 1),) * 2, None)])
def test_sizes_in_tags(tmp_path, resolution, size):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, resolution=resolution, resolutionunit=3,
                     photometric="minisblack")
    image = opened(tmp_path / "a.tif")
    check_size(image, size)


def test_a_tag_of_another_type_is_no_size(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, resolution=(20000, 20000), resolutionunit=3,
                     photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].tags["XResolution"].offset
    data = bytearray(path.read_bytes())
    data[place + 2 : place + 4] = struct.pack("<H", 2)  # ASCII in place of a fraction
    path.write_bytes(data)
    image = opened(path)
    assert image.pixel_size is None and "0.5 x nan um" in image.notes[0]


@pytest.mark.parametrize("scale, size", [
    ([0.5, 0.5], 0.5), ([1.0, 2.0], "1 x 2 um"), ([0, 0], "0 x 0 um"), (["a", "b"], "nan x nan"),
    ([None, None], "nan"), ([0.5], None)])
def test_sizes_in_zarr(tmp_path, scale, size):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=PIXELS)
    group.attrs["multiscales"] = [{
        "axes": [{"name": axis, "unit": "micrometer"} for axis in "yx"],
        "datasets": [{"path": "0", "coordinateTransformations": [
            {"type": "scale", "scale": scale}]}]}]
    image = opened(tmp_path / "a.zarr")
    check_size(image, size)
