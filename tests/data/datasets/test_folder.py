import ast
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data.datasets import folder
from cellseg_jax.data.records import BadFiles
from cellseg_jax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array, photometric="minisblack")


@pytest.fixture
def root(tmp_path):
    for stem in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / f"images/{stem}.png", np.full((6, 8, 3), 7, np.uint8))
        save(tmp_path / f"masks/{stem}.tif", np.zeros((6, 8), np.uint8))
    (tmp_path / "images/.DS_Store").touch()
    return tmp_path


def with_mask(root, mask, name="p1_a.tif"):
    (root / "masks/p1_a.tif").unlink(missing_ok=True)
    save(root / "masks" / name, mask)
    return root


def mask_of(*values, dtype=np.uint8):
    mask = np.zeros((6, 8), dtype)
    mask.flat[: len(values)] = values
    return mask


def test_records_pair_by_stem_and_group_by_case(root):
    records = folder.records(root, group="^(p[0-9]+)_")
    assert [(r.name, r.group) for r in records] == [("p1_a", "p1"), ("p1_b", "p1"), ("p2_a", "p2")]
    assert [r.group for r in folder.records(root)] == ["p1_a", "p1_b", "p2_a"]
    assert records[0].read().image.shape == (6, 8, 3)
    assert records[0].read().label.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_instances_keep_ids(root, dtype):
    mask = mask_of(3, 3, 0, 120, dtype=dtype)
    np.testing.assert_array_equal(folder.records(with_mask(root, mask))[0].read().label, mask)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_instances_reject_binary_masks(root, dtype):
    high = np.iinfo(dtype).max
    with pytest.raises(InputError, match=f"p1_a.tif: holds only 0 and {high}: .*labels=binary"):
        folder.records(with_mask(root, mask_of(high, 0, high, dtype=dtype)))[0].read()
    label = folder.records(with_mask(root, mask_of(1, 0, 1)))[0].read().label
    assert np.unique(label).tolist() == [0, 1]  # one instance, or a binary mask: nothing to tell


def test_instances_reject_negative_ids(root):
    with pytest.raises(InputError, match="p1_a.tif: mask has values -1, 0; expected 0"):
        folder.records(with_mask(root, mask_of(-1, dtype=np.int16)))[0].read()


@pytest.mark.parametrize("mask", [
    mask_of(1, 0, 1), mask_of(255, 0, 255), mask_of(65535, 0, 65535, dtype=np.uint16),
    mask_of(1, 0, 1) > 0, mask_of(255, 0, 255)[..., None].repeat(3, -1)])
def test_binary_understands_usual_foregrounds(root, mask):
    root = with_mask(root, mask, "p1_a.png")
    label = folder.records(root, labels="binary")[0].read().label
    np.testing.assert_array_equal(label, mask_of(1, 0, 1))


def test_binary_accepts_all_background_and_all_foreground(root):
    for value in (0, 255):
        root = with_mask(root, np.full((6, 8), value, np.uint8))
        assert (folder.records(root, labels="binary")[0].read().label == bool(value)).all()


def test_binary_rejects_many_values(root):
    with pytest.raises(InputError, match=r"p1_a.tif: mask has 5 values \(0, 3, 90, .*smeared"):
        folder.records(with_mask(root, mask_of(3, 90, 254, 255)), labels="binary")[0].read()
    with pytest.raises(InputError, match="look like instance ids.*labels=instances"):
        folder.records(with_mask(root, mask_of(1, 2, 3, 4)), labels="binary")[0].read()
    with pytest.raises(InputError, match="has 1 values"):
        folder.records(with_mask(root, np.full((6, 8), 7, np.uint8)), labels="binary")[0].read()


def test_classes_keep_values_below_num_classes(root):
    root = with_mask(root, mask_of(1, 2, 2))
    label = folder.records(root, labels="classes", num_classes=3)[0].read().label
    np.testing.assert_array_equal(label, mask_of(1, 2, 2))
    with pytest.raises(InputError, match=r"p1_a.tif: mask has values 2, but num_classes is 2"):
        folder.records(root, labels="classes", num_classes=2)[0].read()
    with pytest.raises(InputError, match="Set config.data.num_classes=3$"):
        folder.records(root, labels="classes", num_classes=2)[0].read()
    with pytest.raises(InputError, match="values 97, .*export it again"):
        folder.records(with_mask(root, mask_of(1, 97)), labels="classes")[0].read()
    with pytest.raises(InputError, match="values 255.*labels=binary"):
        folder.records(with_mask(root, mask_of(255)), labels="classes")[0].read()


def test_palette_mask_gives_indices(root):
    mask = Image.fromarray(mask_of(1, 2))
    mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    (root / "masks/p1_a.tif").unlink()
    mask.save(root / "masks/p1_a.png")
    label = folder.records(root, labels="classes", num_classes=3)[0].read().label
    np.testing.assert_array_equal(label, mask_of(1, 2))


def test_records_reject_colour_and_hidden_masks(root):
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[0, 0, 1], mask[0, 1, 2] = 255, 255
    with pytest.raises(InputError, match="p1_a.png: mask is RGB with 3 colours; set config"):
        folder.records(with_mask(root, mask, "p1_a.png"))[0].read()
    hidden = np.zeros((6, 8, 4), np.uint8)
    hidden[0, 0, :3] = 255
    with pytest.raises(InputError, match="p1_a.png: alpha is 0"):
        folder.records(with_mask(root, hidden, "p1_a.png"))[0].read()


def test_records_reject_other_size(root):
    with pytest.raises(InputError, match="mask is 8x6, its image p1_a.png is 6x8; .*transposed"):
        folder.records(with_mask(root, np.zeros((8, 6), np.uint8)))[0].read()


def test_records_reject_lone_files(root):
    (root / "masks/p1_a.tif").unlink()
    with pytest.raises(InputError, match="images/p1_a.png: image without a mask of its name; add"):
        folder.records(root)
    save(root / "masks/p1_a_old.tif", np.zeros((6, 8), np.uint8))
    with pytest.raises(BadFiles, match="did you mean p1_a_old.; and 1 more: p1_a_old.tif") as bad:
        folder.records(root)
    assert [f.level for f in bad.value.findings] == ["error", "error"]
    assert "mask without an image" in bad.value.findings[1].what
    assert [record.name for record in bad.value.records] == ["p1_b", "p2_a"]


def test_records_pair_umlauts_however_they_are_written(root):
    save(root / "images/Zelle a\u0308.png", np.zeros((6, 8), np.uint8))  # as macOS does
    save(root / "masks/Zelle \u00e4.tif", np.zeros((6, 8), np.uint8))
    assert "Zelle \u00e4" in [record.name for record in folder.records(root)]


def test_records_name_all_ambiguous_and_foreign_files(root):
    save(root / "images/p1_a.tif", np.zeros((6, 8), np.uint8))
    (root / "masks/p1_b.tif").rename(root / "masks/p1_b.jpg")
    (root / "images/notes.txt").touch()
    with pytest.raises(BadFiles) as bad:
        folder.records(root)
    found = {f.where.rpartition("/")[2]: f.what for f in bad.value.findings}
    assert "ambiguous, p1_a.png has the same stem; keep one" in found["p1_a.tif"]
    assert "JPEG changes the values of a mask" in found["p1_b.jpg"]
    assert "expected only .png, .tif" in found["notes.txt"]
    assert "image without a mask" in found["p1_b.png"]


def test_binary_threshold_cuts_smeared_edges(root):
    root = with_mask(root, mask_of(255, 250, 3, 90, 127, 128, 255, 255, 255))
    label = folder.records(root, labels="binary", threshold=127)[0].read().label
    np.testing.assert_array_equal(label, mask_of(1, 1, 0, 0, 0, 1, 1, 1, 1))
    for labels in ("instances", "binary", "classes"):
        with pytest.raises(InputError, match="smeared.*labels=binary config.data.threshold=127"):
            folder.records(root, labels=labels)[0].read()
    with pytest.raises(InputError, match="config.data.threshold: got 9 with labels=classes"):
        folder.records(root, labels="classes", threshold=9)


@pytest.mark.parametrize("count", [40, 210, 255])
def test_instances_of_many_cells_do_not_look_smeared(root, count):
    ids = np.arange(1, count + 1, dtype=np.uint8).repeat(4).reshape(-1, 4)
    save(root / "images/p1_a.png", np.zeros((*ids.shape, 3), np.uint8))
    label = folder.records(with_mask(root, ids))[0].read().label
    np.testing.assert_array_equal(label, ids)
    with pytest.raises(InputError, match="look like instance ids: set config.data.labels=instan"):
        folder.records(root, labels="classes")[0].read()


@pytest.mark.parametrize("last", [101, 400])
def test_instance_ids_with_gaps_are_recognised(root, last):
    root = with_mask(root, mask_of(7, 90, last, dtype=np.uint16))
    with pytest.raises(InputError, match=f"values 7, 90, {last}, but.* look like instance ids"):
        folder.records(root, labels="classes")[0].read()


def test_colours_become_values_and_the_hint_works(root):
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[0, :4] = 255, 0, 0
    mask[1, :2] = 0, 0, 254
    root = with_mask(root, mask, "p1_a.png")
    with pytest.raises(InputError) as error:
        folder.records(root, labels="classes", num_classes=3)[0].read()
    colours = ast.literal_eval(re.search(r'colours="(\(.*\))"', str(error.value))[1])
    assert colours == ("000000", "ff0000", "0000fe")
    expected = mask_of(*[1] * 4, *[0] * 4, 2, 2)
    read = lambda **options: folder.records(root, colours=colours, **options)[0].read().label
    np.testing.assert_array_equal(read(labels="classes", num_classes=3), expected)
    np.testing.assert_array_equal(read(labels="binary", threshold=1), expected == 2)
    np.testing.assert_array_equal(read(), expected)

    palette = Image.fromarray(mask).quantize(3)
    palette.save(root / "masks/p1_a.png")
    np.testing.assert_array_equal(read(), expected)
    opaque = np.dstack([mask, np.full((6, 8), 255, np.uint8)])
    opaque[0, 0, 3] = 0
    save(root / "masks/p1_a.png", opaque)
    assert read()[0, :2].tolist() == [0, 1]

    with pytest.raises(InputError, match=r"p1_a.png: mask has colours 0000fe \(2 pixels\) that"):
        folder.records(root, colours=("000000", "#FF0000"))[0].read()
    with pytest.raises(InputError, match="config.data.colours: got 'red'; expected six"):
        folder.records(root, colours=("000000", "red"))
    save(root / "masks/p1_a.png", np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    with pytest.raises(InputError, match="mask is RGB with 48 colours; expected one value per"):
        folder.records(root)[0].read()


def test_pages_are_slices_or_channels(tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 9, (2, 3, 6, 8), dtype=np.uint8)
    save(tmp_path / "images/b_1.tif", images)
    save(tmp_path / "masks/b_1.tif", masks)
    save(tmp_path / "images/a.tif", images[0])
    save(tmp_path / "masks/a.tif", masks[0])
    with pytest.raises(InputError, match="b_1.tif: has 3 pages .*config.data.z=slices"):
        folder.records(tmp_path)[1].read()
    found = folder.records(tmp_path, pages="slices")
    assert [r.name for r in found] == ["a", "b_1_0000", "b_1_0001", "b_1_0002"]
    assert [r.group for r in found] == ["a", "b_1", "b_1", "b_1"]
    for record, image, mask in zip(found, images[[0, 0, 1, 2]], masks[[0, 0, 1, 2]], strict=True):
        sample = record.read()
        np.testing.assert_array_equal(sample.image[..., 0], image)
        np.testing.assert_array_equal(sample.label, mask)

    save(tmp_path / "masks/b_1.tif", masks[0])
    with pytest.raises(InputError, match="masks/b_1.tif: mask has 1 pages, its image b_1.tif"):
        folder.records(tmp_path, pages="slices")
    sample = folder.records(tmp_path, pages="channels")[1].read()
    np.testing.assert_array_equal(sample.image, np.moveaxis(images, 0, -1))
    np.testing.assert_array_equal(sample.label, masks[0])
    with pytest.raises(InputError, match="config.data.pages: got 'slice'.*did you mean slices"):
        folder.records(tmp_path, pages="slice")


def test_jpeg_images_are_read_as_stored_with_a_warning(root):
    (root / "images/p1_a.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 6)).save(root / "images/p1_a.jpg", exif=exif)
    sample = folder.records(root)[0].read()
    assert sample.image.shape == (6, 8, 3)
    finding, = sample.findings
    assert finding.level == "warning" and finding.where.endswith("images/p1_a.jpg")
    assert "orientation tag 6 is ignored" in finding.what and "mogrify" in finding.what
    assert folder.records(root)[1].read().findings == ()


def test_records_reject_wrong_options_and_roots(tmp_path, root):
    with pytest.raises(InputError, match="config.data.labels: got 'instance'.*mean instances"):
        folder.records(root, labels="instance")
    with pytest.raises(InputError, match="config.data.group: .* has 0 groups"):
        folder.records(root, group="p")
    with pytest.raises(InputError, match="config.data.group: .* does not match the image name"):
        folder.records(root, group="(x)")
    with pytest.raises(InputError, match="config.data.group: .* is no regular expression"):
        folder.records(root, group="(")
    with pytest.raises(InputError, match="config.data.root: not set"):
        folder.records("")
    said = f"is itself the folder of images.*--config.data.root='{root}'"
    with pytest.raises(InputError, match=said):
        folder.records(root / "images")
    with pytest.raises(InputError, match="no folder images/ .*masks' holds .* Expected DIR"):
        folder.records(root / "masks")


def test_a_value_that_is_not_annotated_is_left_out_before_the_mask_is_judged(root):
    mask = mask_of(0, 255, 255, 1, 2, 255)
    label = folder.records(with_mask(root, mask), ignore="255")[0].read().label
    assert label.flat[:6].tolist() == [0, -1, -1, 1, 2, -1] and label.dtype == np.int32
    mask = mask_of(0, 255, 128)
    label = folder.records(with_mask(root, mask), labels="binary", ignore="128")[0].read().label
    assert label.flat[:3].tolist() == [0, 1, -1]


def test_names_of_classes_choose_nothing_in_masks_of_ids(root):
    (record, *_) = folder.records(root, classes=("tumour",))
    with pytest.raises(InputError, match="p1_a.tif: holds values of pixels.*config.data.classes"):
        record.read()
    names = folder.records(root, classes=("tumour",), labels="classes")
    assert names[0].read().label.shape == (6, 8)
    (record, *_) = folder.records(root, ignore="class:Ignore*")
    with pytest.raises(InputError, match="p1_a.tif: holds values of pixels; set config.data.ignor"):
        record.read()


@pytest.mark.parametrize("chosen", [{"annotations": "coco"}, {"mask_suffix": "_x"}])
def test_masks_that_the_config_leaves_out_are_not_called_missing_alone(root, chosen):
    (key, value), = chosen.items()
    with pytest.raises(BadFiles, match=f"without a mask .*only those of config.data.{key}={value}"):
        folder.records(root, **chosen)


def test_a_file_beside_the_mask_marks_what_is_not_annotated(root):
    with_mask(root, mask_of(3, 4, 5))
    save(root / "masks/p1_a_ignore.png", mask_of(0, 255, 0, 1))
    with pytest.raises(BadFiles, match="p1_a_ignore.png: mask without an image"):
        folder.records(root)
    records = folder.records(root, ignore="suffix:_ignore")
    assert [len(record.files) for record in records] == [3, 2, 2]
    assert records[0].read().label.flat[:4].tolist() == [3, -1, 5, -1]
    assert records[1].read().label.min() == 0
    with pytest.raises(InputError, match="config.data.ignore: got 'white'; expected a value"):
        folder.records(root, ignore="white")


def test_ids_beside_255_are_not_called_smeared(root):
    mask = np.full((6, 8), 255, np.uint8)
    mask[:3, :4], mask[3:, :2] = 1, 2
    assert set(np.unique(folder.records(with_mask(root, mask))[0].read().label)) == {1, 2, 255}


def test_colour_tables_are_display_and_a_warning_names_the_file(root):
    index = np.arange(48, dtype=np.uint8).reshape(6, 8)
    image = Image.fromarray(index)
    image.putpalette([value for n in range(256) for value in (0, n, 0)])
    image.save(root / "images/p1_a.png")
    sample = folder.records(root, channels="gray")[0].read()
    np.testing.assert_array_equal(sample.image[..., 0], index)
    assert sample.findings == ()
    sample = folder.records(root)[0].read()
    np.testing.assert_array_equal(sample.image[..., 1], index)
    finding, = sample.findings
    assert finding.level == "warning" and finding.where.endswith("images/p1_a.png")
    assert "colour table" in finding.what and "config.data.channels=gray" in finding.what


def test_planes_of_a_stack_are_projected_and_the_mask_is_one_plane(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (3, 2, 6, 8)).astype(np.uint8)
    mask = rng.integers(0, 3, (6, 8)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images/a.tif", pixels, imagej=True, metadata={"axes": "ZCYX"})
    save(tmp_path / "masks/a.tif", mask)
    [record] = folder.records(tmp_path, z="max", channel_index="1")
    sample = record.read()
    np.testing.assert_array_equal(sample.image[..., 0], pixels[:, 1].max(0))
    np.testing.assert_array_equal(sample.label, mask)
    with pytest.raises(InputError, match="masks/a.tif: mask has 1 pages, its image a.tif gives 3"):
        folder.records(tmp_path, z="slices", channel_index="1")
    with pytest.raises(InputError, match="a.tif: has no plane 3 along Z"):
        folder.records(tmp_path, z="3", channel_index="1")
    save(tmp_path / "masks/a.tif", np.stack([mask, mask + 1, mask]))
    found = folder.records(tmp_path, z="slices", channel_index="0")
    assert [record.name for record in found] == ["a_0000", "a_0001", "a_0002"]
    np.testing.assert_array_equal(found[1].read().image[..., 0], pixels[1, 0])
    np.testing.assert_array_equal(found[1].read().label, mask + 1)
    [record] = folder.records(tmp_path, z="1", channel_index="0")  # of the mask too
    np.testing.assert_array_equal(record.read().label, mask + 1)
