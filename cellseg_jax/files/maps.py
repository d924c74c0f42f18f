"""Arrays that are memory-mapped for writing, whose place on the disk is taken before it is written.

A store into a map for which the disk has no room ends the process by a bus error, which nothing can
catch; taking the place first is an OSError.
"""

import os
import tempfile

import numpy as np


def scratch_map(dtype, shape, folder=None, rows=None) -> np.memmap:
    """Zeros in a file without a name, which goes with the array.

    Args:
      folder: where it lies; None is the system's for temporary files.
      rows: of the first axis, those that will be used; None means all. The others must be neither
        written nor read: file systems in memory take room for what is read, too.
    Raises: OSError, with the folder, where there is no room for them.
    """
    folder = tempfile.gettempdir() if folder is None else folder
    with tempfile.TemporaryFile(dir=folder) as file:
        out = np.memmap(file, dtype, "w+", shape=tuple(shape))
        stride = out.strides[0]
        try:
            for start, length in ([(0, out.nbytes)] if rows is None
                                  else [(row * stride, stride) for row in rows]):
                _reserve(file, start, length)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, {out.nbytes / 2**20:.0f} MiB are needed",
                          str(folder)) from error
        return out


def _reserve(file, start: int, length: int) -> None:
    """Take the place of `length` bytes of zeros in an open file."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, length)
        return
    file.seek(start)  # systems without that call
    for done in range(0, length, 2**20):
        file.write(bytes(min(2**20, length - done)))
    file.flush()
