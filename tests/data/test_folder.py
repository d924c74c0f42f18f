import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax.data import folder
from cellseg_jax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array)


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
    with pytest.raises(InputError, match=r"p1_a.tif: mask has 5 values \(0, 3, 90, .*nearest"):
        folder.records(with_mask(root, mask_of(3, 90, 254, 255)), labels="binary")[0].read()
    with pytest.raises(InputError, match='look like instance ids.*labels="instances"'):
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
    with pytest.raises(InputError, match="values 97, .*re-export"):
        folder.records(with_mask(root, mask_of(1, 97)), labels="classes")[0].read()
    with pytest.raises(InputError, match='values 255.*labels="binary"'):
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
    with pytest.raises(InputError, match="p1_a.png: mask is RGB with 3 colours"):
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
    with pytest.raises(InputError, match="has images without a mask: p1_a; a mask has"):
        folder.records(root)
    save(root / "masks/p1_a_mask.tif", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match="a mask: p1_a; masks without an image: p1_a_mask; a mask"):
        folder.records(root)
    (root / "images/p1_a.png").unlink()
    (root / "masks/p1_a_mask.tif").unlink()
    (root / "images/p2_a.png").unlink()
    with pytest.raises(InputError, match="has masks without an image: p2_a; a mask has"):
        folder.records(root)


def test_records_pair_umlauts_however_they_are_written(root):
    save(root / "images/Zelle a\u0308.png", np.zeros((6, 8), np.uint8))  # as macOS does
    save(root / "masks/Zelle \u00e4.tif", np.zeros((6, 8), np.uint8))
    assert "Zelle \u00e4" in [record.name for record in folder.records(root)]


def test_records_reject_ambiguous_and_foreign_files(root):
    save(root / "images/p1_a.tif", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match="p1_a.tif: ambiguous, p1_a.png has the same stem"):
        folder.records(root)
    (root / "images/p1_a.tif").rename(root / "images/p1_a.jpg")
    with pytest.raises(InputError, match="p1_a.jpg: expected only .png.*convert to PNG: JPEG"):
        folder.records(root)


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
    with pytest.raises(InputError, match="is itself the folder of images.*--config.data.root='{root}'".format(
            root=root)):
        folder.records(root / "images")
    with pytest.raises(InputError, match="folder '.*masks/images' does not exist. Expected DIR"):
        folder.records(root / "masks")
