import types

import numpy as np
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.data.quality import checks, duplicates
from cellseg_jax.data.quality.checks import of_samples, of_split, quick, raise_errors
from cellseg_jax.data.quality.duplicates import Pairs
from cellseg_jax.data.records import Finding
from cellseg_jax.errors import InputError
from cellseg_jax.normalize import image_ranges

ROOT, SPLIT, CLASSES = "config.data.root", "config.data.split", "config.data.num_classes"
NONE = Pairs([], 0.0)


def made(n=12, **changes):
    """What the checks read of cache.Arrays: n unlike images, a quarter of each is foreground."""
    rng = np.random.default_rng(0)
    label = np.zeros((n, 8, 8), np.uint16)
    label[:, :4, :4] = 3
    arrays = types.SimpleNamespace(
        image=rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), label=label,
        names=tuple(f"i{i}" for i in range(n)), groups=tuple(f"i{i}" for i in range(n)),
        strata=("s",) * n)
    for name, value in changes.items():
        setattr(arrays, name, value)
    arrays.foreground = (arrays.label > 0).mean((1, 2), dtype=np.float32)
    return arrays


def third(n=12):
    """Every third sample to each part."""
    return {part: np.arange(start, n, 3) for start, part in enumerate(("train", "val", "test"))}


def told(findings):
    """Everything but the summaries."""
    return [f for f in findings if "of the pixels" not in f.what]


def test_quick_has_only_a_summary_to_tell_of_good_data():
    assert quick(made(), third()) == [Finding(
        "note", ROOT, "foreground covers 25% of the pixels; per image 25% to 25%, median 25%")]


def test_images_of_which_a_range_of_percentiles_leaves_nothing_are_named():
    images = np.random.default_rng(0).integers(0, 90, (3, 40, 40, 1), np.uint8)
    images[1] = 0
    images[1, :3, :1] = 200  # 3 pixels of 1600, which percentile 99.8 is below
    images[2] = 7  # constant, which is another finding
    ranges = {name: np.stack([image_ranges(image, name) for image in images])
              for name in ("minmax", "percentile")}
    arrays = made(3, tables=ranges, image_names=("a", "b", "c"))
    options = config_lib.default().data.to_dict()
    assert checks.of_ranges(arrays, options) == []  # minmax
    finding, = checks.of_ranges(arrays, options | {"normalize": "percentile"})
    assert finding.level == "warning" and finding.where == "config.data.percentiles"
    assert finding.what.startswith("1 of 3 images have one value from percentile 1 to 99.8, and "
                                   "are 0 all over for the network: b;")


def test_quick_sorts_by_level_and_takes_known_pairs():
    arrays = made(groups=("g",) * 12)
    arrays.label[:3] = arrays.foreground[:3] = 0
    arrays.image[1] = arrays.image[0]
    levels = [f.level for f in quick(arrays, third(), num_classes=5)]
    assert levels == ["error", "warning", "warning", "note", "note", "note"]
    assert not any("near-duplicate" in f.what for f in quick(arrays, third(), pairs=NONE))


def test_quick_leaves_very_many_images_uncompared(monkeypatch):
    monkeypatch.setattr(checks, "MAX_IMAGES", 11)
    monkeypatch.delattr(checks, "near_duplicates")
    assert told(quick(made(), third())) == [Finding(
        "note", SPLIT, "near-duplicates were not looked for among 12 images")]


def test_of_samples_rejects_empty_masks():
    arrays = made()
    arrays.foreground[:] = 0
    with pytest.raises(InputError, match="config.data.root: all masks are empty, .*above 0"):
        raise_errors(of_samples(arrays))
    raise_errors(of_samples(made()))


@pytest.mark.parametrize("empty, level", [(6, "note"), (7, "warning")])
def test_of_samples_names_empty_masks(empty, level):
    arrays = made()
    arrays.foreground[:empty] = 0
    assert told(of_samples(arrays)) == [Finding(
        level, ROOT, f"{empty} of 12 masks are empty: i0, i1, i2, i3, i4, ... ({empty} in all)")]


def test_of_samples_names_full_masks_unless_there_are_classes():
    arrays = made()
    arrays.foreground[2] = 1
    found = Finding("note", ROOT, "1 of 12 masks are foreground all over: i2")
    assert told(of_samples(arrays)) == [found]
    assert found not in of_samples(arrays, num_classes=4)


@pytest.mark.parametrize("channels,alpha", [(1, False), (3, False), (4, True), (4, False)])
def test_of_samples_names_constant_images(channels, alpha):
    image = np.random.default_rng(0).integers(0, 256, (12, 40, 40, channels), dtype=np.uint8)
    constant = 3 if alpha else channels  # alpha may vary
    image[4, ..., :constant] = 0
    image[5, ..., :constant] = np.arange(7, 7 + constant)
    if channels == 4 and not alpha:
        image[7, ..., :3] = 0  # cells in the last channel alone
    image[6] = 9
    image[6, 37, 31] = 8
    [found] = told(of_samples(made(image=image), alpha=alpha))
    assert found.level == "warning"
    assert found.what.startswith("2 of 12 images have one value everywhere") and "i4, i5;" in (
        found.what)


def test_of_samples_counts_classes():
    label = np.zeros((12, 8, 8), np.uint16)
    label[:, 0] = 1
    label[3, :2, :2] = 2
    found = of_samples(made(label=label), num_classes=3)
    assert Finding("note", CLASSES, "the classes 0 .. 2 cover 87.2%, 12.2%, 0.521% of the pixels"
                   ) in found
    raise_errors(found)


def test_of_samples_rejects_missing_and_larger_classes():
    arrays = made(label=np.full((12, 8, 8), 1, np.int32))
    arrays.label[:, 0] = 0
    with pytest.raises(InputError, match=r"num_classes: got 4, but the classes \[2, 3\] occur in "
                                         r"no mask; expected 2, which is 1 \+ the hi"):
        raise_errors(of_samples(arrays, num_classes=4))
    arrays.label[2, 3, 3] = arrays.label[5] = 70_000
    with pytest.raises(InputError, match="got 2, but 2 of 12 masks have values above 1: i2, i5"):
        raise_errors(of_samples(arrays, num_classes=2))


def test_of_split_names_near_duplicates_across_parts():
    arrays = made()
    arrays.image[4] = arrays.image[0]  # val and train
    arrays.image[8] = arrays.image[2][::-1]  # both in test
    pairs = duplicates.near_duplicates(arrays.image)
    assert told(of_split(arrays, third(), pairs)) == [
        Finding("warning", SPLIT, "leak: 1 near-duplicate pair across the parts, with their "
                "correlation (1.00: a copy): i0 (train) and i4 (val) 1.00; scores will be too "
                "good: give such images one group, or remove one of each"),
        Finding("note", SPLIT, "1 near-duplicate pair within one part")]


def test_of_split_has_no_leak_to_samples_that_are_unused():
    arrays = made()
    arrays.image[4] = arrays.image[0]
    parts = {**third(), "val": np.array([1, 7, 10])}
    assert [f.what for f in of_split(arrays, parts, duplicates.near_duplicates(arrays.image))] == [
        "1 of 12 images are in no part and stay unused: i4"]


def test_of_split_tells_of_one_scene_only_where_it_is_split():
    scene = np.random.default_rng(1).integers(0, 256, (32, 32, 1), dtype=np.uint8)
    rng = np.random.default_rng(0)
    frames = (scene // 2 + rng.integers(0, 60, (24, 32, 32, 1))).astype(np.uint8)
    arrays = made(24, image=frames)
    pairs = duplicates.near_duplicates(frames)
    [found] = of_split(arrays, third(24), pairs)
    assert found.level == "warning" and "leak: all images look alike (correlation 0.9" in found.what
    alone = {"train": np.arange(24), "val": [], "test": []}
    assert of_split(arrays, alone, pairs) == []


def test_of_split_names_torn_groups():
    groups = tuple(f"case{i // 2}" for i in range(12))
    [found] = of_split(made(groups=groups), third(), NONE)
    assert found.level == "warning" and found.where == SPLIT
    assert found.what.startswith(
        "leak: 6 groups of images of one case in several parts: case0 (train, val), case1 (train, "
        "test), case2 (val, test), case3 (train, val), case4 (train, test), ... (6 in all)")
    whole = {"train": np.arange(6), "val": np.array([6, 7]), "test": np.arange(8, 12)}
    assert of_split(made(groups=groups), whole, NONE) == []


def test_of_split_names_strata_that_a_part_lacks():
    arrays = made(strata=("adenoma", *["polyp"] * 11),
                  groups=("case0", *(f"case{i}" for i in range(11))))
    assert [f.what for f in of_split(arrays, third(), NONE) if "group of" not in f.what] == [
        f"{part} has no image of 'adenoma' (1 image in 1 group): it is not scored; "
        "add images or change the fractions" for part in ("val", "test")]


def test_of_split_expects_no_strata_of_empty_parts_or_of_data_that_is_mixed_in():
    arrays = made(strata=("stained", *["gray"] * 11),
                  groups=("mixed/other/i0", *(f"i{i}" for i in range(1, 12))))
    assert of_split(arrays, third(), NONE) == []
    arrays = made(strata=("a", "b") * 6)
    parts = {"train": np.arange(0, 12, 2), "val": np.arange(1, 12, 2), "test": []}
    assert [f.what.split(" (")[0] for f in of_split(arrays, parts, NONE)] == [
        "train has no image of 'b'", "val has no image of 'a'"]


def test_of_split_expects_no_strata_that_are_left_out():
    """As data.strata leaves them out: no part has an image of them."""
    parts = {part: indices[indices > 2] for part, indices in third().items()}
    warnings = [f for f in of_split(made(strata=("rare",) * 3 + ("s",) * 9), parts, NONE)
                if f.level == "warning"]
    assert warnings == []


def test_quick_reads_what_a_cache_holds(tmp_path):
    config = config_lib.default()
    config.data.name, config.data.size, config.data.grid = "synthetic", (32, 32), 2
    config.data.update(count=12, image_size=(40, 40), cache=str(tmp_path), channels="gray")
    config = config_lib.complete(config)
    arrays = data.load(config.data)
    assert len(arrays.names) == 48
    parts = data.split_of(config.data, arrays)
    torn = {"train": np.arange(3), "val": np.arange(3, 40), "test": np.arange(40, 48)}
    assert not any(f.what.startswith("leak: 1 group") for f in quick(arrays, parts))
    assert any(f.what.startswith("leak: 1 group") for f in quick(arrays, torn))
