"""The exclusive right to write into a run's folder."""

import contextlib
import os
import pathlib
import socket
import threading
import time

import filelock

from cellseg_jax.errors import InputError

HOLDER_FILE = ".lock"  # "pid N on HOST" of the process that writes, its time the heartbeat
SYSTEM_FILE = ".system.lock"  # locked by the operating system as long as that process lives
HEARTBEAT, HEARTBEAT_LOST = 20.0, 90.0  # seconds


class InUse(InputError):
    """Another process writes into the folder."""


class Lock:
    """The exclusive right to write into a run's folder, until `close`.

    The operating system's lock decides on one host. Between hosts that share a file system
    without such locks, the name of the holder and a heartbeat do: a holder on another host that
    was alive HEARTBEAT_LOST seconds ago still has the folder.

    Raises: InputError if the folder cannot be written; InUse, which names the process that has
      the right.
    """

    def __init__(self, path):
        path = pathlib.Path(path)
        self._holder = path / HOLDER_FILE
        # Not by thread: the one that closes may be another than the one that opened.
        self._system = filelock.FileLock(path / SYSTEM_FILE, thread_local=False)
        try:
            path.mkdir(parents=True, exist_ok=True)
            free = self._acquire()
            holder = self._holder.read_text().strip() if self._holder.exists() else ""
            here = f" on {socket.gethostname()}"
            if not free or holder and not holder.endswith(here) and self._silent < HEARTBEAT_LOST:
                self._system.release()
                raise InUse(f"--workdir: {path} is in use by {holder or 'another process'}; wait "
                            "for it, or choose another folder with --workdir=DIR")
            self._holder.write_text(f"pid {os.getpid()}{here}")
        except OSError as error:
            raise InputError(f"--workdir: cannot write to {path} ({error.strerror}); "
                             "choose another folder with --workdir=DIR") from error
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _acquire(self) -> bool:
        try:
            self._system.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    @property
    def _silent(self) -> float:
        """Seconds since the holder's last sign of life."""
        return time.time() - self._holder.stat().st_mtime

    def _beat(self):
        while not self._closed.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the folder is gone
                os.utime(self._holder)

    def close(self) -> None:
        """Give the right back."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):  # the folder is gone
                self._holder.write_text("")
            self._system.release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
