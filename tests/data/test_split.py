import collections

import numpy as np
import pytest

from cellseg_jax.data.split import PARTS, split
from cellseg_jax.errors import InputError


def single(strata):
    return [f"s{i:03d}" for i in range(len(strata))], strata


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25)])
def test_split_gives_each_stratum_its_share(fractions):
    rng = np.random.default_rng(0)
    groups, strata = single(rng.choice(["a", "b", "c", "d"], 564, p=[0.8, 0.1, 0.07, 0.03]))
    parts = split(groups, strata, fractions=fractions, seed=0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(564))
    for fraction, part in zip(fractions, PARTS):
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
    for fraction, part in zip((0.6, 0.2, 0.2), PARTS):
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
