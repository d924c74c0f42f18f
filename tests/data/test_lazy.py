import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data import lazy, read
from cellseg_jax.data.stacks import AS_IT_IS, ReadOptions
from cellseg_jax.errors import InputError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 2**16, (75, 52, 3), np.uint16)
GRAY, BYTES = COLOURS[..., 0], (COLOURS >> 8).astype(np.uint8)
PLANES = np.moveaxis(COLOURS, -1, 0).copy()
PALETTE = RNG.integers(0, 2**16, (3, 256), np.uint16)
TIFFS = {
    "mapped": (COLOURS, dict(photometric="rgb")),
    "mapped big-endian": (GRAY, dict(byteorder=">")),
    "mapped planes": (PLANES, dict(photometric="rgb", planarconfig="separate")),
    "bytes": (BYTES[..., 0], {}),
    "rgba": (np.dstack([COLOURS, GRAY]), dict(photometric="rgb", extrasamples=["unassalpha"],
                                              compression="zlib", rowsperstrip=8)),
    "strips": (GRAY, dict(compression="zlib", rowsperstrip=9)),
    "one strip": (GRAY, dict(compression="zlib", rowsperstrip=75)),
    "big-endian strips": (GRAY, dict(compression="lzw", rowsperstrip=9, byteorder=">")),
    "tiles": (COLOURS, dict(photometric="rgb", tile=(32, 16), compression="zstd", predictor=True)),
    "uncompressed tiles": (GRAY, dict(tile=(32, 16))),
    "tiled planes": (PLANES, dict(photometric="rgb", planarconfig="separate", tile=(16, 32),
                                  compression="deflate")),
    "JPEG tiles": (BYTES, dict(photometric="rgb", tile=(32, 16), compression="jpeg")),
    "JPEG 2000 tiles": (GRAY, dict(tile=(32, 16), compression="jpeg2000")),
    "bits": (GRAY > 9999, dict(photometric="minisblack")),
    "packed bits": (GRAY > 9999, dict(photometric="minisblack", compression="packbits",
                                      rowsperstrip=10)),
    "white is 0": (GRAY, dict(photometric="miniswhite", compression="zlib")),
    "palette": (BYTES[..., 0], dict(photometric="palette", colormap=PALETTE, compression="zlib")),
    "mapped palette": (BYTES[..., 0], dict(photometric="palette", colormap=PALETTE)),
    "OME channels": (PLANES, dict(photometric="minisblack", ome=True, tile=(32, 32),
                                             metadata={"axes": "CYX"}, compression="zlib")),
    "ImageJ channels": (PLANES, dict(imagej=True, metadata={"axes": "CYX"})),
    "whole floats": (GRAY.astype(np.float32), dict(compression="zlib")),
    "whole rgba": (np.dstack([BYTES, BYTES[..., :1]]).astype(np.int32), dict(
        photometric="rgb", extrasamples=["unassalpha"])),
    "whole signed": ((GRAY // 2).astype(np.int16), {}),
    "BigTIFF": (GRAY, dict(bigtiff=True, compression="zlib", rowsperstrip=20)),
}


def open_image(path, options=AS_IT_IS):
    [image] = lazy.open_images(path, options)
    return image


def bands(image, height):
    """An image put together from bands."""
    return np.concatenate([image.rows(start, min(start + height, image.shape[0]))
                           for start in range(0, image.shape[0], height)])


@pytest.mark.parametrize("name", TIFFS)
def test_bands_of_a_tiff_are_what_training_reads(tmp_path, name):
    pixels, options = TIFFS[name]
    path = tmp_path / "a ö.tif"
    tifffile.imwrite(path, pixels, **options)
    expected = read.read_image(path)
    image = open_image(path)
    assert (image.name, image.shape, image.dtype) == ("a ö", expected.shape, expected.dtype)
    assert image.path == path and lazy.is_image(path)
    np.testing.assert_array_equal(image.read(), expected)
    for height in (1, 10, 33):
        np.testing.assert_array_equal(bands(image, height), expected)
    for start, stop in ((60, 75), (0, 5), (3, 50), (20, 21), (10, 70)):  # back, and overlapping
        rows = image.rows(start, stop)
        assert rows.dtype == expected.dtype and rows.dtype.isnative
        np.testing.assert_array_equal(rows, expected[start:stop])


def test_sparse_tiles_are_empty(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(iter([np.full((16, 16), 7, np.uint8), None]), shape=(16, 32), dtype="uint8",
                   tile=(16, 16), compression="zlib")
    image = open_image(tmp_path / "a.tif").read()[..., 0]
    assert (image[:, :16] == 7).all() and not image[:, 16:].any()


def test_files_that_are_read_whole(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(COLOURS))
    Image.fromarray(BYTES).save(tmp_path / "a.bmp")
    Image.fromarray(BYTES).save(tmp_path / "a.JPG")
    for name in ("a.png", "a.bmp", "a.JPG"):
        image = open_image(tmp_path / name)
        assert image.name == "a" and image.pixel_size is None
        np.testing.assert_array_equal(bands(image, 7), read.read_image(tmp_path / name))


@pytest.mark.parametrize("options", [{}, dict(compression="zlib", rowsperstrip=9), *(
    dict(imagej=True, metadata={"axes": "ZYX"}, **more) for more in ({}, dict(truncate=True)))])
def test_a_stack_is_an_image_of_every_plane(tmp_path, options):
    stack = RNG.integers(0, 2**16, (5, 12, 9), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **options)
    found = lazy.open_images(tmp_path / "a.tif")
    assert [image.name for image in found] == [f"a_000{n}" for n in range(5)]
    for n, image in enumerate(found):
        np.testing.assert_array_equal(bands(image, 5), read.read_image(image.path, read.SLICES, n))


@pytest.mark.parametrize("axes, shape, planes", [
    ("ZCYX", (3, 2, 8, 9), lambda a: np.moveaxis(a, 1, -1)),
    ("CZYX", (2, 3, 8, 9), lambda a: np.moveaxis(a, 0, -1)),
    ("TZYX", (2, 3, 8, 9), lambda a: a.reshape(6, 8, 9, 1)),
    ("CYX", (6, 8, 9), lambda a: np.moveaxis(a, 0, -1)[None])])
def test_stacks_keep_their_channels_together(tmp_path, axes, shape, planes):
    stack = RNG.integers(0, 2**16, shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", ome=True,
                     metadata={"axes": axes})
    both = ReadOptions(channel_index=",".join(map(str, range(planes(stack).shape[-1]))))
    found = lazy.open_images(tmp_path / "a.tif", both)
    np.testing.assert_array_equal(np.stack([image.read() for image in found]), planes(stack))


def test_pages_are_read_as_the_training_was_told(tmp_path):
    stack = RNG.integers(0, 2**16, (3, 8, 9), np.uint16)
    tifffile.imwrite(tmp_path / "plain.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "ome.tif", stack, photometric="minisblack", ome=True,
                     metadata={"axes": "CYX"})
    for name in ("plain.tif", "ome.tif"):
        path = tmp_path / name
        channels, slices = ReadOptions(pages="channels"), ReadOptions(pages="slices")
        np.testing.assert_array_equal(open_image(path, channels).read(),
                                      read.read_image(path, channels))
        for n, image in enumerate(lazy.open_images(path, slices)):
            np.testing.assert_array_equal(image.read(), read.read_image(path, slices, n))
    assert len(lazy.open_images(tmp_path / "ome.tif")) == 1


@pytest.mark.parametrize("subifds", [0, 1])
def test_smaller_copies_are_no_images(tmp_path, subifds):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GRAY, tile=(16, 16), subifds=subifds, metadata=None)
        tiff.write(GRAY[::2, ::2], tile=(16, 16), subfiletype=1, metadata=None)
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read()[..., 0], GRAY)


def test_pages_of_several_sizes_are_images(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for pixels in (GRAY, GRAY[:5]):
            tiff.write(pixels, metadata=None)
    found = lazy.open_images(tmp_path / "a.tif")
    assert [image.shape for image in found] == [(75, 52, 1), (5, 52, 1)]


@pytest.mark.parametrize("options", [{}, dict(compression="zlib", rowsperstrip=9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32])
def test_other_numbers_are_stretched_over_the_whole_image(tmp_path, monkeypatch, dtype, options):
    monkeypatch.setattr(lazy, "BLOCK", 500)  # the range takes many bands
    values = (RNG.normal(size=(75, 52)) * 1000).astype(dtype)
    if dtype == np.uint32:
        values[30] = 10**6
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    image = open_image(tmp_path / "a.tif")
    low, high = values.min().astype(float), values.max().astype(float)
    expected = np.rint((values.astype(float) - low) / (high - low) * 65535)
    assert image.dtype == np.uint16
    np.testing.assert_allclose(bands(image, 10)[..., 0], expected, atol=1)
    assert image.read().min() == 0 and image.read().max() == 65535


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint16])
def test_alpha_of_8_bit_pixels_in_a_wider_type_is_as_opaque_as_before(dtype):
    pixels = np.dstack([BYTES, np.full(GRAY.shape, 255, np.uint8)]).astype(dtype)
    image = lazy.of_pixels(pixels)
    assert image.dtype == (np.uint16 if dtype == np.uint16 else np.uint8) == image.read().dtype
    np.testing.assert_array_equal(bands(image, 10), pixels)
    assert lazy.of_pixels(pixels[..., :3]).dtype == np.uint16
    pixels[0, 0, 0] = 256
    assert lazy.of_pixels(pixels).dtype == np.uint16


def test_one_value_is_dark(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5), 0.5, np.float32))
    assert not open_image(tmp_path / "a.tif").read().any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(tmp_path, value):
    pixels = np.zeros((4, 5), np.float32)
    pixels[2, 3] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(InputError, match="a.tif: pixels are float32 with NaN or infinity in rows"):
        open_image(tmp_path / "a.tif").read()


def test_other_images_are_refused_in_one_line(tmp_path):
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((4, 5), np.complex64))
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((8, 9, 5), np.uint8), photometric="rgb")
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "empty.zarr").mkdir()
    for name, message in (
            ("complex.tif", "pixels are complex64; expected"), ("text.tif", "is not a PNG, TIFF"),
            ("five.tif", "has 5 channels .*choose"), ("empty.tif", "is empty"),
            ("missing.tif", "cannot be read"), ("a.txt", "expected one of"),
            ("empty.zarr", "has no Zarr group|needs another package")):
        with pytest.raises(InputError, match=rf"{name}: .*{message}|{name}: {message}") as error:
            lazy.open_images(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not lazy.is_image(tmp_path / "a.txt") and not lazy.is_image(tmp_path)


@pytest.mark.parametrize("options", [{}, dict(compression="zlib", rowsperstrip=9),
                                     dict(tile=(16, 16), compression="lzw")])
@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, options, keep):
    path = tmp_path / "broken.tif"
    tifffile.imwrite(path, GRAY, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match="broken.tif: .*truncated"):
        bands(open_image(path), 10)


@pytest.mark.parametrize("options, expected", [
    (dict(ome=True, metadata={"PhysicalSizeX": 0.65, "PhysicalSizeY": 0.5}), (0.5, 0.65)),
    (dict(ome=True, metadata={"PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm",
                              "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}), (0.5, 0.65)),
    (dict(ome=True, metadata={"PhysicalSizeX": 0.65}), None),
    (dict(ome=True), None),
    *((dict(ome=True, metadata={"PhysicalSizeX": x, "PhysicalSizeY": 0.5}), None)
      for x in (1e-6, 2e4, -1, "nan", "inf")),
    (dict(imagej=True, resolution=(1e-6, 1e-6), metadata={"unit": "um"}), None),
    (dict(ome=True, metadata={"PhysicalSizeX": 2, "PhysicalSizeXUnit": "pixel",
                              "PhysicalSizeY": 2, "PhysicalSizeYUnit": "pixel"}), None),
    (dict(imagej=True, resolution=(2, 4), metadata={"unit": "um"}), (0.25, 0.5)),
    (dict(imagej=True, resolution=(2, 4), metadata={"unit": "\\u00B5m"}), (0.25, 0.5)),
    (dict(imagej=True, resolution=(2, 4), metadata={"unit": "pixel"}), None),
    (dict(imagej=True), None),
    (dict(resolution=(20000, 40000), resolutionunit="CENTIMETER"), (0.25, 0.5)),
    (dict(resolution=(72, 72), resolutionunit="INCH"), None),
    (dict(description="<?xml version='1.0'?><OME><broken </OME>"), None),
    ({}, None)])
def test_pixel_size_comes_with_the_file(tmp_path, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, **options)
    image = open_image(tmp_path / "a.tif")
    if expected:
        assert image.pixel_size == pytest.approx(expected)
    else:  # unknown, or not believed
        assert image.calibrated().pixel_size is None


def write_zarr(path, pixels, axes, version, scale=None):
    """An OME-Zarr with two levels, by hand as NGFF 0.4 (Zarr v2) or 0.5 (v3) says."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    kinds = {"c": "channel", "t": "time", "z": "space", "y": "space", "x": "space"}
    levels = []
    for n in range(2):
        step = (..., slice(None, None, 2**n), slice(None, None, 2**n))
        group.create_array(str(n), data=pixels[step], chunks=(1,) * (len(axes) - 2) + (20, 30))
        factors = [1.0] * (len(axes) - 2) + [s * 2**n for s in scale or (1, 1)]
        levels.append({"path": str(n), "coordinateTransformations": [
            {"type": "scale", "scale": factors}]})
    named = [{"name": a, "type": kinds[a]} | ({"unit": "micrometer"} if a in "yx" and scale else {})
             for a in axes]
    multiscales = [{"version": version, "axes": named, "datasets": levels}]
    group.attrs.update({"multiscales": multiscales} if version == "0.4" else
                       {"ome": {"version": version, "multiscales": multiscales}})


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_read_at_full_resolution(tmp_path, version):
    path = tmp_path / "a b.ome.zarr"
    write_zarr(path, PLANES, "cyx", version, (0.5, 0.25))
    assert lazy.is_image(path)
    image = open_image(path)
    assert (image.shape, image.dtype, image.pixel_size) == ((75, 52, 3), np.uint16, (0.5, 0.25))
    np.testing.assert_array_equal(image.read(), COLOURS)
    np.testing.assert_array_equal(bands(image, 13), COLOURS)


@pytest.mark.parametrize("axes, shape, count, channels", [
    ("yx", (), 1, 1), ("tczyx", (1, 3, 1), 1, 3), ("tczyx", (2, 2, 3), 6, 2),
    ("czyx", (5, 2), 2, 5)])
def test_ome_zarr_has_the_planes_of_a_tiff(tmp_path, axes, shape, count, channels):
    pixels = RNG.normal(size=(*shape, 20, 30)).astype(np.float32)
    write_zarr(tmp_path / "a.zarr", pixels, axes, "0.5")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", ome=True,
                     metadata={"axes": axes.upper()})
    every = ReadOptions(channel_index=",".join(map(str, range(channels))))
    found, same = (lazy.open_images(tmp_path / name, every) for name in ("a.zarr", "a.tif"))
    assert len(found) == count and found[0].shape == (20, 30, channels)
    assert found[0].pixel_size is None
    for one, other in zip(found, same, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.read(), other.read())


def test_ome_zarr_that_holds_images_names_them(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_group("0")
    with pytest.raises(InputError, match="a.zarr: has no multiscales.*is it one of 0 inside?"):
        open_image(tmp_path / "a.zarr")


def test_ome_zarr_needs_its_package(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(InputError, match="a.zarr: OME-Zarr needs another package: pip"):
        open_image(tmp_path / "a.zarr")


def test_real_images_are_those_of_training(real_data):
    paths = [next((real_data / folder).rglob("*" + suffix)) for folder, suffix in (
        ("ctc/Fluo-N2DL-HeLa/02", ".tif"), ("ctc/PhC-C2DL-PSC/01", ".tif"),
        ("livecell/images", ".tif"), ("dsb2018/sample24", ".png"))]
    for path in paths:
        image = open_image(path)
        np.testing.assert_array_equal(bands(image, 100), read.read_image(path))
    stack = real_data / "isbi2012/train-volume.tif"
    found = lazy.open_images(stack)
    assert len(found) == read.num_images(stack, read.SLICES) > 1
    np.testing.assert_array_equal(found[7].read(), read.read_image(stack, read.SLICES, 7))
