import numpy as np
import pytest

from cellseg_jax import data
from cellseg_jax.data import pipeline
from cellseg_jax.data.order import Order


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return data.load(dict(
        name="synthetic", root="", size=(32, 32), fit="resize", channels="rgba", count=23,
        image_size=(32, 32), cache=str(tmp_path_factory.mktemp("cache"))))


@pytest.fixture
def order(arrays):
    return Order(np.arange(3, 23), seed=1, batch_size=6)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("start, stop", [(0, 7), (2, 5), (4, 4)])
def test_train_batches_equal_gathers(arrays, order, threads, start, stop):
    batches = list(pipeline.train_batches(
        arrays, order, normalize="minmax", start=start, stop=stop, threads=threads))
    assert len(batches) == stop - start
    for step, batch in zip(range(start, stop), batches):
        index = order(step)
        np.testing.assert_array_equal(batch["id"], index)
        np.testing.assert_array_equal(batch["image"], arrays.image[index])
        np.testing.assert_array_equal(batch["label"], arrays.label[index])
        np.testing.assert_array_equal(batch["range"], arrays.range("minmax")[index])
        np.testing.assert_array_equal(batch["weight"], np.ones(6, np.float32))
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32


def test_train_batches_of_processes_make_up_the_global_batch(arrays, order):
    halves = [list(pipeline.train_batches(arrays, order, normalize="dtype", start=1, stop=4,
                                          rows=slice(3 * p, 3 * p + 3))) for p in (0, 1)]
    whole = list(pipeline.train_batches(arrays, order, normalize="dtype", start=1, stop=4))
    for first, second, both in zip(*halves, whole):
        for name, value in both.items():
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), value)


def test_eval_batches_give_every_sample_once(arrays):
    indices = np.array([5, 1, 9, 7, 2], np.int32)
    for batch_size in (2, 4, 5, 8):
        batches = list(pipeline.eval_batches(
            arrays, indices, normalize="minmax", batch_size=batch_size))
        assert all(batch["image"].shape == (batch_size, 32, 32, 4) for batch in batches)
        ids = np.concatenate([batch["id"] for batch in batches])
        weight = np.concatenate([batch["weight"] for batch in batches])
        assert ids[weight > 0].tolist() == indices.tolist()
        assert set(np.unique(weight)) <= {0, 1} and (weight[:5] == 1).all()
    assert list(pipeline.eval_batches(arrays, [], normalize="minmax", batch_size=2)) == []


def test_sample_has_contract_shapes(arrays):
    one = pipeline.sample(arrays, 4, "percentile")
    shapes = {name: (np.shape(value), value.dtype) for name, value in one.items()}
    assert shapes == {
        "image": ((32, 32, 4), np.uint8), "label": ((32, 32), np.int32),
        "range": ((4, 2), np.float32), "id": ((), np.int32), "weight": ((), np.float32)}
    np.testing.assert_array_equal(one["image"], arrays.image[4])
