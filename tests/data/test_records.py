import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data import records
from cellseg_jax.errors import InputError


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
    read = records.read_image(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image.reshape(5, 7, -1))


def test_read_image_reads_gray_alpha_one_bit_and_palette(tmp_path, rng):
    gray_alpha = rng.integers(0, 256, (5, 7, 2), dtype=np.uint8)
    Image.fromarray(gray_alpha, "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(records.read_image(tmp_path / "la.png"), gray_alpha)

    bits = rng.random((5, 7)) > 0.5
    Image.fromarray(bits).save(tmp_path / "bits.png")
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    for name in ("bits.png", "bits.tif"):
        np.testing.assert_array_equal(records.read_image(tmp_path / name)[..., 0], bits * 255)
        np.testing.assert_array_equal(records.read_mask(tmp_path / name)[..., 0], bits)

    index = rng.integers(0, 3, (5, 7), dtype=np.uint8)
    colours = np.array([[9, 8, 7], [255, 0, 0], [0, 255, 1]], np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(records.read_image(tmp_path / "palette.png"), colours[index])
    np.testing.assert_array_equal(records.read_mask(tmp_path / "palette.png")[..., 0], index)


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
    assert records.read_mask(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 2, 15]
    assert records.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 17, 34, 255]


def test_read_image_ignores_orientation(tmp_path, rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=[(274, 3, 1, 6, True)])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(records.read_image(tmp_path / name), image)


def test_read_image_reads_planar_tiff(tmp_path, rng):
    image = rng.integers(0, 256, (3, 40, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(records.read_image(tmp_path / "a.tif"), np.moveaxis(image, 0, -1))


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
        records.read_image(path)


def test_read_image_rejects_flipped_byte(tmp_path, rng):
    data = bytearray(imagecodecs.png_encode(rng.integers(0, 256, (64, 64), dtype=np.uint8)))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(InputError, match="a.png: cannot be decoded"):
        records.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("imagej", [False, True])
def test_read_image_rejects_pages(tmp_path, imagej):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((30, 8, 9), np.uint8), imagej=imagej,
                     photometric="minisblack")
    with pytest.raises(InputError, match="stack.tif: has 30 pages"):
        records.read_image(tmp_path / "stack.tif")


def test_read_image_rejects_floats_and_names_nan(tmp_path):
    image = np.zeros((8, 9), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match="a.tif: pixels are float32; expected 8 or 16 bit"):
        records.read_image(tmp_path / "a.tif")
    image[2, 3:5] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match="a.tif: pixels are float32 with 2 NaN"):
        records.read_image(tmp_path / "a.tif")


def test_read_image_rejects_other_formats_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="a.jpg: expected one of .png"):
        records.read_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="a.png: cannot be read"):
        records.read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="pixels are uint32"):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint32))
        records.read_image(tmp_path / "a.tif")


def test_read_image_tells_what_is_no_image_from_what_is_damaged(tmp_path):
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_text("not an image at all")
        with pytest.raises(InputError, match=f"{name}: is not a PNG or TIFF image .*not an i"):
            records.read_image(tmp_path / name)
    Image.new("L", (5, 5)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match="a.png: is a JPEG file under another name; expected PNG"):
        records.read_image(tmp_path / "a.png")


def test_read_mask_applies_alpha_and_rejects_hidden_mask(tmp_path):
    mask = np.zeros((4, 5, 4), np.uint8)
    mask[1, 1:3] = 255
    mask[2, 2, :3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert (records.read_mask(tmp_path / "a.png")[..., 0] > 0).sum() == 2
    mask[..., 3] = 0
    Image.fromarray(mask).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="a.png: alpha is 0"):
        records.read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_to_channels_equals_hand_value(dtype):
    rgb = np.array([[[100, 200, 50], [7, 7, 7]]], dtype)
    high = np.iinfo(dtype).max
    assert records.to_channels(rgb, "gray").tolist() == [[[153], [7]]]  # 29.9 + 117.4 + 5.7
    assert records.to_channels(rgb, "rgba")[..., 3].tolist() == [[high, high]]
    gray_alpha = np.array([[[5, 3]]], dtype)
    assert records.to_channels(gray_alpha, "gray").tolist() == [[[5]]]
    assert records.to_channels(gray_alpha, "rgb").tolist() == [[[5, 5, 5]]]
    assert records.to_channels(gray_alpha, "rgba").tolist() == [[[5, 5, 5, 3]]]
    assert records.to_channels(rgb, "gray").dtype == dtype
    with pytest.raises(InputError, match="config.data.channels: got 'grey'.*did you mean gray"):
        records.to_channels(rgb, "grey")


def test_to_channels_keeps_every_gray_value():
    gray = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    np.testing.assert_array_equal(records.to_channels(np.repeat(gray, 3, -1), "gray"), gray)


def test_entries_ignores_junk(tmp_path):
    for name in (".DS_Store", "._a.png", "Thumbs.db", "b.png", "a.png"):
        (tmp_path / name).touch()
    assert [p.name for p in records.entries(tmp_path)] == ["a.png", "b.png"]
