"""What grain costs in the default run, beside the code without it that it replaced.

    python benchmarks/grain_readers.py --root=DIR [--count=96] [--size=256] [--rounds=5]

DIR is stage1_train of the 2018 Data Science Bowl. Decoding: its images are decoded into a fresh
cache by grain's readers and by a pool of as many threads, in turn, and both caches must be equal
byte for byte. Order: the rows of the steps of an epoch from the grain dataset that a run reads,
and from data.order itself. Ratios are of interleaved rounds; the load of the machine cancels.
"""

import argparse
import collections
import concurrent.futures
import itertools
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.data import cache, pipeline
from cellseg_jax.data.order import order_of
from cellseg_jax.errors import InputError


def pool(function, items):
    """What cache.in_order gives, by a pool of threads."""
    def read(item):
        try:
            return function(item)
        except InputError as error:
            return error

    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(cache.THREADS) as threads:
        ahead = collections.deque(
            threads.submit(read, item) for item in itertools.islice(items, 2 * cache.THREADS))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(threads.submit(read, item) for item in itertools.islice(items, 1))


READERS = {"grain": cache.in_order, "pool": pool}


def contents(path):
    """The bytes of a file; of the arrays in a zip file, which keeps the time of writing too."""
    if path.suffix != ".npz":
        return path.read_bytes()
    with np.load(path) as arrays:
        return {name: array.tobytes() for name, array in arrays.items()}


def decoded(reader, options, records):
    """(seconds, {file: bytes}) of decoding into a fresh cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache.in_order, started = READERS[reader], time.perf_counter()
        arrays = data.load({**options, "cache": folder}, records=records)
        seconds = time.perf_counter() - started
        return seconds, {path.name: contents(path) for path in arrays.folder.iterdir()}


def row_seconds(order, rows):
    """Seconds per step of reading an epoch's rows."""
    started = time.perf_counter()
    for step in range(order.steps_per_epoch):
        rows(step)
    return (time.perf_counter() - started) / order.steps_per_epoch


def main():
    """Prints the two ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, type=pathlib.Path)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = config_lib.default()
    config.data.root, config.data.size = str(args.root), (args.size, args.size)
    config.train.batch_size = 4
    config = config_lib.complete(config)
    options = config.data.to_dict()
    records = data.records_of(options)[: args.count]
    found = {name: decoded(name, options, records)[1] for name in READERS}  # and warms up
    assert found["grain"] == found["pool"], "the caches differ"
    seconds = {name: [] for name in READERS}
    for number in range(args.rounds):
        for name in sorted(READERS, reverse=number % 2):
            seconds[name].append(decoded(name, options, records)[0])
    arrays = data.load({**options, "cache": tempfile.mkdtemp()}, records=records)
    order = order_of(config, arrays, np.arange(len(arrays.names)))
    direct, through = [], []
    for _ in range(20 * args.rounds):
        direct.append(row_seconds(order, order.rows))
        through.append(row_seconds(
            order, pipeline.train_rows(order, order.steps_per_epoch).__getitem__))
    print(f"{len(records)} images to {args.size}x{args.size}, {os.cpu_count()} cores, load "
          f"{os.getloadavg()[0]:.1f}")
    rates = {name: len(records) / statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"decoding: grain {rates['grain']:.1f}, pool {rates['pool']:.1f} images/s, "
          f"grain / pool in seconds: {ratio:.3f}")
    print(f"rows of a step: {1e6 * statistics.median(through):.1f} us by grain, "
          f"{1e6 * statistics.median(direct):.1f} us without")


if __name__ == "__main__":
    main()
