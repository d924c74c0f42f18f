"""The exclusive right to write into a run's folder."""

import contextlib
import errno
import os
import pathlib
import socket
import threading
import time
from typing import NamedTuple

import psutil

from cellseg_jax.errors import InputError
from cellseg_jax.files import system_lock, write_atomic
from cellseg_jax.report import terminal

HOLDER_FILE = ".lock"  # "pid N on HOST" of the process that writes, its time the heartbeat
SYSTEM_FILE = ".system.lock"  # locked by the operating system as long as that process lives
CLAIM_FILE = ".lock.claim.tmp"  # while a process becomes the holder
HEARTBEAT, HEARTBEAT_LOST = 20.0, 90.0  # seconds
LONG_DEAD = 86400.0  # seconds; clocks that differ by less cannot make a living holder look dead
CLAIM_LOST = 10.0  # seconds after which a claim, which takes milliseconds, was left by a kill
TAKEN: dict[pathlib.Path, bool] = {}  # folders that this process has had; True: it has them now


class InUse(InputError):
    """Another process writes into the folder; `fact` says which one."""

    def __init__(self, fact: str, advice: str):
        super().__init__(f"--workdir: {fact}; {advice}")
        self.fact = fact


class _Holder(NamedTuple):
    """What the holder's file has: any change of it is a sign of life."""

    name: str  # "" where nobody has the folder
    mtime_ns: int
    inode: int


class Lock:
    """The exclusive right to write into a run's folder, until `close`.

    The operating system's lock decides on one host. Between hosts, and on file systems without
    such locks, the name of the holder and its heartbeat do. Clocks may differ: a heartbeat that is
    not fresh by this host's clock is watched for HEARTBEAT_LOST seconds before the holder is taken
    for dead.

    Raises: InputError if the folder cannot be written, OSError if its disk is full; InUse, which
      names the process that has the right.
    """

    def __init__(self, path):
        self._folder = pathlib.Path(path)
        self._file = self._folder / HOLDER_FILE
        self._host = socket.gethostname()
        self._me = f"pid {os.getpid()} on {self._host}"
        self._system, self._closed, self._renewed = None, threading.Event(), time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._system = system_lock(self._folder / SYSTEM_FILE, wait=False)
            self._claim(self._dead_holder())
        except BlockingIOError as error:
            raise self._in_use(self._read().name) from error
        except OSError as error:
            self._release()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the folder will do later
                error.filename = error.filename or str(self._file)
                raise
            raise InputError(f"--workdir: cannot write to {path} ({error.strerror}); "
                             "choose another folder with --workdir=DIR") from error
        except BaseException:
            self._release()
            raise
        TAKEN[self._folder] = True
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Before anything is written. Raises: InUse where the right was lost to another process."""
        if self._closed.is_set():
            return
        try:
            holder = self._read().name
        except OSError:  # the heartbeat cannot be seen by others either
            if time.monotonic() - self._renewed < HEARTBEAT_LOST:
                return
            holder = ""
        if holder != self._me:
            raise InUse(f"{self._folder} was taken over by {holder or 'another process'} while "
                        f"this process ({self._me}) was silent", "nothing more is written")

    def close(self) -> None:
        """Give the right back."""
        if not self._closed.is_set():
            self._closed.set()
            TAKEN[self._folder] = False
            with contextlib.suppress(OSError):  # the folder is gone
                if self._read().name == self._me:
                    self._file.write_text("")
            self._release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self) -> _Holder:
        return _read(self._file)

    def _dead_holder(self) -> _Holder:
        """What the file has, once its holder is known to be dead or to have given the right back.

        Raises: InUse.
        """
        holder = self._read()
        name, _, host = holder.name.partition(" on ")
        if not holder.name or host == self._host and (
                self._system is not None or not _is_alive(name.removeprefix("pid "))):
            return holder
        age = time.time() - holder.mtime_ns / 1e9
        if 0 <= age < HEARTBEAT_LOST:
            raise self._in_use(holder.name)
        if age < LONG_DEAD:  # or the clocks differ
            terminal.log(f"{self._folder}: watching for {HEARTBEAT_LOST:.0f} s whether "
                         f"{holder.name} still has it")
            end = time.monotonic() + HEARTBEAT_LOST
            while time.monotonic() < end:
                time.sleep(min(1, HEARTBEAT_LOST / 10))
                if self._read() != holder:
                    raise self._in_use(self._read().name)
        return holder

    def _claim(self, before: _Holder) -> None:
        """Become the holder in place of `before`, which only one process can.

        A file that one process alone can create keeps all others from it until the holder's file
        has changed; who comes later sees that.
        """
        claim = self._folder / CLAIM_FILE
        if not _created(claim):
            self._wait_for(claim, before)
            if not _created(claim):
                raise self._in_use(self._read().name)
        try:
            if self._read() != before:
                raise self._in_use(self._read().name)
            write_atomic(self._file, self._me)
        finally:
            claim.unlink()

    def _wait_for(self, claim: pathlib.Path, before: _Holder) -> None:
        """Wait until a claim ends; remove it if a kill left it. Raises: InUse.

        Of those who waited for the same claim one alone removes it, who has the file named after
        it, and nobody removes the claim that comes after it.
        """
        left, end = _identity(claim), time.monotonic() + CLAIM_LOST
        while left and _identity(claim) == left and time.monotonic() < end:
            time.sleep(min(0.1, CLAIM_LOST / 10))
        if self._read() != before:
            raise self._in_use(self._read().name)
        if not left or _identity(claim) != left:
            return
        remover = claim.with_name(f"{claim.name}.{left[0]}.{left[1]}.tmp")
        if not _created(remover):
            raise self._in_use("")
        try:
            if _identity(claim) == left:
                claim.unlink()
        finally:
            remover.unlink()

    def _in_use(self, holder: str) -> InUse:
        self._release()
        return InUse(f"{self._folder} is in use by {holder or 'another process'}",
                     "wait for it, or choose another folder with --workdir=DIR")

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if self._read().name != self._me:
                    return  # it is another's now; `check` says so
                os.utime(self._file)
                self._renewed = time.monotonic()

    def _release(self) -> None:
        descriptor, self._system = self._system, None
        if descriptor is not None:
            os.close(descriptor)


def holder(folder) -> tuple[str, float]:
    """Who has a folder, and the seconds since its last sign of life by this host's clock.

    Nothing is written. ("", 0) where nobody has it, or a process of this host that is gone. A
    holder that was silent for HEARTBEAT_LOST may be lost: only `Lock` can find that out.
    """
    found = _read(pathlib.Path(folder) / HOLDER_FILE)
    name, _, host = found.name.partition(" on ")
    if not name or host == socket.gethostname() and not _is_alive(name.removeprefix("pid ")):
        return "", 0.0
    return found.name, time.time() - found.mtime_ns / 1e9


def _read(file) -> _Holder:
    """What a holder's file has now. Opening it makes network file systems look anew."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            found = os.fstat(opened.fileno())
            return _Holder(opened.read().strip(), found.st_mtime_ns, found.st_ino)
    except FileNotFoundError:
        return _Holder("", 0, 0)


def _created(path) -> bool:
    """Whether this process has created the file; False where it was there."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _identity(path) -> tuple[int, int] | None:
    """What tells a file from another that has its name later; None without one."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_alive(pid: str) -> bool:
    """Whether there is such a process on this host; True where it is no number."""
    return not pid.isdecimal() or psutil.pid_exists(int(pid))
