"""The input of training as grain datasets: which samples a step reads, and their pixels.

Element k of a dataset is the batch of step k, so that a run begins at any step and there is no
position to save. Where the decoded images lie on the device, it is sent the rows of a step and
gathers their pixels itself; else reader threads stream them. Both give equal batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cellseg_jax import crops
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.data.order import Order


def train_rows(order: Order, stop: int) -> Sequence[dict[str, np.ndarray]]:
    """The rows of the batches of steps 0 .. stop - 1 as a grain dataset: see Order.rows."""
    return _range(stop).map(order.rows)


def train_batches(arrays: Arrays, order: Order, *, normalize: str, start: int, stop: int,
                  rows: slice = slice(None), threads: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """The batches of steps start .. stop - 1.

    Args:
      order: which samples, and which windows of them.
      rows: of the global batch, what this process reads.
      threads: readers; the batches do not depend on their number.
    """
    def read(chosen):
        chosen = {name: values[rows] for name, values in chosen.items()}
        return take(arrays, chosen, normalize, order.crops and order.crops.window,
                    order.whole_images)

    return _read(train_rows(order, stop)[start:].map(read), threads)


def eval_batches(arrays: Arrays, indices: np.ndarray, *, normalize: str, batch_size: int,
                 rows: slice = slice(None), threads: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Every sample once and in order; the last batch is filled by repeats of weight 0."""
    indices = np.asarray(indices, np.int32)
    num_batches = -(-len(indices) // batch_size)
    padded = np.resize(indices, num_batches * batch_size)
    weight = (np.arange(len(padded)) < len(indices)).astype(np.float32)
    padded, weight = (a.reshape(num_batches, batch_size)[:, rows] for a in (padded, weight))
    return _read(
        _range(num_batches).map(
            lambda b: take(arrays, {"id": padded[b]}, normalize) | {"weight": weight[b]}),
        threads)


def take(arrays: Arrays, rows: dict, normalize: str, window=None,
         whole_images: bool = False) -> dict[str, np.ndarray]:
    """A batch of samples, or of windows of them where rows have places (see Order.rows).

    Args:
      whole_images: read all patches of each sample's image, (n, grid**2, H, W, ...).
    Returns: image (n, H, W, C), label (n, H, W) int32, range (n, C, 2), weight (n,) ones, with
      some targets pixel_weight (n, H, W) float16, and the rows but for their places.
    """
    sample = rows["id"]
    if "place" in rows:
        pixels = np.stack([
            crops.rows(top, left, window, arrays.flat_sizes[i], arrays.offsets[i])
            for i, (top, left) in zip(sample, rows["place"], strict=True)])
        taken = {name: x[pixels] for name, x in arrays.flat.items()}
    else:
        cells = arrays.grid**2
        which = (sample // cells * cells)[:, None] + np.arange(cells) if whole_images else sample
        taken = {"image": arrays.image[which], "label": arrays.label[which]}
        if arrays.pixel_weight is not None:
            taken["pixel_weight"] = arrays.pixel_weight[which]
    return {
        **{name: np.asarray(x) for name, x in taken.items()},
        "label": np.asarray(taken["label"], np.int32),
        "range": arrays.tables[normalize][sample // arrays.grid**2],
        "weight": np.ones(len(sample), np.float32),
        **{name: values for name, values in rows.items() if name != "place"},
    }


def _range(stop):
    import grain  # late: it takes 0.2 s to import, and only training and streaming need it

    return grain.MapDataset.range(stop)


def _read(dataset, threads):
    if not len(dataset):
        return iter(())
    import grain  # as above

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset.to_iter_dataset(options))
