"""What a run used: time, processor time and memory, as columns of every table."""

from typing import NamedTuple


class Resource(NamedTuple):
    """How a measured quantity is shown."""

    title: str  # of a column, which names the unit
    divisor: float  # from the stored value to the unit
    definition: str


RESOURCES = {  # key in result.json, the last in eval/test.json -> how it is shown
    "train_seconds": Resource(
        "minutes", 60, "time in training, without compilation; of runs that train in one "
        "program, each one's share"),
    "cpu_seconds": Resource(
        "CPU minutes", 60, "processor time of training, over all cores; shared likewise"),
    "peak_memory_gib": Resource(
        "GiB", 1, "GiB, the largest use of the process that trained (on an accelerator of "
        "the device) until then, so that later rows of one process may show earlier ones'"),
    "ms_per_image": Resource(
        "ms per image", 1, "milliseconds of the network per test image in batches of "
        "eval.batch_size, the median of the batches but the first"),
}
