"""TensorBoard event files, which always equal the two logs they are made from."""

import math
import numbers
import pathlib
import shutil

from cellseg_jax.files import read_jsonl
from cellseg_jax.runs.folder import METRICS_LOG, TENSORBOARD, TIMING_LOG


class Board:
    """Event files of a run folder, rewritten from its logs, then extended live.

    A resumed run has cut its logs to the restored step; event files cannot be cut, so the old
    ones are deleted and no curve ever runs back in time.
    """

    def __init__(self, folder: pathlib.Path):
        from tensorboardX import SummaryWriter  # imports torch where that is: seconds

        folder = pathlib.Path(folder)
        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        self._writer = SummaryWriter(str(folder / TENSORBOARD), flush_secs=10)
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
                self._writer.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()
