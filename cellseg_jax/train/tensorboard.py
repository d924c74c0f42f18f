"""TensorBoard event files, which always equal the two logs they are made from."""

import math
import numbers
import pathlib
import shutil
import sys
import time

from cellseg_jax.files import naming, read_jsonl
from cellseg_jax.runs.folder import METRICS_LOG, TENSORBOARD, TIMING_LOG

FLUSH_S = 10.0


def _library() -> tuple:
    """(EventsWriter, Event) of tensorboardX, imported without torch.

    It looks for torch, where that is installed, only to name a type; torch takes 2 s to import.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # an ImportError, which tensorboardX catches
    try:
        # Late: most commands write no events.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
    finally:
        if hidden:
            del sys.modules["torch"]
    return EventsWriter, Event


class Board:
    """Event files of a run folder, rewritten from its logs, then extended live.

    A resumed run has cut its logs to the restored step; event files cannot be cut, so the old
    ones are deleted and no curve ever runs back in time.
    """

    def __init__(self, folder: pathlib.Path):
        writer, self._event = _library()
        folder = pathlib.Path(folder)
        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        # Not SummaryWriter: it writes in a thread, where an error such as of a full disk is lost.
        with naming(folder / TENSORBOARD):
            (folder / TENSORBOARD).mkdir()
            self._writer = writer(str(folder / TENSORBOARD / "events"))
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
        event = self._event(wall_time=time.time(), step=step)
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
