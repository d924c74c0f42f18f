"""Channels, planes and colours of files: what training and prediction read, and what is refused."""

import contextlib

import numpy as np
import pytest
import tifffile
from golden import imagej
from PIL import Image

from cellseg_jax.data import lazy, ome_sets
from cellseg_jax.data.colours import to_channels
from cellseg_jax.data.decode import named
from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.read import (
    image_axes,
    image_with_notes,
    mask_with_notes,
    read_image,
    read_mask,
)
from cellseg_jax.data.stacks import AS_IT_IS, ReadOptions
from cellseg_jax.errors import InputError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 50, (24, 32), np.uint16)
CELLS = np.zeros((24, 32), np.uint16)
CELLS[8:16, 8:16] = 1000
GRAY = ReadOptions(channels="gray")


def stack(*shape, dtype=np.uint16):
    return RNG.integers(0, 256, (*shape, 24, 32), dtype)


def both(path, options=AS_IT_IS, number=0):
    """The pixels of a file in training, which are those in prediction."""
    image = read_image(path, options, number)
    shown = lazy.open_images(path, options)[number]
    np.testing.assert_array_equal(shown.read(), image)
    return image


@pytest.mark.parametrize("axes, lengths, expected", [
    ("tzyx", (2, 3), {"T": 2, "Z": 3}), ("tyx", (4,), {"T": 4}), ("tczyx", (2, 3, 1), {"T": 2}),
    ("zcyx", (4, 2), {"Z": 4}), ("qyx", (4,), {"Z": 4})])
def test_images_are_numbered_by_the_axes_of_tiff_and_ome_zarr(tmp_path, axes, lengths, expected):
    pixels = stack(*lengths)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack",
                     metadata={"axes": axes.upper()})
    files = ["a.tif"]
    with contextlib.suppress(ImportError):
        import zarr  # here: an extra
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=pixels)
        group.attrs["multiscales"] = [{"axes": [{"name": axis} for axis in axes],
                                       "datasets": [{"path": "0"}]}]
        files.append("a.zarr")
    for file in files:
        found = image_axes(tmp_path / file, AS_IT_IS)
        assert found.lengths == expected
        assert found.has_channels == ("c" in axes)


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", imagej.TIFFS)
def test_tiffs_of_imagej_itself(tmp_path, name):
    tiff = imagej.TIFFS[name]
    with np.load(imagej.FILE) as golden:
        (tmp_path / "a.tif").write_bytes(golden[f"tiff_{name}"])
    images = lazy.open_images(tmp_path / "a.tif", AS_IT_IS._replace(
        channels="rgb" if tiff.bits == 24 else "gray",
        z="slices" if tiff.slices * tiff.frames > 1 else "",
        channel_index=",".join(map(str, range(tiff.channels))) if tiff.channels > 1 else ""))
    expected = imagej.values(tiff)
    expected = expected[:, :, 0] if tiff.bits == 24 else np.moveaxis(expected, 2, -1)
    np.testing.assert_array_equal([one.read() for one in images],
                                  expected.reshape(-1, *expected.shape[2:]))
    size = in_micrometres((tiff.size, tiff.unit), (tiff.size, tiff.unit))
    assert (tiff.unit == "pixel") == (size is None)
    for one in images:
        assert one.pixel_size is None if size is None else np.allclose(one.pixel_size, size)


def test_the_second_of_two_channels_is_no_alpha(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([NOISE, CELLS]), imagej=True, metadata={"axes": "CYX"})
    for read in (read_image, lazy.open_images):
        with pytest.raises(InputError, match="a.tif: has 2 channels .axes CYX, 2 x 24 x 32.: 0, 1, "
                                             "none of them alpha; choose .*channel_index=0 or 0,1"):
            read(path)
    np.testing.assert_array_equal(both(path, ReadOptions(channel_index="1"))[..., 0], CELLS)
    np.testing.assert_array_equal(both(path, ReadOptions(channel_index="1,0")),
                                  np.stack([CELLS, NOISE], -1))


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("options", [
    dict(imagej=True, metadata={"axes": "CYX"}), dict(ome=True, metadata={"axes": "CYX"}),
    dict(planarconfig="separate", metadata=None), "contiguous", "pages"])
def test_any_number_of_channels_is_alike(tmp_path, count, options):
    planes, path = stack(count), tmp_path / "a.tif"
    reading = ReadOptions(pages="channels" if options == "pages" else "")
    if options == "contiguous":
        tifffile.imwrite(path, np.moveaxis(planes, 0, -1), planarconfig="contig", metadata=None,
                         photometric="minisblack", extrasamples=[0] * (count - 1))
    else:
        more = {"metadata": None} if options == "pages" else options
        extra = {"extrasamples": [0] * (count - 1)} if "planarconfig" in more else {}
        tifffile.imwrite(path, planes, photometric="minisblack", **more, **extra)
    with pytest.raises(InputError, match=f"has {count} channels .*none of them alpha"):
        read_image(path, reading)
    every = ",".join(map(str, range(count)))
    for chosen, expected in ((every, planes), (f"{count - 1}", planes[-1:])):
        found = both(path, reading._replace(channel_index=chosen))
        np.testing.assert_array_equal(found, np.moveaxis(expected, 0, -1))


def test_zarr_channels_are_chosen_by_number_or_name(tmp_path):
    zarr = pytest.importorskip("zarr")
    planes, path = stack(2), tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=planes)
    group.attrs.update({"multiscales": [{"axes": [{"name": a} for a in "cyx"],
                                         "datasets": [{"path": "0"}]}],
                        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}})
    with pytest.raises(InputError, match="has 2 channels .*: 0 DAPI, 1 GFP, none of them alpha"):
        lazy.open_images(path)
    for chosen in ("1", "gfp"):
        [image] = lazy.open_images(path, ReadOptions(channel_index=chosen))
        assert image.channels == ("GFP",)
        np.testing.assert_array_equal(image.read()[..., 0], planes[1])


def test_axes_of_ome_zarr_are_known_by_their_types(tmp_path):
    zarr = pytest.importorskip("zarr")
    planes, path = stack(2), tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=planes)
    space = [{"name": axis, "type": "space"} for axis in "yx"]
    for axis, expected in (({"name": "wavelength", "type": "channel"}, {}),
                           ({"name": "cycle"}, {"Z": 2}), ({"name": "tile"}, {"Z": 2}),
                           ({"name": "frame", "type": "time"}, {"T": 2})):
        group.attrs["multiscales"] = [{"axes": [axis, *space], "datasets": [{"path": "0"}]}]
        if expected:
            assert image_axes(path, AS_IT_IS).lengths == expected
        else:
            [image] = lazy.open_images(path, ReadOptions(channel_index="1"))
            np.testing.assert_array_equal(image.read()[..., 0], planes[1])


def test_channels_are_chosen_by_name_in_any_order(tmp_path):
    planes = stack(3)
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        names = [["488", "DAPI", "Phase"][n] for n in order]
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", planes[list(order)], metadata={
            "axes": "CYX", "Channel": {"Name": names}}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", planes, imagej=True, metadata={
        "axes": "CYX", "Labels": ["488", "DAPI", "Phase"]})
    for name in ("a.ome", "b.ome", "c"):
        found = both(tmp_path / f"{name}.tif", ReadOptions(channel_index="phase,488"))
        np.testing.assert_array_equal(found, np.moveaxis(planes[[2, 0]], 0, -1))
    with pytest.raises(InputError, match="a.ome.tif: has no channel 'Cy5' .*0 488, 1 DAPI, 2 Ph"):
        read_image(tmp_path / "a.ome.tif", ReadOptions(channel_index="Cy5"))
    with pytest.raises(InputError, match="has no channel '3'"):
        read_image(tmp_path / "c.tif", ReadOptions(channel_index="3"))


def test_numbers_of_channels_are_numbers_whatever_their_names(tmp_path):
    planes, path = stack(3), tmp_path / "a.tif"
    tifffile.imwrite(path, planes, imagej=True, metadata={
        "axes": "CYX", "Labels": ["1", "2", "DAPI"]})
    for chosen, places, count in (("1", [1], 1), ("0,1", [0, 1], 1), ("2,1", [2, 1], 2),
                                  ("DAPI,0", [2, 0], 0)):
        options = ReadOptions(channel_index=chosen)
        np.testing.assert_array_equal(both(path, options), np.moveaxis(planes[places], 0, -1))
        notes = image_with_notes(path, options)[1]
        assert len(notes) == count == len(lazy.open_images(path, options)[0].notes)
        assert not count or ("channel 1 is taken by its number, from 0, and is called '2'; the one "
                             "called '1' is number 0") in notes
    with pytest.raises(InputError, match="2 and dapi of config.data.channel_index name a channel tw"
                                         "ice; its channels are 0 1, 1 2, 2 DAPI"):
        read_image(path, ReadOptions(channel_index="2,dapi"))


def test_alpha_is_what_the_file_calls_so(tmp_path):
    four = np.moveaxis(stack(4, dtype=np.uint8), 0, -1).copy()
    for kind, alpha in ((1, True), (2, True), (0, False)):
        tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=[kind])
        if alpha:
            assert lazy.open_images(tmp_path / "a.tif")[0].alpha
            found = to_channels(both(tmp_path / "a.tif"), "rgb")
            np.testing.assert_array_equal(found, four[..., :3])
        else:
            with pytest.raises(InputError, match="has 4 channels"):
                read_image(tmp_path / "a.tif")
        tifffile.imwrite(tmp_path / "b.tif", four[..., :2], photometric="minisblack",
                         planarconfig="contig", extrasamples=[kind])
        if alpha:
            found = to_channels(both(tmp_path / "b.tif"), "gray")
            np.testing.assert_array_equal(found, four[..., :1])
    for mode, count in (("LA", 2), ("RGBA", 4)):
        Image.fromarray(four[..., :count].copy(), mode).save(tmp_path / "a.png")
        assert lazy.open_images(tmp_path / "a.png")[0].alpha
        np.testing.assert_array_equal(both(tmp_path / "a.png"), four[..., :count])
        found = both(tmp_path / "a.png", ReadOptions(channel_index=str(count - 1)))
        np.testing.assert_array_equal(found[..., 0], four[..., count - 1])


def test_a_mask_of_two_planes_is_refused(tmp_path):
    masks = np.stack([CELLS > 0, NOISE > 25]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", masks, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(masks, 0, -1), photometric="minisblack",
                     planarconfig="contig", extrasamples=[0])
    for name in "ab":
        with pytest.raises(InputError, match=f"{name}.tif: mask has 2 channels .*one plane of ids"):
            read_mask(tmp_path / f"{name}.tif")


def test_other_numbers_of_channels_are_no_input():
    with pytest.raises(InputError, match="image has 5 channels; expected 1 to 4"):
        to_channels(np.zeros((4, 5, 5), np.uint8), "rgba")
    with pytest.raises(InputError, match="image has 3 channels; expected 2, which are"):
        to_channels(np.zeros((4, 5, 3), np.uint8), "rgba", "0,DAPI")


# --- planes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes, shape", [("ZCYX", (3, 2)), ("TZCYX", (2, 3, 2)), ("ZYX", (3,))])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_planes_along_z_are_slices_a_projection_or_one(tmp_path, axes, shape, kind):
    planes, path = stack(*shape), tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": axes},
                     **{kind: True})
    whole = planes.reshape(-1, 3, shape[-1] if "C" in axes else 1, 24, 32)  # t, z, c
    options = ReadOptions(channel_index="0,1" if "C" in axes else "")
    with pytest.raises(InputError, match=f"has {planes[..., 0, 0].size} pages .axes {axes}, .*"
                                         "data.z=slices .*, max, mean or a number") as error:
        read_image(path, options)
    assert "data.pages" not in str(error.value)  # a hint that would lead to another error
    last = lambda pixels: np.moveaxis(pixels, -3, -1)
    cases = {"slices": whole.reshape(-1, *whole.shape[2:]), "max": whole.max(1),
             "mean": np.rint(whole.mean(1)).astype(np.uint16), "2": whole[:, 2]}
    for z, expected in cases.items():
        chosen = options._replace(z=z)
        assert len(lazy.open_images(path, chosen)) == len(expected)
        for n, image in enumerate(expected):
            np.testing.assert_array_equal(both(path, chosen, n), last(image))
    with pytest.raises(InputError, match="has no plane 3 along Z .*from 0 to 2"):
        read_image(path, options._replace(z="3"), 0)


def test_planes_without_a_name_are_z_if_one_says_so(tmp_path):
    planes = stack(4)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    with pytest.raises(InputError, match="data.z=slices.*or config.data.pages=channels"):
        read_image(tmp_path / "a.tif")
    found = both(tmp_path / "a.tif", ReadOptions(z="max"))
    np.testing.assert_array_equal(found[..., 0], planes.max(0))
    tifffile.imwrite(tmp_path / "b.tif", planes[0])
    np.testing.assert_array_equal(both(tmp_path / "b.tif", ReadOptions(z="max"))[..., 0], planes[0])


@pytest.mark.parametrize("subifds", [0, 2])
def test_pyramids_are_their_first_level(tmp_path, subifds):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(CELLS, tile=(16, 16), subifds=subifds, metadata=None)
        for step in (2, 4):
            tiff.write(CELLS[::step, ::step], tile=(16, 16), subfiletype=1, metadata=None)
    np.testing.assert_array_equal(both(path)[..., 0], CELLS)
    np.testing.assert_array_equal(read_image(path)[..., 0], CELLS)
    np.testing.assert_array_equal(read_mask(path)[..., 0], CELLS)


def test_pages_of_several_sizes_have_the_order_of_the_file(tmp_path):
    pages = [NOISE, CELLS[:8], NOISE + 1, NOISE + 2, CELLS[:8] + 1]
    tall = [np.pad(page, ((0, 1), (0, 0))) for page in pages]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in (*pages, *tall):
            tiff.write(page, metadata=None)
            tiff.write(page[::2, ::2], metadata=None, subfiletype=1)  # a smaller copy
    images = lazy.open_images(tmp_path / "a.tif")
    for image, page in zip(images, (*pages, *tall), strict=True):
        np.testing.assert_array_equal(image.read()[..., 0], page)


def test_thumbnails_and_pictures_of_labels_are_no_images(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(CELLS, metadata={"axes": "YX", "Name": "slide"})
        tiff.write(NOISE[:8], metadata={"axes": "YX", "Name": "label image"})
        tiff.write(NOISE[:9], metadata={"axes": "YX", "Name": "macro image"})
    np.testing.assert_array_equal(both(path)[..., 0], CELLS)
    np.testing.assert_array_equal(read_image(path)[..., 0], CELLS)


def test_several_images_of_a_file_are_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for pixels in (CELLS, NOISE[:5]):
            tiff.write(pixels, metadata=None)
    with pytest.raises(InputError, match="has 2 pages, which are 2 images of their own .axes YX, "
                                         "24 x 32; axes YX, 5 x 32.*data.z=slices"):
        read_image(tmp_path / "a.tif")


# --- colours and bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_colour_tables_are_display(tmp_path, suffix):
    index, path = stack(dtype=np.uint8), tmp_path / f"a.{suffix}"
    table = np.zeros((256, 3), np.uint8)
    table[:, 1] = np.arange(256) // 2  # a dim green
    if suffix == "tif":
        wide = table.T.astype(np.uint16) << 8
        tifffile.imwrite(path, index, photometric="palette", colormap=wide)
    else:
        image = Image.fromarray(index)
        image.putpalette(table.reshape(-1).tolist())
        image.save(path)
    np.testing.assert_array_equal(both(path, GRAY)[..., 0], index)
    np.testing.assert_array_equal(both(path), table[index])
    assert image_with_notes(path, GRAY)[1] == ()
    [note] = image_with_notes(path)[1]
    assert "has a colour table" in note and lazy.open_images(path)[0].notes == (note,)


def test_colour_tables_of_eight_bit_are_not_black(tmp_path):
    index, table = stack(dtype=np.uint8), RNG.integers(0, 256, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=table)
    np.testing.assert_array_equal(both(tmp_path / "a.tif"), table.T[index])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_white_is_zero_within_its_own_bits(tmp_path, bits):
    dtype = bool if bits == 1 else f"uint{max(8, 1 << (bits - 1).bit_length())}"
    values = RNG.integers(0, min(2**bits, 2**16), (24, 32)).astype(dtype)
    stored = ~values if bits == 1 else (2**bits - 1 - values.astype(np.int64)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata=None,
                     **({} if bits in (1, 8, 16, 32) else dict(bitspersample=bits)))
    expected = values * 255 if bits == 1 else values
    np.testing.assert_array_equal(both(tmp_path / "a.tif")[..., 0], expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_beside_white_as_zero_is_not_inverted(tmp_path, planar):
    values = stack(2, dtype=np.uint8)
    stored = np.stack([255 - values[0], values[1]], -1 if planar == "contig" else 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata=None,
                     planarconfig=planar, extrasamples=["unassalpha"])
    np.testing.assert_array_equal(both(tmp_path / "a.tif"), np.moveaxis(values, 0, -1))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_white_is_zero_of_other_numbers_is_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", CELLS.astype(dtype), photometric="miniswhite")
    with pytest.raises(InputError, match=f"a.tif: white is 0 in it and pixels are {dtype}; exp"):
        read_image(tmp_path / "a.tif")


def test_a_mask_stored_with_white_as_zero_gets_a_warning(tmp_path):
    for share, noted in ((0.1, False), (0.9, True)):
        mask = np.arange(100).reshape(10, 10) < 100 * share
        tifffile.imwrite(tmp_path / "a.tif", mask, photometric="miniswhite")
        found, notes = mask_with_notes(tmp_path / "a.tif")
        np.testing.assert_array_equal(found[..., 0], mask)
        assert bool(notes) == noted and all("white as 0" in note for note in notes)


# --- what cannot be read, and why ----------------------------------------------------------------


def test_what_is_not_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.tif"
    rgb = np.moveaxis(stack(3, dtype=np.uint8), 0, -1)
    cases = {
        "its colours are CIELAB": dict(data=rgb, photometric="cielab"),
        "its colours are SEPARATED": dict(data=np.dstack([rgb, rgb[..., :1]]),
                                          photometric="separated"),
        "its colours are YCBCR": dict(data=rgb, photometric="ycbcr"),
        "its colours are CFA": dict(data=CELLS, photometric="cfa"),
        "tiles are 16 planes deep": dict(data=stack(16), volumetric=True, tile=(16, 16, 16),
                                         photometric="minisblack"),
    }
    for words, options in cases.items():
        tifffile.imwrite(path, **options, metadata=None)
        for read in (read_image, read_mask, lazy.open_images):
            with pytest.raises(InputError, match=f"a.tif: .*{words}") as error:
                read(path)
            assert "damaged" not in str(error.value)
    tifffile.imwrite(path, CELLS, compression="zlib", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(4242)
    with pytest.raises(InputError, match="a.tif: its compression .4242. is not known here; save"):
        read_image(path)
    tifffile.imwrite(path, CELLS, compression="zlib", predictor=True, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Predictor"].overwrite(77)
    with pytest.raises(InputError, match="a.tif: its predictor 77 is not known here; save"):
        read_image(path)


@pytest.mark.parametrize("error, words", [
    (NotImplementedError("12 bit"), "is stored in a way that is not known here .12 bit."),
    (Image.DecompressionBombError("200 MP"), "has more pixels than this format is opened with"),
    (ValueError("bad marker"), "truncated or damaged .bad marker.; copy it again")])
def test_only_what_is_damaged_is_to_be_copied_again(error, words):
    def fail():
        raise error

    with pytest.raises(InputError, match=f"a.jpg: .*{words}") as found:
        named("a.jpg", fail)
    assert ("copy it again" in str(found.value)) == isinstance(error, ValueError)


def test_an_unknown_codec_of_zarr_has_its_own_words(tmp_path):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=CELLS)
    group.attrs.update({"multiscales": [{"axes": [{"name": a} for a in "yx"],
                                         "datasets": [{"path": "0"}]}]})
    about = tmp_path / "a.zarr/0/.zarray"
    about.write_text(about.read_text().replace('"blosc"', '"unheard"'))
    with pytest.raises(InputError, match="a.zarr: is stored in a way that is not known here"):
        lazy.open_images(tmp_path / "a.zarr")[0].read()


def test_zarr_is_read_as_it_is_not_as_an_older_summary_says(tmp_path):
    zarr = pytest.importorskip("zarr")
    about = {"multiscales": [{"axes": [{"name": a} for a in "yx"], "datasets": [{"path": "0"}]}]}
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs.update(about)
    array = group.create_array("0", data=CELLS, chunks=(8, 32))
    zarr.consolidate_metadata(tmp_path / "a.zarr", zarr_format=2)
    array.resize((32, 32))
    array[24:] = 7
    image = lazy.open_images(tmp_path / "a.zarr")[0].read()
    np.testing.assert_array_equal(image[..., 0], np.concatenate([CELLS, np.full((8, 32), 7)]))


# --- OME sets ------------------------------------------------------------------------------------


@pytest.fixture
def ome_set(tmp_path):
    """Two files with a channel each that both describe the whole."""
    names = ["a_c0.ome.tif", "a_c1.ome.tif"]
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{n}" for n in range(2)]
    data = "".join(f'<TiffData FirstC="{n}" IFD="0" PlaneCount="1"><UUID FileName="{names[n]}">'
                   f"{uuids[n]}</UUID></TiffData>" for n in range(2))
    for n, name in enumerate(names):
        xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
               f' UUID="{uuids[n]}"><Image ID="Image:0" Name="a"><Pixels ID="Pixels:0" '
               'DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="24" SizeC="2" SizeZ="1" '
               f'SizeT="1"><Channel ID="Channel:0:0" Name="noise"/><Channel ID="Channel:0:1" '
               f'Name="cells"/>{data}</Pixels></Image></OME>')
        tifffile.imwrite(tmp_path / name, (NOISE, CELLS)[n], description=xml, metadata=None)
    return tmp_path


def test_files_of_an_ome_set_are_one_image(ome_set):
    found = both(ome_set / "a_c0.ome.tif", ReadOptions(channel_index="cells,noise"))
    np.testing.assert_array_equal(found, np.stack([CELLS, NOISE], -1))
    with pytest.raises(InputError, match="a_c1.ome.tif: is read as a part of a_c0.ome.tif"):
        read_image(ome_set / "a_c1.ome.tif", ReadOptions(channel_index="cells"))


XML = ('<?xml version="1.0"?>'
       '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{}">')
BINARY_ONLY = XML.format("urn:uuid:0") + '<BinaryOnly MetadataFile="{}" UUID="urn:uuid:9"/></OME>'


def described(*images):
    """OME-XML of a file that describes images: of each, {(channel, slice): name of its file}."""
    text = XML.format("urn:uuid:9")
    for n, planes in enumerate(images):
        channels, slices = (1 + max(place[axis] for place in planes) for axis in (0, 1))
        text += (f'<Image ID="Image:{n}" Name="{n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYZCT" '
                 f'Type="uint16" SizeX="32" SizeY="24" SizeC="{channels}" SizeZ="{slices}" '
                 'SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.25">')
        text += "".join(f'<Channel ID="Channel:{n}:{c}" Name="{name}"/>'
                        for c, name in enumerate(("noise", "cells")[:channels]))
        text += "".join(
            f'<TiffData FirstC="{c}" FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
            f'urn:uuid:{name}</UUID></TiffData>' for (c, z), name in planes.items())
        text += "</Pixels></Image>"
    return text + "</OME>"


def save_parts(folder, *names, binary_only="a.companion.ome"):
    """A TIFF of other values for each name; the values, in their order."""
    values = stack(len(names))
    for name, pixels in zip(names, values, strict=True):
        xml = {"description": BINARY_ONLY.format(binary_only)} if binary_only else {}
        tifffile.imwrite(folder / name, pixels, metadata=None, **xml)
    return values


@pytest.mark.parametrize("name", ["{}.ome.tif", "{}.tif"])
@pytest.mark.parametrize("binary_only", ["a.companion.ome", ""])
def test_a_companion_file_describes_its_set(tmp_path, name, binary_only):
    names = [name.format(stem) for stem in ("a_c0z0", "a_c0z1", "a_c1z0", "a_c1z1")]
    values = save_parts(tmp_path, *names, binary_only=binary_only).reshape(2, 2, 24, 32)
    places = [(c, z) for c in range(2) for z in range(2)]
    (tmp_path / "a.companion.ome").write_text(described(dict(zip(places, names, strict=True))))
    options = ReadOptions(channel_index="cells,noise", z="slices")
    for z in range(2):
        found = both(tmp_path / names[0], options, z)
        np.testing.assert_array_equal(found, np.stack([values[1, z], values[0, z]], -1))
    image = lazy.open_images(tmp_path / names[0], options)[0]
    assert image.pixel_size == lazy.pixel_size_of(tmp_path / names[0]) == (0.25, 0.5)
    with pytest.raises(InputError, match=f"{names[1]}: is read as a part of {names[0]}"):
        read_image(tmp_path / names[1], options, 0)
    (tmp_path / names[3]).unlink()
    for read in (read_image, lazy.open_images):
        with pytest.raises(InputError, match=f"set of 4 files, of which {names[3]} is missing"):
            read(tmp_path / names[0], options)


def test_a_companion_file_itself_is_no_image(tmp_path):
    path = tmp_path / "a.companion.ome"
    path.write_text(described({(0, 0): "a.tif"}))
    with pytest.raises(InputError, match="a.companion.ome: describes TIFFs.* pass the first of th"):
        lazy.open_images(path)


def test_a_companion_file_beats_what_the_parts_say_of_themselves(tmp_path):
    """These say that each is an image."""
    for name, pixels in (("c0.ome.tif", NOISE), ("c1.ome.tif", CELLS)):
        tifffile.imwrite(tmp_path / name, pixels)
    text = described({(0, 0): "c0.ome.tif", (1, 0): "c1.ome.tif"})
    (tmp_path / "a.companion.ome").write_text(text)
    found = both(tmp_path / "c0.ome.tif", ReadOptions(channel_index="cells"))
    np.testing.assert_array_equal(found[..., 0], CELLS)
    (tmp_path / "b.companion.ome").write_text(text)
    ome_sets._companion_names.cache_clear()  # the folder has the same time, in a test
    with pytest.raises(InputError, match="is listed by a.companion.ome and b.companion.ome; keep"):
        read_image(tmp_path / "c0.ome.tif")


def test_one_of_the_tiffs_describes_the_others(tmp_path):
    names = ["c0.ome.tif", "c1.ome.tif"]
    text = described({(0, 0): names[0], (1, 0): names[1]}).replace(
        "urn:uuid:c1.ome.tif", "urn:uuid:9")  # its own, which is not that of the first
    tifffile.imwrite(tmp_path / names[0], NOISE, metadata=None,
                     description=BINARY_ONLY.format(names[1]))
    tifffile.imwrite(tmp_path / names[1], CELLS, metadata=None, description=text)
    found = both(tmp_path / names[0], ReadOptions(channel_index="noise,cells"))
    np.testing.assert_array_equal(found, np.stack([NOISE, CELLS], -1))


def test_images_of_a_companion_file_are_sets_of_their_own(tmp_path):
    names = ["p0.tif", "p1_c0.tif", "p1_c1.tif"]
    values = save_parts(tmp_path, *names)
    (tmp_path / "a.companion.ome").write_text(described(
        {(0, 0): names[0]}, {(0, 0): names[1], (1, 0): names[2]}))
    np.testing.assert_array_equal(both(tmp_path / names[0])[..., 0], values[0])
    found = both(tmp_path / names[1], ReadOptions(channel_index="cells"))
    np.testing.assert_array_equal(found[..., 0], values[2])
    assert [ome_sets.set_of(tmp_path / name).first.name for name in names] == [
        names[0], names[1], names[1]]


@pytest.mark.parametrize("text, words", [
    (None, "'a.companion.ome' describes, which is missing; copy it there"),
    (described({(0, 0): "other.tif"}), "which does not list it; was a file renamed"),
    (described({(0, 0): "a.tif", (1, 0): "../out/b.tif"}),
     "OME-XML of a.companion.ome names '../out/b.tif' as the file of a plane; expected the name"),
    (described({(0, 0): "a.tif"}).replace('<UUID FileName="a.tif">', "<UUID>").replace(
        "</Pixels>", '<TiffData FirstC="0"><UUID FileName="a.tif">1</UUID></TiffData></Pixels>'),
     "names '' as the file of a plane"),
    (described({(0, 0): "a.tif"}).replace('SizeX="32"', 'SizeX="33"'),
     "does not hold the planes that a.companion.ome describes"),
    (described({(0, 0): "a.tif"})[:99], "a.companion.ome beside it cannot be read as OME-XML")])
def test_a_companion_file_that_does_not_fit_is_named(tmp_path, text, words):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    tifffile.imwrite(tmp_path / "out/b.tif", CELLS)
    if text:
        (tmp_path / "in/a.companion.ome").write_text(text)
    save_parts(tmp_path / "in", "a.tif")
    for read in (read_image, lazy.open_images):
        with pytest.raises(InputError, match=f"a.tif: .*{words}"):
            read(tmp_path / "in/a.tif", ReadOptions(channel_index="0"))


def test_no_file_of_another_folder_is_read_as_a_plane(tmp_path):
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "b.ome.tif", CELLS)
    text = described({(0, 0): "a.ome.tif", (1, 0): "../b.ome.tif"}).replace(
        "urn:uuid:a.ome.tif", "urn:uuid:9")
    tifffile.imwrite(tmp_path / "in/a.ome.tif", NOISE, description=text, metadata=None)
    for name in ("in/a.ome.tif", "in/c.ome.tif"):
        if name != "in/a.ome.tif":
            (tmp_path / "in/a.ome.tif").rename(tmp_path / name)
        with pytest.raises(InputError, match="names '../b.ome.tif' as the file of a plane"):
            read_image(tmp_path / name, ReadOptions(channel_index="1"))
    tifffile.imwrite(tmp_path / "in/d.tif", NOISE, metadata=None,
                     description=BINARY_ONLY.format("../b.ome.tif"))
    with pytest.raises(InputError, match="'../b.ome.tif' describes, which is not the name of a f"):
        read_image(tmp_path / "in/d.tif")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_part_of_an_ome_set_is_named(ome_set, missing):
    (ome_set / f"a_c{missing}.ome.tif").unlink()
    other = ome_set / f"a_c{1 - missing}.ome.tif"
    for read in (read_image, lazy.open_images):
        with pytest.raises(InputError, match=f"of which a_c{missing}.ome.tif is missing"):
            read(other, ReadOptions(channel_index="cells"))
