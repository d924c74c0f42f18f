import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from cellseg_jax.data import fingerprint
from cellseg_jax.data.datasets import livecell
from cellseg_jax.data.records import BadFiles
from cellseg_jax.errors import InputError

H, W = 12, 16
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
A, B, C = ("A172_Phase_A7_1_00d00h00m_1", "A172_Phase_A7_1_01d00h00m_2",
           "BV2_Phase_C4_2_00d08h00m_3")
MANY = 12  # annotations of an image that is not suspected to be half annotated
TRAIN, TEST = "livecell_train_val_images", "livecell_test_images"


def write_json(root, part, images, polygons=()):
    """livecell_coco_<part>.json: {(id, stem): number of SQUAREs}, then (image id, polygon)."""
    listed = [{"id": number, "file_name": f"{stem}.tif", "height": H, "width": W}
              for number, stem in images]
    drawn = [(number, SQUARE) for (number, _), count in images.items() for _ in range(count)]
    annotations = [{"id": 1000 + i, "image_id": number, "segmentation": [polygon]}
                   for i, (number, polygon) in enumerate([*drawn, *polygons])]
    path = root / f"livecell_coco_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return path


def save(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((H, W), value, np.uint8), compression="lzw", predictor=2)


@pytest.fixture
def root(tmp_path):
    """A and B in train, C in test; all with MANY annotations."""
    for folder, stem in ((TRAIN, A), (TRAIN, B), (TEST, C)):
        save(tmp_path / folder / f"{stem}.tif")
    write_json(tmp_path, "train", {(70, A): MANY, (9, B): MANY})
    write_json(tmp_path, "val", {})
    write_json(tmp_path, "test", {(70, C): MANY})
    (tmp_path / TRAIN / ".DS_Store").write_bytes(b"junk")
    (tmp_path / TRAIN / "Thumbs.db").write_bytes(b"junk")
    return tmp_path


def told(records):
    return [f"{f.level}: {f.what}" for f in records.findings]


def test_records_know_part_field_and_cell_type(root):
    records = livecell.records(root)
    assert [(r.name, r.group, r.part) for r in records] == [
        (A, "A172_Phase_A7_1", "train"), (B, "A172_Phase_A7_1", "train"),
        (C, "BV2_Phase_C4_2", "test")]
    assert [path.name for path in records[2].files] == [f"{C}.tif", "livecell_coco_test.json"]
    assert told(records) == []
    sample = records[2].read()
    assert sample.image.shape == (H, W, 1) and sample.image.dtype == np.uint8
    assert sample.label.dtype == np.int32 and sample.label[5, 5] == MANY
    assert sample.stratum == "BV2"
    assert [(f.level, f.what) for f in sample.findings] == [
        ("note", "36 pixels (18.75%) belong to two or more cells; the smaller one keeps them, 11 "
                 "cells keep none")]


@pytest.mark.parametrize("images", ["", "images"])
@pytest.mark.parametrize("jsons", ["", "annotations", "annotations/LIVECell"])
@pytest.mark.parametrize("by_type", [False, True])
def test_records_find_every_layout(root, tmp_path, images, jsons, by_type):
    new = tmp_path / "new"
    for path in root.glob("livecell_*/*.tif"):
        folder = path.name.split("_")[0] if by_type else "."
        save(new / images / path.parent.name / folder / path.name)
    (new / jsons).mkdir(parents=True, exist_ok=True)
    for path in root.glob("*.json"):
        shutil.copy(path, new / jsons)
    records = livecell.records(new)
    assert [r.name for r in records] == [A, B, C] and told(records) == []
    assert all(record.files[0].is_file() for record in records)


def test_records_choose_cell_types_and_annotation_counts(root):
    write_json(root, "train", {(70, A): 9, (9, B): 0})
    assert [r.name for r in livecell.records(root, cell_types=("BV2",))] == [C]
    assert [r.name for r in livecell.records(root)] == [A, B, C]
    assert told(livecell.records(root)) == [
        "warning: 2 images have fewer than 10 annotations, so most of their cells may not be "
        f"outlined; config.data.min_annotations=10 leaves them out: {A} (9), {B} (0)"]
    assert not livecell.records(root)[1].read().label.any()
    records = livecell.records(root, min_annotations=10)
    assert [r.name for r in records] == [C]
    assert told(records) == [
        f"note: 2 images with fewer than 10 annotations are left out: {A} (9), {B} (0)"]
    with pytest.raises(InputError, match="config.data.cell_types: got 'bv2'; .*one of A172, BV2"):
        livecell.records(root, cell_types=("bv2",))
    with pytest.raises(InputError, match="min_annotations: got 13; no image .* the most is 12"):
        livecell.records(root, min_annotations=13)


def test_records_tell_missing_json_and_unlisted_images(root):
    (root / "livecell_coco_train.json").unlink()
    records = livecell.records(root)
    assert [r.name for r in records] == [C]
    assert told(records) == [
        "note: not found; its images are left out",
        f"note: 2 image files are in no annotation file and are left out: {A}.tif, {B}.tif"]
    (root / "livecell_coco_val.json").unlink()
    (root / "livecell_coco_test.json").unlink()
    with pytest.raises(InputError, match="has no livecell_coco_train.json, .* Get images.zip"):
        livecell.records(root)


def test_records_take_files_in_other_case(root):
    path = root / TRAIN / f"{A}.tif"
    path.rename(path.with_name(path.name.lower()))
    records = livecell.records(root)
    assert records[0].name == A and records[0].files[0].name == f"{A}.tif".lower()
    assert told(records) == [f"note: {A}.tif not found; found {A.lower()}.tif and took it, so for "
                             "1 of 3 images"]


def test_records_reject_missing_and_ambiguous_files(root):
    save(root / TRAIN / "A172" / f"{A}.tif")
    with pytest.raises(InputError, match=f"A172/{A}.tif: ambiguous, .*{A}.tif has the same"):
        livecell.records(root)
    shutil.rmtree(root / TRAIN)
    with pytest.raises(InputError, match=f"coco_train.json: lists {A}.tif, which is not in "
                                         "livecell_train_val.*2 of 3 images are not there. Get"):
        livecell.records(root)
    shutil.rmtree(root / TEST)
    with pytest.raises(InputError, match="config.data.root: folder .* has no images in livecell_"):
        livecell.records(root)


def test_records_list_every_file_once(root):
    write_json(root, "train", {(70, A): 10, (71, A): 11, (72, A): 9, (9, B): MANY})
    write_json(root, "val", {(5, B): 10})
    records = livecell.records(root)
    assert [(r.name, r.part) for r in records] == [(A, "train"), (B, "val"), (C, "test")]
    assert [r.read().label.max() for r in records] == [11, 10, MANY]
    assert told(records) == [
        "note: 2 images are listed more than once; the listing with most annotations is used: "
        f"{A} (70, 71, 72), {B} (9, 5)",
        "note: 1 images are in several official parts; they count for the last one: "
        f"{B} (train, val)"]


def test_records_tell_annotations_without_image(root):
    write_json(root, "train", {(70, A): MANY, (9, B): MANY}, [(71, SQUARE), (3, SQUARE)] * 2)
    with pytest.raises(BadFiles, match="train.json: 4 annotations have an image_id without image "
                                       "and are left out: 71, 3") as bad:
        livecell.records(root)
    assert [record.name for record in bad.value.records] == [A, B, C]
    write_json(root, "train", {(70, A): 250, (9, B): 250}, [(71, SQUARE), (3, SQUARE)] * 2)
    assert told(livecell.records(root)) == [
        "warning: 4 annotations have an image_id without image and are left out: 71, 3"]


def test_records_skip_and_count_bad_annotations(root):
    write_json(root, "train", {(70, A): 0, (9, B): MANY}, [
        (70, [1, 1, 2, 2]), (70, SQUARE), (70, [90, 90, 99, 90, 99, 99]), (70, [1, 1, 2, 1, 3, 1])])
    sample = livecell.records(root)[0].read()
    assert set(np.unique(sample.label)) == {0, 2}
    (level, where, what), = sample.findings
    assert (level, what) == ("warning", "annotation 1012: 2-point polygon, skipped; 3 skipped of 4")
    assert where.endswith(f"{A}.tif")


def test_records_tell_names_of_another_kind(root):
    write_json(root, "val", {(1, "my image"): MANY})
    save(root / TRAIN / "my image.tif")
    records = livecell.records(root)
    assert [r.group for r in records if r.name == "my image"] == ["my image"]
    assert told(records) == [
        "warning: 1 names are not <cell type>_Phase_<well>_<site>_<time>_<tile>; each is a group "
        "of its own: my image"]


def test_records_reject_image_of_other_size(root):
    tifffile.imwrite(root / TEST / f"{C}.tif", np.zeros((W, H), np.uint8))
    with pytest.raises(InputError, match=f"{C}.tif: image is 16x12, livecell_coco_test.json says "
                                         "12x16; its polygons do not fit"):
        livecell.records(root)[2].read()


def test_records_reject_wrong_roots(tmp_path):
    with pytest.raises(InputError, match="config.data.root: not set; .*CC BY-NC 4.0"):
        livecell.records("")
    with pytest.raises(InputError, match="config.data.root: folder .* is empty"):
        livecell.records(tmp_path)


def test_fingerprint_reads_the_shared_json_once(root, tmp_path, monkeypatch):
    opened = []
    digest = fingerprint.hashlib.file_digest
    monkeypatch.setattr(fingerprint.hashlib, "file_digest",
                        lambda file, name: (opened.append(file.name), digest(file, name))[1])
    fingerprint.content_fingerprint(livecell.records(root), tmp_path / "cache", "livecell", {})
    assert len(opened) == len(set(opened)) == 5  # three images, two annotation files


def real_annotations(real_data):
    """(COCO of pycocotools, {stem: its image}) of the two real annotation files."""
    for part in ("val", "test"):
        read = COCO(real_data / f"livecell/livecell_coco_{part}.json")
        yield read, {image["file_name"].removesuffix(".tif"): image for image in read.imgs.values()}


def test_records_match_real_images(real_data):
    records = livecell.records(real_data / "livecell")
    assert [r.part for r in records].count("val") == 5 and len(records) == 15
    assert [f.level for f in records.findings] == ["note"] * 2
    assert records.findings[1].what.startswith("8 image files are in no annotation file")
    assert {r.name.split("_")[0] for r in records} == {
        "A172", "BT474", "Huh7", "MCF7", "SHSY5Y", "SKOV3", "SkBr3"}
    assert len({r.group for r in records}) == 13
    sizes = {}
    for part, (read, images) in zip(("val", "test"), real_annotations(real_data), strict=True):
        assert {r.name for r in records if r.part == part} == set(images)
        sizes[part] = {stem: len(read.getAnnIds(image["id"])) for stem, image in images.items()}
    assert {part: sum(counts.values()) for part, counts in sizes.items()} == {
        "val": 1243, "test": 2375}
    counts = sizes["val"] | sizes["test"]
    assert {min(counts.values()), max(counts.values())} == {42, 768}
    assert {record.name: len(record.read.args[1].places) for record in records} == counts


@pytest.mark.slow
def test_labels_match_pycocotools_on_all_real_annotations(real_data):
    samples = {r.name: r.read() for r in livecell.records(real_data / "livecell")}
    foreground, overlaps = {}, {}
    for read, images in real_annotations(real_data):
        for stem, image in images.items():
            sample = samples.pop(stem)
            annotations = read.imgToAnns[image["id"]]
            masks = [read.annToMask(a) > 0 for a in annotations]
            expected = np.zeros((520, 704), np.int32)
            for i in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
                expected[masks[i]] = i + 1
            np.testing.assert_array_equal(sample.label, expected)
            times = np.sum(masks, axis=0)
            (level, _, what), = sample.findings
            assert level == "note" and what.startswith(f"{(times > 1).sum()} pixels")
            assert sample.image.shape == (520, 704, 1) and sample.image.dtype == np.uint8
            assert abs(sample.image.mean() - 128) <= 0.2 and sample.image.min() >= 3
            # The shares that the data's own notes tell are of polygons with their outline.
            drawn = np.zeros((520, 704), int)
            for a in annotations:
                canvas = Image.new("1", (704, 520))
                ImageDraw.Draw(canvas).polygon(a["segmentation"][0], fill=1, outline=1)
                drawn += np.asarray(canvas)
            foreground[stem], overlaps[stem] = (drawn > 0).mean(), (drawn > 1).mean()
            assert 0 < foreground[stem] - (sample.label > 0).mean() < 0.03
    assert not samples
    assert (round(min(foreground.values()), 2), round(max(foreground.values()), 2)) == (0.09, 0.97)
    assert max(foreground, key=foreground.get) == "SKOV3_Phase_E4_1_02d12h00m_2"
    assert (round(min(overlaps.values()), 3), round(max(overlaps.values()), 2)) == (0.001, 0.06)
