import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from cellseg_jax.data import dsb2018
from cellseg_jax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path):
    """One 6x8 RGBA image `a` with two overlapping 8-bit masks, one of them in two pieces."""
    image = np.full((6, 8, 4), 255, np.uint8)
    image[..., :3] = 10
    save(tmp_path / "a/images/a.png", image)
    first, second = np.zeros((2, 6, 8), np.uint8)
    first[1:3, 1:4] = 255
    second[2:4, 3:6] = 255
    second[5, 7] = 255
    save(tmp_path / "a/masks/1.png", first)
    save(tmp_path / "a/masks/2.png", second)
    for junk in (".DS_Store", "a/masks/._1.png", "a/masks/Thumbs.db"):
        (tmp_path / junk).write_bytes(b"junk")
    return tmp_path


def test_records_keep_earlier_mask_and_disconnected_pieces(root):
    record, = dsb2018.records(root)
    assert (record.name, record.group, len(record.files)) == ("a", "a", 3)
    sample = record.read()
    assert sample.image.shape == (6, 8, 4) and sample.label.dtype == np.int32
    expected = np.zeros((6, 8), np.int32)
    expected[2:4, 3:6] = expected[5, 7] = 2
    expected[1:3, 1:4] = 1
    np.testing.assert_array_equal(sample.label, expected)
    assert sample.stratum == "fluorescence"


def test_records_read_one_bit_rgba_and_gray_alpha_masks(root):
    gray = np.asarray(Image.open(root / "a/masks/2.png"))
    expected = dsb2018.records(root)[0].read().label
    save(root / "a/masks/2.png", gray > 0)
    np.testing.assert_array_equal(dsb2018.records(root)[0].read().label, expected)
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[..., 2], rgba[..., 3] = gray, 255  # only blue, opaque everywhere
    save(root / "a/masks/2.png", rgba)
    np.testing.assert_array_equal(dsb2018.records(root)[0].read().label, expected)
    save(root / "a/masks/2.png", np.stack([gray, np.full_like(gray, 255)], -1))
    np.testing.assert_array_equal(dsb2018.records(root)[0].read().label, expected)


def test_records_reject_mask_hidden_by_alpha(root):
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[1, 1, :3] = 255
    save(root / "a/masks/2.png", rgba)
    with pytest.raises(InputError, match="2.png: alpha is 0"):
        dsb2018.records(root)[0].read()


def test_records_reject_empty_mask(root):
    save(root / "a/masks/2.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match="2.png: mask is empty"):
        dsb2018.records(root)[0].read()


def test_records_reject_other_size(root):
    save(root / "a/masks/2.png", np.ones((8, 6), np.uint8))
    with pytest.raises(InputError, match="2.png: mask is 8x6, its image a.png is 6x8; .*transp"):
        dsb2018.records(root)[0].read()
    save(root / "a/masks/2.png", np.ones((8, 7), np.uint8))
    with pytest.raises(InputError, match="mask is 8x7, its image a.png is 6x8$"):
        dsb2018.records(root)[0].read()


def test_records_reject_truncated_mask(root):
    path = root / "a/masks/2.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="2.png: .*truncated"):
        dsb2018.records(root)[0].read()


def test_records_reject_missing_masks_and_images(root):
    shutil.rmtree(root / "a/masks")
    with pytest.raises(InputError, match="a: image has no masks folder"):
        dsb2018.records(root)
    (root / "a/masks").mkdir()
    with pytest.raises(InputError, match="masks: folder is empty"):
        dsb2018.records(root)
    (root / "a/images/a.png").unlink()
    with pytest.raises(InputError, match="a.png: image not found"):
        dsb2018.records(root)


def test_records_reject_wrong_root(tmp_path, root):
    with pytest.raises(InputError, match="config.data.root: not set; .*bbbc.broadinstitute"):
        dsb2018.records("")
    with pytest.raises(InputError, match="config.data.root: folder .* does not exist.*CC0"):
        dsb2018.records(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="config.data.root: folder .* is empty"):
        dsb2018.records(tmp_path / "empty")
    shutil.copytree(root / "a", tmp_path / "parent/stage1_train/a")
    with pytest.raises(InputError, match="did you mean .*stage1_train"):
        dsb2018.records(tmp_path / "parent")


def test_records_match_index_of_real_images(real_data):
    folder = real_data / "dsb2018/sample24"
    with open(folder / "index.csv") as file:
        index = {row["image_id"]: row for row in csv.DictReader(file)}
    records = dsb2018.records(folder / "stage1_train")
    assert sorted(index) == [record.name for record in records]
    instances = 0
    for record in records:
        sample, row = record.read(), index[record.name]
        assert sample.stratum == row["modality"]
        assert sample.image.shape == (int(row["height"]), int(row["width"]), 4)
        assert len(np.unique(sample.label)) - 1 == int(row["n_masks"])
        fraction = float(row["foreground_fraction"])
        assert np.mean(sample.label > 0) == pytest.approx(fraction, abs=1e-4)
        instances += len(np.unique(sample.label)) - 1
    assert instances == 580


def test_records_read_real_rgba_and_one_bit_masks(real_data):
    modes = set()
    for record in dsb2018.records(real_data / "dsb2018/quirks/stage1_train"):
        areas = np.bincount(record.read().label.ravel(), minlength=len(record.files))[1:]
        masks = [Image.open(path) for path in record.files[1:]]
        modes |= {mask.mode for mask in masks}
        colours = [np.asarray(mask.convert("RGB")).any(-1) for mask in masks]
        covered = np.zeros(colours[0].shape, bool)
        for area, colour in zip(areas, colours):
            assert area == (colour & ~covered).sum()
            covered |= colour
    assert {"1", "L", "RGBA"} <= modes
