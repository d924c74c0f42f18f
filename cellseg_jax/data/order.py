"""Which samples a training step reads: the only definition of data order."""

import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from cellseg_jax import data
from cellseg_jax.data import variants
from cellseg_jax.errors import InputError

STEPS = 2**41  # Philox keys (seed, epoch) are far below; splits have 2**40


class Crops(NamedTuple):
    """What random windows are drawn from."""

    window: tuple[int, int]
    sizes: np.ndarray  # (m, 2) height and width of the images
    anchors: np.ndarray  # (m, A, 2) foreground pixels, -1 where an image has none


class Sampling(NamedTuple):
    """How an epoch draws samples and windows."""

    windows: int = 1  # how often an epoch visits each sample, with a window of its own
    copies: int = 0  # augmented variants of each sample beside itself
    left_out: np.ndarray | None = None  # (n, copies + 1) bool: variants that are not drawn
    # (n,) names; given, an epoch draws with replacement, each stratum equally often (weights 1 /
    # count).
    strata: Sequence[str] | None = None
    # Share of the rows that are sure to hold foreground, if there is some; with strata, of each
    # that has some equally often.
    oversample: float = 0.0
    # (n,) or, of each variant, (n, copies + 1): share of foreground, read by `oversample`.
    foreground: np.ndarray | None = None
    crops: Crops | None = None  # where windows are drawn, if they are
    whole_images: bool = False  # whether a patch is read with all patches of its image


PLAIN = Sampling()  # each sample once


class Order:
    """order(step) -> (batch_size,) int32 indices, a pure function of seed and step.

    Epoch e is a permutation keyed by (seed, e), cut into whole batches; the samples that fill
    no batch are left out, others in each epoch. There is no state to save or restore.

    With N copies an index is sample * (N + 1) + copy, and an epoch visits every copy of every
    sample; copy 0 is the sample untouched. With several windows it visits each so many times.

    Args:
      train: indices of the training samples.
    Raises: InputError if batch_size is not 1 to the number of samples in an epoch.
    """

    def __init__(self, train, seed: int, batch_size: int, sampling: Sampling = PLAIN):
        windows, copies, left_out, strata, oversample, foreground, crops, whole_images = sampling
        train = np.asarray(train)
        pool = (train[:, None] * (copies + 1) + np.arange(copies + 1)).reshape(-1)
        if left_out is not None:
            pool = pool[~left_out.reshape(-1)[pool]]
        check_batch_size(batch_size, len(pool), windows, crops is not None)
        pool = np.tile(pool, windows)
        self.pool, self.seed, self.batch_size, self.copies = pool, seed, batch_size, copies
        self.oversample, self.crops, self.whole_images = oversample, crops, whole_images
        self.steps_per_epoch = len(pool) // batch_size
        self.strata = None
        if strata is not None:
            stratum = np.unique(np.asarray(strata)[pool // (copies + 1)], return_inverse=True)[1]
            self.strata = [pool[stratum == k] for k in range(stratum.max() + 1)]
        self.certain = []  # what is sure to hold foreground, of each stratum that has some
        if oversample and crops is None:
            of_variants = np.broadcast_to(
                foreground.reshape(len(foreground), -1), (len(foreground), copies + 1)).reshape(-1)
            holding = [of[of_variants[of] > 0] for of in self.strata or [pool]]
            self.certain = [of for of in holding if len(of)]
        self._epoch = functools.lru_cache(maxsize=4)(self._drawn)  # readers straddle epochs

    def __call__(self, step: int) -> np.ndarray:
        """(batch_size,) int32 indices of a step."""
        epoch, place = divmod(int(step), self.steps_per_epoch)
        index = self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        if not self.certain:
            return index
        decide, choose = self._uniform(step, 2)
        stratum, choose = np.divmod(choose * len(self.certain), 1)
        certain = _chosen(self.certain, stratum.astype(np.int64), choose)
        return np.where(decide < self.oversample, certain, index).astype(np.int32)

    def rows(self, step: int) -> dict[str, np.ndarray]:
        """The rows of a batch: id (batch,), with copies copy, with crops place (batch, 2).

        `place` is top and left of the window in its image, below 0 where the image is smaller.
        """
        sample, copy = np.divmod(self(step), np.int32(self.copies + 1))
        rows = {"id": sample}
        if self.copies:
            rows["copy"] = copy
        if self.crops is not None:
            rows["place"] = self._places(sample, step)
        return rows

    def _places(self, sample, step):
        decide, choose, *position = self._uniform(step, 4)
        slack = self.crops.sizes[sample] - self.crops.window  # (batch, 2)
        low, high = np.minimum(slack, 0), np.maximum(slack, 0)
        position = np.stack(position, -1)
        place = low + np.floor(position * (high - low + 1)).astype(np.int64)
        count = self.crops.anchors.shape[1]
        anchor = self.crops.anchors[sample, (choose * count).astype(np.int64)]
        around = anchor - np.floor(position * self.crops.window).astype(np.int64)
        wanted = ((decide < self.oversample) & (anchor[:, 0] >= 0))[:, None]
        return np.where(wanted, np.clip(around, low, high), place).astype(np.int32)

    def _drawn(self, epoch: int) -> np.ndarray:
        # Sorted raw Philox words: numpy promises that they never change; permutation() may.
        random = np.random.Philox(key=[self.seed % 2**64, epoch])
        if self.strata is None:
            words = random.random_raw(len(self.pool))
            return self.pool[np.argsort(words, kind="stable")].astype(np.int32)
        stratum, member = (_unit(random.random_raw(len(self.pool))) for _ in range(2))
        stratum = (stratum * len(self.strata)).astype(np.int64)
        return _chosen(self.strata, stratum, member).astype(np.int32)

    def _uniform(self, step, count):
        """(count, batch_size) numbers in [0, 1) of this step."""
        random = np.random.Philox(key=[self.seed % 2**64, STEPS + int(step)])
        return _unit(random.random_raw(count * self.batch_size)).reshape(count, -1)


def check_batch_size(batch_size: int, samples: int, windows: int, cropped: bool) -> None:
    """InputError unless an epoch, so many windows of each sample, has at least one batch."""
    if 1 <= batch_size <= samples * windows:
        return
    of_each = f" times data.windows={windows}" * (windows > 1)
    more = f", or data.windows={-(-batch_size // max(samples, 1))}" * (cropped and batch_size > 0)
    raise InputError(f"config.train.batch_size: got {batch_size}; expected 1 to "
                     f"{samples * windows}, the number of training images{of_each}{more}")


def _chosen(lists, number, share):
    """(m,): of the list of each number (m,), the entry at that share of its length, in [0, 1)."""
    size = np.array([len(one) for one in lists])[number]
    start = np.cumsum([0, *(len(one) for one in lists[:-1])])[number]
    return np.concatenate(lists)[start + (share * size).astype(np.int64)]


def _unit(words):
    return (words >> np.uint64(11)) * 2.0**-53


def order_of(config, arrays, train) -> Order:
    """The Order of a run over the training samples `train` of its arrays."""
    options = config.data
    crops, foreground, left_out = None, arrays.foreground, _not_copied(config, arrays)
    if options.augment_before_grid and options.copies and (
            options.oversample or not options.keep_blank):
        foreground = variants.foreground(config, arrays, train)
        if not options.keep_blank:
            left_out = (foreground == 0) | (False if left_out is None else left_out)
    if options.fit == "random_crop":
        crops = Crops(tuple(options.size), arrays.flat_sizes, arrays.tables["anchors"])
    return Order(train, config.seed, config.train.batch_size, Sampling(
        windows=options.windows, copies=options.copies, left_out=left_out,
        strata=arrays.strata if options.balance else None,
        oversample=options.oversample, foreground=foreground, crops=crops,
        whole_images=options.augment_before_grid and options.grid > 1))


def _not_copied(config, arrays) -> np.ndarray | None:
    """(n, copies + 1) bool: augmented variants of what is not augmented; None: there is none."""
    single = data.never_copied(config.data, arrays)
    if not config.data.copies or not single.any():
        return None
    return single[:, None] & (np.arange(config.data.copies + 1) > 0)


def indices(config, step: int) -> np.ndarray:
    """(batch_size,) int32: the samples of training step `step` of a run; see Order for copies.

    Opens the data once per config, later calls only look up.
    """
    key = {"data": config.data.to_dict(), "seed": config.seed,
           "augment": config.augment.to_dict() if "augment" in config else {},
           "train": {"batch_size": config.train.batch_size}}
    return _order(json.dumps(key, sort_keys=True))(step)


@functools.lru_cache(maxsize=64)
def _order(key: str) -> Order:
    config = ml_collections.ConfigDict(json.loads(key))
    arrays = data.load(config.data)
    return order_of(config, arrays, data.split_of(config.data, arrays)["train"])
