"""Random valid TIFFs are read to exactly what was written into them, or refused in words.

What a file must be read as follows here from what was written, by other code than the reader's:
from the array, the names of its axes and the rules of docs/formats.md.
"""

import logging
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

from cellseg_jax.data import lazy
from cellseg_jax.data.read import image_size, read_image, read_mask
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError

FILES, PART = 300, 30
DTYPES = ("uint8", "uint8", "uint16", "uint16", "uint32", "int16", "int32", "float32", "float64",
          "bool", "complex64")
LOSSLESS = (None, None, "zlib", "lzw", "packbits", "zstd", "lzma", "lerc")


class Written(NamedTuple):
    """A file and what is in it."""

    options: dict  # of tifffile, for the message of a failure
    axes: str  # of the planes that have a name, such as "ZC"; Q without
    stored: np.ndarray  # (*planes, H, W, samples)
    shown: np.ndarray  # the same with colours looked up and white inverted
    rgb: bool
    alpha: bool  # the last sample is alpha
    refused: bool  # in words, whatever is chosen


def written(rng, path) -> Written | None:
    """Write a random file; None where tifffile cannot."""
    kind = rng.choice(["plain", "shaped", "ome", "imagej"])
    dtype = np.dtype(rng.choice(DTYPES if kind != "imagej" else ["uint8", "uint16", "float32"]))
    axes = str(rng.choice(["", "", "Z", "C", "T", "ZC", "TZ", "TZC", "CZ"]))
    axes = "TZC" if kind == "imagej" and axes == "CZ" else axes
    lengths = tuple(int(n) for n in rng.integers(1, 5, len(axes)))
    size = tuple(int(n) for n in rng.integers(1, 70, 2))
    samples = int(rng.choice([1, 1, 1, 2, 3, 4, 5]))
    photometric = str(rng.choice(["minisblack", "minisblack", "miniswhite", "rgb", "palette"]))
    if kind == "imagej":
        coloured = dtype == np.uint8 and samples == 3
        samples, photometric = (3, "rgb") if coloured else (1, "minisblack")
    if photometric == "rgb":
        samples = max(samples, 3)
    if photometric == "palette":
        dtype, samples = np.dtype(np.uint8), 1
    options = {"photometric": photometric, "compression": rng.choice(LOSSLESS),
               "byteorder": str(rng.choice(["<", ">"])), "bigtiff": bool(rng.random() < 0.2)}
    more = samples - (3 if photometric == "rgb" else 1)
    extra = [int(n) for n in rng.integers(0, 3, more)]
    planar = samples > 1 and rng.random() < 0.4
    if samples > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if extra:
        options["extrasamples"] = extra
    stored = values(rng, dtype, (*lengths, *size, samples))
    if photometric == "palette":
        options["colormap"] = rng.integers(256, 2**16, (3, 256), np.uint16)
    if rng.random() < 0.4:
        options["tile"] = tuple(int(n) * 16 for n in rng.integers(1, 4, 2))
    elif rng.random() < 0.5:
        options["rowsperstrip"] = int(rng.integers(1, size[0] + 1))
    if options["compression"] in ("zlib", "lzw", "zstd") and dtype.kind in "ui":
        options["predictor"] = bool(rng.random() < 0.5)
    if dtype.kind == "b":
        options["compression"] = rng.choice([None, "packbits", "zlib"])
    if kind == "imagej":
        options |= {"imagej": True, "compression": None, "bigtiff": False, "byteorder": None}
        options.pop("tile", None)
        if rng.random() < 0.3 and lengths:
            options["truncate"] = True
            options.pop("rowsperstrip", None)
    return save(rng, path, kind, axes, stored, options, planar)


def values(rng, dtype, shape):
    """Whole numbers mostly, so that training reads other types too."""
    if dtype.kind == "b":
        return rng.random(shape) > 0.5
    array = rng.integers(0, 256 if dtype.itemsize == 1 else 5000, shape)
    return array.astype(dtype) if rng.random() < 0.8 or dtype.kind != "f" else (
        array + rng.random(shape)).astype(dtype)


def save(rng, path, kind, axes, stored, options, planar):
    samples, pixels = stored.shape[-1], stored
    inside = "YX"
    if samples > 1:
        pixels, inside = (np.moveaxis(stored, -1, -3), "SYX") if planar else (stored, "YXS")
    else:
        pixels = stored[..., 0]
    metadata = None if kind == "plain" else {"axes": axes + inside}
    many = {name: options.pop(name) for name in ("byteorder", "bigtiff", "imagej")
            if name in options}
    levels = int(rng.choice([0, 0, 0, 1, 2])) if kind != "imagej" else 0
    inner = bool(rng.random() < 0.5) or kind == "ome"
    thumbnail = kind in ("plain", "ome") and rng.random() < 0.15
    try:
        with tifffile.TiffWriter(path, ome=kind == "ome", shaped=kind == "shaped", **many) as tiff:
            tiff.write(np.ascontiguousarray(pixels), metadata=metadata,
                       **options, **({"subifds": levels} if inner and levels else {}))
            for level in range(1, levels + 1) if inner or not axes else ():
                step = (slice(None, None, 2**level),) * 2
                small = pixels[(..., *step, slice(None)) if inside == "YXS" else (..., *step)]
                tiff.write(np.ascontiguousarray(small), subfiletype=1, metadata=None, **options)
            if thumbnail and not levels:
                name = {"Name": "label image"} if kind == "ome" else None
                tiff.write(np.zeros((5, 6), np.uint8), photometric="minisblack", metadata=name,
                           **({} if name else {"subfiletype": 1}))
    except (ValueError, TypeError, NotImplementedError, KeyError, RuntimeError, OverflowError):
        return None
    with tifffile.TiffFile(path) as tiff:  # which loses names of axes in some shaped pyramids
        known = kind != "plain" and tiff.series[0].kind == kind
        back = tiff.series[0].asarray(squeeze=False)
    if back.size != pixels.size or not np.array_equal(back.reshape(pixels.shape), pixels):
        return None  # not written as it was meant: tifffile packs bits of several samples wrongly
    named = axes if known else "Q" * len(axes)
    rgb, photometric = options["photometric"] == "rgb", options["photometric"]
    extra, shown = options.get("extrasamples", []), stored
    alpha = len(extra) == 1 and extra[0] > 0
    refused = stored.dtype.kind == "c"
    if photometric == "palette":
        shown = (options["colormap"] >> 8).astype(np.uint8).T[stored[..., 0]]
        rgb = True
    if photometric == "miniswhite":
        refused |= stored.dtype.kind not in "bu"
        shown = np.array(stored)
        if stored.dtype.kind in "bu":  # alpha is no colour
            shown[..., : stored.shape[-1] - alpha] = ~stored[..., : stored.shape[-1] - alpha]
    return Written(options | many | {"kind": kind, "axes": axes, "levels": levels}, named, stored,
                   shown, rgb, alpha, refused)


def expected(file: Written, pixels) -> np.ndarray:
    """(images, H, W, channels) in the order of the file, where every plane is a sample."""
    place = file.axes.find("C")
    if place >= 0:
        pixels = np.moveaxis(pixels, place, -2)
    else:
        pixels = pixels[..., None, :]
    count, samples = pixels.shape[-2:]
    return pixels.reshape(-1, *pixels.shape[-4:-2], count * samples)


def as_training(pixels):
    """What training reads of pixels; None where it refuses their values."""
    if pixels.dtype.kind == "c":
        return None
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    whole = (pixels >= 0).all() and (pixels < 2**16).all() and (pixels % 1 == 0).all()
    return pixels.astype(np.uint16) if whole else None


def as_prediction(pixels):
    """What prediction reads: as training, or stretched over the whole image."""
    kept = as_training(pixels)
    if kept is not None:
        return kept
    low, high = float(pixels.min()), float(pixels.max())
    wide = (pixels.astype(np.float64) - low) * (65535 / ((high - low) or 1))
    return np.rint(wide).astype(np.uint16)


def outcome(function):
    """The result, or the text of an InputError."""
    try:
        return function()
    except InputError as error:
        assert "\n" not in str(error) and "damaged" not in str(error), error
        return str(error)


def check_every_plane(path, file):
    """All channels of all planes by their numbers, for training and in prediction."""
    images = expected(file, file.shown)
    every = ReadOptions(z="slices", channel_index=",".join(map(str, range(images.shape[-1]))))
    for n, image in enumerate(images):
        found = outcome(lambda n=n: read_image(path, every, n))
        wanted = as_training(image)
        if file.refused or wanted is None:
            assert isinstance(found, str)
        else:
            assert not isinstance(found, str), found
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == wanted.dtype and found.dtype.isnative
    shown = outcome(lambda: lazy.open_images(path, every))
    if file.refused:
        assert isinstance(shown, str)
        return
    assert len(shown) == len(images), shown
    for one, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(one.read(), as_prediction(image))
        half = image.shape[0] // 2
        np.testing.assert_array_equal(one.rows(half, image.shape[0]), one.read()[half:])


def check_without_a_choice(path, file):
    """One image of gray or RGB, with alpha where the file says so; else a refusal."""
    images = expected(file, file.shown)
    joined = "C" in file.axes and file.stored.shape[file.axes.find("C")] > 1
    alpha = file.alpha and not joined
    allowed = images.shape[-1] - alpha in (1, 3) and not file.refused
    found = outcome(lambda: read_image(path))
    if allowed and len(images) == 1 and as_training(images[0]) is not None:
        assert not isinstance(found, str), found
        np.testing.assert_array_equal(found, as_training(images[0]))
        assert image_size(path) == found.shape[:2]
    else:
        assert isinstance(found, str)
    shown = outcome(lambda: lazy.open_images(path))
    assert isinstance(shown, str) == (not allowed)
    if allowed:
        for one, image in zip(shown, images, strict=True):
            assert one.alpha == alpha
            np.testing.assert_array_equal(one.read(), as_prediction(image))


def check_mask(path, file):
    """Stored values of one channel, or of red, green and blue."""
    images = expected(file, file.stored)
    joined = "C" in file.axes and file.stored.shape[file.axes.find("C")] > 1
    alpha = file.alpha and not joined
    rgb = file.rgb and not joined and file.options["photometric"] == "rgb"
    colours = images.shape[-1] - alpha
    found = outcome(lambda: read_mask(path))
    bad = file.stored.dtype.kind in "fc" and (
        file.stored.dtype.kind == "c" or (images % 1 != 0).any())
    if len(images) > 1 or not (colours == 1 or (colours == 3 and rgb)) or bad:
        assert isinstance(found, str)
    elif isinstance(found, str):
        assert alpha and "alpha is 0 wherever" in found
    else:
        mask = images[0]
        mask = mask[..., :colours] * (mask[..., colours:] > 0) if alpha else mask
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow)
                                       for n in range(1, FILES // PART))])
def test_random_tiffs_are_read_exactly_or_refused(tmp_path, part, caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")
    rng, count, path = np.random.default_rng(part), 0, tmp_path / "a.tif"
    while count < PART:
        file = written(rng, path)
        if file is None:
            continue
        count += 1
        try:
            check_every_plane(path, file)
            check_without_a_choice(path, file)
            check_mask(path, file)
        except AssertionError as error:
            raise AssertionError(f"file {count} of part {part}: {file.options}, "
                                 f"{file.stored.dtype} {file.stored.shape}: {error}") from error


@pytest.mark.slow
def test_the_random_tiffs_differ(tmp_path):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        file = written(rng, tmp_path / "a.tif")
        if file is not None:
            seen |= {file.options["kind"], file.options["photometric"], file.options["axes"],
                     str(file.stored.dtype), file.options["compression"]}
    assert seen >= {"plain", "shaped", "ome", "imagej", "minisblack", "miniswhite", "rgb",
                    "palette", "TZC", "uint8", "float32", "bool", "zstd", "lerc"}
