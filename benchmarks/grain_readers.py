"""What grain costs in the default run, beside the code without it that it replaced.

    python benchmarks/run.py grain_readers --root=DIR [--count=96] [--size=256] [--rounds=5]

DIR is stage1_train of the 2018 Data Science Bowl. Decoding: its images are decoded into a fresh
cache by grain's readers and by a pool of as many threads, in turn, and both caches must be equal
byte for byte. Order: the rows of the steps of an epoch from the grain dataset that a run reads,
and from data.order itself.
"""

import collections
import concurrent.futures
import itertools
import pathlib
import tempfile

import numpy as np

from benchmarks.measuring import Result, Table, in_turns, median, timed, times_faster
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
OPTIONS = {
    "root": (pathlib.Path, "stage1_train"),
    "count": (96, "images"),
    "size": (256, "pixels per side"),
    "rounds": (5, "turns"),
}


def contents(path):
    """The bytes of a file; of the arrays in a zip file, which keeps the time of writing too."""
    if path.suffix != ".npz":
        return path.read_bytes()
    with np.load(path) as arrays:
        return {name: array.tobytes() for name, array in arrays.items()}


def decoder(reader, options, records):
    """(call, contents): decode into a fresh cache, and {file: bytes} of the last one."""
    made = {}

    def decode():
        with tempfile.TemporaryDirectory() as folder:
            cache.in_order = READERS[reader]
            seconds = timed(lambda: data.load({**options, "cache": folder}, records=records))
            made.update((path.name, contents(path)) for path in pathlib.Path(folder).rglob("*")
                        if path.is_file())
            return seconds

    return decode, made


def epoch(order, rows):
    """A function of nothing that reads an epoch's rows."""
    return lambda: [rows(step) for step in range(order.steps_per_epoch)]


def measure(options) -> Result:
    config = config_lib.default()
    config.data.root, config.data.size = str(options.root), (options.size, options.size)
    config.train.batch_size = 4
    config = config_lib.complete(config)
    settings = config.data.to_dict()
    records = data.records_of(settings)[: options.count]
    decoders = {name: decoder(name, settings, records) for name in READERS}
    seconds = in_turns({name: call for name, (call, _) in decoders.items()}, options.rounds,
                       warm=1, clock=lambda call: call())
    cache.in_order = READERS["grain"]
    assert decoders["grain"][1] == decoders["pool"][1], "the caches differ"
    arrays = data.load({**settings, "cache": tempfile.mkdtemp()}, records=records)
    order = order_of(config, arrays, np.arange(len(arrays.names)))
    through = pipeline.train_rows(order, order.steps_per_epoch).__getitem__
    rows = in_turns({"grain": epoch(order, through), "pool": epoch(order, order.rows)},
                    20 * options.rounds)
    table = [[name, len(records) / median(seconds[name]),
              times_faster(seconds[name], seconds["pool"]),
              1e6 * median(rows[name]) / order.steps_per_epoch] for name in READERS]
    return Result([Table(["reader", "decoding, images/s", "times as fast as the pool",
                          "rows of a step, us"], table)],
                  [f"{len(records)} images to {options.size}x{options.size}. The order of the "
                   "pool is data.order without grain."])
