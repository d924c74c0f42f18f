import collections

import numpy as np
import pytest
import tifffile

from cellseg_jax.data.datasets import ctc
from cellseg_jax.data.quality.topology import pieces_and_holes
from cellseg_jax.data.read import read_image, read_mask
from cellseg_jax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, compression="lzw")


def label_of(*ids):
    """(6, 20) uint16: a 2x2 square per id."""
    label = np.zeros((6, 20), np.uint16)
    for i, id_ in enumerate(ids):
        label[2:4, 3 * i : 3 * i + 2] = id_
    return label


@pytest.fixture
def root(tmp_path):
    """01 with frames 7 to 10, three cells; 9 partly drawn. 02 with frame 998 and 1000 only."""
    rng = np.random.default_rng(0)
    for t in range(7, 11):
        save(tmp_path / f"01/t{t:03d}.tif", rng.integers(0, 255, (6, 20), np.uint8))
        save(tmp_path / f"01_ST/SEG/man_seg{t:03d}.tif", label_of(1, 2, 4))
        save(tmp_path / f"01_GT/TRA/man_track{t:03d}.tif", label_of(1, 2, 4))
    for t, ids in ((7, (90, 5, 7)), (9, (3,)), (10, (8, 2, 90))):
        save(tmp_path / f"01_GT/SEG/man_seg{t:03d}.tif", label_of(*ids))
    (tmp_path / "01_GT/TRA/man_track.txt").write_text("1 0 12 0\n2 7 10 0\n3 0 6 0\n4 7 11 3\n")
    for t in (998, 1000):
        save(tmp_path / f"02/t{t:04d}.tif", rng.integers(33000, 36000, (6, 20), np.uint16))
        save(tmp_path / f"02_GT/SEG/man_seg{t:04d}.tif", label_of(t))
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    return tmp_path


def names(records):
    return [record.name for record in records]


def test_records_match_by_number_and_keep_labels_as_drawn(root):
    split = label_of(90, 5, 7)
    split[5, 19] = 5
    save(root / "01_GT/SEG/man_seg007.tif", split)
    records = ctc.records(root)
    assert names(records) == ["01_t007", "01_t010", "02_t0998", "02_t1000"]
    assert [record.group for record in records] == ["01", "01", "02", "02"]
    assert [path.name for path in records[1].files] == ["t010.tif", "man_seg010.tif"]
    sample = records[0].read()
    np.testing.assert_array_equal(sample.image, read_image(root / "01/t007.tif"))
    np.testing.assert_array_equal(sample.label, split)
    assert sample.label.dtype == np.int32 and sample.stratum == "01"
    assert records[3].read().image.dtype == np.uint16
    assert records[3].read().label.max() == 1000


def test_records_leave_out_partly_drawn_frames_and_say_so(root):
    where, what = {f.level: (f.where, f.what) for f in ctc.records(root).findings
                   if "drawn in frame" in f.what}["warning"]
    assert where.endswith("01_GT/SEG") and "drawn in frame 009 (1 of 3 cells): left out" in what
    kept = ctc.records(root, partial="keep", sequences=("01",))
    assert names(kept) == ["01_t007", "01_t009", "01_t010"]
    assert any("009 (1 of 3 cells): kept, so a loss" in f.what for f in kept.findings)
    assert "01_t009" in names(ctc.records(root, complete=0.3))
    some = [f.what for f in ctc.records(root, complete=0.3).findings if f.level == "note"]
    assert "nearly all cells are drawn in frame 009 (1 of 3 cells)" in some
    assert "1 of 4 tracks are in no frame" in " ".join(some)
    assert any("cannot be separated" in what for what in some)  # 02 has no man_track.txt


def test_records_read_silver_and_tracking(root):
    silver = ctc.records(root, truth="silver")
    assert names(silver) == ["01_t007", "01_t008", "01_t009", "01_t010"]
    assert any(f.what == "has no 02_ST/SEG: left out" for f in silver.findings)
    assert [path.parent.name for path in ctc.records(root, truth="tracking")[0].files] == [
        "01", "TRA"]
    with pytest.raises(InputError, match="config.data.truth: folder .*02_ST/SEG' does not exist"):
        ctc.records(root, truth="silver", sequences=("02",))
    with pytest.raises(InputError, match="config.data.truth: got 'bronze'"):
        ctc.records(root, truth="bronze")


def test_records_group_whole_sequences_or_blocks(root):
    whole = ctc.records(root, truth="silver")
    assert {record.group for record in whole} == {"01"}
    assert [f.level for f in whole.findings if f.where == "config.data.block"] == ["warning"]
    blocks = ctc.records(root, block=5)
    assert [record.group for record in blocks] == [
        "01_block001", "01_block002", "02_block199", "02_block200"]
    assert not any(f.where == "config.data.block" for f in blocks.findings)
    with pytest.raises(InputError, match="got block=-1"):
        ctc.records(root, block=-1)


def test_records_reject_unmatched_ambiguous_and_3d_files(root):
    (root / "01/t009.tif").rename(root / "01/t0010.tif")
    with pytest.raises(InputError, match="t010.tif: ambiguous, t0010.tif has the same frame"):
        ctc.records(root)
    (root / "01/t0010.tif").unlink()
    with pytest.raises(InputError, match="man_seg009.tif: .*01 has no image of frame 9"):
        ctc.records(root)
    save(root / "02_GT/SEG/man_seg_998_012.tif", label_of(1))
    with pytest.raises(InputError, match="man_seg_998_012.tif: is a slice of a 3-D dataset"):
        ctc.records(root, sequences=("02",))
    (root / "02_GT/SEG/man_seg_998_012.tif").rename(root / "02_GT/SEG/mask998.tif")
    with pytest.raises(InputError, match="mask998.tif: expected frames like man_seg067.tif"):
        ctc.records(root, sequences=("02",))


def test_records_reject_wrong_root_and_sequences(root, tmp_path):
    with pytest.raises(InputError, match="config.data.root: not set.*celltrackingchallenge"):
        ctc.records("")
    with pytest.raises(InputError, match="itself a sequence, pass '"):
        ctc.records(root / "01")
    (tmp_path / "outer").mkdir()
    for path in list(root.iterdir()):
        if path.name[:2] in ("01", "02"):
            (tmp_path / "outer/DIC").mkdir(exist_ok=True)
            path.rename(tmp_path / "outer/DIC" / path.name)
    with pytest.raises(InputError, match="did you mean .*outer/DIC"):
        ctc.records(tmp_path / "outer")
    with pytest.raises(InputError, match="no sequence '03' with truth; expected some of 01, 02"):
        ctc.records(tmp_path / "outer/DIC", sequences=("03",))


def test_records_reject_nothing_left_other_size_and_colour(root):
    for t in (7, 10):
        save(root / f"01_GT/SEG/man_seg{t:03d}.tif", label_of(1))
    with pytest.raises(InputError, match="config.data.partial: .* no gold frame with all cells"):
        ctc.records(root, sequences=("01",))
    save(root / "01_ST/SEG/man_seg007.tif", np.zeros((20, 6), np.uint16))
    with pytest.raises(InputError, match="man_seg007.tif: mask is 20x6, .*transposed"):
        ctc.records(root, truth="silver")[0].read()
    save(root / "01_ST/SEG/man_seg008.tif", np.zeros((6, 20, 3), np.uint8))
    with pytest.raises(InputError, match="man_seg008.tif: label is RGB"):
        ctc.records(root, truth="silver")[1].read()


@pytest.mark.parametrize("text, message", [
    ("1 0 9", "found 1 0 9; expected label"),
    ("1 0 9 zero", "cannot be read .*whole numbers"),
    ("1 5 4 0", "found 1 5 4 0"),
    ("0 0 4 0", "found 0 0 4 0"),
    ("1 0 4 0\n1 5 6 0", "label 1 is there twice"),
    ("1 0 4 0\n2 4 6 1", "track 2 begins in frame 4, but its parent 1 does not end before"),
    ("2 4 6 1", "its parent 1 does not end before"),
])
def test_tracks_reject(tmp_path, text, message):
    (tmp_path / "man_track.txt").write_text(text)
    with pytest.raises(InputError, match=f"man_track.txt: .*{message}"):
        ctc.tracks(tmp_path / "man_track.txt")


def test_tracks_read_lines(tmp_path):
    (tmp_path / "man_track.txt").write_text("7 0 3 0\r\n\n9 4 4 7\r\n")
    assert ctc.tracks(tmp_path / "man_track.txt").tolist() == [[7, 0, 3, 0], [9, 4, 4, 7]]
    (tmp_path / "man_track.txt").write_text("")
    assert ctc.tracks(tmp_path / "man_track.txt").shape == (0, 4)


DIC, FLUO, PHC = "DIC-C2DH-HeLa", "Fluo-N2DL-HeLa", "PhC-C2DL-PSC"


@pytest.mark.parametrize("name, frames, cells, shape, dtype, low, high", [
    (DIC, "002 005 021 031 033 034 039 054 067", 98, (512, 512, 1), np.uint8, 29, 255),
    (FLUO, "078 079", 358, (700, 1100, 1), np.uint16, 33007, 36863),
    (PHC, "098 122", 256, (576, 720, 1), np.uint8, 0, 255),
])
def test_real_gold(real_data, name, frames, cells, shape, dtype, low, high):
    root = real_data / "ctc" / name
    records = ctc.records(root, partial="keep")
    assert [record.name[-3:] for record in records] == frames.split()
    samples = [record.read() for record in records]
    assert sum(len(np.unique(sample.label)) - 1 for sample in samples) == cells
    images = [read_image(path) for path in sorted(records[0].files[0].parent.glob("t*.tif"))]
    assert {(image.shape, image.dtype) for image in images} == {(shape, np.dtype(dtype))}
    assert (min(i.min() for i in images), max(i.max() for i in images)) == (low, high)
    assert sum(len(pieces_and_holes(s.label)[0]) for s in samples) == (3 if name == FLUO else 0)


def test_real_partial_frames(real_data):
    records = ctc.records(real_data / "ctc" / DIC)
    assert len(records) == 8 and "01_t067" not in names(records)
    text = " | ".join(finding.what for finding in records.findings)
    assert "in frame 067 (3 of 18 cells): left out" in text
    assert "nearly all cells are drawn in frame 034 (12 of 13 cells), 039 (13 of 14 cells)" in text
    assert "9 of 38 tracks are in no frame" in text
    records = ctc.records(real_data / "ctc" / FLUO)
    assert names(records) == ["02_t079"]
    text = " | ".join(finding.what for finding in records.findings)
    assert "in frame 078 (1 of 356 cells): left out" in text
    assert "079 (357 of 361 cells)" in text and "311 of 674 tracks are in no frame" in text


@pytest.mark.parametrize("name, count", [(DIC, 24), (FLUO, 2)])
def test_real_silver_has_the_numbers_of_the_tracks(real_data, name, count):
    root = real_data / "ctc" / name
    silver, tracking = (ctc.records(root, truth=truth) for truth in ("silver", "tracking"))
    assert names(silver) == names(tracking) and len(silver) == count
    lines = ctc.tracks(tracking[0].files[1].parent / "man_track.txt")
    for one, other in zip(silver, tracking, strict=True):
        t = int(one.name[-3:])
        alive = lines[(lines[:, 1] <= t) & (t <= lines[:, 2]), 0]
        np.testing.assert_array_equal(np.unique(read_mask(other.files[1]))[1:], np.sort(alive))
        assert not np.setdiff1d(np.unique(read_mask(one.files[1]))[1:], alive).size
    children = collections.Counter(
        int(parent) for _, t, _, parent in lines
        if {f"{silver[0].group}_t{t - 1:03d}", f"{silver[0].group}_t{t:03d}"} <= {*names(silver)})
    del children[0]
    assert sorted(children.values()) == ([2] if name == DIC else [1, 2, 2])  # two: a division


@pytest.mark.parametrize("name, cells, differ", [(DIC, 98, 95), (FLUO, 358, 358)])
def test_real_gold_has_numbers_of_its_own(real_data, name, cells, differ):
    equal = 0
    for record in ctc.records(real_data / "ctc" / name, partial="keep"):
        gold = record.read().label
        markers = read_mask(str(record.files[1]).replace("SEG/man_seg", "TRA/man_track"))[..., 0]
        for cell in np.unique(gold)[1:]:
            under = markers[(gold == cell) & (markers > 0)]
            equal += bool(under.size) and np.bincount(under).argmax() == cell
    assert cells - equal == differ


def test_real_silver_counts(real_data):
    cells = [len(np.unique(record.read().label)) - 1 for name in (DIC, FLUO)
             for record in ctc.records(real_data / "ctc" / name, truth="silver")]
    assert sum(cells) == 1000


def test_partly_annotated_knows_drawn_cells_and_a_rim_of_background():
    label = np.zeros((15, 15), np.uint16)
    label[6:9, 6:9] = 4
    out = ctc.partly_annotated(label, 2)
    assert out.dtype == np.int32 and (out[6:9, 6:9] == 4).all()
    assert out[7, 4:11].tolist() == [0, 0, 4, 4, 4, 0, 0] and out[7, 3] == out[4, 4] == -1
    markers = np.where(label > 0, 9, 0)
    np.testing.assert_array_equal(ctc.partly_annotated(label, 2, markers), out)
    markers[7, 11] = 5  # an undrawn cell at the right: less than 1.7 pixels around it are known
    near = ctc.partly_annotated(label, 2, markers)
    assert near[7, 9] == 0 and near[7, 10] == near[6, 10] == -1 and near[7, 4] == 0
    assert (ctc.partly_annotated(np.zeros((4, 4), int), 2) == -1).all()


def test_records_of_partly_drawn_frames_ignore_what_is_not_known(root):
    records = ctc.records(root, sequences=("01",), partial="ignore", rim=1)
    assert names(records) == ["01_t007", "01_t009", "01_t010"]
    assert [record.read().label.min() for record in records] == [0, -1, 0]
    assert [len(record.files) for record in records] == [2, 3, 2]
    assert any("not annotated" in f.what and f.level == "note" for f in records.findings)
    with pytest.raises(InputError, match="rim=0"):
        ctc.records(root, rim=0)
