import numpy as np
import pytest
from ml_collections import ConfigDict

from cellseg_jax import data
from cellseg_jax.data.order import Order, indices
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


def test_indices_equal_order_of_the_training_part(tmp_path):
    config = ConfigDict(dict(
        seed=3, train=dict(batch_size=4),
        data=dict(name="synthetic", root="", size=(32, 32), fit="resize", channels="gray",
                  cache=str(tmp_path), count=20, image_size=(32, 32), split=(0.6, 0.2, 0.2),
                  split_seed=0)))
    parts = data.split_of(config.data, data.load(config.data))
    order = Order(parts["train"], 3, 4)
    for step in (0, 1, 7):
        np.testing.assert_array_equal(indices(config, step), order(step))
