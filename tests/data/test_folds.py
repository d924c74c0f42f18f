"""Folds: every image tested once, groups whole, nnU-Net's assignment as sklearn makes it."""

import numpy as np
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.data import folds
from cellseg_jax.errors import InputError


def samples(cases=23, seed=0):
    """Groups of 1 to 4 images, two strata of which one is rare; names."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"case{c:02d}" for c in range(cases)], rng.integers(1, 5, cases))
    strata = np.array(["rare" if case.endswith(("3", "7")) else "often" for case in groups])
    return groups, strata, np.array([f"image{i:03d}" for i in range(len(groups))])


def of(text, groups, strata, names, *, seed=0, parts=None, fixed=None):
    return folds.split(folds.parse(text), groups, strata, names, seed=seed, parts=parts,
                       fixed=fixed)


@pytest.mark.parametrize("options", ["", ":test=0.2", ":val=0", ":val=0.3:test=0.1"])
@pytest.mark.parametrize("assignment", [0, 1])
def test_every_image_is_tested_exactly_once_and_no_group_is_split(options, assignment):
    groups, strata, names = data = samples()
    tested = np.zeros(len(groups), int)
    for k in range(5):
        parts = of(f"fold:{5 * assignment + k}/5{options}", *data, seed=3)
        tested[parts["test"]] += 1
        inside = [set(groups[i]) for i in parts.values()]
        assert sum(map(len, inside)) == len(set.union(*inside)), "a group in two parts"
    fold = folds.parse(f"fold:{5 * assignment}/5{options}")
    outer = folds.outer(fold, groups, strata, seed=3)
    assert (tested == ~np.isin(np.arange(len(groups)), outer)).all()
    assert not set(groups[outer]) & set(groups[tested > 0])
    wanted = fold.test * len(groups)
    assert abs(len(outer) - wanted) <= 2


def test_strata_have_equal_shares_in_all_folds_where_images_are_their_own_groups():
    strata = np.array(["a"] * 50 + ["b"] * 25)
    names = np.array([f"{i:03d}" for i in range(75)])
    for k in range(5):
        test = of(f"fold:{k}/5", names, strata, names)["test"]
        assert (strata[test] == "a").sum() == 10 and (strata[test] == "b").sum() == 5


def test_assignments_differ_by_number_and_seed_and_share_the_outer_part():
    data = samples()
    test = lambda text, seed: of(text, *data, seed=seed)["test"].tolist()
    assert test("fold:0/5", 0) != test("fold:5/5", 0)
    assert test("fold:0/5", 0) != test("fold:0/5", 1)
    outer = [folds.outer(folds.parse(f"fold:{k}/5:test=0.2"), *data[:2], seed=0).tolist()
             for k in (0, 3, 7)]
    assert outer[0] == outer[1] == outer[2]


def test_mixed_in_samples_train_in_every_fold_and_the_official_test_part_is_in_none():
    names = np.array([f"{i:02d}" for i in range(20)])
    parts = np.array(["train"] * 10 + ["test"] * 4 + [""] * 2 + ["train"] * 4)
    fixed = np.array([""] * 16 + ["train"] * 4)
    for k in range(5):
        found = of(f"fold:{k}/5:test=official", names, names, names, parts=parts, fixed=fixed)
        assert {16, 17, 18, 19} <= set(found["train"].tolist())
        assert len(found["test"]) == 2 and max(found["test"]) < 10
    outer = folds.outer(folds.parse("fold:0/5:test=official"), names, names, seed=0, parts=parts,
                        fixed=fixed)
    assert outer.tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("n", [5, 23, 100])
def test_nnunets_assignment_equals_sklearns(n):
    model_selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(n)
    names = np.array([f"case-{i}" for i in rng.permutation(3 * n)[:n]])
    ordered = np.array(sorted(names.tolist()))
    kfold = model_selection.KFold(5, shuffle=True, random_state=12345)
    for k, (train, test) in enumerate(kfold.split(ordered)):
        found = of(f"fold:{k}/5:nnunet", names, names, names)
        assert sorted(names[found["test"]]) == sorted(ordered[test])
        assert sorted(names[found["train"]]) == sorted(ordered[train]) and not len(found["val"])


def test_nnunets_assignment_stays_as_it_is():
    """What sklearn 1.9 gives, for machines without it."""
    found = folds.nnunet_folds([f"{i:02d}" for i in range(12)])
    assert found.tolist() == [0, 3, 4, 0, 3, 4, 2, 1, 0, 2, 1, 1]


def test_nnunets_cases_have_no_channel_in_their_names():
    cases = ["a", "a-1", "b", "c", "d", "e_2"]  # "a-1_0000" is sorted before "a_0000"
    assert (folds.nnunet_folds([f"{case}_0000" for case in cases]).tolist()
            == folds.nnunet_folds(cases).tolist())


@pytest.mark.parametrize("text, what", [
    ("fold:0/1", "at least 2"), ("fold:x/5", "fold:K/N"), ("fold:0/5:vall=0.1", "fold:K/N"),
    ("fold:0/5:val=1", "val=1.0"), ("fold:0/5:test=-1", "test=-1.0"),
    ("fold:0/5:test=some", "fold:K/N"), ("fold:6/5:nnunet", "one assignment")])
def test_rejects_a_text_that_is_no_fold(text, what):
    with pytest.raises(InputError, match="config.data.split: ") as error:
        folds.parse(text)
    assert what in str(error.value)


def test_rejects_fewer_groups_than_folds_and_nnunet_with_groups():
    groups = np.array(["a", "a", "b", "c"])
    with pytest.raises(InputError, match="got 5 folds, but there are 3 groups"):
        of("fold:0/5", groups, groups, groups)
    with pytest.raises(InputError, match="4 images lie in 3 groups"):
        of("fold:0/3:nnunet", groups, groups, groups)
    with pytest.raises(InputError, match="test=official, but none"):
        of("fold:0/2:test=official", groups, groups, groups)


@pytest.mark.parametrize("text", ["fold:2/5", "fold:2/5:val=0", "fold:0/3:val=0.2:test=0.25",
                                  "fold:1/5:test=official", "fold:4/5:nnunet",
                                  "fold:4/5:val=0.1:nnunet"])
def test_text_roundtrip(text):
    assert str(folds.parse(text)) == text


def test_a_fold_is_a_value_of_the_key_data_split():
    config = config_lib.override(config_lib.default(), [("data.split", "fold:1/5:test=0.2")])
    assert derived.has_part(config, "val") and derived.has_part(config, "test")
    assert derived.training_samples(config, 1000) == 576  # of 800, 640 are not tested
    nnunet = config_lib.override(config, [("data.split", "fold:1/5:nnunet")])
    assert not derived.has_part(nnunet, "val") and derived.training_samples(nnunet, 1000) == 800
    with pytest.raises(InputError, match="early_stopping: got 5; expected 0 without a validation"):
        config_lib.override(nnunet, [("train.early_stopping", "5")])
    with pytest.raises(InputError, match="config.data.split: got 'fold:1of5'"):
        config_lib.override(config, [("data.split", "fold:1of5")])
