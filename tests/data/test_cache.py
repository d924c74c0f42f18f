import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data import cache, resize
from cellseg_jax.data.datasets import folder
from cellseg_jax.errors import InputError
from cellseg_jax.normalize import RANGES, image_ranges

SIZE = (16, 24)


def make_data(root, count=6, dtype=np.uint8, last_id=9):
    rng = np.random.default_rng(0)
    for i in range(count):
        shape = (20 + i, 30)
        for kind, array in (("images", rng.integers(0, 255, (*shape, 3)).astype(dtype)),
                            ("masks", rng.integers(0, 9, shape).astype(np.int32))):
            if kind == "masks" and i == count - 1:
                array[0, 0] = last_id
            (root / kind).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / kind / f"s{i}.tif", array)
    return root


def open_(root, directory, progress=None, **changes):
    settings = dict(dataset="folder", options={"labels": "instances"}, size=SIZE, fit="resize",
                    channels="rgb")
    return cache.open_cache(
        folder.records(root), cache.CacheOptions(**settings | changes), directory,
        progress)


@pytest.fixture
def root(tmp_path):
    return make_data(tmp_path / "data")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the records decoded since."""
    names, decode = [], cache._decode
    monkeypatch.setattr(
        cache, "_decode", lambda record, **kw: names.append(record.name) or decode(record, **kw))
    return names


@pytest.mark.parametrize("fit", resize.FITS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_open_cache_equals_direct_decoding(tmp_path, fit, dtype):
    root = make_data(tmp_path / "data", dtype=dtype)
    size = (32, 36) if fit == "pad" else SIZE
    arrays = open_(root, tmp_path / "cache", fit=fit, size=size)
    assert arrays.image.shape == (6, *size, 3) and arrays.image.dtype == dtype
    assert arrays.label.dtype == np.uint16 and arrays.num_samples == 6
    flat = arrays.flat if fit == "random_crop" else {"image": arrays.image, "label": arrays.label}
    assert arrays.nbytes == sum(x.nbytes for x in flat.values())
    for i, record in enumerate(folder.records(root)):
        sample = record.read()
        image, label = resize.FITS[fit](sample.image, sample.label, size, "")
        np.testing.assert_array_equal(arrays.image[i], image)
        np.testing.assert_array_equal(arrays.label[i], label)
        np.testing.assert_array_equal(arrays.original_label(i), sample.label)
        assert arrays.original_label(i).dtype == np.int32
        assert tuple(arrays.original_sizes[i]) == sample.label.shape
        assert arrays.foreground[i] == np.float32((label > 0).mean())
        for y, x in arrays.tables["anchors"][i]:
            assert sample.label[y, x] > 0
        for normalize in RANGES:
            np.testing.assert_array_equal(
                arrays.range(normalize)[i], image_ranges(sample.image, normalize))
    assert arrays.names == arrays.groups == tuple(f"s{i}" for i in range(6))
    assert arrays.strata == ("",) * 6


def test_decoding_takes_a_known_number_of_bytes_of_each_pixel(tmp_path):
    """So that a PNG of 20,000 x 20,000 pixels, which is decoded at once, fits memory."""
    label = np.kron(np.arange(1600).reshape(40, 40), np.ones((40, 40), int)).astype(np.uint16)
    for kind, pixels in (("images", (label % 251).astype(np.uint8)), ("masks", label)):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    record, = folder.records(tmp_path)
    options = cache.CacheOptions("folder", {}, SIZE, "random_crop", "rgb")
    cache._decode(record, options, None)  # imports
    tracemalloc.start()
    cache._decode(record, options, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 13 * label.size  # counting the values of all pixels at once takes 34


def test_open_cache_widens_dtypes_when_a_late_sample_needs_it(tmp_path):
    root = make_data(tmp_path / "data", last_id=70_000)
    tifffile.imwrite(root / "images/s4.tif", np.full((24, 30, 3), 60_000, np.uint16))
    arrays = open_(root, tmp_path / "cache")
    assert arrays.image.dtype == np.uint16 and arrays.label.dtype == np.int32
    assert arrays.original_label(5)[0, 0] == 70_000 and arrays.image[4, 0, 0, 0] == 60_000
    for i, record in enumerate(folder.records(root)):
        sample = record.read()
        np.testing.assert_array_equal(arrays.image[i], resize.resize_image(sample.image, SIZE))
        np.testing.assert_array_equal(arrays.original_label(i), sample.label)
    assert arrays.range("dtype")[:, 0, 1].tolist() == [255] * 4 + [65535] + [255]


def test_open_cache_decodes_once_per_content_and_settings(root, tmp_path, decoded):
    directory = tmp_path / "cache"
    first = open_(root, directory)
    assert len(decoded) == 6
    moved = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert open_(moved, directory).fingerprint == first.fingerprint
    assert len(decoded) == 6  # neither place nor mtime matters
    for changes in (dict(size=(16, 25)), dict(fit="center_crop"), dict(channels="gray"),
                    dict(options={"labels": "classes"})):
        open_(root, directory, **changes)
    assert len(decoded) == 30
    mask = tifffile.imread(root / "masks/s0.tif")
    mask[3, 3] ^= 1
    tifffile.imwrite(root / "masks/s0.tif", mask)
    assert open_(root, directory).fingerprint != first.fingerprint
    assert len(decoded) == 36


def test_open_cache_reads_no_file_the_second_time(root, tmp_path, monkeypatch):
    first = open_(root, tmp_path / "cache")
    monkeypatch.setattr("cellseg_jax.data.fingerprint._byte_hash", None)
    monkeypatch.setattr("cellseg_jax.data.cache._decode", None)
    again = open_(root, tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.image, first.image)


def test_open_cache_sees_content_that_was_replaced_with_size_and_time_kept(root, tmp_path):
    first = open_(root, tmp_path / "cache")
    path = sorted(root.rglob("*.tif"))[0]
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_(root, tmp_path / "cache").fingerprint != first.fingerprint


@pytest.mark.parametrize("content", ["", "0" * 32, "{} 00000000"])
def test_open_cache_does_not_believe_a_damaged_fingerprint(root, tmp_path, content):
    first = open_(root, tmp_path / "cache")
    memo, = (tmp_path / "cache/fingerprints").iterdir()
    memo.write_text(content.format(first.fingerprint[::-1]))
    assert open_(root, tmp_path / "cache").fingerprint == first.fingerprint


def test_open_cache_decodes_again_what_has_a_flipped_bit(root, tmp_path, decoded):
    first = open_(root, tmp_path / "cache")
    before = np.array(first.label)
    file, = (tmp_path / "cache").glob("*/label.npy")
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)
    np.testing.assert_array_equal(open_(root, tmp_path / "cache").label, before)
    assert len(decoded) == 12


def test_open_cache_follows_no_link_out_of_it(root, tmp_path):
    open_(root, tmp_path / "cache")
    folder, = (p.parent for p in (tmp_path / "cache").glob("*/meta.json"))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link to"):
        open_(root, tmp_path / "cache")


def test_open_cache_repairs_a_damaged_folder(root, tmp_path, decoded):
    open_(root, tmp_path / "cache")
    image, = (tmp_path / "cache").glob("*/image.npy")
    os.truncate(image, 1000)
    assert open_(root, tmp_path / "cache").image.shape == (6, *SIZE, 3)
    assert len(decoded) == 12


def test_open_cache_reports_progress(root, tmp_path):
    seen = []
    open_(root, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_open_cache_names_all_bad_files(root, tmp_path):
    for name in ("s1", "s4"):
        path = root / f"images/{name}.tif"
        path.write_bytes(path.read_bytes()[:500])
    said = "s1.tif: .*truncated.*; and 1 more bad: s4$"
    with pytest.raises(InputError, match=said) as caught:
        open_(root, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*/meta.json"))
    assert not list((tmp_path / "cache").glob("*.tmp*"))


def test_items_are_read_in_order_and_a_bad_one_is_its_error():
    def read(item):
        time.sleep(0.01 * (item % 2))
        if item == 2:
            raise InputError("two is bad")
        return 10 * item

    found = list(cache.in_order(read, list(range(5))))
    assert [one for one in found if not isinstance(one, InputError)] == [0, 10, 30, 40]
    assert str(found[2]) == "two is bad"

    def broken(item):
        raise MemoryError("of the machine")

    with pytest.raises(MemoryError, match="of the machine"):
        next(cache.in_order(broken, [1]))


def test_open_cache_says_when_it_stopped_counting(root, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MAX_ERRORS", 2)
    for name in ("s1", "s4", "s5"):
        (root / f"images/{name}.tif").write_text("no image")
    with pytest.raises(InputError, match="; and at least 1 more bad: s4$"):
        open_(root, tmp_path / "cache")


def test_open_cache_rejects_small_image_unknown_names_and_no_records(root, tmp_path):
    with pytest.raises(InputError, match="20x31 is larger than image s0 of 20x30"):
        open_(root, tmp_path / "cache", fit="center_crop", size=(20, 31))
    with pytest.raises(InputError, match="config.data.fit: got 'crop'"):
        open_(root, tmp_path / "cache", fit="crop")
    with pytest.raises(InputError, match="config.data.channels: got 'rgbw'"):
        open_(root, tmp_path / "cache", channels="rgbw")
    with pytest.raises(InputError, match="config.data.normalize: got 'max'"):
        open_(root, tmp_path / "cache").range("max")
    with pytest.raises(InputError, match="config.data.root: no images"):
        cache.open_cache([], cache.CacheOptions("", {}, SIZE, "resize", "rgb"), tmp_path)


def test_open_cache_rejects_unusable_directory(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="config.data.cache: cannot write to .*config.data.cache="):
        open_(root, tmp_path / "file/cache")


def test_open_cache_rejects_full_directory(root, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands in for a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match="config.data.cache: cannot write to"):
            open_(root, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").glob("*.tmp*"))
    assert open_(root, tmp_path / "cache").num_samples == 6


SLOW_OPEN = """
import os, pathlib, sys, time
from cellseg_jax.data import cache
from cellseg_jax.data.datasets import folder
root, directory, go, log = map(pathlib.Path, sys.argv[1:])
decode = cache._decode
def noted(record, **settings):
    with open(log, "a") as file:
        file.write(record.name + "\\n")
    time.sleep(0.05)
    return decode(record, **settings)
cache._decode = noted
while not go.exists():
    time.sleep(0.001)
arrays = cache.open_cache(
    folder.records(root),
    cache.CacheOptions("folder", {"labels": "instances"}, (16, 24), "resize", "rgb"), directory)
assert arrays.num_samples == 6 and arrays.image[5].any()
"""


def _processes(count, root, tmp_path):
    """Processes that open the cache at once, decode slowly and log what they decode."""
    go, log = tmp_path / "go", tmp_path / "log"
    processes = [
        subprocess.Popen([sys.executable, "-c", SLOW_OPEN, root, tmp_path / "cache", go, log])
        for _ in range(count)]
    time.sleep(0.5)
    go.touch()
    return processes, log


@pytest.mark.slow
def test_open_cache_decodes_once_for_concurrent_processes(root, tmp_path):
    processes, log = _processes(3, root, tmp_path)
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(log.read_text().split()) == 6


def test_open_cache_survives_a_killed_writer(root, tmp_path):
    (process,), log = _processes(1, root, tmp_path)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.tmp*"))
    directory = tmp_path / "cache"
    assert open_(root, directory).num_samples == 6
    assert not list(directory.glob("*.tmp*"))


def test_labels_keep_what_is_not_annotated(tmp_path):
    make_data(tmp_path)
    records = folder.records(tmp_path, ignore="9")
    options = cache.CacheOptions(dataset="folder", options={"ignore": "9"}, size=SIZE, fit="resize",
                                 channels="rgb")
    label = cache.open_cache(records, options, tmp_path / "cache")
    assert label.label.dtype == np.int32  # images with -1 beside images without
    assert label.original_label(5)[0, 0] == -1 and label.original_label(0).min() == 0
    assert cache._label_dtype(np.array([-1, 32767])) == np.int16
    assert cache._label_dtype(np.array([-1, 32768])) == np.int32


@pytest.mark.parametrize("share", [0, 1e-4, 0.02, 1])
def test_anchors_are_evenly_chosen_among_all_foreground_pixels(share):
    label = (np.random.default_rng(1).random((70, 130)) < share).astype(np.int16)
    label[0, 5] = -1  # not annotated
    inside = np.flatnonzero(label > 0)  # obvious, and 8 bytes for each
    places = ((np.arange(cache.ANCHORS) + 0.5) * len(inside) / cache.ANCHORS).astype(np.int64)
    expected = (np.stack(np.divmod(inside[places], 130), -1) if len(inside) else
                np.full((cache.ANCHORS, 2), -1))
    np.testing.assert_array_equal(cache._anchors(label), expected)
