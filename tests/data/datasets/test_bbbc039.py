import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.data.datasets import bbbc039
from cellseg_jax.errors import InputError

NAMES = [f"IXMtest_A0{i}_s1_w1051DAA7C-7042-435F-99F0-1E847D9B42CB" for i in range(1, 5)]


def save_mask(path, red):
    """As in the dataset: RGBA, the truth in red alone, opaque everywhere."""
    rgba = np.zeros((*red.shape, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = red, 255
    Image.fromarray(rgba).save(path)


def red_mask():
    """Four nuclei in two colours: two touch and differ, two are apart and equal."""
    red = np.zeros((9, 12), np.uint8)
    red[1:4, 1:4], red[1:4, 4:7] = 1, 2
    red[6:8, 1:3], red[6:8, 6:9] = 1, 1
    red[8, 9] = 1  # a corner of the last one: still the same nucleus
    return red


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks", "metadata"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        image = rng.integers(100, 4096, (9, 12), np.uint16)
        tifffile.imwrite(tmp_path / f"images/{name}.tif", image)
        save_mask(tmp_path / f"masks/{name}.png", red_mask())
    for file, some in (("training", NAMES[:2]), ("validation", NAMES[2:3]), ("test", NAMES[3:])):
        (tmp_path / f"metadata/{file}.txt").write_text("".join(f"{n}.png\n" for n in some))
    return tmp_path


def test_records_have_parts_and_instances(root):
    records = bbbc039.records(root)
    assert [r.name for r in records] == [r.group for r in records] == NAMES
    assert [r.part for r in records] == ["train", "train", "val", "test"]
    assert records.findings == ()
    sample = records[0].read()
    assert sample.image.shape == (9, 12, 1) and sample.image.dtype == np.uint16
    expected = red_mask().astype(np.int32)
    expected[6:8, 1:3], expected[6:, 6:] = 3, 4 * (expected[6:, 6:] > 0)
    np.testing.assert_array_equal(sample.label, expected)
    assert sample.label.dtype == np.int32 and sample.findings == ()


def test_the_official_split_is_read_though_images_are_decoded(root):
    """metadata.zip may come after a first start, and its lists may be corrected."""
    config = config_lib.default().data.to_dict() | data.options("bbbc039") | dict(
        name="bbbc039", root=str(root), cache=str(root / "cache"), size=(8, 8), channels="gray",
        fit="center_crop", split="official")
    (root / "metadata").rename(root / "later")
    assert set(data.load(config).image_parts) == {""}
    (root / "later").rename(root / "metadata")
    parts = data.split_of(config, data.load(config))
    assert [parts[name].tolist() for name in ("train", "val", "test")] == [[0, 1], [2], [3]]


def test_records_equal_slow_flood_fill(root):
    red = np.random.default_rng(1).integers(0, 4, (9, 12)).astype(np.uint8)
    save_mask(root / f"masks/{NAMES[0]}.png", red)
    expected, count = np.zeros(red.shape, int), 0
    for start in np.argwhere(red):
        todo, count = [tuple(start)], count + (expected[tuple(start)] == 0)
        while todo:
            y, x = todo.pop()
            if expected[y, x] == 0:
                expected[y, x] = count
                todo += [(v, u) for v in range(max(0, y - 1), min(9, y + 2))
                         for u in range(max(0, x - 1), min(12, x + 2)) if red[v, u] == red[y, x]]
    np.testing.assert_array_equal(bbbc039.records(root)[0].read().label, expected)


def test_records_note_empty_mask_and_missing_lists(root):
    save_mask(root / f"masks/{NAMES[1]}.png", np.zeros((9, 12), np.uint8))
    sample = bbbc039.records(root)[1].read()
    assert not sample.label.any() and sample.findings[0].what == "has no nucleus"
    (root / "metadata/test.txt").write_text("")
    records = bbbc039.records(root)
    assert records[3].part == "" and "1 images are in no list" in records.findings[0].what
    (root / "metadata").rename(root / "lists")
    records = bbbc039.records(root)
    assert {r.part for r in records} == {""} and "no official split" in records.findings[0].what


def test_records_reject_bad_lists(root):
    (root / "metadata/test.txt").write_text(f"{NAMES[0]}.png\n")
    with pytest.raises(InputError, match="test.txt: lists .*A01.*.png, .*already, as train"):
        bbbc039.records(root)
    (root / "metadata/test.txt").write_text("other.png\n")
    with pytest.raises(InputError, match="test.txt: lists other.png, but there is no such image"):
        bbbc039.records(root)
    (root / "metadata/test.txt").unlink()
    with pytest.raises(InputError, match="test.txt: cannot be read"):
        bbbc039.records(root)


def test_records_reject_lone_files_and_wrong_root(root, tmp_path):
    (root / f"masks/{NAMES[3]}.png").rename(root / "masks/x.png")
    with pytest.raises(InputError, match="A04.*tif: has no mask masks/IXM.*png .1 such files"):
        bbbc039.records(root)
    (root / f"images/{NAMES[3]}.tif").unlink()
    with pytest.raises(InputError, match="x.png: has no image images/x.tif"):
        bbbc039.records(root)
    with pytest.raises(InputError, match="images' does not exist. Get images.zip"):
        bbbc039.records(root / "metadata")
    with pytest.raises(InputError, match="config.data.root: not set; .*BBBC039"):
        bbbc039.records("")
    (tmp_path / "other/images").mkdir(parents=True)
    with pytest.raises(InputError, match="images' has no .tif file"):
        bbbc039.records(tmp_path / "other")


def test_records_reject_other_size(root):
    save_mask(root / f"masks/{NAMES[0]}.png", np.ones((9, 11), np.uint8))
    with pytest.raises(InputError, match="A01.*png: mask is 9x11, its image .*tif is 9x12"):
        bbbc039.records(root)[0].read()
