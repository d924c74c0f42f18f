"""Which samples a training step reads: the only definition of data order."""

import functools
import json

import ml_collections
import numpy as np

from cellseg_jax import data
from cellseg_jax.errors import InputError


class Order:
    """order(step) -> (batch_size,) int32 indices, a pure function of seed and step.

    Epoch e is a permutation keyed by (seed, e), cut into whole batches; the samples that fill
    no batch are left out, others in each epoch. There is no state to save or restore.
    """

    def __init__(self, train: np.ndarray, seed: int, batch_size: int):
        if not 1 <= batch_size <= len(train):
            raise InputError(f"config.train.batch_size: got {batch_size}; expected 1 to "
                             f"{len(train)}, the number of training images")
        self.train, self.seed, self.batch_size = np.asarray(train), seed, batch_size
        self.steps_per_epoch = len(train) // batch_size
        self._epoch = functools.lru_cache(maxsize=4)(self._permuted)  # readers straddle epochs

    def __call__(self, step: int) -> np.ndarray:
        epoch, place = divmod(int(step), self.steps_per_epoch)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _permuted(self, epoch: int) -> np.ndarray:
        # Sorting raw Philox words: numpy promises these for ever, its permutation() may change.
        words = np.random.Philox(key=[self.seed % 2**64, epoch]).random_raw(len(self.train))
        return self.train[np.argsort(words, kind="stable")].astype(np.int32)


def indices(config, step: int) -> np.ndarray:
    """(batch_size,) int32: the samples of training step `step` of a run.

    Opens the data once per config, later calls only look up.
    """
    key = {"data": config.data.to_dict(), "seed": config.seed,
           "batch_size": config.train.batch_size}
    return _order(json.dumps(key, sort_keys=True))(step)


@functools.lru_cache(maxsize=64)
def _order(key: str) -> Order:
    config = ml_collections.ConfigDict(json.loads(key))
    parts = data.split_of(config.data, data.load(config.data))
    return Order(parts["train"], config.seed, config.batch_size)
