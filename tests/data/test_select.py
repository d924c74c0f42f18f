"""Images chosen by size, and background-only images beside those of a dataset."""

import dataclasses

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from helpers import data_config, tiny_config
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.data import select
from cellseg_jax.data.datasets import folder as folders
from cellseg_jax.data.order import order_of
from cellseg_jax.data.quality.checks import of_samples
from cellseg_jax.data.read import image_size
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "a.tif", "pages.tif"])
def test_image_size_is_that_of_the_decoded_image(tmp_path, name):
    image = np.arange(12 * 7, dtype=np.uint8).reshape(12, 7)
    if name == "pages.tif":
        tifffile.imwrite(tmp_path / name, np.stack([image] * 3), photometric="minisblack")
    else:
        iio.imwrite(tmp_path / name, image)
    assert image_size(tmp_path / name) == (12, 7)


def test_image_size_names_a_damaged_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="a.png: cannot be decoded"):
        image_size(tmp_path / "a.png")


def test_only_size_reads_the_images_of_that_size_alone(tmp_path):
    """Of images of two sizes in one folder, smaller ones would not even fit the crop."""
    for count, size, folder in ((5, (40, 48), "small"), (3, (64, 72), "large")):
        twins.write("dsb2018", tmp_path / folder, count=count, size=size)
    root = tmp_path / "both" / "stage1_train"
    root.mkdir(parents=True)
    sizes = {}
    for folder in ("small", "large"):
        for image in list((tmp_path / folder).glob("stage1_train/*/images/*.png")):
            sizes[folder + image.stem] = iio.imread(image).shape[:2]
            name = folder + image.stem
            image.parent.parent.rename(root / name)
            (root / name / "images" / image.name).rename(root / name / "images" / f"{name}.png")
    wanted = next(size for size in sizes.values() if size[0] >= 64)
    expected = sorted(name for name, size in sizes.items() if size == wanted)
    assert 0 < len(expected) < len(sizes)
    config = config_lib.default().data.to_dict() | dict(
        name="dsb2018", root=str(root), cache=str(tmp_path / "cache"), size=(64, 64),
        fit="center_crop", only_size=wanted)
    arrays = data.load(config)
    assert list(arrays.image_names) == expected
    with pytest.raises(InputError, match="config.data.size: 64x64 is larger than image small"):
        data.load(config | {"only_size": ()})
    with pytest.raises(InputError, match=r"only_size: got \(9, 9\), but no image has that size; "
                                         r"there are .*\(. images\)"):
        data.load(config | {"only_size": (9, 9)})


def test_planes_of_a_file_have_sizes_of_their_own(tmp_path):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        with tifffile.TiffWriter(tmp_path / place / "x.tif") as file:
            for size in ((64, 64), (32, 48)):
                file.write(np.eye(*size, dtype=np.uint8), metadata=None)
    found = folders.records(tmp_path, labels="binary", z="slices")
    for size in ((64, 64), (32, 48)):
        one, = select.of_size(found, size)
        assert one.read().image.shape[:2] == size


def test_two_folders_that_are_mixed_in_keep_their_names_apart(tmp_path):
    for place in ("a", "b"):
        for kind in ("images", "masks"):
            (tmp_path / place / kind).mkdir(parents=True)
            Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / place / kind / "k.png")
    config = data_config(name="folder", root=str(tmp_path / "a"), cache=str(tmp_path),
                         **data.options("folder"),
                         mix=(f"folder:{tmp_path / 'a'}", f"folder:{tmp_path / 'b'}"))
    names = [record.name for record in data.records_of(config)]
    assert names == ["k", "mixed/folder/k", "mixed/folder_2/k"]


def test_blank_images_are_background_and_for_training_alone(tmp_path):
    config = data_config(cache=str(tmp_path), grid=2, channels="gray")
    plain, more = (data.load(config | {"blank_images": n}) for n in (0, 2))
    count = len(plain.image_names)
    assert more.image_names[:count] == plain.image_names
    assert len(more.image_names) == count + 2 and more.fingerprint != plain.fingerprint
    assert not more.image[4 * count :].any() and not more.label[4 * count :].any()
    before, after = data.split_of(config, plain), data.split_of(config, more)
    assert after["train"].tolist() == [*before["train"], *range(4 * count, 4 * count + 8)]
    for part in ("val", "test"):
        assert after[part].tolist() == before[part].tolist()
    assert not any("one value everywhere" in finding.what for finding in of_samples(more))


@pytest.mark.slow
@pytest.mark.parametrize(("mix_copies", "blank_images"), [(True, 0), (False, 0), (True, 1)])
def test_images_without_copies_are_drawn_once_an_epoch(tmp_path, mix_copies, blank_images):
    config = tiny_config(
        data__cache=str(tmp_path), data__count=6, data__copies=2, data__mix=("synthetic:",),
        data__mix_copies=mix_copies, data__blank_images=blank_images, train__batch_size=1)
    arrays = data.load(config.data)
    order = order_of(config, arrays, data.split_of(config.data, arrays)["train"])
    drawn = [order.rows(step) for step in range(order.steps_per_epoch)]
    copies = {}
    for rows in drawn:
        copies.setdefault(arrays.names[rows["id"][0]], set()).add(int(rows["copy"][0]))
    for name, found in copies.items():
        mixed, blank = name.startswith("mixed/synthetic"), name.startswith("mixed/blank")
        assert found == ({0} if blank or (mixed and not mix_copies) else {0, 1, 2}), name
    assert sum(name.startswith("mixed/blank") for name in copies) == blank_images
    assert len(drawn) == sum(map(len, copies.values()))  # each variant once


@pytest.mark.parametrize(("key", "value"), [
    ("data.only_size", (3,)), ("data.only_size", (0, 3)), ("data.mix_copies", False),
    ("data.blank_images", -1)])
def test_rules_of_the_choice(key, value):
    with pytest.raises(InputError, match=f"config.{key}: got"):
        config_lib.changed(config_lib.default(), {key: value})


@pytest.mark.parametrize("mix, message", [
    ("bbbc039", r"config.data.mix: got 'bbbc039'; expected its folder too, as \('bbbc039:DIR',\)"),
    ("bbbc039:nowhere", "config.data.mix: bbbc039: folder 'nowhere' does not exist; pass "
                        "--config.data.mix="),
    ("ctc:nowhere", "config.data.mix: ctc: folder 'nowhere'"),
])
def test_what_is_mixed_in_is_named_by_its_own_key(mix, message):
    with pytest.raises(InputError, match=message):
        data.records_of(tiny_config(data__mix=(mix,)).data)


def test_a_seed_of_drawn_cells_is_not_negative():
    with pytest.raises(InputError, match="config.data.seed: got -1; expected at least 0"):
        data.records_of(tiny_config(data__seed=-1).data)


def test_strata_narrow_the_parts_of_the_same_split():
    strata = ("bright", "dark") * 20
    arrays = data.load(tiny_config().data)
    arrays = dataclasses.replace(arrays, image_strata=strata)
    config = tiny_config().data.to_dict()
    whole = data.split_of(config, arrays)
    dark = data.split_of(config | {"strata": ("dark",)}, arrays)
    for part, rows in whole.items():
        assert 0 < len(dark[part]) < len(rows)
        np.testing.assert_array_equal(dark[part], [i for i in rows if strata[i] == "dark"])
    with pytest.raises(InputError, match="config.data.strata: got 'red', but .* bright, dark"):
        data.split_of(config | {"strata": ("red",)}, arrays)
    with pytest.raises(InputError, match="got 'red', but the images have no strata"):
        data.split_of(config | {"strata": ("red",)},
                      dataclasses.replace(arrays, image_strata=("",) * 40))
