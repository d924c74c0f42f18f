import csv
import tarfile

import numpy as np
import pytest
from PIL import Image

from cellseg_jax.data.datasets import ebhi_seg
from cellseg_jax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pair(root, name, label=None):
    """An image at <class>/<name> and its label, half background by default."""
    folder, name = name.split("/")
    save(root / folder / "image" / name, np.full((6, 8, 3), 7, np.uint8))
    if label is None:
        label = np.zeros((6, 8), np.uint8)
        label[3:], label[2] = 255, 100
    save(root / folder / "label" / name, label)


@pytest.fixture
def root(tmp_path):
    pair(tmp_path, "Polyp/GT2012149-1-400-001.png")
    pair(tmp_path, "Low-grade IN/GT2012149-1-400-001.png")
    pair(tmp_path, "Low-grade IN/GTxc2013965-1-400-007.png")
    for junk in (".DS_Store", "Polyp/.DS_Store", "Polyp/image/._x.png", "Polyp/label/Thumbs.db"):
        (tmp_path / junk).write_bytes(b"junk")
    (tmp_path / "readme.md").write_text("text")
    return tmp_path


def told(records, level=None):
    return [f.what for f in records.findings if level in (None, f.level)]


def test_records_name_class_and_case(root):
    records = ebhi_seg.records(root)
    assert [(r.name, r.group, [p.parent.name for p in r.files]) for r in records] == [
        ("Low-grade IN/GT2012149-1-400-001", "2012149", ["image", "label"]),
        ("Low-grade IN/GTxc2013965-1-400-007", "2013965", ["image", "label"]),
        ("Polyp/GT2012149-1-400-001", "2012149", ["image", "label"])]
    sample = records[2].read()
    assert sample.image.shape == (6, 8, 3) and sample.label.dtype == np.int32
    assert sample.stratum == "Polyp" and sample.findings == ()
    assert told(records, "note")[:2] == ["1 of 2 file names are in several class folders",
                                         "1 of 2 cases are in several class folders"]
    missing = [f for f in records.findings if f.level == "warning"]
    assert [f.what for f in missing] == ["class folder not found"] * 4
    assert missing[0].where.endswith("Adenocarcinoma")


@pytest.mark.parametrize("threshold, foreground", [(127, 24), (99, 32), (0, 32), (254, 24)])
def test_records_threshold_label(root, threshold, foreground):
    label = ebhi_seg.records(root, threshold=threshold)[0].read().label
    assert label.sum() == foreground and set(np.unique(label)) == {0, 1}


def test_records_number_the_class_of_the_tissue(root):
    binary, classes = ebhi_seg.records(root), ebhi_seg.records(root, labels="classes")
    for one, other in zip(binary, classes, strict=True):
        label = other.read().label
        number = 1 + sorted(ebhi_seg.PAIRS).index(other.name.split("/")[0])
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, one.read().label * number)
    assert {int(r.read().label.max()) for r in classes} == {3, 5}
    with pytest.raises(InputError, match="config.data.labels"):
        ebhi_seg.records(root, labels="instances")


def test_records_choose_classes(root):
    records = ebhi_seg.records(root, classes=("Polyp",))
    assert [r.name for r in records] == ["Polyp/GT2012149-1-400-001"]
    assert told(records) == ["1 of 474 pairs: Polyp 1 of 474"]


@pytest.mark.parametrize("value", [0, 253, 255])
def test_records_note_constant_labels(root, value):
    pair(root, "Polyp/GT2012149-1-400-001.png", np.full((6, 8), value, np.uint8))
    sample = ebhi_seg.records(root, classes=("Polyp",))[0].read()
    (level, where, what), = sample.findings
    assert level == "note" and where.endswith("label/GT2012149-1-400-001.png")
    part = "background" if value else "foreground"
    assert what == f"label is constant, all {value}: scores of the {part} have no pixel"
    assert (sample.label == bool(value)).all()


def test_records_tell_lone_files_and_names_without_case(root):
    for name in ("GT2012149-2-400-001.png", "GTGT2012149-2-400-001.png"):
        pair(root, f"Low-grade IN/{name}")
        (root / "Low-grade IN/label" / name).unlink()
    records = ebhi_seg.records(root)
    assert told(records, "note")[0] == (
        "2 images without a label, as in every copy, are left out: Low-grade IN/"
        "GT2012149-2-400-001.png, Low-grade IN/GTGT2012149-2-400-001.png")
    assert not any("without" in what for what in told(records, "warning"))
    for name in ("a.png", "b.png", "c.png"):
        pair(root, f"Polyp/{name}")
    (root / "Polyp/label/a.png").unlink()
    (root / "Polyp/image/b.png").unlink()
    (root / "Polyp/image/d.jpg").write_bytes(b"no PNG")
    records = ebhi_seg.records(root)
    assert [r.group for r in records if r.name == "Polyp/c"] == ["Polyp/c.png"]
    assert told(records, "warning")[4:] == [
        "1 files that are no PNG are left out: Polyp/d.jpg",
        "1 images without a label are left out; expected <class>/label/<same name>: Polyp/a.png",
        "1 labels without an image are left out: Polyp/b.png",
        "1 file names without the seven digits of a case; each is a case of its own: Polyp/c.png"]


def test_records_count_a_whole_copy_as_the_report_does(tmp_path):
    names = [path for name, count in ebhi_seg.PAIRS.items()
             for path in (f"{name}/GT{2000000 + i}-1-400-001.png" for i in range(count))]
    names += ebhi_seg.KNOWN_WITHOUT_LABEL
    assert len(names) == 2228
    for folder in ebhi_seg.PAIRS:
        for kind in ("image", "label"):
            (tmp_path / folder / kind).mkdir(parents=True)
    for name in names:
        folder, name = name.split("/")
        (tmp_path / folder / "image" / name).touch()
        if f"{folder}/{name}" not in ebhi_seg.KNOWN_WITHOUT_LABEL:
            (tmp_path / folder / "label" / name).touch()
    records = ebhi_seg.records(tmp_path)
    assert len(records) == len({r.name for r in records}) == 2226
    assert not any("pairs" in what for what in told(records)) and not told(records, "warning")
    (tmp_path / "Normal/label/GT2000000-1-400-001.png").unlink()
    assert any(what.startswith("2,225 of 2,226 pairs: Adenocarcinoma 795 of 795, High-grade IN 186 "
                               "of 186, Low-grade IN 637 of 637, Normal 75 of 76, Polyp 474 of 474")
               for what in told(ebhi_seg.records(tmp_path)))


@pytest.mark.parametrize("label", [
    np.eye(6, 8, dtype=np.uint8), np.eye(6, 8) > 0, np.eye(6, 8).astype(np.uint16) * 60000,
    np.stack([np.eye(6, 8, dtype=np.uint8) * 255] * 2 + [np.zeros((6, 8), np.uint8)], -1)])
def test_records_reject_labels_of_other_kinds(root, label):
    pair(root, "Polyp/GT2012149-1-400-001.png", label)
    with pytest.raises(InputError, match="001.png: label is .*; expected 8-bit gray, 0 to 255"):
        ebhi_seg.records(root, classes=("Polyp",))[0].read()


def test_records_reject_other_size(root):
    pair(root, "Polyp/GT2012149-1-400-001.png", np.zeros((8, 6), np.uint8))
    with pytest.raises(InputError, match="mask is 8x6, its image GT2012149-1-400-001.png is 6x8"):
        ebhi_seg.records(root, classes=("Polyp",))[0].read()


def test_records_reject_wrong_options_and_roots(tmp_path, root):
    with pytest.raises(InputError, match="config.data.labels: got 'instances'.*binary"):
        ebhi_seg.records(root, labels="instances")
    with pytest.raises(InputError, match="config.data.threshold: got 255; expected 0 .. 254"):
        ebhi_seg.records(root, threshold=255)
    with pytest.raises(InputError, match="config.data.classes: got 'polyp'.*mean Polyp"):
        ebhi_seg.records(root, classes=("polyp",))
    with pytest.raises(InputError, match="config.data.root: not set; .*21540159"):
        ebhi_seg.records("")
    with pytest.raises(InputError, match="has no <class>/image inside, such as 'Normal/image'"):
        ebhi_seg.records(root, classes=("Normal",))
    root.rename(tmp_path.parent / "EBHI-SEG")
    tmp_path.mkdir()
    (tmp_path.parent / "EBHI-SEG").rename(tmp_path / "EBHI-SEG")
    with pytest.raises(InputError, match="did you mean .*EBHI-SEG"):
        ebhi_seg.records(tmp_path)
    root = tmp_path / "EBHI-SEG"
    (root / "Polyp/label/GT2012149-1-400-001.png").unlink()
    with pytest.raises(InputError, match="label/GT2012149-1-400-001.png: not found; expected <cl"):
        ebhi_seg.records(root, classes=("Polyp",))


def check_against_index(records, rows):
    """Every record has the case and the foreground that the index measured; returns samples."""
    rows = {f"{row['class']}/{row['file'].removesuffix('.png')}": row for row in rows}
    samples = {}
    for record in records:
        row, sample = rows[record.name], record.read()
        assert record.group == row["case"] and sample.stratum == row["class"]
        assert sample.image.shape == (224, 224, 3) and sample.image.dtype == np.uint8
        fraction = float(row["label_fraction_over_127"])
        assert sample.label.mean() == pytest.approx(fraction, abs=6e-6)
        constant = row["label_min"] == row["label_max"]
        assert [f"all {row['label_min']}:" in f.what for f in sample.findings] == [True] * constant
        samples[record.name] = sample
    assert len(samples) == sum(row["has_label"] == "1" for row in rows.values())
    return samples


def test_records_match_index_of_real_sample(real_data):
    folder = real_data / "ebhi-seg/sample24/EBHI-SEG"
    records = ebhi_seg.records(folder)
    names = {record.name for record in records} | {"Low-grade IN/GT2012149-2-400-001"}
    with open(real_data / "ebhi-seg/index.csv") as file:
        rows = [row for row in csv.DictReader(file)
                if f"{row['class']}/{row['file'].removesuffix('.png')}" in names]
    assert len(check_against_index(records, rows)) == 24
    assert [f.level for f in records.findings] == ["note"] * 2


@pytest.mark.slow
def test_records_match_index_of_all_real_images(real_data, tmp_path):
    with tarfile.open(real_data / "ebhi-seg/EBHI-SEG.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    with open(real_data / "ebhi-seg/index.csv") as file:
        rows = list(csv.DictReader(file))
    records = ebhi_seg.records(tmp_path / "EBHI-SEG")
    samples = check_against_index(records, rows)
    counts = {name: sum(s.stratum == name for s in samples.values()) for name in ebhi_seg.PAIRS}
    assert counts == {"Adenocarcinoma": 56, "High-grade IN": 38, "Low-grade IN": 44, "Normal": 33,
                      "Polyp": 38, "Serrated adenoma": 21}
    cases = {name: len({r.group for r in records if r.name.startswith(name)}) for name in counts}
    cases["Low-grade IN"] += "2012149" not in {
        r.group for r in records if r.name.startswith("Low-grade IN")}  # of the two without label
    assert cases == {"Adenocarcinoma": 21, "High-grade IN": 13, "Low-grade IN": 29, "Normal": 6,
                     "Polyp": 21, "Serrated adenoma": 5}
    assert len({record.group for record in records} | {"2012149"}) == 82
    assert "2 images without a label, as in every copy" in told(records, "note")[0]
    assert not told(records, "warning")
    constant = [name for name, sample in samples.items() if sample.findings]
    assert len(constant) == 7 and all(name.startswith("Adenocarcinoma") for name in constant)
    labels = [np.asarray(Image.open(record.files[1])) for record in records]
    between = [((label > 0) & (label < 255)).mean() for label in labels]
    assert np.median(between) == pytest.approx(0.049, abs=5e-4)
    values = [sorted(set(label.flat)) for label in labels if label.min() == label.max()]
    assert sorted(values) == [[253]] * 5 + [[255]] * 2
    areas = {threshold: [r.read().label.sum() for r in ebhi_seg.records(
        tmp_path / "EBHI-SEG", threshold=threshold)] for threshold in (0, 254)}
    assert areas[254].count(0) == 5  # the labels of 253
    assert np.all(np.array(areas[0]) >= areas[254])
