import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data import lazy
from cellseg_jax.data.read import (
    ORIENTATION,
    SLICES,
    check_size,
    entries,
    num_images,
    orientation,
    read_image,
    read_mask,
)
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_read_image_roundtrip(tmp_path, rng, dtype, shape, suffix):
    image = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        tifffile.imwrite(path, image)
    read = read_image(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image.reshape(5, 7, -1))


def test_read_image_reads_gray_alpha_one_bit_and_palette(tmp_path, rng):
    gray_alpha = rng.integers(0, 256, (5, 7, 2), dtype=np.uint8)
    Image.fromarray(gray_alpha, "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), gray_alpha)

    bits = rng.random((5, 7)) > 0.5
    Image.fromarray(bits).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    for name in ("bits.png", "bits.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], bits * 255)
        np.testing.assert_array_equal(read_mask(tmp_path / name)[..., 0], bits)

    index = rng.integers(0, 3, (5, 7), dtype=np.uint8)
    colours = np.array([[9, 8, 7], [255, 0, 0], [0, 255, 1]], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), colours[index])
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png")[..., 0], index)


def test_read_mask_keeps_values_of_four_bit_gray(tmp_path):
    # Written by hand: one 4-bit gray row with the values 0 1 2 15.
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00\x01\x2f")) + chunk(b"IEND", b""))
    assert read_mask(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 2, 15]
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 17, 34, 255]


def test_read_image_ignores_orientation(tmp_path, rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(274, 3, 1, 6, True)])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), image)


def test_read_image_reads_planar_tiff(tmp_path, rng):
    image = rng.integers(0, 256, (3, 40, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(image, 0, -1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_read_image_rejects_truncated_file(tmp_path, rng, suffix, keep):
    image = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / f"broken{suffix}"
    if suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        tifffile.imwrite(path, image, rowsperstrip=16)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(InputError, match=f"broken{suffix}: .*(empty|truncated)"):
        read_image(path)


def test_read_image_rejects_flipped_byte(tmp_path, rng):
    data = bytearray(imagecodecs.png_encode(rng.integers(0, 256, (64, 64), dtype=np.uint8)))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(InputError, match="a.png: is damaged between bytes 33 and .*wrong checksum"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("imagej", [False, True])
def test_read_image_rejects_pages(tmp_path, imagej):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((30, 8, 9), np.uint8), imagej=imagej,
                     photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match="stack.tif: has 30 pages"):
        read_image(tmp_path / "stack.tif")


@pytest.mark.parametrize("shape, metadata", [((3, 8, 9), "OME"), ((3, 8, 9), "ImageJ")])
def test_read_image_takes_pages_for_channels_where_the_file_says_so(tmp_path, rng, shape, metadata):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", ome=metadata == "OME",
                     imagej=metadata == "ImageJ", metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(image, 0, -1))


@pytest.mark.parametrize("imagej", [False, True])
def test_read_image_reads_a_page_or_pages_as_channels(tmp_path, rng, imagej):
    stack = rng.integers(0, 256, (4, 8, 9), dtype=np.uint8)
    four = ReadOptions(pages="channels", channel_index="0,1,2,3")
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=imagej, photometric="minisblack")
    assert num_images(tmp_path / "a.tif", SLICES) == 4
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", SLICES, 2)[..., 0], stack[2])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif", SLICES, 3)[..., 0], stack[3])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", four),
                                  np.moveaxis(stack, 0, -1))
    Image.fromarray(stack[0]).save(tmp_path / "a.png")
    assert num_images(tmp_path / "a.png") == 1
    (tmp_path / "b.tif").write_bytes(b"II*\0rubbish")
    with pytest.raises(InputError, match="b.tif: cannot be decoded"):
        num_images(tmp_path / "b.tif")


def test_read_image_keeps_whole_numbers_of_any_type(tmp_path):
    image = np.arange(72, dtype=np.float32).reshape(8, 9)
    for dtype in (np.float32, np.float64, np.int16, np.uint32):
        tifffile.imwrite(tmp_path / "a.tif", image.astype(dtype))
        read = read_image(tmp_path / "a.tif")[..., 0]
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, image)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.tif")[..., 0], image)


@pytest.mark.parametrize("values, message", [
    (np.float32([0, 0.5]), "pixels are float32 from 0 to 0.5; expected 8 or 16 bit.*rescale"),
    (np.float32([0, np.nan]), "pixels are float32 with 24 NaN and 0 infinite; replace them"),
    (np.float64([np.inf, -np.inf]), "pixels are float64 with 0 NaN and 48 infinite"),
    (np.int16([-3, 5]), "pixels are int16 from -3 to 5"),
    (np.uint32([0, 2**16]), "pixels are uint32 from 0 to 65536"),
    (np.complex64([0, 1]), "pixels are complex64; expected")])
def test_read_image_rejects_other_numbers(tmp_path, values, message):
    tifffile.imwrite(tmp_path / "a.tif", np.tile(values, (6, 4)), photometric="minisblack")
    with pytest.raises(InputError, match="a.tif: " + message):
        read_image(tmp_path / "a.tif")


def test_read_mask_rejects_fractions(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((8, 9), 0.5, np.float32))
    with pytest.raises(InputError, match=r"a.tif: has a mask value 0.5 \(float32\)"):
        read_mask(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", np.float32([[3, -1], [0, 1]]))
    with pytest.raises(InputError, match=r"a.tif: has a mask value -1 \(float32\)"):
        read_mask(tmp_path / "a.tif")


def test_read_image_reads_jpeg_and_bmp(tmp_path, rng):
    image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), image)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.bmp"), image)
    smooth = np.broadcast_to(np.arange(24, dtype=np.uint8) * 5, (16, 24))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg")[..., 0].astype(int) - smooth).max() < 6
    with pytest.raises(InputError, match="a.jpg: expected one of .png, .tif, .tiff, .bmp; convert"):
        read_mask(tmp_path / "a.jpg")
    Image.fromarray(image).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.jpg: its colours are CMYK; expected gray or RGB"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_read_image_rejects_truncated_jpeg(tmp_path, rng, cut):
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:-cut])
    with pytest.raises(InputError, match=f"a.jpg: is truncated: it ends at byte {len(data) - cut}"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("cut", [1, 12, 23, 1000])
def test_read_image_names_the_byte_where_a_png_is_cut(tmp_path, rng, cut):
    data = imagecodecs.png_encode(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    (tmp_path / "a.png").write_bytes(data[:-cut])
    with pytest.raises(InputError, match=f"a.png: is truncated: it ends at byte {len(data) - cut}, "
                                         f"at least {cut} too early"):
        read_image(tmp_path / "a.png")


def test_read_image_rejects_other_formats_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="a.gif: expected one of .png"):
        read_image(tmp_path / "a.gif")
    with pytest.raises(InputError, match="a.png: cannot be read"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_orientation_reads_the_tag(tmp_path, name):
    image = Image.fromarray(np.zeros((6, 8), np.uint8))
    image.save(tmp_path / name)
    assert orientation(tmp_path / name) == 1
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / name, exif=exif)
    assert orientation(tmp_path / name) == 6


def test_orientation_reads_a_tiff_unknown_to_pillow(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8, 2), np.uint16), photometric="minisblack",
                     extratags=[(ORIENTATION, 3, 1, 8, True)])
    assert orientation(tmp_path / "a.tif") == 8


def test_check_size_explains_a_turned_image(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="its image a.jpg is 6x8; EXIF orientation 6 of"):
        check_size(tmp_path / "m.png", np.zeros((8, 6, 1)), tmp_path / "a.jpg", image)


def test_read_image_tells_what_is_no_image_from_what_is_damaged(tmp_path):
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_text("not an image at all")
        with pytest.raises(InputError, match=f"{name}: is not a PNG, TIFF, JPEG or BMP .*not an i"):
            read_image(tmp_path / name)
    Image.new("L", (5, 5)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match="a.png: is a JPEG file under another name; expected PNG"):
        read_image(tmp_path / "a.png")


def test_read_mask_applies_alpha_and_rejects_hidden_mask(tmp_path):
    mask = np.zeros((4, 5, 4), np.uint8)
    mask[1, 1:3] = 255
    mask[2, 2, :3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert (read_mask(tmp_path / "a.png")[..., 0] > 0).sum() == 2
    mask[..., 3] = 0
    Image.fromarray(mask).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: alpha is 0"):
        read_mask(tmp_path / "a.png")


def test_entries_ignores_junk(tmp_path):
    for name in (".DS_Store", "._a.png", "Thumbs.db", "b.png", "a.png"):
        (tmp_path / name).touch()
    assert [p.name for p in entries(tmp_path)] == ["a.png", "b.png"]


@pytest.mark.parametrize("end", [".png", ".tif"])
def test_files_of_channels_are_one_image_where_several_are_chosen(tmp_path, end):
    several = ReadOptions(channel_index="1,0")
    paths = [tmp_path / f"a_{n:04d}{end}" for n in range(2)]
    for n, path in enumerate(paths):
        pixels = np.full((5, 6), 10 + n, np.uint8)
        Image.fromarray(pixels).save(path) if end == ".png" else tifffile.imwrite(path, pixels)
    image, = lazy.open_images(paths[0], several)
    assert image.read()[0, 0].tolist() == [11, 10]
    jobs = [(path, tmp_path / path.stem) for path in paths]
    assert images_in.without_channels(jobs, several) == jobs[:1]
    for options in (ReadOptions(), ReadOptions(channel_index="0")):  # an image each
        assert lazy.open_images(paths[0], options)[0].read()[0, 0].tolist() == [10]
        assert images_in.without_channels(jobs, options) == jobs
    with pytest.raises(InputError, match="a_0000.* has no channel '2' .* channels are 0, 1;"):
        lazy.open_images(paths[0], ReadOptions(channel_index="0,2"))
    tifffile.imwrite(tmp_path / "t_0000.tif", np.zeros((2, 5, 6), np.uint8), imagej=True,
                     metadata={"axes": "CYX"})  # of a series: it has both channels itself
    tifffile.imwrite(tmp_path / "t_0001.tif", np.zeros((2, 5, 6), np.uint8), imagej=True,
                     metadata={"axes": "CYX"})
    jobs = [(tmp_path / f"t_000{n}.tif", tmp_path / f"t{n}") for n in range(2)]
    assert images_in.without_channels(jobs, several) == jobs
