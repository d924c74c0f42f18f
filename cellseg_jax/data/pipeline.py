"""Batches streamed by reader threads, where the data does not live on the device.

The position in the data is the step: a stream starts at any step and keeps no state. Batches
equal what the device gathers by the same indices.
"""

from collections.abc import Callable, Iterator

import grain
import numpy as np

from cellseg_jax.data.cache import Arrays


def sample(arrays: Arrays, i: int, normalize: str) -> dict[str, np.ndarray]:
    """One sample: image (H, W, C), label (H, W) int32, range (C, 2), id int32, weight 1."""
    return {name: value[0] for name, value in _gather(arrays, [i], normalize).items()}


def train_batches(arrays: Arrays, order: Callable[[int], np.ndarray], *, normalize: str,
                  start: int, stop: int, rows: slice = slice(None),
                  threads: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps start .. stop - 1.

    Args:
      order: step -> (batch,) indices of the global batch.
      rows: of the global batch, what this process reads.
      threads: readers; the batches do not depend on their number.
    """
    return _read(
        grain.MapDataset.range(start, stop).map(
            lambda step: _gather(arrays, order(step)[rows], normalize)),
        threads)


def eval_batches(arrays: Arrays, indices: np.ndarray, *, normalize: str, batch_size: int,
                 rows: slice = slice(None), threads: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Every sample once and in order; the last batch is filled by repeats of weight 0."""
    indices = np.asarray(indices, np.int32)
    num_batches = -(-len(indices) // batch_size)
    padded = np.resize(indices, num_batches * batch_size)
    weight = (np.arange(len(padded)) < len(indices)).astype(np.float32)
    padded, weight = (a.reshape(num_batches, batch_size)[:, rows] for a in (padded, weight))
    return _read(
        grain.MapDataset.range(num_batches).map(
            lambda b: _gather(arrays, padded[b], normalize) | {"weight": weight[b]}),
        threads)


def _gather(arrays, indices, normalize):
    indices = np.asarray(indices, np.int32)
    return {
        "image": np.asarray(arrays.image[indices]),
        "label": np.asarray(arrays.label[indices], np.int32),
        "range": arrays.range(normalize)[indices],
        "id": indices,
        "weight": np.ones(len(indices), np.float32),
    }


def _read(dataset, threads):
    if not len(dataset):
        return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset.to_iter_dataset(options))
