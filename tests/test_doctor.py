"""The doctor finds every bad input of the list of demands, names the file, and its fix works."""

import json
import pathlib
import re
import time

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax import cli, doctor
from cellseg_jax import config as config_lib
from cellseg_jax.data import synthetic
from cellseg_jax.data.quality import examine, report
from cellseg_jax.data.quality.report import gather
from cellseg_jax.planning import data_check

SIZE = (24, 32)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", **options)
    else:
        Image.fromarray(array).save(path, **options)


def cells(seed, shape=SIZE):
    """A noisy gray image and instances of three cells."""
    rng = np.random.default_rng(seed)
    image = rng.integers(30, 200, shape, dtype=np.uint8)
    label = np.zeros(shape, np.uint8)
    for n in range(3):
        y, x = rng.integers(0, shape[0] - 8), 10 * n
        label[y : y + 7, x : x + 8] = n + 1
    return image, label


@pytest.fixture
def root(tmp_path):
    """Ten good pairs, s0 to s9: gray images, instance masks."""
    for n in range(10):
        image, label = cells(n)
        save(tmp_path / f"data/images/s{n}.png", image)
        save(tmp_path / f"data/masks/s{n}.png", label)
    return tmp_path / "data"


def config_of(root, *overrides):
    config = config_lib.default()
    config.data.name, config.data.root, config.data.channels = "folder", str(root), "gray"
    config.data.size = (32, 32)
    config.model = dict(name="unet", channels=(4, 8, 8, 8))
    config.train.batch_size = 2
    return config_lib.override(config_lib.complete(config), overrides)


def findings(root, *overrides):
    return list(examine.examine(config_of(root, *overrides).data).findings)


def matching(found, level, where, what):
    """The findings of a level whose place and text match."""
    return [f for f in found if re.search(level, f.level) and re.search(where, f.where)
            and re.search(what, f.what)]


def the_fix(what):
    """[(key, value)] of every config.KEY=VALUE that a finding proposes."""
    pairs = re.findall(r"""config\.([a-z_.]+)=("[^"]*"|'[^']*'|\([^)]*\)|[\w.]+)""", what)
    return [(key, value.strip("\"'")) for key, value in pairs]


def masks(root, change):
    for path in sorted((root / "masks").iterdir()):
        save(path, change(np.asarray(Image.open(path))))


def smeared(label):
    return imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(np.uint8(255 * (label > 0)), 60))


def coloured(label):
    return np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[label]


def test_good_data_has_nothing_to_act_on(root):
    found = findings(root)
    assert [f for f in found if f.level != "note"] == []


@pytest.mark.parametrize("change, options, what", [
    (lambda label: np.uint8(255 * (label > 0)), (), "only 0 and 255: a binary mask"),  # 1
    (lambda label: np.uint8(255 * (label > 0)), ("data.labels=classes",), "0/255 masks"),  # 1
    (smeared, (), "smeared by resizing or JPEG"),  # 2
    (smeared, ("data.labels=binary",), "smeared by resizing or JPEG"),  # 2
    (smeared, ("data.labels=classes",), "smeared by resizing or JPEG"),  # 2
    (coloured, ("data.labels=classes", "data.num_classes=4"), "mask is RGB with 4 colours"),  # 3
    (lambda label: np.uint16(label) * 130, ("data.labels=classes",), "look like instance ids"),  # 5
    (lambda label: label, ("data.labels=classes", "data.num_classes=3"), "values 3, but"),  # 19
], ids=["1", "1 as classes", "2", "2 as binary", "2 as classes", "3", "5", "19"])
def test_masks_of_another_kind_are_found_and_the_fix_works(root, change, options, what):
    masks(root, change)
    options = [tuple(option.split("=", 1)) for option in options]
    found = findings(root, *options)
    errors = matching(found, "error", r"masks/s[0-9]\.png$", what)
    assert len(errors) == 10 and len([f for f in found if f.level == "error"]) == 10
    assert len([line for line in gather(found) if line.level == "error"]) == 1
    fix = the_fix(errors[0].what)
    assert fix
    keep = [pair for pair in options if pair[0] not in dict(fix)]
    assert not matching(findings(root, *keep, *fix), "error", "", "")


def test_4_empty_and_full_masks(root):
    for n in range(3):
        save(root / f"masks/s{n}.png", np.zeros(SIZE, np.uint8))
    save(root / "masks/s3.png", np.ones(SIZE, np.uint8))
    found = findings(root)
    assert any("s0" in f.what and "s2" in f.what and "empty" in f.what for f in found)
    assert any("s3" in f.what and "foreground all over" in f.what
               for f in found)
    masks(root, np.zeros_like)
    assert matching(findings(root), "error", "", "all masks are empty")


def test_6_7_13_14_15_every_bad_file_is_named_at_once(root):
    (root / "masks/s0.png").unlink()  # 6
    save(root / "masks/extra.png", np.zeros(SIZE, np.uint8))  # 6
    save(root / "masks/s1.png", np.zeros(SIZE[::-1], np.uint8))  # 7
    save(root / "masks/s2.png", np.zeros((5, 6), np.uint8))  # 7
    data = (root / "images/s3.png").read_bytes()
    (root / "images/s3.png").write_bytes(data[:-23])  # 13
    (root / "masks/s4.png").write_bytes(b"")  # 14
    for junk in (".DS_Store", "._s5.png", "Thumbs.db"):  # 14
        (root / "images" / junk).write_bytes(b"junk")
    save(root / "images/s6.tif", np.zeros(SIZE, np.uint8))  # 15
    (root / "masks/s7.png").rename(root / "masks/s7.jpg")  # 2, 26
    (root / "images/s7.png").rename(root / "images/s7.gif")
    found = findings(root)
    for where, what in (
            (r"images/s0\.png$", "image without a mask"),
            (r"masks/extra\.png$", "mask without an image"),
            (r"masks/s1\.png$", "mask is 32x24, its image s1.png is 24x32; is the mask transposed"),
            (r"masks/s2\.png$", "image s2.png is 24x32; expected the pixels of the image"),
            (r"images/s3\.png$", f"truncated: it ends at byte {len(data) - 23}, at least 23 too"),
            (r"masks/s4\.png$", "empty .0 bytes.; copy it again or remove it"),
            (r"images/s6\.tif$", "ambiguous, s6.png has the same stem; keep one"),
            (r"masks/s7\.jpg$", "JPEG changes the values of a mask"),
            (r"images/s7\.gif$", "expected only .*convert")):
        assert len(matching(found, "error", where, what)) == 1, (where, found)
    assert len(matching(found, "error", "", "")) == 9
    assert matching(found, "note", "", r"3 hidden or system files are ignored \(.*Thumbs.db")


def rgba(image, alpha):
    alpha = np.broadcast_to(alpha, image.shape)
    return np.dstack([image, image // 2, image, alpha]).astype(np.uint8)


def images(root, change, suffix=".png"):
    for path in sorted((root / "images").iterdir()):
        image = np.asarray(Image.open(path))
        path.unlink()
        save(path.with_suffix(suffix), change(image))


def test_8_rgba_where_rgb_is_expected(root):
    images(root, lambda image: rgba(image, 255))
    text = "4 channels in 10 files, alpha is constant in all of them"
    assert matching(findings(root, ("data.channels", "rgb")), "note", "channels", text + ": it is")
    noted, = matching(findings(root, ("data.channels", "rgba")), "note", "channels", text)
    assert the_fix(noted.what) == [("data.channels", "rgb")]
    save(root / "images/s4.png", rgba(np.zeros(SIZE), np.arange(SIZE[1])))
    assert matching(findings(root, ("data.channels", "rgb")), "warning", "channels",
                    "alpha varies in 1 files .*images/s4.png.*config.data.channels=rgba")
    assert matching(findings(root), "note", "channels", "9 of 10 images are coloured: they")


def test_9_mixed_gray_and_colour(root):
    image = np.asarray(Image.open(root / "images/s4.png"))
    save(root / "images/s4.png", np.dstack([image, image // 2, image]))
    for channels in ("rgb", "gray"):
        assert matching(findings(root, ("data.channels", channels)), "warning", "data.channels",
                        r"mixed \(9 gray, 1 RGB: images/s4.png\); all become " + channels)


def test_10_twelve_bits_in_sixteen(root):
    images(root, lambda image: image.astype(np.uint16) * 20, ".tif")
    high = max(int(tifffile.imread(path).max()) for path in (root / "images").iterdir())
    noted, = matching(findings(root), "note", "data.normalize", "16 bit images .10. have values")
    assert f"to {high}, " in noted.what and "as from 12 bit" in noted.what
    assert "data.normalize=minmax stretches" in noted.what
    warned, = matching(findings(root, ("data.normalize", "dtype")), "warning", "data.normalize",
                       "leaves almost no contrast; set config.data.normalize=percentile")
    images(root, lambda image: image * 16, ".tif")
    assert not matching(findings(root), "", "data.normalize", "16 bit")


def test_11_nan_and_12_constant(root):
    (root / "images/s1.png").unlink()
    save(root / "images/s1.tif", np.where(np.eye(*SIZE), np.nan, 1).astype(np.float32))
    save(root / "images/s2.png", np.full(SIZE, 7, np.uint8))
    found = findings(root)
    assert matching(found, "error", r"images/s1\.tif", "with 24 NaN and 0 infinite; replace them")
    assert any("s2" in f.what and "one value everywhere" in f.what for f in found)


def test_16_near_duplicates_across_the_split(root):
    for n in range(5):
        image = np.asarray(Image.open(root / f"images/s{n}.png"))
        save(root / f"images/s{n + 5}.png", np.uint8(image // 2 + 20))
    fixes = [("data.split", "(0.5, 0.2, 0.3)")]
    warned, = matching(findings(root, *fixes), "warning", "data.split", "near-duplicate")
    assert re.search("images/s[0-9].png", warned.what)


def test_too_many_images_are_not_compared(root, monkeypatch):
    monkeypatch.setattr(examine.duplicates, "MAX_IMAGES", 9)
    found = findings(root)
    assert matching(found, "note", "data.split", "were not looked for among more than 9 images")
    assert not matching(found, "", "", "near-duplicate pair")


def test_17_patients(root):
    for folder in ("images", "masks"):
        for n, path in enumerate(sorted((root / folder).iterdir())):
            path.rename(path.with_name(f"GT{n // 4}-400-{n:03d}.png"))
    noted, = matching(findings(root), "note", "data.group", "look like 3 cases .*GT0-400, GT1-400")
    fixed = config_of(root, *the_fix(noted.what))
    examination = examine.examine(fixed.data)
    assert {fact.group for fact in examination.facts} == {"GT0-400", "GT1-400", "GT2-400"}
    assert not matching(examination.findings, "", "data.group", "")


def test_18_stratum_with_too_few_images(monkeypatch):
    def records(count=12):
        kept = list(synthetic.records(count, (32, 32)))
        rare = kept[0]
        kept[0] = rare._replace(read=lambda: rare.read()._replace(stratum="Serrated adenoma"))
        return examine.data.Records(kept)

    # A name of its own: what options a dataset has is kept for the whole process.
    monkeypatch.setitem(examine.data.DATASETS, "rare", records)
    config = config_lib.default()
    config.data = dict(name="rare", size=(32, 32), split=(0.5, 0.25, 0.25))
    found = examine.examine(config_lib.complete(config).data).findings
    assert matching(found, "warning", "data.split", "'Serrated adenoma'")


def test_21_network_too_deep_for_its_images(root):
    warned, = matching(data_check.check(config_of(root, ("data.size", "(8, 12)"))).lines, "warning",
                       "data.size", "got 8x12; unet reduces it down to 1/8, which leaves 1x2")
    size = re.search("at least ([0-9]+)x", warned.what)[1]
    lines = data_check.check(config_of(root, ("data.size", f"({size}, {size})"))).lines
    assert not matching(lines, "warning", "data.size", "") and not matching(lines, "error", "", "")
    lines = data_check.check(config_of(root, ("data.size", "(18, 22)"))).lines  # 20
    assert matching(lines, "note", "data.size", "network pads to 24x24 and cuts back")


def test_crops_larger_than_the_images(root):
    save(root / "images/s1.png", cells(1, (64, 64))[0])
    save(root / "masks/s1.png", cells(1, (64, 64))[1])
    found = findings(root, ("data.size", "(48, 48)"), ("data.fit", "center_crop"))
    error, = matching(found, "error", "data.size", "larger than image images/s0.png of 24x32")
    assert "8 more of that size" in error.what
    assert "resize" in error.what
    assert not matching(findings(root, ("data.size", "(48, 48)")), "error", "", "")


def test_22_23_coco_annotations_arrive(tmp_path):
    stem, square = "A172_Phase_A7_1_00d00h00m_1", [2, 2, 8, 2, 8, 8, 2, 8]
    save(tmp_path / f"livecell_train_val_images/{stem.lower()}.tif", cells(0)[0])
    shapes = [(7, [square])] * 12 + [(7, [[1, 1, 2, 2]]), (99, [square])]
    (tmp_path / "livecell_coco_train.json").write_text(json.dumps(dict(
        images=[dict(id=7, file_name=f"{stem}.tif", height=SIZE[0], width=SIZE[1])],
        annotations=[dict(id=1170 + n, image_id=image, segmentation=shape)
                     for n, (image, shape) in enumerate(shapes)])))
    config = config_lib.default()
    config.data = dict(name="livecell", root=str(tmp_path), size=(32, 32), channels="gray",
                       split=(1.0, 0.0, 0.0))
    found = examine.examine(config_lib.complete(config).data).findings
    assert matching(found, "error", "train.json$", "1 annotations have an image_id without image")
    assert matching(found, "warning", f"{stem.lower()}.tif$", "annotation 1182: .* 1 skipped of 13")
    assert matching(found, "note", "", f"{stem}.tif not found; found {stem.lower()}.tif")


def test_24_25_pages(root):
    stack, label = np.stack([cells(20 + n) for n in range(3)], 1)
    for path in (*root.glob("*/s0.png"), *root.glob("*/s1.png")):
        path.unlink()
    save(root / "images/s0.tif", stack)
    save(root / "masks/s0.tif", label)
    error, = matching(findings(root), "error", r"images/s0\.tif", r"has 3 pages .*3 x 24 x 32")
    assert not matching(findings(root, the_fix(error.what)[0]), "error", "", "")
    save(root / "masks/s0.tif", label[0])
    assert not matching(findings(root, ("data.pages", "channels")), "error", "", "")


def test_26_turned_jpeg(root):
    image = Image.open(root / "images/s0.png")
    exif = Image.Exif()
    exif[274] = 6
    (root / "images/s0.png").unlink()
    image.save(root / "images/s0.jpg", exif=exif)
    assert matching(findings(root), "warning", r"images/s0\.jpg$", "orientation tag 6 is ignored")
    save(root / "masks/s0.png", np.asarray(Image.open(root / "masks/s0.png")).T)
    assert matching(findings(root), "error", r"masks/s0\.png$", "EXIF orientation 6 of the image")


def test_masks_of_one_object_may_be_binary(root):
    masks(root, lambda label: np.uint8(label > 0))
    warned, = matching(findings(root), "warning", "data.labels", "every mask holds one object")
    assert not matching(findings(root, *the_fix(warned.what)), "warning", "", "")


def test_objects_in_pieces_and_with_holes_are_noted(root):
    label = np.zeros(SIZE, np.uint8)
    label[2:9, 2:9], label[4:6, 4:6], label[20, 20] = 1, 0, 1
    save(root / "masks/s4.png", label)
    found = findings(root)
    assert matching(found, "note", "root", "1 objects in 1 images are in several pieces: images/s4")
    assert matching(found, "note", "root", "1 objects in 1 images have a hole: images/s4.png")
    assert not matching(findings(root, ("data.labels", "classes"), ("data.num_classes", "4")),
                        "", "", "pieces|hole")


def test_splits_and_batches_that_cannot_be(root):
    lines = data_check.check(config_of(root, ("train.batch_size", "9"))).lines
    assert matching(lines, "error", "train.batch_size", "got 9; expected 1 to 8, the number")
    crops = config_of(root, ("train.batch_size", "9"), ("data.fit", "random_crop"))
    lines = data_check.check(crops).lines
    assert matching(lines, "error", "train.batch_size", "expected 1 to 8, .* or data.windows=2")
    lines = data_check.check(config_lib.changed(crops, {"data.windows": 9, "eval.every": 1})).lines
    assert matching(lines, "note", "data.windows", "every 8 steps.*data.windows=57 makes")
    crops = config_lib.changed(crops, {"data.windows": 57, "eval.every": 1})
    assert not matching(data_check.check(crops).lines, "", "data.windows", "")
    copied = config_of(root, ("train.batch_size", "9"), ("data.copies", "1"),
                       ("augment.flip_vertical", "(0.5, 1.0)"))
    assert not matching(data_check.check(copied).lines, "error", "train.batch_size", "")
    lines = data_check.check(config_of(root, ("train.batch_size", "1"))).lines  # 28
    assert matching(lines, "warning", "train.batch_size", "batch normalisation")
    lines = data_check.check(config_of(root, ("data.group", "^(s)"))).lines
    assert matching(lines, "error", "data.split", "would be empty with 10 images in 1 groups")


@pytest.mark.parametrize("name, options, expected", [
    ("unet", dict(channels=(4, 8, 8, 8)), (8, True)), ("unet", dict(channels=(4, 8)), (2, True)),
    ("unetr", dict(hidden_size=8, num_heads=2, mlp_dim=8), (16, True)),
    ("simple_conv", {}, (1, False)),
    ("unet_classic", dict(channels=(4, 8), padding="valid"), (1, True))])
def test_of_network(name, options, expected):
    config = config_lib.default()
    config.model = dict(name=name, **options)
    assert data_check.stride_and_norm(config_lib.complete(config)) == expected


def test_models_that_cannot_be_built_and_methods_that_are_not_trained(root):
    lines = data_check.check(config_of(root, ("model.channels", "(4,)"))).lines
    assert matching(lines, "error", "config.model.channels", "expected at least two levels")
    config = config_of(root)
    config.unlock()
    config.model = dict(name="otsu")
    config.train.batch_size = 99
    lines = data_check.check(config_lib.complete(config)).lines
    assert not matching(lines, "error|warning", "", "")


def test_gather_joins_what_differs_in_numbers():
    make = lambda n: examine.Finding("error", f"d/{n}.png", f"mask has {n} values (0, {n}, ...)")
    line, other = gather([make(3), make(12), make(7)._replace(what="is empty")])
    assert str(line) == "d/3.png: mask has 3 values (0, 3, ...) [and 1 more like it: 12.png]"
    assert other.others == ()


def test_facts_equal_slow_reference(root):
    examination = examine.examine(config_of(root, ("data.split", "(0.6, 0.2, 0.2)")).data)
    assert {k: len(v) for k, v in examination.parts.items()} == {"train": 6, "val": 2, "test": 2}
    for n, fact in enumerate(examination.facts):
        image, label = cells(n)
        assert (fact.name, fact.size, fact.channels, fact.dtype) == (f"s{n}", SIZE, 1, "uint8")
        assert (fact.low, fact.high) == (image.min(), image.max())
        assert fact.num_objects == len(set(label[label > 0].tolist()))
        areas = [(label == i).sum() for i in range(1, label.max() + 1) if (label == i).any()]
        assert fact.diameter == pytest.approx(np.median(2 * np.sqrt(np.array(areas) / np.pi)))
        assert fact.pixels.tolist() == [(label == 0).sum(), (label > 0).sum()]
        assert not fact.coloured and fact.alpha == ""


@pytest.mark.parametrize("channel_index", ["0,2", "0,1,2,3,4"])
def test_chosen_channels_are_named_by_what_chose_them(tmp_path, channel_index):
    for n in range(6):
        image, label = cells(n)
        save(tmp_path / f"images/s{n}.tif", np.stack([image + c for c in range(5)]),
             metadata={"axes": "CYX"})
        save(tmp_path / f"masks/s{n}.png", label)
    config = config_of(tmp_path, ("data.channel_index", channel_index))
    rows = dict(report.facts(data_check.check(config)))
    assert rows["pixels"] == f"uint8 channels {channel_index} (6)"


def test_images_of_which_nothing_is_annotated_are_named_and_never_scored(root):
    for n in range(0, 10, 2):
        save(root / f"masks/s{n}.png", np.full(SIZE, 255, np.uint8))
    options = ("data.ignore", "255"), ("data.split", "(0.2, 0.4, 0.4)")
    examination = examine.examine(config_of(root, *options).data)
    assert matching(examination.findings, "note", "root", "nothing is annotated in 5 masks")
    for part in ("val", "test"):
        assert len(examination.parts[part]), part
        assert all(examination.facts[i].name in "s1 s3 s5 s7 s9" for i in examination.parts[part])


def test_preview_averages_whole_blocks():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 255, (1024, 600, 3), np.uint8), rng.integers(0, 9, (1024, 600))
    small, small_label = examine._preview(image, label)
    assert small.shape == (256, 150, 3) and small.dtype == np.uint8
    assert small[3, 4, 1] == int(image[12:16, 16:20, 1].mean())
    assert small_label[3, 4] == label[14, 18]
    long = np.zeros((2, 2000, 1), np.uint8)
    assert examine._preview(long, long[..., 0])[0].shape == (1, 250, 1)


def test_row_keeps_what_is_rare():
    assert np.bincount(examine._row(np.array([10**6, 0, 1]))).tolist() == [4095, 0, 1]
    assert np.bincount(examine._row(np.array([0, 5]))).tolist() == [0, 4096]
    assert np.bincount(examine._row(np.array([3, 1]))).tolist() == [3072, 1024]


@pytest.mark.parametrize("broken, code", [(False, 0), (True, 2)])
def test_command_prints_and_writes_everything(root, tmp_path, capsys, broken, code):
    config = tmp_path / "mine.py"
    config.write_text("""from cellseg_jax import config
def get_config():
    c = config.default()
    c.data = dict(name="folder", channels="gray", size=(64, 64))
    c.model = dict(name="unet", channels=(4, 8, 8))
    c.train.batch_size = 2
    return c
""")
    if broken:
        (root / "images/s3.png").write_bytes(b"\x89PNG")
    out = tmp_path / "page.html"
    words = ["doctor", f"--config={config}", f"--config.data.root={root}", f"--out={out}"]
    assert cli.run_command(doctor.main, doctor.define_flags, words) == code
    said = capsys.readouterr().out
    assert f"{9 if broken else 10} read" in said and "24x32" in said and str(out) in said
    assert ("images/s3.png: is truncated" in said) == broken
    page = out.read_text()
    assert ("s3.png" in page and "is truncated" in page) == broken
    pictures = 9 if broken else 11  # with the sheet of training samples
    assert page.count("data:image/png;base64") == pictures


def test_the_data_of_a_run_are_examined_by_its_own_config(root, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "page.html"
    run.mkdir()
    (run / "config.json").write_text(config_lib.to_json(config_of(root)))
    words = ["doctor", f"--workdir={run}", f"--out={out}"]
    assert cli.run_command(doctor.main, doctor.define_flags, words) == 0
    assert "10 read" in capsys.readouterr().out and out.exists()
    assert cli.run_command(doctor.main, doctor.define_flags, [*words, "--config=x.py"]) == 2
    assert "a run has its own config" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    ([], "--config: missing"),
    (["--config=configs/quickstart.py", "--out=/none/there.html"], "--out: cannot write to"),
    (["--config=configs/quickstart.py", "--config.optimizer.lr=1e-3,"], "optimizer.lr: .*comma"),
    (["--config=configs/quickstart.py", "--config.model.dropot=1"], "did you mean.*dropout"),
    (["--config=configs/quickstart.py", "--config.data.name=folder"], "config.data.root: not set")])
def test_command_refuses_in_one_line(capsys, monkeypatch, words, message):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    assert cli.run_command(doctor.main, doctor.define_flags, ["doctor", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1 and said.startswith("error: ")


@pytest.mark.parametrize("name, folder, options, warnings, notes", [
    ("dsb2018", "dsb2018/sample24/stage1_train", {}, [],
     ["2 pixels lie in several masks", "alpha is constant in all of them"]),
    ("dsb2018", "dsb2018/quirks/stage1_train", {}, [], ["all images are gray"]),
    ("isbi2012", "isbi2012", {}, [], ["has no labels: not read", "all images are gray"]),
    ("livecell", "livecell", {}, [],
     ["livecell_coco_train.json not found|not found; its images", "8 image files are in no annot",
      "10757 pixels .2.94%. belong to two or more cells"]),
    ("ebhi_seg", "ebhi-seg/sample24/EBHI-SEG", {"channels": "rgb"}, [],
     ["1 images without a label, as in every copy", "24 of 2,226 pairs"]),
    ("ctc", "ctc/DIC-C2DH-HeLa", {"block": 20}, ["only some cells are drawn in frame 067 .3 of 18"],
     ["9 of 38 tracks are in no frame", "nearly all cells are drawn in frame 034"]),
    ("ctc", "ctc/Fluo-N2DL-HeLa", {"block": 20}, ["only some cells are drawn in frame 078 .1 of"],
     ["3 objects in 1 images are in several pieces", "311 of 674 tracks", "nearly all cells .* 079",
      "from 33007 to 36863, 5.9% of the range"]),
    ("ctc", "ctc/PhC-C2DL-PSC", {"block": 20}, [], ["man_track.txt not found|not found: gold"]),
])
def test_real_data_has_the_quirks_it_is_known_for(real_data, name, folder, options, warnings,
                                                  notes):
    """All in one part: a sample of 24 images is too small for the strata of a split."""
    config = config_lib.default()
    config.data = dict(name=name, root=str(real_data / folder), split=(1.0, 0.0, 0.0), **options)
    found = examine.examine(config_lib.complete(config).data).findings
    assert not matching(found, "error", "", "")
    alarming = [f.what for f in found if f.level == "warning"]
    assert len(alarming) == len(warnings), alarming
    for level, patterns in (("warning", warnings), ("note", notes)):
        for pattern in patterns:
            assert matching(found, level, "", pattern), (pattern, found)


@pytest.mark.weekly
def test_a_thousand_pairs_take_seconds(tmp_path):
    """10 s on two quiet cores; the bound here is for busy ones."""
    for n, record in enumerate(synthetic.records(20, (256, 256))):
        sample = record.read()
        for copy in range(50):
            name = f"{copy:02d}_{n:02d}.png"
            save(tmp_path / "images" / name, np.roll(sample.image[..., :3], 37 * copy, (0, 1)))
            save(tmp_path / "masks" / name, np.uint8(np.roll(sample.label, 37 * copy, (0, 1))))
    config = config_of(tmp_path, ("data.channels", "rgb"))
    start = time.monotonic()
    examination = examine.examine(config.data)
    assert len(examination.facts) == 1000
    assert time.monotonic() - start < 40
