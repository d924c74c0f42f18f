import csv
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from cellseg_jax.data.datasets import dsb2018
from cellseg_jax.data.quality.topology import pieces_and_holes
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
    with pytest.raises(InputError, match="mask is 8x7, its image a.png is 6x8; expected the"):
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


def test_records_count_overlaps_and_name_lost_masks(root):
    finding, = dsb2018.records(root)[0].read().findings
    assert (finding.level, finding.what[:8]) == ("note", "1 pixels") and "a.png" in finding.where
    save(root / "a/masks/3.png", np.asarray(Image.open(root / "a/masks/1.png")))
    sample = dsb2018.records(root)[0].read()
    assert sample.label.max() == 2
    assert sample.findings[0].what.startswith("6 pixels lie in several masks")
    assert sample.findings[1].level == "warning"
    assert "masks [3] lie under" in sample.findings[1].what


def slow_runs(mask):
    """'start length ...' from 1 down the columns, one pixel after the other."""
    runs, flat = [], [0, *mask.T.reshape(-1), 0]
    for i in range(1, len(flat)):
        if flat[i] and not flat[i - 1]:
            runs.append([i, 0])
        if flat[i]:
            runs[-1][1] += 1
    return " ".join(f"{start} {length}" for start, length in runs)


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (9, 1), (6, 6)])
def test_run_pixels_equal_slow_encoding(size):
    rng = np.random.default_rng(0)
    for density in (0, 0.3, 0.7, 1):
        mask = rng.random(size) < density
        pixels = dsb2018.run_pixels(slow_runs(mask), size)
        np.testing.assert_array_equal(np.sort(pixels), np.flatnonzero(mask))


def test_run_pixels_go_down_the_columns():
    assert dsb2018.run_pixels("2 2 6 1", (3, 2)).tolist() == [2, 4, 5]


@pytest.mark.parametrize("runs", ["1", "0 2", "5 3", "1 2 2 1", "3 1 1 1", "1 0", "1 x", "1.5 2"])
def test_run_pixels_reject(runs):
    with pytest.raises(InputError, match="got runs"):
        dsb2018.run_pixels(runs, (2, 3))


def write_solution(path, rows):
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["ImageId,EncodedPixels,Height,Width,Usage", *lines, ""]))


@pytest.fixture
def stages(tmp_path):
    """The folder of stage1_train with image `b`, and of stage1_test with `a`, `c` and `d`."""
    image = np.full((3, 4, 4), 255, np.uint8)
    for folder in ("train/b", "test/a", "test/c", "test/d"):
        name = folder[-1]
        save(tmp_path / f"stages/stage1_{folder}/images/{name}.png", image)
    save(tmp_path / "stages/stage1_train/b/masks/1.png", np.ones((3, 4), np.uint8))
    write_solution(tmp_path / "stages/stage1_solution.csv", [
        ("a", "1 2", 3, 4, "Private"), ("a", "2 3", 3, 4, "Private"), ("c", "", 3, 4, "Public"),
        ("d", "1 1", 3, 4, "Ignored"), ("elsewhere", "1 1", 9, 9, "Private")])
    return tmp_path / "stages"


def test_records_read_stage1_test_and_leave_out_ignored(stages):
    records = dsb2018.records(stages / "stage1_test")
    assert [(r.name, r.part) for r in records] == [("a", ""), ("c", "")]
    assert [path.name for path in records[0].files] == ["a.png", "stage1_solution.csv"]
    sample = records[0].read()
    assert sample.label.tolist() == [[1, 2, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0]]
    assert sample.findings[0].what.startswith("1 pixels")
    assert not records[1].read().label.any()
    finding, = records.findings
    assert finding.what == "1 images have the usage Ignored: left out, d"
    moved = (stages / "stage1_solution.csv").rename(stages / "other.csv")
    assert len(dsb2018.records(stages / "stage1_test", solution=str(moved))) == 2


def test_records_of_both_stages_have_parts(stages):
    records = dsb2018.records(stages)
    assert [(r.name, r.part) for r in records] == [("a", "test"), ("b", "train"), ("c", "test")]
    assert records[1].read().label.all() and len(records.findings) == 1
    shutil.rmtree(stages / "stage1_train")
    with pytest.raises(InputError, match="did you mean .*stage1_test"):
        dsb2018.records(stages)


def test_records_reject_bad_solutions(stages):
    test, path = stages / "stage1_test", stages / "stage1_solution.csv"
    with pytest.raises(InputError, match="config.data.solution: file 'none.csv' does not exist"):
        dsb2018.records(test, solution="none.csv")
    write_solution(path, [("a", "1 2", 4, 3, "Public")])
    with pytest.raises(InputError, match="solution.csv: has no row for image c"):
        dsb2018.records(test)
    rows = [("c", "", 3, 4, "Public"), ("d", "", 3, 4, "Public")]
    write_solution(path, [("a", "1 2", 4, 3, "Public"), *rows])
    with pytest.raises(InputError, match="image a is 4x3 there, but 3x4 as a file"):
        dsb2018.records(test)[0].read()
    write_solution(path, [("a", "9 9", 3, 4, "Public"), *rows])
    with pytest.raises(InputError, match="csv: image a: got runs '9 9' for an image of 3x4"):
        dsb2018.records(test)[0].read()
    write_solution(path, [("a", "1 2", "x", 4, "Public"), *rows])
    with pytest.raises(InputError, match="solution.csv: line 2 lacks a value .*ImageId, Encoded"):
        dsb2018.records(test)
    path.write_text("ImageId,Label\na,1\n")
    with pytest.raises(InputError, match="solution.csv: line 2 lacks a value"):
        dsb2018.records(test)
    path.unlink()
    with pytest.raises(InputError, match="a: image has no masks folder; .*stage1_solution.csv"):
        dsb2018.records(test)


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
        for area, colour in zip(areas, colours, strict=True):
            assert area == (colour & ~covered).sum()
            covered |= colour
    assert {"1", "L", "RGBA"} <= modes


def test_pieces_and_holes_equal_hand_value():
    label = np.zeros((8, 12), np.int32)
    label[0, 0] = label[1, 1] = 2  # joined by a corner: one piece
    label[0, 3] = label[0, 5] = 4
    label[2:5, 1:4] = 5
    label[3, 2] = 2  # the hole of 5 is a second piece of 2
    label[5:8, 5:8] = 6
    label[6, 6] = label[7, 7] = 0  # a hole is 4-connected: the open corner does not open it
    label[2:5, 8:11] = 7
    label[3:5, 9] = 0  # open below
    assert pieces_and_holes(label) == ([2, 4], [5, 6])
    assert pieces_and_holes(np.zeros((3, 3), np.int32)) == ([], [])


@pytest.mark.weekly
def test_records_match_index_of_the_real_archive(real_data, tmp_path):
    with tarfile.open(real_data / "dsb2018/stage1_train.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    with open(real_data / "dsb2018/index.csv") as file:
        index = {row["image_id"]: row for row in csv.DictReader(file)}
    records = dsb2018.records(tmp_path / "stage1_train")
    assert sorted(index) == [record.name for record in records] and len(records) == 564
    counts, fractions, shared, in_pieces, holed = [], [], {}, 0, 0
    for record in records:
        sample, row = record.read(), index[record.name]
        assert sample.stratum == row["modality"] and sample.image.dtype == np.uint8
        assert sample.image.shape == (int(row["height"]), int(row["width"]), 4)
        assert (sample.image[..., 3] == 255).all()
        assert len(np.unique(sample.label)) - 1 == int(row["n_masks"]) == sample.label.max()
        fraction = np.mean(sample.label > 0)
        assert fraction == pytest.approx(float(row["foreground_fraction"]), abs=1e-4)
        counts.append(sample.label.max())
        fractions.append(fraction)
        if sample.findings:
            shared[record.name] = int(sample.findings[0].what.split()[0])
        pieces, holes = pieces_and_holes(sample.label)
        assert len(pieces) == int(row["disconnected_masks"])
        assert bool(holes) == (int(row["masks_with_holes"]) > 0) or record.name in shared
        in_pieces, holed = in_pieces + len(pieces), holed + bool(holes)
    assert (sum(counts), min(counts), np.median(counts), max(counts)) == (25387, 1, 28, 375)
    assert (in_pieces, holed) == (2, 9)
    assert shared == {name: int(row["overlap_pixels"]) for name, row in index.items()
                      if row["overlap_pixels"] != "0"}
    assert (len(shared), sum(shared.values())) == (6, 9)
    quantiles = np.quantile(fractions, (0, 0.05, 0.5, 0.95, 1))
    assert [f"{q:.2g}" for q in quantiles] == ["0.0015", "0.014", "0.11", "0.34", "0.59"]
    strata = [index[record.name]["modality"] for record in records]
    assert [strata.count(kind) for kind in (
        "fluorescence", "stain_light_background", "stain_dark_background", "brightfield_gray")
    ] == [460, 47, 43, 14]
