import numpy as np
import pytest
from helpers import data_config

from cellseg_jax import data
from cellseg_jax.data import pipeline
from cellseg_jax.data.order import Order


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return data.load(data_config(count=23, cache=str(tmp_path_factory.mktemp("cache"))))


@pytest.fixture
def order(arrays):
    return Order(np.arange(3, 23), seed=1, batch_size=6)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("start, stop", [(0, 7), (2, 5), (4, 4)])
def test_train_batches_equal_gathers(arrays, order, threads, start, stop):
    batches = list(pipeline.train_batches(
        arrays, order, normalize="minmax", start=start, stop=stop, threads=threads))
    assert len(batches) == stop - start
    for step, batch in zip(range(start, stop), batches, strict=True):
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
    for first, second, both in zip(*halves, whole, strict=True):
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


def test_take_has_contract_shapes(arrays):
    batch = pipeline.take(arrays, {"id": np.array([4, 2], np.int32)}, "percentile")
    shapes = {name: (np.shape(value), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((2, 32, 32, 4), np.uint8), "label": ((2, 32, 32), np.int32),
        "range": ((2, 4, 2), np.float32), "id": ((2,), np.int32), "weight": ((2,), np.float32)}
    np.testing.assert_array_equal(batch["image"], arrays.image[[4, 2]])


def test_take_cuts_windows_out_of_whole_images(tmp_path):
    config = data_config(fit="random_crop", image_size=(40, 37), size=(24, 48), count=3,
                         target="boundary", cache=str(tmp_path))
    arrays = data.load(config)
    assert arrays.image.shape == (3, 24, 48, 4) and arrays.original_label(1).shape == (40, 37)
    rows = {"id": np.array([2, 0], np.int32), "place": np.array([[3, -5], [16, -11]], np.int32)}
    batch = pipeline.take(arrays, rows, "minmax", (24, 48))
    for i, (top, left), image, label in zip(*rows.values(), batch["image"], batch["label"],
                                            strict=True):
        sample = data.records_of(config)[i].read()
        wide = ((0, 0), (-left, 48 - 37 + left))
        whole = np.pad(sample.image, (*wide, (0, 0)), mode="reflect")
        np.testing.assert_array_equal(image, whole[top : top + 24, :48])
        whole = np.pad(sample.label, wide, mode="reflect")
        np.testing.assert_array_equal(label, whole[top : top + 24, :48])
    assert batch["pixel_weight"].shape == (2, 24, 48) and "place" not in batch
    assert arrays.pixel_weight.dtype == np.float16 and arrays.pixel_weight.max() > 1
