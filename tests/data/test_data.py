import dataclasses
import json
import os
import shutil
import types

import imageio.v3 as iio
import numpy as np
import pytest
from helpers import data_config

from cellseg_jax import crops, data
from cellseg_jax.data import dependencies, split
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError


@pytest.fixture
def config(tmp_path):
    return data_config(size=(32, 48), channels="rgb", cache=str(tmp_path), image_size=(40, 50),
                       split=(0.5, 0.25, 0.25))


def test_options_are_keywords_without_root():
    assert data.options("folder")["labels"] == "instances"
    assert data.options("synthetic")["looks"] == ("fluorescence", "stained")
    for name in data.DATASETS:  # options become keys of config.data, beside the shared ones
        shared = set(data_config()) - {"count", "image_size", "num_classes"}
        shared -= {"channels", "channel_index", "z"}  # shared ones that reading depends on
        assert not shared & set(data.options(name)), name
        assert not any(isinstance(value, list) for value in data.options(name).values())


def test_load_and_split_synthetic(config):
    arrays = data.load(config)
    assert arrays.image.shape == (12, 32, 48, 3)
    assert arrays.original_label(0).shape == (40, 50)
    assert set(arrays.strata) == {"fluorescence", "stained"}
    parts = data.split_of(config, arrays)
    assert [len(part) for part in parts.values()] == [6, 3, 3]
    assert data.load(config | {"looks": ["stained"]}).strata == ("stained",) * 12
    assert data.load(config | {"seed": 1}).fingerprint != arrays.fingerprint


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_split_by_image_parts_cases_and_one_by_group_does_not(config, fraction):
    cases = [f"case {n // 4}" for n in range(40)]
    arrays = types.SimpleNamespace(
        image_names=[f"{n:02}" for n in range(40)], image_groups=cases,
        image_strata=["all"] * 40, image_parts=[""] * 40, grid=1)
    parts_of = lambda by: data.split_of(config | {"split_by": by, "train_fraction": fraction},
                                        arrays)
    torn = lambda parts: len({cases[i] for i in parts["train"]} & {cases[i] for i in parts["test"]})
    group, image = parts_of("group"), parts_of("image")
    assert torn(group) == 0 and torn(image) > 3
    assert [len(part) for part in image.values()] == [20 * fraction, 10, 10]
    again = split.split(arrays.image_names, arrays.image_strata, fractions=config["split"],
                        seed=config["split_seed"])
    assert image["test"].tolist() == again["test"].tolist()


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("how", [(0.4, 0.3, 0.3), "fold:1/3:test=0.2"])
def test_images_without_an_annotated_pixel_are_not_scored(config, grid, how):
    label = np.zeros((40 * grid**2, 4, 4), np.int16)
    label[:, :2] = 1
    image = np.arange(len(label)) // grid**2
    label[image % 3 == 0] = -1
    label[:: grid**2, 0] = 0  # a row of the first patch is annotated background
    label[image % 6 == 0] = -1
    bare = np.arange(40) % 6 == 0
    arrays = types.SimpleNamespace(
        image_names=[f"{n:02}" for n in range(40)], image_groups=[f"{n}" for n in range(40)],
        image_strata=["all"] * 40, image_parts=[""] * 40, grid=grid, label=label,
        foreground=(label > 0).mean((1, 2)))
    whole = config | {"split": how, "ignore": ""}
    known = whole | {"ignore": "255"}
    before, after = (data.split_of(one, arrays) for one in (whole, known))
    assert any(bare[before[part] // grid**2].any() for part in ("val", "test"))
    for part in ("val", "test"):
        kept = before[part][~bare[before[part] // grid**2]]
        assert after[part].tolist() == kept.tolist()
    assert after["train"].tolist() == before["train"].tolist()
    if how == "fold:1/3:test=0.2":
        outer = data.outer_test_images(whole, arrays)
        assert bare[outer].any()
        assert data.outer_test_images(known, arrays).tolist() == outer[~bare[outer]].tolist()
    label[:], arrays.foreground[:] = -1, 0
    with pytest.raises(InputError, match="config.data.split: got .* none has an annotated pixel"):
        data.split_of(known, arrays)


def test_patches_follow_their_image(config):
    whole, cut = data.load(config), data.load(config | {"grid": 4})
    assert cut.image.shape == (12 * 16, 8, 12, 3) and cut.original_label(3).shape == (40, 50)
    np.testing.assert_array_equal(cut.image[5 * 16 + 6], whole.image[5, 16:24, 12:24])
    np.testing.assert_array_equal(crops.from_grid(cut.label[16:32]), whole.label[1])
    assert cut.names[16 + 6] == f"{whole.names[1]}/1_2"
    parts, images = data.split_of(config | {"grid": 4}, cut), data.split_of(config, whole)
    for name, samples in parts.items():
        assert samples.reshape(-1, 16)[:, 0].tolist() == (images[name] * 16).tolist()
    kept = data.split_of(config | {"grid": 4, "keep_blank": False}, cut)
    blank = set(parts["train"]) - set(kept["train"])
    assert blank and not any(cut.label[i].any() for i in blank)
    assert all(cut.label[i].any() for i in kept["train"])
    assert kept["val"].tolist() == parts["val"].tolist()
    with pytest.raises(InputError, match="config.data.grid: got 5; expected a divisor of .* 32x48"):
        data.load(config | {"grid": 5})


def test_what_holds_cells_beside_the_middle_of_windows_is_no_blank(config):
    """Validation sees the middle of an image; training cuts windows anywhere."""
    config |= {"size": (32, 32), "image_size": (160, 160), "fit": "random_crop", "seed": 3,
               "blank_images": 1, "channels": "gray"}
    arrays = data.load(config)
    assert (arrays.foreground[:12] == 0).any()  # nothing in the middle
    parts, kept = (data.split_of(config | {"keep_blank": keep}, arrays)["train"].tolist()
                   for keep in (True, False))
    assert kept == parts[:-1] and parts[-1] == 12  # only the blank image is left out
    np.testing.assert_array_equal(
        arrays.holds_cells, [arrays.uncut("label", i).any() for i in range(13)])


def test_mixed_in_datasets_are_for_training(config, tmp_path):
    for kind, value in (("images", 90), ("masks", 1)):
        (tmp_path / "more" / kind).mkdir(parents=True)
        for name in "ab":
            pixels = np.full((30, 30), value, np.uint8)
            pixels[:9] = 0
            iio.imwrite(tmp_path / "more" / kind / f"{name}.png", pixels)
    config |= {"mix": (f"folder:{tmp_path / 'more'}",)}
    arrays = data.load(config)
    assert arrays.names[12:] == ("mixed/folder/a", "mixed/folder/b")
    parts = data.split_of(config, arrays)
    assert [len(part) for part in parts.values()] == [8, 3, 3]
    assert {12, 13} <= set(parts["train"].tolist())
    with pytest.raises(InputError, match="config.data.mix: got 'folders'.*mean folder"):
        data.load(config | {"mix": ("folders:x",)})


def test_split_of_a_file_repeats_another_runs_split(config, tmp_path):
    arrays = data.load(config)
    parts = data.split_of(config | {"split_seed": 5}, arrays)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({k: [arrays.names[i] for i in v] for k, v in parts.items()}))
    again = data.split_of(config | {"split": str(file)}, arrays)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in parts.items()}
    with pytest.raises(InputError, match="config.data.split: 'official'"):
        data.split_of(config | {"split": "official"}, arrays)


def test_train_fraction_takes_training_images_alone(config, tmp_path):
    arrays = data.load(config | {"grid": 4})
    config |= {"grid": 4}
    whole = data.split_of(config, arrays)
    (tmp_path / "split.json").write_text(json.dumps({
        k: sorted({arrays.image_names[i // 16] for i in v}) for k, v in whole.items()}))
    arrays = dataclasses.replace(arrays, image_parts=tuple(
        next(k for k, v in whole.items() if 16 * i in v) for i in range(12)))
    for how in (config["split"], "official", str(tmp_path / "split.json")):
        some = data.split_of(config | {"split": how, "train_fraction": 0.5}, arrays)
        assert set(some["train"]) < set(whole["train"])
        assert (some["train"].reshape(3, 16) % 16 == np.arange(16)).all()  # three whole images
        for part in ("val", "test"):
            assert some[part].tolist() == whole[part].tolist()
    with pytest.raises(InputError, match="train_fraction: got 0.01, which leaves none of 6 "):
        data.split_of(config | {"train_fraction": 0.01}, arrays)


def test_load_uses_the_users_cache_folder(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data.load(config | {"cache": ""})
    assert list((tmp_path / "home/cellseg_jax").glob("*/image.npy"))


def test_load_rejects_unknown_dataset_and_missing_root(config):
    with pytest.raises(InputError, match="config.data.name: got 'dsb2016'.*mean dsb2018"):
        data.load(config | {"name": "dsb2016"})
    with pytest.raises(InputError, match="config.data.root: not set; pass --config.data.root=DIR"):
        data.load(config | {"name": "dsb2018"})


def test_load_real_images(config, real_data):
    config |= {"name": "dsb2018", "root": str(real_data / "dsb2018/sample24/stage1_train")}
    arrays = data.load(config | {"channels": "rgba"})
    assert arrays.image.shape == (24, 32, 48, 4)
    assert (arrays.range("minmax_joint")[..., 1] == 255).all()  # opaque alpha hides the range
    assert (arrays.range("minmax")[:, 0, 1] < 255).any()
    parts = data.split_of(config, arrays)
    kinds = [{arrays.strata[i] for i in part} for part in parts.values()]
    assert kinds[0] == set(arrays.strata)
    original = [len(np.unique(arrays.original_label(i))) - 1 for i in range(24)]
    assert sum(original) == 580


def test_whole_images_are_put_together_from_patches(config):
    whole, cut = data.load(config), data.load(config | {"grid": 4})
    assert len(cut.whole_images()) == 12
    for i in (0, 7):
        np.testing.assert_array_equal(cut.whole_images()[i], whole.image[i])


def write_images(root, names="abcdefghi", value=90):
    for kind, bright in (("images", value), ("masks", 1)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            pixels = np.full((30, 30), bright, np.uint8)
            pixels[: 9 + ord(name) % 7] = 0
            iio.imwrite(root / kind / f"{name}.png", pixels)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """(config of a folder of images, the list to which every listing of it adds its root)."""
    write_images(tmp_path / "own")
    listed, records = [], data.DATASETS["folder"]

    def counted(root, labels="binary"):
        listed.append(root)
        return records(root, labels=labels)

    monkeypatch.setitem(data.DATASETS, "folder", counted)
    root = str(tmp_path / "own")
    return data_config(name="folder", root=root, labels="binary", size=(32, 48),
                       cache=str(tmp_path / "cache")), listed


def test_load_lists_an_unchanged_dataset_once(own, tmp_path):
    config, listed = own
    arrays = data.load(config)
    assert data.load(config) is arrays and data.load(config | {"eval": 1}) is arrays
    assert len(listed) == 1
    other = data.load(config | {"size": (16, 16)})
    assert other.image.shape[1:3] == (16, 16) and data.load(config) is arrays
    assert len(listed) == 2


@pytest.mark.parametrize("change", ["rewritten", "added", "removed", "replaced", "cache"])
def test_load_sees_what_changed_between_two_calls(own, tmp_path, change):
    config, listed = own
    before = data.load(config)
    if change == "rewritten":
        write_images(tmp_path / "own", "c", value=70)
    elif change == "added":
        write_images(tmp_path / "own", "z")
    elif change == "removed":
        for kind in ("images", "masks"):
            (tmp_path / "own" / kind / "b.png").unlink()
    elif change == "replaced":  # of equal size and time
        file = tmp_path / "own/images/c.png"
        os.rename(file, tmp_path / "aside")
        shutil.copy2(tmp_path / "aside", file)
    else:
        shutil.rmtree(tmp_path / "cache")
    after = data.load(config)
    assert after is not before and len(listed) == 2
    same = change in ("replaced", "cache")
    assert (after.fingerprint == before.fingerprint) == same
    assert after.num_samples == {"added": 10, "removed": 8}.get(change, 9)
    if change == "rewritten":
        assert after.image[..., 0].max() == 90 and after.image[2, ..., 0].max() == 70
    assert data.load(config) is after


def test_load_keeps_few_datasets_open(own):
    config, listed = own
    loaded = [data.load(config | {"size": (16, 16 + n)}) for n in range(data.MAX_LOADED + 1)]
    assert data.load(config | {"size": (16, 17)}) is loaded[1]
    assert data.load(config | {"size": (16, 16)}) is not loaded[0]
    assert len(data._LOADED) == data.MAX_LOADED


def test_load_of_chosen_records_is_not_kept_as_the_whole(own):
    config, _ = own
    few = data.load(config, records=data.records_of(config)[:3])
    assert few.num_samples == 3 and data.load(config).num_samples == 9


@pytest.mark.parametrize("name, file", [("bbbc039", "metadata/training.txt"),
                                        ("ctc", "Fluo-N2DL-HeLa/01_GT/TRA/man_track.txt"),
                                        ("livecell", "livecell_coco_val.json")])
def test_a_changed_list_of_a_dataset_is_seen(name, file, tmp_path):
    whole = tmp_path / "twin"
    twins.write(name, whole, count=4, size=(64, 64))
    root = whole / file.split("/")[0] if name == "ctc" else whole
    with dependencies.tracked() as states:
        data.DATASETS[name](root)
    assert dependencies.unchanged(states)
    with open(whole / file, "a") as changed:
        changed.write(" ")
    assert not dependencies.unchanged(states)
