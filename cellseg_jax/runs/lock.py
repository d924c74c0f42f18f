"""The exclusive right to write into a run's folder."""

import contextlib
import fcntl
import os
import pathlib
import socket
import threading
import time

from cellseg_jax.errors import InputError

HEARTBEAT, HEARTBEAT_LOST = 20.0, 90.0  # seconds


class InUse(InputError):
    """Another process writes into the folder."""


class Lock:
    """The exclusive right to write into a run's folder, until `close`.

    `flock` decides on one host. Between hosts that share a file system without it, the name of
    the holder and a heartbeat do: a holder on another host that was alive HEARTBEAT_LOST seconds
    ago still has the folder.

    Raises: InputError if the folder cannot be written; InUse, which names the process that has
      the right.
    """

    def __init__(self, path):
        path = pathlib.Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = open(path / ".lock", "a+")
        except OSError as error:
            raise InputError(f"--workdir: cannot write to {path} ({error.strerror}); "
                             "choose another folder with --workdir=DIR") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        self._file.seek(0)
        holder = self._file.read().strip()
        here = f" on {socket.gethostname()}"
        silent = time.time() - os.stat(path / ".lock").st_mtime
        if not free or holder and not holder.endswith(here) and silent < HEARTBEAT_LOST:
            self._file.close()
            raise InUse(f"--workdir: {path} is in use by {holder or 'another process'}; wait for "
                        "it, or choose another folder with --workdir=DIR")
        self._write(f"pid {os.getpid()}{here}")
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _write(self, text):
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def _beat(self):
        while not self._closed.wait(HEARTBEAT):
            with contextlib.suppress(OSError, ValueError):  # the folder is gone, or just closed
                os.utime(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._closed.set()
        if not self._file.closed:
            self._write("")
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
