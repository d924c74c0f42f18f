import csv
import functools
import hashlib
import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.measure import label as connected_components

from cellseg_jax.cli import run_command
from cellseg_jax.data import synthetic
from cellseg_jax.data.datasets import bbbc039, ctc, dsb2018, ebhi_seg, folder, isbi2012, livecell
from cellseg_jax.data.synthetic import __main__ as command
from cellseg_jax.data.synthetic import looks, parts, twins
from cellseg_jax.errors import InputError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name, count, size): the folder of a twin, made once."""
    @functools.cache
    def make(name, count, size):
        out = tmp_path_factory.mktemp("twins") / name
        twins.write(name, out, count=count, size=size)
        return out
    return make


def noticed(records):
    return " ".join(f"{f.level}: {f.what}" for f in
                    (*records.findings, *(f for r in records for f in r.read().findings)))


def read_png(path):
    return np.asarray(Image.open(path))


def test_bbbc039(written):
    root = written("bbbc039", 8, (130, 174))
    records = bbbc039.records(root)
    assert sorted(r.part for r in records) == ["test"] * 2 + ["train"] * 4 + ["val"] * 2
    assert noticed(records) == "note: has no nucleus"
    for record in records:
        sample = record.read()
        assert sample.image.shape == (130, 174, 1) and sample.image.dtype == np.uint16
        assert 300 < sample.image.max() < 2**13 or not sample.label.any()
        mask = read_png(record.files[1])
        assert mask.shape == (130, 174, 4) and (mask[..., 3] == 255).all()
        assert not mask[..., 1:3].any() and mask.max(axis=(0, 1))[0] <= 5


def test_colours_tell_touching_cells_apart():
    label, _ = synthetic.cells(np.random.default_rng(1), (90, 110), radius=8, elongation=1.3,
                               coverage=0.6, clustering=0.8)
    red = parts.few_colours(label)
    regions = connected_components(red, connectivity=2)
    assert 1 < red.max() < 6 and regions.max() == len(np.unique(label)) - 1
    for n in range(1, regions.max() + 1):  # each region is the largest piece of one cell
        ids = np.unique(label[regions == n])
        pieces = connected_components(label == ids[0], connectivity=2)
        assert len(ids) == 1 and (regions == n).sum() == np.bincount(pieces.ravel())[1:].max()


@pytest.mark.parametrize("name, size, dtype", [
    ("DIC-C2DH-HeLa", (128, 128), np.uint8), ("Fluo-N2DL-HeLa", (175, 275), np.uint16)])
def test_ctc(written, name, size, dtype):
    root = written("ctc", 6, (128, 128)) / name
    gold = ctc.records(root)
    assert len(gold) == 6 and {r.group for r in gold} == {"01", "02"}
    assert len(ctc.records(root, partial="keep")) == 8
    assert len(ctc.records(root, truth="silver")) == len(ctc.records(root, truth="tracking")) == 12
    found = noticed(gold)
    assert "(3 of " in found and " tracks are in no frame" in found
    for record in gold:
        sample = record.read()
        assert sample.image.shape == (*size, 1) and sample.image.dtype == dtype
        if dtype == np.uint16:
            assert 33007 <= sample.image.min() and sample.image.max() <= 36863
    frames = [int(p.stem[1:]) for p in sorted((root / "01").iterdir())]
    assert frames[0] > 0 and np.diff(frames).tolist() == [1, 1, 11, 1, 1]
    with tifffile.TiffFile(record.files[0]) as tiff:
        assert tiff.pages[0].compression == tifffile.COMPRESSION.LZW


def test_ctc_masks_and_tracks_agree(written):
    for name in ("DIC-C2DH-HeLa", "Fluo-N2DL-HeLa"):
        root = written("ctc", 6, (128, 128)) / name
        lines = ctc.tracks(root / "01_GT/TRA/man_track.txt")
        _, begin, end, parent = lines.T
        assert np.count_nonzero(parent) == 2  # one division
        before = last = None
        for path in sorted((root / "01_GT/TRA").glob("*.tif")):
            t = path.stem[-3:]
            tracked, silver = (tifffile.imread(p) for p in (
                path, root / f"01_ST/SEG/man_seg{t}.tif"))
            assert tracked.dtype == silver.dtype == np.uint16
            there = lines[(begin <= int(t)) & (int(t) <= end), 0]
            assert np.unique(tracked)[1:].tolist() == np.unique(silver)[1:].tolist() \
                == sorted(there.tolist())
            assert (np.diff(there) > 1).all()  # numbers with gaps
            drawn = root / f"01_GT/SEG/man_seg{t}.tif"
            if drawn.exists():  # the same cells under other numbers
                gold = tifffile.imread(drawn)
                both = (gold > 0) & (silver > 0)
                pairs = np.unique(np.stack([gold[both], silver[both]]), axis=1)
                assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
                assert (pairs[0] != pairs[1]).mean() > 0.8
            if before == int(t) - 1:  # cells move, by less than they are large
                assert (silver != last).any()
                assert (silver == last)[(silver > 0) & (last > 0)].mean() > 0.5
            before, last = int(t), silver


def test_ctc_without_tracking(written):
    records = ctc.records(written("ctc", 6, (128, 128)) / "PhC-C2DL-PSC")
    assert len(records) == 8 and "cannot be separated from complete" in noticed(records)
    assert records[0].read().image.shape == (144, 180, 1)


def test_dsb2018(written):
    root = written("dsb2018", 11, (48, 48))
    records = dsb2018.records(root)
    train = [r for r in records if r.part == "train"]
    assert len(train) == 11 and len(records) == 14
    samples = [r.read() for r in records]
    assert all(s.image.shape[2] == 4 and s.image.dtype == np.uint8 for s in samples)
    assert {s.image.shape[:2] for s in samples} == {
        tuple(round(side * 48 / 256) for side in native) for _, native, _ in twins.DSB2018}
    assert len({s.image.shape for s in samples}) == 9
    assert {s.stratum for s in samples} == {
        "fluorescence", "brightfield_gray", "stain_light_background", "stain_dark_background"}
    assert "pixels lie in several masks" in noticed(records)
    assert all(s.label.any() for s in samples)

    masks = {p: Image.open(p) for r in train for p in r.files[1:]}
    assert {m.mode for m in masks.values()} == {"L", "RGBA", "1"}
    gray = {p: np.asarray(m) for p, m in masks.items() if m.mode == "L"}
    assert all(set(np.unique(m)) == {0, 255} for m in gray.values())
    num_pieces = [ndimage.label(m, np.ones((3, 3)))[1] for m in gray.values()]
    holes = [ndimage.binary_fill_holes(m).sum() > (m > 0).sum() for m in gray.values()]
    assert max(num_pieces) > 1 and num_pieces.count(1) > 0.8 * len(num_pieces) and any(holes)


def test_dsb2018_solution_holds_the_same_masks_as_files_would(written):
    root = written("dsb2018", 11, (48, 48))
    with open(root / "stage1_solution.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    name, image, masks = twins._dsb2018_image([0, 19, 0], 0, twins.Zoom(48 / 256, 48 / 256))
    own = [row for row in rows if row["ImageId"] == name]
    assert len(own) == len(masks)
    for row, mask in zip(own, masks, strict=True):
        decoded = np.zeros(mask.size, bool)  # by columns, from 1
        numbers = [int(n) for n in row["EncodedPixels"].split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            decoded[start - 1 : start - 1 + length] = True
        np.testing.assert_array_equal(decoded.reshape(mask.shape[::-1]).T, mask)


def test_ebhi_seg(written):
    root = written("ebhi_seg", 5, (56, 56))
    records = ebhi_seg.records(root)
    assert len(records) == 30 and len({r.group for r in records}) == 11
    found = noticed(records)
    assert "2 images without a label, as in every copy" in found
    assert "3 of 27 file names are in several" in found and "1 of 11 cases are in several" in found
    assert "label is constant, all 253" in found and "warning" not in found
    samples = [r.read() for r in records]
    assert {s.stratum for s in samples} == set(ebhi_seg.PAIRS)
    assert {(s.image.shape, str(s.image.dtype)) for s in samples} == {((56, 56, 3), "uint8")}
    labels = [read_png(r.files[1]) for r in records]
    assert all(m.ndim == 2 and m.dtype == np.uint8 for m in labels)
    assert np.median([np.mean((m > 0) & (m < 255)) for m in labels]) > 0.02
    assert all({0, 255} <= set(np.unique(m)) for m in labels if np.ptp(m))


def test_folder(written):
    records = folder.records(written("folder", 6, (48, 64)), group="(case[0-9]+)")
    assert len(records) == 6 and {r.group for r in records} == {"case00", "case01"}
    sample = records[1].read()
    assert sample.image.shape == (48, 64, 3) and sample.label.max() > 1
    np.testing.assert_array_equal(
        sample.label, synthetic.records(6, (48, 64))[1].read().label)


def test_isbi2012(written):
    root = written("isbi2012", 7, (96, 128))
    records = isbi2012.records(root)
    assert len(records) == 7 and {r.group for r in records} == {"block_0", "block_1"}
    volume, labels, test = (tifffile.imread(root / f"{name}.tif") for name in (
        "train-volume", "train-labels", "test-volume"))
    assert volume.shape == labels.shape == (7, 96, 128) and test.shape == (2, 96, 128)
    assert volume.dtype == labels.dtype == test.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 255}
    assert all(0.73 < part < 0.81 for part in (labels > 0).mean(axis=(1, 2)))
    assert volume[labels == 0].mean() < volume[labels > 0].mean() - 30  # dark membranes
    agreement = [np.mean(labels[0] == labels[z]) for z in (1, 3, 6)]
    assert agreement[0] > agreement[1] > agreement[2]
    cells = isbi2012.records(root, labels="instances")[0].read().label
    assert cells.max() > 5


def test_livecell(written):
    root = written("livecell", 12, (104, 141))
    records = livecell.records(root)
    assert sorted(r.part for r in records) == ["test"] * 3 + ["train"] * 5 + ["val"] * 4
    assert len({r.group for r in records}) == 9  # train images in pairs of one field
    found = noticed(records)
    for what in ("1 images are listed more than once", "in several official parts",
                 "1 images have fewer than 10 annotations", "belong to two or more cells"):
        assert what in found
    assert "skipped" not in found
    samples = [r.read() for r in records]
    assert {s.stratum for s in samples} == set(twins.LIVECELL)
    for sample in samples:
        assert sample.image.shape == (104, 141, 1) and sample.image.dtype == np.uint8
        assert abs(sample.image.mean() - 128) < 0.5
    with tifffile.TiffFile(records[0].files[0]) as tiff:
        page = tiff.pages[0]
        assert page.compression == tifffile.COMPRESSION.LZW and page.predictor == 2


def test_livecell_annotations(written):
    root = written("livecell", 12, (104, 141))
    entries = {part: json.loads((root / f"livecell_coco_{part}.json").read_text())
               for part in ("train", "val", "test")}
    ids = [image["id"] for entry in entries.values() for image in entry["images"]]
    assert len(set(ids)) == len(ids) == 13 and min(ids) > 13
    kinds = set()
    for entry in entries.values():
        for annotation in entry["annotations"]:
            shape = annotation["segmentation"]
            kinds.add(type(shape["counts"]) if isinstance(shape, dict) else len(shape))
            assert annotation["iscrowd"] == 0 and annotation["category_id"] == 1
            assert annotation["area"] > 0
        for image in entry["images"]:
            assert image["original_filename"] == image["file_name"].replace(".tif", ".png")
    assert kinds == {1, str, list}


def test_shapes_cover_the_cells_and_a_pixel_around():
    label, _ = synthetic.cells(np.random.default_rng(0), (70, 90), radius=9, elongation=1.3,
                               coverage=0.3, clustering=0.8)
    codes = [shape["segmentation"] for shape in parts.coco_shapes(label, runs=True)]
    shapes = [shape["segmentation"] for shape in parts.coco_shapes(label, runs=False)]
    sizes = np.bincount(label.ravel())[1:]
    for n, code, shape in zip(np.flatnonzero(sizes >= 12) + 1, codes, shapes, strict=True):
        cell = ndimage.binary_dilation(label == n)
        for segmentation, overlap in ((code, 1), (shape, 0.8)):
            (rows, columns), mask = livecell.coco._mask(segmentation, *label.shape)
            drawn = np.zeros_like(cell)
            drawn[rows, columns] = mask
            assert (cell & drawn).sum() >= overlap * (cell | drawn).sum()


def decoded(root):
    """A hash of everything a folder holds, images decoded."""
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(root)).encode())
        read = {".tif": tifffile.imread, ".png": read_png}.get(path.suffix)
        total.update(read(path).tobytes() if read else path.read_bytes())
    return total.hexdigest()


@pytest.mark.parametrize("name", twins.TWINS)
def test_same_seed_same_pixels(name, tmp_path):
    hashes = []
    for n, seed in enumerate((0, 0, 1)):
        assert twins.write(name, tmp_path / str(n), count=2, seed=seed, size=(40, 48)) == 2
        hashes.append(decoded(tmp_path / str(n)))
    assert hashes[0] == hashes[1] != hashes[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", twins.TWINS)
def test_sizes_are_those_of_the_original(name, tmp_path):
    twins.write(name, tmp_path / name, count=1)
    shapes = {(tifffile.imread(p) if p.suffix == ".tif" else read_png(p)).shape
              for p in tmp_path.rglob("*.*") if p.suffix in (".tif", ".png")}
    assert any(shape[:2] == twins.TWINS[name].native or shape[1:] == twins.TWINS[name].native
               for shape in shapes)


def test_write_rejects_input(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("kept")
    with pytest.raises(InputError, match="--out: .*full is not an empty folder"):
        twins.write("folder", tmp_path / "full")
    with pytest.raises(InputError, match="--like: got 'livecel'.*did you mean livecell"):
        twins.write("livecel", tmp_path / "new")
    for size in ((31, 64), (64, 0), (-64, 64), (64,)):
        with pytest.raises(InputError, match="--size: got .*or 0 for the original's 520,704"):
            twins.write("livecell", tmp_path / "new", size=size)
    with pytest.raises(InputError, match="--count: got -1"):
        twins.write("folder", tmp_path / "new", count=-1)
    with pytest.raises(InputError, match="--seed: got -1"):
        twins.write("folder", tmp_path / "new", seed=-1)
    with pytest.raises(InputError, match="--out: cannot write to .*choose another folder"):
        twins.write("folder", tmp_path / "full/a.txt/b")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_stopped_write_leaves_nothing(tmp_path, monkeypatch):
    def stopped(folder, count, seed, zoom):
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    monkeypatch.setitem(twins.TWINS, "folder", twins.Twin(stopped, (32, 32), 1, "images"))
    with pytest.raises(KeyboardInterrupt):
        twins.write("folder", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    run = functools.partial(run_command, command.main, command.define_flags)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may be there
    argv = ["synthetic", "--like=folder", f"--out={out}", "--count=2", "--size=32,40"]
    assert run(argv) == 0
    assert "a synthetic twin of folder, 2 images, in" in capsys.readouterr().out
    assert folder.records(out)[0].read().image.shape == (32, 40, 3)
    for words, message in (
            (argv, "is not an empty folder"), (argv[:2], "--out: missing; pass --out=DIR"),
            (argv[:1], "--like: missing; pass --like=bbbc039|ctc|"),
            ([*argv[:4], "--size=a"], "--size: got a; expected H,W in pixels"),
            ([*argv, "--config.data.root=x"], "--config: a twin has no config")):
        assert run(words) == 2
        assert message in capsys.readouterr().err


def test_help_tells_the_numbers_of_the_table():
    rows = re.findall(r"^    (\w+) +(\d+) ([\w ]+?)  +(\d+)x(\d+)", command.__doc__, re.MULTILINE)
    assert {name: (int(count), counted, (int(height), int(width)))
            for name, count, counted, height, width in rows} == {
        name: (twin.count, twin.counted, twin.native) for name, twin in twins.TWINS.items()}


def test_looks_are_those_of_their_microscopes():
    rng = np.random.default_rng(0)
    label, depth = synthetic.cells(rng, (96, 96), radius=11, elongation=1.2, coverage=0.25,
                                   clustering=0.4)
    inside, far = depth > 0.3, ndimage.distance_transform_edt(label == 0) > 8
    dark = looks.brightfield(rng, label, depth)
    assert dark[inside].mean() < dark[far].mean() - 30
    bright = looks.bright_phase(rng, label, depth)
    assert bright[inside].mean() > bright[far].mean() + 30
    phase = looks.phase_contrast(rng, label, depth, rounded=0.5)
    outside = ndimage.distance_transform_edt(label == 0)
    halo = (outside > 0) & (outside < 3)
    assert abs(phase.mean() - 128) < 1e-6 and phase[halo].mean() > phase[far].mean() + 2
    relief = looks.relief(rng, label, depth)
    assert relief[inside].std() > 1.2 * relief[far].std()
    assert abs(relief[inside].mean() - relief[far].mean()) < 8  # relief, not brightness


def test_moved_shifts_whole_pixels():
    label = np.arange(1, 21, dtype=np.int32).reshape(4, 5)
    shift = np.stack([np.full((4, 5), 1.0), np.full((4, 5), -2.0)])
    now, depth = looks.moved(label, label / 20, shift)
    expected = np.zeros_like(label)
    expected[1:, :-2] = label[:-1, 2:]
    np.testing.assert_array_equal(now, expected)
    np.testing.assert_allclose(depth, expected / 20)
