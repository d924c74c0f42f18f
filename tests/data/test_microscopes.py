"""Files of microscopes: axes, channels, scenes, pixel size, pixels, in training as in prediction.

Each file is written by one library and read by another, or its bytes are written here.
"""

import pathlib
import struct
import sys

import numpy as np
import pytest
import tifffile

from cellseg_jax.data import lazy
from cellseg_jax.data.microscopes import READERS, microscope_stacks
from cellseg_jax.data.read import (
    image_axes,
    image_size,
    num_images,
    orientation,
    read_image,
    read_mask,
)
from cellseg_jax.data.stacks import AS_IT_IS, ReadOptions, images_of
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 13, 21


def pixels(*shape, dtype=np.uint16):
    return RNG.integers(1, 256, (*shape, HEIGHT, WIDTH), dtype)


def both(path, options, number=0):
    """The pixels of a file in training, which are those in prediction, as a whole or in bands."""
    image = read_image(path, options, number)
    shown = lazy.open_images(path, options)[number]
    np.testing.assert_array_equal(shown.read(), image)
    np.testing.assert_array_equal(shown.rows(5, 9), image[5:9])
    return image


def check_tzc(path, expected, um=0.25):
    """Everything that a config chooses of a file with (T, Z, C, H, W) of channels DAPI and GFP."""
    times, depth = expected.shape[:2]
    with pytest.raises(InputError, match=f"{path.name}: has 2 channels .*: 0 DAPI, 1 GFP"):
        read_image(path, ReadOptions(z="slices"), 0)
    with pytest.raises(InputError, match="has no channel 'Cy5'"):
        read_image(path, ReadOptions(channel_index="Cy5", z="slices"), 0)
    chosen = ReadOptions(channel_index="gfp")
    with pytest.raises(InputError, match=rf"{path.name}: has ({times * depth * 2}|{times * depth}) "
                                         "pages .axes "):
        read_image(path, chosen)
    assert num_images(path, chosen) == times * depth
    for z, of_t, count in (("max", lambda a: a.max(0), times), ("1", lambda a: a[1], times),
                           ("mean", lambda a: np.rint(a.mean(0)), times)):
        options = chosen._replace(z=z)
        assert num_images(path, options) == count
        for t in range(count):
            np.testing.assert_array_equal(both(path, options, t)[..., 0], of_t(expected[t, :, 1]))
    two = ReadOptions(channel_index="1,DAPI", z="slices")
    np.testing.assert_array_equal(both(path, two, depth),
                                  np.moveaxis(expected[1, 0, ::-1], 0, -1))
    shown = lazy.open_images(path, two)[0].calibrated()
    assert shown.pixel_size == pytest.approx((um, um)) and shown.channels == ("GFP", "DAPI")
    assert lazy.pixel_size_of(path) == pytest.approx((um, um))
    assert image_size(path) == expected.shape[-2:] and orientation(path) == 1


# --- CZI -----------------------------------------------------------------------------------------


def write_czi(path, images, names=("DAPI", "GFP"), um=0.25, skip=(), at=(0, 0), axes="TZC"):
    """A CZI file with a scene for each (T, Z, C, H, W[, 3]) of images."""
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(path)) as file:
        for scene, image in enumerate(images):
            for place in np.ndindex(image.shape[:3]):
                if place not in skip:
                    plane = image[place].reshape(*image.shape[3:5], -1)
                    file.write(plane[..., ::-1], location=(at[0] + 1000 * scene, at[1]),
                               plane=dict(zip(axes, place, strict=True)), scene=scene)
        file.write_metadata("a", dict(enumerate(names)), um * 1e-6, um * 1e-6, 1e-6)


def test_czi_is_a_stack(tmp_path):
    expected = pixels(2, 3, 2)
    write_czi(tmp_path / "a.czi", [expected], at=(-7, 40))
    check_tzc(tmp_path / "a.czi", expected)


@pytest.mark.slow
def test_czi_has_the_pixels_of_czifile(tmp_path):
    czifile = pytest.importorskip("czifile")
    colours = np.moveaxis(pixels(1, 1, 1, 3, dtype=np.uint8), 3, -1)
    write_czi(tmp_path / "a.czi", [pixels(2, 3, 2)])
    write_czi(tmp_path / "b.czi", [colours], names=("all",))
    for name, options in (("a", ReadOptions(channel_index="0,1", z="slices")),
                          ("b", ReadOptions())):
        with czifile.CziFile(str(tmp_path / f"{name}.czi")) as file:
            found, axes = file.asarray(), file.axes
        order = [axes.index(axis) for axis in "TZYXC0" if axis in axes]
        order = [n for n in range(found.ndim) if n not in order] + order
        ours = np.stack([both(tmp_path / f"{name}.czi", options, n)
                         for n in range(num_images(tmp_path / f"{name}.czi", options))])
        np.testing.assert_array_equal(ours.ravel(), found.transpose(order).ravel())


def test_czi_scenes_are_images(tmp_path):
    first, second = pixels(1, 1, 1), pixels(1, 1, 1)[..., :9, :]
    write_czi(tmp_path / "a.czi", [first, second], names=("DAPI",))
    with pytest.raises(InputError, match="a.czi: has 2 pages, which are 2 images of their own"):
        read_image(tmp_path / "a.czi")
    for number, image in enumerate((first, second)):
        found = both(tmp_path / "a.czi", ReadOptions(z="slices"), number)
        np.testing.assert_array_equal(found[..., 0], image[0, 0, 0])


def test_colours_of_czi_are_red_green_and_blue(tmp_path):
    image = np.moveaxis(pixels(1, 1, 1, 3, dtype=np.uint8), 3, -1)
    write_czi(tmp_path / "a.czi", [image], names=("all",))
    np.testing.assert_array_equal(both(tmp_path / "a.czi", ReadOptions()), image[0, 0, 0])
    [shown] = lazy.open_images(tmp_path / "a.czi")
    assert shown.channels == ("red", "green", "blue") and not shown.alpha


def test_planes_that_a_czi_lacks_are_not_read_as_zeros(tmp_path):
    write_czi(tmp_path / "a.czi", [pixels(2, 3, 1)], skip=[(1, 2, 0)])
    with pytest.raises(InputError, match="a.czi: lacks the plane T 1, Z 2, C 0 of scene 0"):
        lazy.open_images(tmp_path / "a.czi")


# --- Imaris --------------------------------------------------------------------------------------


def write_imaris(path, image, names=("DAPI", "GFP"), um=0.25):
    """The groups and attributes of Imaris 5.5, Data padded to whole chunks as Imaris does."""
    h5py = pytest.importorskip("h5py")
    letters = lambda text: np.array([c.encode() for c in str(text)], "S1")
    times, depth, channels, height, width = image.shape
    with h5py.File(path, "w") as file:
        info = file.create_group("DataSetInfo/Image")
        values = {"X": width, "Y": height, "Z": depth, "Unit": "um", "ExtMin0": -3, "ExtMin1": 5,
                  "ExtMax0": -3 + um * width, "ExtMax1": 5 + um * height}
        for key, value in values.items():
            info.attrs[key] = letters(value)
        for c, name in enumerate(names):
            file.create_group(f"DataSetInfo/Channel {c}").attrs["Name"] = letters(name)
        for t, c in np.ndindex(times, channels):
            for level, step in ((0, 1), (1, 2)):
                part = np.pad(image[t, :, c, ::step, ::step], ((0, 2), (0, 3), (0, 5)))
                file.create_dataset(f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}/"
                                    "Data", data=part, chunks=(1, 8, 8), compression="gzip")


@pytest.mark.slow
def test_imaris_is_a_stack(tmp_path):
    expected = pixels(2, 3, 2)
    write_imaris(tmp_path / "a.ims", expected)
    check_tzc(tmp_path / "a.ims", expected)


def test_imaris_of_one_plane_is_an_image(tmp_path):
    expected = pixels(1, 1, 1, dtype=np.uint8)
    write_imaris(tmp_path / "a.ims", expected, names=("x",))
    np.testing.assert_array_equal(both(tmp_path / "a.ims", ReadOptions())[..., 0],
                                  expected[0, 0, 0])
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "b.ims", "w") as file:
        file["data"] = expected
    with pytest.raises(InputError, match="b.ims: has no DataSet/ResolutionLevel 0"):
        read_image(tmp_path / "b.ims")


# --- LIF -----------------------------------------------------------------------------------------


def lif_image(name, image, names, um, bgr=False):
    """(XML of an image (T, Z, C, H, W), its bytes): a row after the other of each channel."""
    bits, tag = 8 * image.itemsize, 0
    times, depth, channels, height, width = image.shape
    stored = np.moveaxis(image[:, :, ::-1], 2, -1) if bgr else image
    pixel = image.itemsize * (channels if bgr else 1)
    row, plane = pixel * width, pixel * width * height * (1 if bgr else channels)
    described = "".join(
        f'<ChannelDescription DataType="0" ChannelTag="{3 - c if bgr else tag}" '
        f'Resolution="{bits}" NameOfMeasuredQuantity="" Min="0" Max="255" Unit="" '
        f'LUTName="{label}" IsLUTInverted="0" BitInc="0" '
        f'BytesInc="{c * (image.itemsize if bgr else row * height)}"/>'
        for c, label in enumerate(names))
    dims = [(1, width, um * 1e-6 * (width - 1), pixel), (2, height, um * 1e-6 * (height - 1), row),
            (3, depth, 1e-6, plane), (4, times, 1.0, plane * depth)]
    axes = "".join(f'<DimensionDescription DimID="{n}" NumberOfElements="{count}" Origin="0" '
                   f'Length="{length!r}" Unit="m" BitInc="0" BytesInc="{step}"/>'
                   for n, count, length, step in dims if count > 1)
    return (f'<Element Name="{name}" UniqueID="{name}"><Data><Image><ImageDescription><Channels>'
            f'{described}</Channels><Dimensions>{axes}</Dimensions></ImageDescription></Image>'
            f'</Data><Memory Size="{stored.nbytes}" MemoryBlockID="Mem{name}"/></Element>',
            stored.tobytes())


def write_lif(path, images):
    """A LIF file of {name: (XML, bytes)}: a header, the XML and a block for each image."""
    encode = lambda text: (len(text), text.encode("utf-16-le"))
    xml = "".join(text for text, _ in images.values())
    length, text = encode('<LMSDataContainerHeader Version="2"><Element Name="a" UniqueID="a">'
                          f"<Children>{xml}</Children></Element></LMSDataContainerHeader>")
    with open(path, "wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * length + 5, 0x2A, length) + text)
        for name, (_, content) in images.items():
            length, text = encode(f"Mem{name}")
            file.write(struct.pack("<IIBQBI", 0x70, 2 * length + 14, 0x2A, len(content), 0x2A,
                                   length) + text + content)


def test_lif_is_a_stack(tmp_path):
    pytest.importorskip("liffile")
    expected = pixels(2, 3, 2)
    write_lif(tmp_path / "a.lif", {"one": lif_image("one", expected, ("DAPI", "GFP"), 0.25)})
    check_tzc(tmp_path / "a.lif", expected)


def test_lif_has_the_pixels_of_liffile(tmp_path):
    liffile = pytest.importorskip("liffile")
    images = {"one": lif_image("one", pixels(2, 3, 2), ("DAPI", "GFP"), 0.25),
              "colours": lif_image("colours", pixels(1, 1, 3, dtype=np.uint8),
                                   ("Blue", "Green", "Red"), 0.5, bgr=True),
              "wide": lif_image("wide", pixels(1, 1, 1)[..., :5, :], ("Gray",), 0.5)}
    write_lif(tmp_path / "a.lif", images)
    stacks = microscope_stacks(tmp_path / "a.lif")
    with liffile.LifFile(tmp_path / "a.lif") as file:
        for stack, image in zip(stacks, file.images, strict=True):
            ours = np.stack([plane.rows(0, plane.shape[0]) for plane in stack.planes])
            theirs = image.asarray()
            order = [image.dims.index(axis) for axis in "TZCYXS" if axis in image.dims]
            np.testing.assert_array_equal(ours.ravel(), theirs.transpose(order).ravel())
            step = np.diff(image.coords["X"])[0] * 1e6
            assert stack.pixel_size == pytest.approx((step, step))
    assert [stack.axes for stack in stacks] == ["TZC", "", ""]
    [colours] = images_of(stacks[1], ReadOptions())
    assert colours.names == ("red", "green", "blue")
    assert num_images(tmp_path / "a.lif", ReadOptions(z="max", channel_index="0")) == 4


def test_scans_of_a_lif_that_are_no_images_are_named(tmp_path):
    pytest.importorskip("liffile")
    line = pixels(2, 1, 1)[..., :1, :]
    plane = pixels(1, 1, 1)
    images = {"line": lif_image("line", line, ("Gray",), 0.25),
              "plane": lif_image("plane", plane, ("Gray",), 0.25)}
    write_lif(tmp_path / "a.lif", images)
    [image] = lazy.open_images(tmp_path / "a.lif")
    np.testing.assert_array_equal(image.read()[..., 0], plane[0, 0, 0])
    assert "1 of its images are not in X and Y, and left out: line" in image.notes[0]
    del images["plane"]
    write_lif(tmp_path / "b.lif", images)
    with pytest.raises(InputError, match="b.lif: has no image with axes X and Y"):
        read_image(tmp_path / "b.lif")


def test_a_truncated_lif_is_refused(tmp_path):
    pytest.importorskip("liffile")
    path = tmp_path / "a.lif"
    write_lif(path, {"one": lif_image("one", pixels(1, 1, 1), ("Gray",), 0.25)})
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=f"^{path}: "):
        lazy.open_images(path)[0].read()


# --- ND2 -----------------------------------------------------------------------------------------


def nd2_xml(values):
    """A dict as the XML of ND2 2.1, whose types are named by the first letters of the keys."""
    kinds = (("b", "bool"), ("ui", "lx_uint32"), ("d", "double"), ("e", "lx_int32"),
             ("s", "CLxStringW"))

    def node(key, value):
        if isinstance(value, dict):
            inside = "".join(map(node, value, value.values()))
            return f"<{key} runtype='CLxListVariant'>{inside}</{key}>"
        kind = next(kind for start, kind in kinds if key.startswith(start))
        return f"<{key} runtype='{kind}' value='{value}'/>"

    return ("<?xml version='1.0'?><variant version='1.0'>"
            f"<no_name runtype='CLxListVariant'>{''.join(map(node, values, values.values()))}"
            "</no_name></variant>").encode()


def write_nd2(path, frames, loops, names=("DAPI", "GFP"), um=0.25, skip=(), colours=False):
    """The chunks of ND2 2.1: attributes, metadata, experiment, a chunk for each frame, their map.

    frames: (N, C, H, W), or (N, H, W, 3) with colours. loops: [(letter, length), ...].
    """
    stored = frames if colours else np.moveaxis(frames, 1, -1)
    count, height, width, components = stored.shape
    bits = 8 * stored.itemsize
    planes = {f"a{c}": {"sDescription": name, "uiCompCount": components // len(names),
                       "pFluorescentProbe": {"m_ExcitationSpectrum": {"uiCount": 0}}}
              for c, name in enumerate(names)}
    experiment = {}
    for letter, length in reversed(loops):
        kind, inside = {
            "T": (1, {"uiCount": length, "dStart": 0, "dPeriod": 1, "dDuration": 1}),
            "P": (2, {"Points": {f"p{n}": {"dPosX": n + 1.5} for n in range(length)}}),
            "Z": (4, {"uiCount": length, "dZLow": 0, "dZHigh": 2, "dZStep": 1})}[letter]
        inner = {"ppNextLevelEx": {"x0": experiment}} if experiment else {}
        experiment = {"eType": kind, "uLoopPars": inside, **inner}
    chunks = {
        "ImageAttributes!": nd2_xml({
            "uiWidth": width, "uiWidthBytes": width * components * stored.itemsize,
            "uiHeight": height, "uiComp": components, "uiBpcInMemory": bits,
            "uiBpcSignificant": bits, "uiSequenceCount": count, "eCompression": 2}),
        "ImageMetadataSeq|0!": nd2_xml({
            "bCalibrated": "true" if um else "false", "dCalibration": um or 1,
            "sPicturePlanes": {"uiCount": len(names), "sPlane": planes}}),
        **({"ImageMetadata!": nd2_xml(experiment)} if experiment else {}),
        **{f"ImageDataSeq|{n}!": struct.pack("<d", n) + frame.tobytes()
           for n, frame in enumerate(stored) if n not in skip}}
    where = {}
    with open(path, "wb") as file:
        file.write(struct.pack("<IIQ32s64s", 0x0ABECEDA, 32, 64,
                               b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver2.1"))
        for name, content in chunks.items():
            where[name] = file.tell(), len(content)
            reserved = 4096 - 24 if name.startswith("ImageDataSeq") else 64
            file.write(struct.pack("<IIQ", 0x0ABECEDA, reserved, len(content)))
            file.write(name.encode().ljust(reserved, b"\0") + content)
        start, listed = file.tell(), b"".join(
            name.encode() + struct.pack("<QQ", *place) for name, place in where.items())
        end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", start)
        file.write(struct.pack("<IIQ", 0x0ABECEDA, 32, len(listed + end)))
        file.write(b"ND2 FILEMAP SIGNATURE NAME 0001!" + listed + end)


def test_nd2_is_a_stack(tmp_path):
    nd2, expected, path = pytest.importorskip("nd2"), pixels(2, 3, 2), tmp_path / "a.nd2"
    write_nd2(path, expected.reshape(6, 2, HEIGHT, WIDTH), [("T", 2), ("Z", 3)])
    check_tzc(path, expected)
    np.testing.assert_array_equal(nd2.imread(path), expected)


def test_positions_of_an_nd2_are_images(tmp_path):
    pytest.importorskip("nd2")
    expected, path = pixels(3, 2, 1), tmp_path / "a.nd2"  # T, P
    write_nd2(path, expected.reshape(6, 1, HEIGHT, WIDTH), [("T", 3), ("P", 2)], ("x",), um=None)
    assert [(one.axes, one.lengths) for one in microscope_stacks(path)] == [("T", (3,))] * 2
    assert lazy.pixel_size_of(path) is None
    for number in range(6):
        found = both(path, ReadOptions(z="slices"), number)[..., 0]
        np.testing.assert_array_equal(found, expected[number % 3, number // 3, 0])


def test_colours_of_nd2_are_one_plane(tmp_path):
    pytest.importorskip("nd2")
    image = np.moveaxis(pixels(1, 3, dtype=np.uint8), 1, -1)
    write_nd2(tmp_path / "a.nd2", image, [], ("Brightfield",), colours=True)
    np.testing.assert_array_equal(both(tmp_path / "a.nd2", ReadOptions()), image[0])


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_frames_that_an_nd2_lacks_are_not_read_as_zeros(tmp_path, fault):
    pytest.importorskip("nd2")
    path = tmp_path / "a.nd2"
    write_nd2(path, pixels(3, 1), [("Z", 3)], ("x",), skip=[1] if fault == "missing" else ())
    if fault == "cut":
        content = path.read_bytes()
        path.write_bytes(content[:-5000])
    with pytest.raises(InputError, match="a.nd2: lacks frame 1" if fault == "missing" else "a.nd2"):
        lazy.open_images(path, ReadOptions(z="1"))[0].read()


# --- OIF -----------------------------------------------------------------------------------------


def write_oif(path, image, names=("DAPI", "GFP"), um=0.25, skip=()):
    """Settings and a folder of TIFFs, one for each plane, of (T, Z, C, H, W)."""
    folder = path.with_name(f"{path.name}.files")
    folder.mkdir()
    for place in np.ndindex(image.shape[:3]):
        name = "".join(f"{axis}{n + 1:03d}" for axis, n, length in
                       zip("CZT", place[::-1], image.shape[2::-1], strict=True)
                       if axis == "C" or length > 1)
        if place not in skip:
            tifffile.imwrite(folder / f"s_{name}.tif", image[place], metadata=None)
    channels = "".join(f"[Channel {c} Parameters]\r\nDyeName=\"{name}\"\r\n"
                       for c, name in enumerate(names, 1))
    text = (f"[ProfileSaveInfo]\r\nName=\"x\"\r\nVersion=\"1\"\r\n{channels}"
            f"[Reference Image Parameter]\r\nHeightConvertValue={um}\r\nHeightUnit=\"um\"\r\n"
            f"WidthConvertValue={um}\r\nWidthUnit=\"um\"\r\n")
    path.write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))


def test_oif_is_a_stack(tmp_path):
    pytest.importorskip("oiffile")
    expected, path = pixels(2, 3, 2), tmp_path / "a.oif"
    write_oif(path, expected)
    check_tzc(path, expected)


def test_planes_that_an_oif_lacks_are_named(tmp_path):
    pytest.importorskip("oiffile")
    write_oif(tmp_path / "a.oif", pixels(2, 3, 2), skip=[(1, 1, 0)])
    with pytest.raises(InputError, match="a.oif: lacks the plane s_C001Z002T002.tif .was its"):
        lazy.open_images(tmp_path / "a.oif")


def test_oif_and_the_folder_of_its_planes_are_one_image(tmp_path):
    pytest.importorskip("oiffile")
    write_oif(tmp_path / "a.oif", pixels(1, 1, 1), names=("x",))
    [(path, _)] = images_in.find([str(tmp_path)], tmp_path / "out")
    assert path == tmp_path / "a.oif"


# --- TIFFs of microscopes ------------------------------------------------------------------------


def write_lsm(path, image, names=("DAPI", "GFP"), um=0.25):
    """(T, Z, C, H, W) as planar pages, each with a thumbnail after it, and the structure of Zeiss.

    The names are a part of the structure that its offset leads to, at the end of the file.
    """
    times, depth, channels, height, width = image.shape
    said = {"MagicNumber": 67127628, "DimensionX": width, "DimensionY": height, "DimensionZ": depth,
            "DimensionChannels": channels, "DimensionTime": times, "DataType": 2, "ScanType": 6,
            "VoxelSizeX": um * 1e-6, "VoxelSizeY": um * 1e-6, "OffsetChannelColors": 12345678}
    kind = np.dtype([field for field in tifffile.TIFF.CZ_LSMINFO if field[0]]).newbyteorder("<")
    info = np.zeros((), kind)
    for key, value in {**said, "StructureSize": kind.itemsize}.items():
        info[key] = value
    with tifffile.TiffWriter(path, byteorder="<") as tiff:
        for n, plane in enumerate(image.reshape(-1, channels, height, width)):
            tag = [(34412, 1, kind.itemsize, info.tobytes(), True)] if n == 0 else []
            tiff.write(plane, planarconfig="separate", photometric="minisblack", metadata=None,
                       extrasamples=[0] * (channels - 1), extratags=tag, contiguous=False)
            tiff.write(plane[:, ::4, ::4].astype(np.uint8), planarconfig="separate", subfiletype=1,
                       photometric="minisblack", metadata=None, contiguous=False,
                       extrasamples=[0] * (channels - 1))
    content, end = path.read_bytes(), path.stat().st_size
    texts = b"".join(struct.pack("<I", len(name) + 1) + name.encode() + b"\0" for name in names)
    at = 24 + 4 * len(names)
    colours = struct.pack("<6I", at + len(texts), len(names), len(names), 24, at, 0)
    content = content.replace(struct.pack("<I", 12345678), struct.pack("<I", end))
    content += colours + bytes(4 * len(names)) + texts
    bits = struct.pack("<HHI", 258, 3, 2)  # of two channels Zeiss writes elsewhere, not in the tag
    for depth in (16, 8):
        value = struct.pack("<HH", depth, depth)
        content = content.replace(bits + value, bits + struct.pack("<I", len(content))) + value
    path.write_bytes(content)


@pytest.mark.slow
def test_lsm_is_a_stack(tmp_path):
    expected, path = pixels(2, 3, 2), tmp_path / "a.lsm"
    write_lsm(path, expected)
    check_tzc(path, expected)


def test_qptiff_has_the_names_of_its_markers(tmp_path):
    expected, path = pixels(3), tmp_path / "a.qptiff"
    with tifffile.TiffWriter(path) as tiff:
        for name, plane in zip(("DAPI", "CD3", "CD8"), expected, strict=True):
            tiff.write(plane, photometric="minisblack", metadata=None, contiguous=False,
                       software="PerkinElmer-QPI", resolutionunit=3, resolution=(2e4, 2e4),
                       description="<?xml version=\"1.0\" encoding=\"utf-16\"?>"
                                   "<PerkinElmer-QPI-ImageDescription><Name>Opal</Name>"
                                   f"<Biomarker>{name}</Biomarker>"
                                   "</PerkinElmer-QPI-ImageDescription>")
    found = both(path, ReadOptions(channel_index="cd8,dapi"))
    np.testing.assert_array_equal(found, np.moveaxis(expected[[2, 0]], 0, -1))
    assert lazy.pixel_size_of(path) == pytest.approx((0.5, 0.5))


# --- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", READERS)
def test_a_missing_reader_is_one_line_with_the_extra(tmp_path, monkeypatch, suffix):
    reader, path = READERS[suffix], tmp_path / f"a{suffix}"
    path.write_bytes(b"anything")
    for name in (reader.package, f"{reader.package}.czi"):
        monkeypatch.setitem(sys.modules, name, None)
    for read in (read_image, lazy.open_images):
        with pytest.raises(InputError, match=rf"^{path}: .* needs the package {reader.package}.*"
                                             r"pip install 'cellseg_jax\[microscopes\]'$"):
            read(path)


@pytest.mark.parametrize("suffix", READERS)
def test_damaged_files_of_microscopes_are_refused(tmp_path, suffix):
    pytest.importorskip(READERS[suffix].package)
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"anything" * 100):
        path.write_bytes(content)
        for read in (read_image, lazy.open_images, lazy.pixel_size_of, image_size):
            with pytest.raises(InputError, match=f"^{path}: "):
                read(path)
    with pytest.raises(InputError, match="cannot be read .No such file"):
        read_image(pathlib.Path(f"{tmp_path}/b{suffix}"))
    with pytest.raises(InputError, match="expected one of .png"):
        read_mask(path)


@pytest.mark.parametrize("write", [write_czi, write_imaris, write_lif])
def test_labels_of_a_stack_have_the_axes_of_its_file(tmp_path, write):
    image = pixels(3, 1, 1)
    if write is write_lif:
        pytest.importorskip("liffile")
        path, image = tmp_path / "a.lif", {"one": lif_image("one", image, ("x",), 0.25)}
        write(path, image)
    elif write is write_czi:
        path = tmp_path / "a.czi"
        write(path, [image], names=("x",))
    else:
        path = tmp_path / "a.ims"
        write(path, image, names=("x",))
    assert image_axes(path, AS_IT_IS).lengths == {"T": 3}
