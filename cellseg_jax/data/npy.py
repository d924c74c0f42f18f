"""An .npy file whose length and dtype are known only when all of it is written."""

import math
import os
import pathlib

import numpy as np


class GrowingNpy:
    """An .npy file written array after array. A wider dtype rewrites what is there.

    Plain writes, no memory map: on a full disk they raise OSError, a map would be killed.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.file, self.dtype, self.shape, self.length = path, None, None, None, 0

    def append(self, array: np.ndarray) -> None:
        """Adds (k, ...) values after those that are there."""
        if self.file is None:
            self.file, self.dtype, self.shape = open(self.path, "wb"), array.dtype, array.shape[1:]
            self._write_header()
        elif not np.can_cast(array.dtype, self.dtype):
            self._widen(np.promote_types(array.dtype, self.dtype))
        self.file.write(np.ascontiguousarray(array, self.dtype).data)
        self.length += len(array)

    def close(self) -> None:
        """Completes the header and waits until the file is on the disk."""
        self.file.seek(0)
        self._write_header()  # as long as the first one: numpy leaves room for the length
        self.file.flush()
        os.fsync(self.file.fileno())  # else a power cut after the rename could leave zeros
        self.file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
            "shape": (self.length, *self.shape)})

    def _widen(self, dtype) -> None:
        self.close()
        narrow = np.load(self.path, mmap_mode="r")
        wide = GrowingNpy(self.path.with_suffix(".wide"))
        rows = 2**22 // max(1, math.prod(self.shape)) + 1  # a few MiB at a time
        for start in range(0, len(narrow), rows):
            wide.append(narrow[start : start + rows].astype(dtype))
        self.file, self.dtype = wide.file, dtype
        os.replace(wide.path, self.path)
