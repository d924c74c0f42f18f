import collections
import json

import numpy as np
import pytest

from cellseg_jax.data.records import some
from cellseg_jax.data.split import PARTS, from_file, official, share, split
from cellseg_jax.errors import InputError


def single(strata):
    return [f"s{i:03d}" for i in range(len(strata))], strata


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25)])
def test_split_gives_each_stratum_its_share(fractions):
    rng = np.random.default_rng(0)
    groups, strata = single(rng.choice(["a", "b", "c", "d"], 564, p=[0.8, 0.1, 0.07, 0.03]))
    parts = split(groups, strata, fractions=fractions, seed=0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(564))
    for fraction, part in zip(fractions, PARTS, strict=True):
        assert parts[part].dtype == np.int32 and (np.diff(parts[part]) > 0).all()
        assert abs(len(parts[part]) - fraction * 564) < 1 + 1e-6
        for name, total in collections.Counter(strata).items():
            assert abs(np.sum(strata[parts[part]] == name) - fraction * total) < 1 + 1e-6


def test_split_keeps_totals_with_many_small_strata():
    groups, strata = single([f"k{i // 2}" for i in range(40)])
    parts = split(groups, strata, fractions=(0.8, 0.1, 0.1), seed=3)
    assert [len(parts[p]) for p in PARTS] == [32, 4, 4]


def test_split_never_parts_a_group():
    rng = np.random.default_rng(1)
    groups = [f"g{i}" for i in rng.integers(0, 30, 300)]
    strata = [f"s{int(g[1:]) % 3}" for g in groups]
    parts = split(groups, strata, fractions=(0.6, 0.2, 0.2), seed=0)
    names = [{groups[i] for i in parts[p]} for p in PARTS]
    assert not (names[0] & names[1] | names[0] & names[2] | names[1] & names[2])
    assert sum(map(len, parts.values())) == 300
    for fraction, part in zip((0.6, 0.2, 0.2), PARTS, strict=True):
        assert abs(len(parts[part]) / 300 - fraction) < 0.05


def test_split_depends_on_seed_only_and_not_on_sample_order():
    groups, strata = single(["a", "b"] * 30)
    one = split(groups, strata, fractions=(0.5, 0.25, 0.25), seed=0)
    other = split(groups, strata, fractions=(0.5, 0.25, 0.25), seed=1)
    assert one["test"].tolist() != other["test"].tolist()
    order = np.random.default_rng(0).permutation(60)
    shuffled = split([groups[i] for i in order], [strata[i] for i in order],
                     fractions=(0.5, 0.25, 0.25), seed=0)
    for part in PARTS:
        assert {groups[i] for i in one[part]} == {groups[order[i]] for i in shuffled[part]}


def test_split_equals_golden_value():
    parts = split(*single(["a"] * 8), fractions=(0.5, 0.25, 0.25), seed=0)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [3, 4, 6, 7], "val": [0, 2], "test": [1, 5]}


def test_split_leaves_a_rest_and_allows_empty_parts():
    parts = split(*single(["a"] * 100), fractions=(0.3, 0.1, 0.0), seed=0)
    assert [len(parts[p]) for p in PARTS] == [30, 10, 0]


def test_split_fills_every_part_when_groups_suffice():
    groups = ["a"] * 50 + ["b"] * 50 + ["c"] * 50
    parts = split(groups, ["s"] * 150, fractions=(0.8, 0.1, 0.1), seed=0)
    assert [len(parts[p]) for p in PARTS] == [50, 50, 50]


@pytest.mark.parametrize("fractions, message", [
    ((0.8, 0.2, 0.2), "sum 1.2; expected a sum of at most 1"),
    ((0.8, -0.1, 0.2), "no negative fraction"),
    ((0.8, 0.2), "expected three fractions"),
])
def test_split_rejects_fractions(fractions, message):
    with pytest.raises(InputError, match=f"config.data.split: got .*{message}"):
        split(*single(["a"] * 9), fractions=fractions, seed=0)


def test_split_rejects_empty_part():
    with pytest.raises(InputError, match="config.data.split: .* would be empty with 9 images in 2"):
        split(["a"] * 5 + ["b"] * 4, ["s"] * 9, fractions=(0.8, 0.1, 0.1), seed=0)


def names_of(parts, groups):
    return {part: [groups[i] for i in indices] for part, indices in parts.items()}


def test_split_keeps_fixed_samples_and_draws_the_others_as_without_them():
    groups, strata = single(["a", "b"] * 20)
    alone = split(groups, strata, fractions=(0.8, 0.1, 0.1), seed=3)
    mixed = split(["extra0", *groups, "extra1"], ["x", *strata, "x"], fractions=(0.8, 0.1, 0.1),
                  seed=3, parts=["train", *[""] * 40, "train"])
    assert mixed["train"].tolist() == [0, *(alone["train"] + 1), 41]
    for part in ("val", "test"):
        assert mixed[part].tolist() == (alone[part] + 1).tolist()


def test_split_lets_a_group_follow_its_fixed_sample():
    groups = ["case1", "case1", "case2", "case2", "case3", "case4", "case5"]
    parts = split(groups, ["s"] * 7, fractions=(0.4, 0.3, 0.3), seed=0,
                  parts=["", "test", "val", "", "", "", ""])
    assert {0, 1} <= set(parts["test"].tolist()) and {2, 3} <= set(parts["val"].tolist())
    assert sorted(np.concatenate(list(parts.values()))) == list(range(7))


def test_split_of_fixed_samples_only_is_their_own():
    parts = split(["a", "b", "c"], ["s"] * 3, fractions=(0.8, 0.1, 0.1), seed=0,
                  parts=["val", "train", "test"])
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [1], "val": [0], "test": [2]}


def test_split_rejects_unknown_parts():
    with pytest.raises(ValueError, match="validation"):
        split(["a", "b"], ["s"] * 2, fractions=(1, 0, 0), seed=0, parts=["validation", ""])


def test_official_takes_the_parts_as_they_are_and_leaves_the_rest_unused():
    parts = official(["g"] * 5, ["s"] * 5, ["test", "train", "", "val", "train"],
                     fractions=(0.8, 0.1, 0.1), seed=0)
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [1, 4], "val": [3], "test": [0]}


@pytest.mark.parametrize("missing, sizes", [
    (("val",), [48, 6, 20]), (("test",), [48, 20, 6]), (("val", "test"), [48, 6, 6])])
def test_official_cuts_a_missing_part_from_train(missing, sizes):
    given = [p for p in ("val", "test") if p not in missing]
    num_train = sum(size for part, size in zip(PARTS, sizes, strict=True) if part not in given)
    place = np.array(["train"] * num_train + given * 20)
    groups = np.array([f"case{i // 2}" for i in range(len(place))])
    parts = official(groups, ["s"] * len(place), place, fractions=(0.8, 0.1, 0.1), seed=1)
    assert [len(parts[part]) for part in PARTS] == sizes
    for part in missing:
        assert (place[parts[part]] == "train").all()
        assert not set(groups[parts[part]]) & set(groups[parts["train"]])


def test_official_leaves_kept_samples_in_train():
    place = ["train"] * 40 + ["test"] * 4
    keep = np.arange(44) < 20
    parts = official(*single(["s"] * 44), place, fractions=(0.5, 0.5, 0.0), seed=0, keep=keep)
    assert [len(parts[part]) for part in PARTS] == [30, 10, 4] and parts["val"].min() >= 20


def test_official_leaves_a_missing_part_empty_where_its_fraction_is_zero():
    parts = official(*single(["s"] * 4), ["train"] * 3 + ["test"], fractions=(0.8, 0, 0.2), seed=0)
    assert [len(parts[part]) for part in PARTS] == [3, 0, 1]


@pytest.mark.parametrize("place, message", [
    ([""] * 4, "'official', but folder has no split of its own; expected fractions"),
    (["", "", "train", "train"], "folder has no split of its own"),
    (["val", "", "test", "test"], "none of the images at hand is in the train part of folder"),
])
def test_official_rejects_what_is_no_split(place, message):
    with pytest.raises(InputError, match=f"config.data.split: .*{message}"):
        official(*single(["s"] * 4), place, fractions=(0.8, 0.1, 0.1), seed=0, dataset="folder")


NAMES = [f"cell_{i}" for i in range(9)]
LISTS = {"train": ["cell_4", "cell_0"], "val": ["cell_2"], "test": ["cell_8"]}


@pytest.mark.parametrize("form", ["file", "run", "text"])
def test_from_file_reads_lists_of_names(tmp_path, form):
    (tmp_path / "a run").mkdir()
    path = tmp_path / "a run" / "split.json"
    if form == "text":
        for part, chosen in LISTS.items():
            (path.parent / f"{part}.txt").write_text("\n".join(chosen) + "\n\n")
    else:
        path.write_text(json.dumps(LISTS))
    parts = from_file(path if form == "file" else path.parent, NAMES)
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [0, 4], "val": [2], "test": [8]}
    assert all(v.dtype == np.int32 for v in parts.values())


def test_from_file_reads_back_what_split_gave(tmp_path):
    parts = split(NAMES, ["s"] * 9, fractions=(0.5, 0.2, 0.1), seed=5)
    (tmp_path / "split.json").write_text(json.dumps(names_of(parts, NAMES)))
    again = from_file(tmp_path / "split.json", NAMES[::-1])
    assert {k: sorted(v) for k, v in names_of(again, NAMES[::-1]).items()} == names_of(parts, NAMES)


def test_from_file_keeps_the_place_of_samples_in_no_list(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"train": ["cell_1"], "test": ["cell_3"]}))
    parts = from_file(tmp_path / "s.json", NAMES, parts=["", "test", *[""] * 5, "", "train"])
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [1, 8], "val": [], "test": [3]}


@pytest.mark.parametrize("content, message", [
    ({"train": ["cell_0", "cel_1", "dog"]}, "2 of 3 names are not in the data: cel_1, dog; did you "
                                            "mean cell_1"),
    ({"train": [f"x{i}" for i in range(12)]}, r"12 of 12 names .*: x0, x1, x2, x3, x4, \.\.\. "
                                              r"\(12 in all\)"),
    ({"train": ["cell_0"], "test": ["cell_0"]}, "lists names twice: cell_0; expected every name"),
    ({"train": ["cell_0", "cell_0"]}, "lists names twice: cell_0"),
    ({"train": [], "val": ["cell_0"]}, "lists no name for train"),
    ({"train": ["cell_0"], "valid": []}, "has the key 'valid'; did you mean val"),
    ({"train": "cell_0"}, "'train' is no list of names"),
    ({"train": [0]}, "'train' is no list of names"),
    (["cell_0"], "holds a list; expected"),
])
def test_from_file_rejects_lists(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"split.json: {message}"):
        from_file(path, NAMES)


def test_from_file_rejects_files(tmp_path):
    with pytest.raises(InputError, match="no file or folder 'offical'; did you mean official"):
        from_file("offical", NAMES)
    with pytest.raises(InputError, match="neither split.json nor train.txt"):
        from_file(tmp_path, NAMES)
    (tmp_path / "a.json").write_text("{'train'")
    with pytest.raises(InputError, match="a.json: is no JSON"):
        from_file(tmp_path / "a.json", NAMES)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="a.json: cannot be read as text"):
        from_file(tmp_path / "a.json", NAMES)


SHARES = (1 / 64, 1 / 16, 0.1, 1 / 4, 0.3, 1 / 2, 0.9, 1.0)


def test_shares_are_nested_and_keep_each_stratum_s_share():
    rng = np.random.default_rng(0)
    strata = rng.choice(["a", "b", "c", "d"], 564, p=[0.8, 0.1, 0.07, 0.03])
    train = np.sort(rng.choice(564, 451, replace=False))
    before = set()
    for fraction in SHARES:
        chosen = share(train, *single(strata), fraction=fraction, seed=0)
        assert chosen.dtype == np.int32 and (np.diff(chosen) > 0).all()
        assert len(chosen) == round(fraction * 451) and before <= set(chosen.tolist())
        before = set(chosen.tolist())
        for name, total in collections.Counter(strata[train]).items():
            assert abs(np.sum(strata[chosen] == name) - fraction * total) < 2
    assert before == set(train.tolist())


def test_shares_keep_groups_together():
    rng = np.random.default_rng(1)
    groups = np.array([f"g{i}" for i in rng.integers(0, 60, 300)])
    strata = [f"s{int(g[1:]) % 3}" for g in groups]
    before = set()
    for fraction in SHARES[1:]:
        chosen = share(np.arange(300), groups, strata, fraction=fraction, seed=0)
        assert not set(groups[chosen]) & set(np.delete(groups, chosen))
        assert before <= set(chosen.tolist()) and abs(len(chosen) - fraction * 300) <= 7
        before = set(chosen.tolist())


def test_share_depends_on_seed_and_not_on_sample_order():
    groups, strata = single(["a", "b"] * 30)
    one, other = (share(np.arange(60), groups, strata, fraction=0.25, seed=s) for s in (0, 1))
    assert one.tolist() != other.tolist()
    order = np.random.default_rng(0).permutation(60)
    shuffled = share(np.arange(60), [groups[i] for i in order], [strata[i] for i in order],
                     fraction=0.25, seed=0)
    assert {groups[i] for i in one} == {groups[order[i]] for i in shuffled}


def test_share_equals_golden_value():
    chosen = share(np.arange(16), *single(["a", "b"] * 8), fraction=0.25, seed=0)
    assert chosen.tolist() == [0, 3, 6, 7]


def test_share_leaves_kept_samples_whole():
    keep = np.arange(40) >= 30
    chosen = share(np.arange(40), *single(["a"] * 40), fraction=0.1, seed=0, keep=keep)
    assert (chosen >= 30).sum() == 10 and (chosen < 30).sum() == 3


def test_share_that_leaves_nothing_is_refused_with_the_least_that_does():
    groups = [f"g{i // 10}" for i in range(40)]
    with pytest.raises(InputError, match="config.data.train_fraction: got 0.1, which leaves none "
                                         "of 40 training images in 4 groups; expected at least "
                                         r"0\.125$"):
        share(np.arange(40), groups, ["a"] * 40, fraction=0.1, seed=0)
    assert len(share(np.arange(40), groups, ["a"] * 40, fraction=0.125, seed=0)) == 10


def test_some_names_at_most_five():
    assert some("abc") == "a, b, c"
    assert some(range(7)) == "0, 1, 2, 3, 4, ... (7 in all)"
