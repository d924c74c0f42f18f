"""TensorBoard event files, which always equal the two logs they are made from."""

import math
import numbers
import pathlib
import shutil
import time

from cellseg_jax.files import naming, read_jsonl
from cellseg_jax.runs.folder import METRICS_LOG, TENSORBOARD, TIMING_LOG

FLUSH_S = 10.0


class Board:
    """Event files of a run folder, rewritten from its logs, then extended live.

    A resumed run has cut its logs to the restored step; event files cannot be cut, so the old
    ones are deleted and no curve ever runs back in time.
    """

    def __init__(self, folder: pathlib.Path):
        from tensorboardX.event_file_writer import EventsWriter  # imports torch where that is

        folder = pathlib.Path(folder)
        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        # Not SummaryWriter: it writes in a thread, where an error such as of a full disk is lost.
        with naming(folder / TENSORBOARD):
            (folder / TENSORBOARD).mkdir()
            self._writer = EventsWriter(str(folder / TENSORBOARD / "events"))
        self._folder, self._flushed = folder / TENSORBOARD, time.monotonic()
        for name in (METRICS_LOG, TIMING_LOG):
            for line in read_jsonl(folder / name, ()):
                self.add(line)

    def add(self, line: dict) -> None:
        """A point at line["step"] for every finite number; train_loss becomes train/loss."""
        for key, value in line.items():
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if key != "step" and number and math.isfinite(value):
                part, _, rest = key.partition("_")
                tag = f"{part}/{rest}" if part in ("train", "val") else key
                self._write(tag, value, line["step"])

    def _write(self, tag: str, value, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event  # as above

        event = Event(wall_time=time.time(), step=step)
        event.summary.value.add(tag=tag, simple_value=value)
        with naming(self._folder):
            self._writer.write_event(event)
            if time.monotonic() - self._flushed > FLUSH_S:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is still buffered."""
        with naming(self._folder):
            self._writer.close()
