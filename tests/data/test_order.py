import numpy as np
import pytest
from helpers import data_config
from ml_collections import ConfigDict

from cellseg_jax import data
from cellseg_jax.data.order import Crops, Order, Sampling, indices, order_of
from cellseg_jax.errors import InputError


def test_order_visits_each_sample_at_most_once_per_epoch():
    train = np.arange(100, 123)
    order = Order(train, seed=0, batch_size=5)
    assert order.steps_per_epoch == 4
    dropped = set()
    for epoch in range(6):
        seen = np.concatenate([order(4 * epoch + k) for k in range(4)])
        assert seen.dtype == np.int32 and len(set(seen)) == 20 and set(seen) <= set(train)
        dropped |= set(train) - set(seen)
    assert len(dropped) > 3  # others in each epoch


def test_order_depends_on_seed_and_step_only():
    train = np.arange(40)
    forward = [Order(train, 0, 8)(step).tolist() for step in range(12)]
    order = Order(train, 0, 8)
    assert [order(step).tolist() for step in reversed(range(12))] == forward[::-1]
    assert Order(train, 1, 8)(0).tolist() != forward[0]
    assert forward[0] != forward[5]


def test_order_equals_golden_value():
    order = Order(np.arange(6), seed=0, batch_size=3)
    assert [order(step).tolist() for step in range(3)] == [[0, 2, 1], [5, 4, 3], [5, 3, 2]]


def test_order_rejects_batch_size():
    for batch_size in (0, 7):
        with pytest.raises(InputError, match=f"config.train.batch_size: got {batch_size}; .* 6,"):
            Order(np.arange(6), 0, batch_size)


def test_copies_visit_every_variant_once():
    order = Order(np.array([3, 8, 5]), seed=0, batch_size=4, sampling=Sampling(copies=3))
    assert order.steps_per_epoch == 3
    seen = np.concatenate([order(step) for step in range(3)])
    assert sorted(seen) == sorted(4 * i + copy for i in (3, 8, 5) for copy in range(4))
    rows = order.rows(1)
    np.testing.assert_array_equal(rows["id"] * 4 + rows["copy"], order(1))


def test_balance_draws_every_stratum_equally_often():
    strata = np.array(["rare"] * 3 + ["common"] * 47 + ["unused"] * 10)
    order = Order(np.arange(50), seed=0, batch_size=10, sampling=Sampling(strata=strata))
    drawn = np.concatenate([order(step) for step in range(400)])
    assert 0.47 < (drawn < 3).mean() < 0.53 and drawn.max() < 50
    assert (np.bincount(drawn, minlength=50) > 0).all()
    assert order(7).tolist() == Order(np.arange(50), 0, 10, Sampling(strata=strata))(7).tolist()


def test_rows_that_hold_foreground_for_certain_are_balanced_too():
    strata = np.array(["rare"] * 5 + ["common"] * 90 + ["empty"] * 5)
    foreground = np.where(strata == "empty", 0, 0.2)
    for share, expected in ((1.0, 1 / 2), (0.5, (1 / 2 + 1 / 3) / 2)):
        order = Order(np.arange(100), 0, 20, Sampling(
            strata=strata, oversample=share, foreground=foreground))
        drawn = np.concatenate([order(step) for step in range(200)])
        assert expected - 0.03 < (drawn < 5).mean() < expected + 0.03
        assert (share < 1) == (drawn >= 95).any()
        assert len(set(drawn[drawn < 95])) == 95


def test_oversample_puts_foreground_into_its_share_of_the_rows():
    foreground = np.zeros(100, np.float32)
    foreground[:10] = 0.2
    order = Order(np.arange(100), 0, 20, Sampling(oversample=0.4, foreground=foreground))
    drawn = np.concatenate([order(step) for step in range(200)])
    assert 0.43 < (drawn < 10).mean() < 0.49  # 0.4 + 0.6 / 10
    blank = Order(np.arange(100), 0, 20, Sampling(oversample=0.4, foreground=np.zeros(100)))
    assert len(set(blank(0))) == 20


def test_crops_lie_inside_their_image_and_oversampling_hits_foreground():
    sizes = np.array([[40, 60], [20, 30], [32, 32]])
    anchors = np.full((3, 4, 2), -1)
    anchors[0] = [39, 59]  # one cell in the last corner
    crops = Crops((32, 32), sizes, anchors)
    plain, eager = (Order(np.arange(3), 0, 3, Sampling(oversample=share, crops=crops))
                    for share in (0, 1))
    corners = set()
    for step in range(200):
        rows = plain.rows(step)
        slack = sizes[rows["id"]] - 32
        assert rows["place"].dtype == np.int32
        assert (rows["place"] >= np.minimum(slack, 0)).all()
        assert (rows["place"] <= np.maximum(slack, 0)).all()
        corners |= {tuple(p) for i, p in zip(rows["id"], rows["place"], strict=True) if i == 0}
        certain = eager.rows(step)
        np.testing.assert_array_equal(certain["id"], rows["id"])
        assert certain["place"][certain["id"] == 0].tolist() == [[8, 28]]
    tops, lefts = zip(*corners, strict=True)
    assert set(tops) == set(range(9)) and set(lefts) == set(range(29))


def test_an_epoch_draws_so_many_windows_of_each_image():
    crops = Crops((8, 8), np.full((3, 2), 64), np.full((3, 1, 2), -1))
    order = Order(np.array([0, 2]), 0, 5, Sampling(windows=5, crops=crops))
    assert order.steps_per_epoch == 2
    for epoch in range(3):
        rows = [order.rows(2 * epoch + step) for step in range(2)]
        ids, places = (np.concatenate([r[name] for r in rows]) for name in ("id", "place"))
        assert np.bincount(ids).tolist() == [5, 0, 5]
        assert len({(int(i), *map(int, place)) for i, place in zip(ids, places, strict=True)}) > 7
    with pytest.raises(InputError, match="got 5; expected 1 to 2, .* images, or data.windows=3$"):
        Order(np.array([0, 2]), 0, 5, Sampling(crops=crops))
    with pytest.raises(InputError, match="got 5; expected 1 to 2, the number of training images$"):
        Order(np.array([0, 2]), 0, 5)  # whole images are not drawn twice


@pytest.mark.parametrize("changes", [
    {}, dict(balance=True), dict(fit="random_crop", size=(24, 24), windows=3),
    dict(grid=2, keep_blank=False)])
def test_indices_equal_order_of_the_training_part(tmp_path, changes):
    config = ConfigDict(dict(seed=3, train=dict(batch_size=4), data=data_config(
        cache=str(tmp_path), count=20, split=(0.6, 0.2, 0.2), **changes)))
    arrays = data.load(config.data)
    order = order_of(config, arrays, data.split_of(config.data, arrays)["train"])
    for step in (0, 1, 7):
        np.testing.assert_array_equal(indices(config, step), order(step))
