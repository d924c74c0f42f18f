"""Two processes, or two hosts, and one folder: never both write into it."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from unittest import mock

import numpy as np
from faults.table import Fault

from cellseg_jax.errors import InputError
from cellseg_jax.files import locked
from cellseg_jax.runs import lock
from cellseg_jax.runs.folder import RunFolder

BEAT, LOST = 0.05, 0.4  # seconds, in place of 20 and 90
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def fails(number):
    """flock of a file system that answers with this error."""
    def flock(*_):
        raise OSError(number, os.strerror(number))
    return mock.patch.object(fcntl, "flock", flock)


@contextlib.contextmanager
def quick():
    """Heartbeats and patience in fractions of a second."""
    with mock.patch.multiple(lock, HEARTBEAT=BEAT, HEARTBEAT_LOST=LOST, CLAIM_LOST=LOST):
        yield


class Host:
    """A process on a host of another name and clock, in this one: of `lock`'s view of both."""

    def __init__(self, name, ahead=0.0):
        self.name, self.ahead = name, ahead

    @contextlib.contextmanager
    def here(self):
        utime, now = os.utime, time.time
        stamped = lambda path, *_: utime(path, (now() + self.ahead,) * 2)
        with (mock.patch.object(socket, "gethostname", lambda: self.name),
              mock.patch.object(lock.time, "time", lambda: now() + self.ahead),
              mock.patch.object(lock.os, "utime", stamped)):
            yield

    def lock(self, folder):
        with self.here():
            found = lock.Lock(folder)
        os.utime(folder / lock.HOLDER_FILE, (time.time() + self.ahead,) * 2)
        return found


def refused(make, words):
    """The line of the InUse that `make` raises."""
    try:
        make().close()
    except lock.InUse as error:
        assert words in str(error) and "\n" not in str(error), error
        return str(error)
    raise AssertionError("both have it")


def no_flock(place, number):
    """The heartbeat decides, on one host too; a dead holder there does not delay anybody."""
    with quick(), fails(NO_LOCKS[number % 3]):
        with lock.Lock(place):
            refused(lambda: lock.Lock(place), f"pid {os.getpid()} on {socket.gethostname()}")
        (place / ".lock").write_text(f"pid 4194305 on {socket.gethostname()}")
        began = time.monotonic()
        lock.Lock(place).close()
        assert time.monotonic() - began < LOST / 2
        with locked(place / "a.lock") as alone:
            assert not alone


def other_errors(place, number):
    """An error of flock that is not "would block" is not taken for a holder."""
    with fails((errno.EACCES, errno.EIO, errno.EPERM)[number % 3]):
        try:
            lock.Lock(place)
        except lock.InUse as error:
            raise AssertionError("taken for in use") from error
        except InputError as error:
            assert "cannot write to" in str(error)
    lock.Lock(place).close()


def clocks_apart(place, number):
    """The clock of one of two hosts is ten minutes ahead, or behind; the holder lives, or dies."""
    rng = np.random.default_rng(number)
    ahead = 600.0 * (-1) ** number
    one, two = Host("one", rng.uniform(-1, 1)), Host("two", ahead)
    hosts = [one, two] if number % 4 < 2 else [two, one]
    with quick(), fails(errno.ENOSYS):
        holder = hosts[0].lock(place)
        holder._closed.set()  # its thread; the test stamps in its place
        name = f"pid {os.getpid()} on {hosts[0].name}"
        beating, stop = threading.Event(), threading.Event()

        def beat():
            while not stop.wait(BEAT):
                os.utime(place / ".lock", (time.time() + hosts[0].ahead,) * 2)
                beating.set()

        thread = threading.Thread(target=beat)
        thread.start()
        beating.wait()
        refused(lambda: hosts[1].lock(place), name)
        stop.set()
        thread.join()
        time.sleep(rng.uniform(0, LOST))
        with contextlib.suppress(lock.InUse):  # it may look fresh for a while by a clock ahead
            hosts[1].lock(place).close()
        os.utime(place / ".lock", (time.time() - 700,) * 2)
        hosts[1].lock(place).close()


def future_stamp(place, number):
    """A stamp of the future is watched, not believed: neither for ever held nor taken at once."""
    (place / ".lock").write_text("pid 7 on elsewhere")
    os.utime(place / ".lock", (time.time() + 10.0 ** number,) * 2)
    with quick():
        began = time.monotonic()
        lock.Lock(place).close()
        assert time.monotonic() - began >= LOST


def lost(place, number):
    """A holder that was silent while another took over writes nothing more and keeps its hands off.
    """
    from helpers import tiny_config

    with quick():
        folder = RunFolder(place / "run", tiny_config(), "data")
        folder.log("metrics.jsonl", {"step": 1})
        os.close(folder._lock._system)  # as of a host that does not see the other's
        folder._lock._system = None
        (place / "run" / ".lock").write_text("pid 7 on elsewhere")
        before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
        refused_line = None
        try:
            folder.log("metrics.jsonl", {"step": 2})
        except lock.InUse as error:
            refused_line = str(error)
        assert "pid 7 on elsewhere" in refused_line and "nothing more is written" in refused_line
        folder.close()
        assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def many_at_once(place, number):
    """Of many hosts that find a free, or a dead holder's, folder at once, one gets it."""
    if number % 2:
        (place / ".lock").write_text("pid 7 on elsewhere")
        os.utime(place / ".lock", (time.time() - 2 * lock.LONG_DEAD,) * 2)
    if number % 4 == 2:
        (place / lock.CLAIM_FILE).touch()  # left by a kill
    got, ready = [], threading.Barrier(8)

    def enter():
        ready.wait()
        with contextlib.suppress(lock.InUse):
            got.append(lock.Lock(place))

    with quick(), fails(errno.ENOSYS):
        threads = [threading.Thread(target=enter) for _ in range(8)]
        names = iter(f"host{n}" for n in range(10**6))
        with mock.patch.object(socket, "gethostname", lambda: next(names)):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(got) == 1, len(got)
    got[0].check()
    got[0].close()


FAULTS = (
    Fault("flock answers ENOSYS, EOPNOTSUPP or ENOLCK", "lock", "the heartbeat decides",
          no_flock, 3, 1),
    Fault("flock answers another error", "lock", "one line; not taken for a holder",
          other_errors, 3, 1),
    Fault("clocks of two hosts ten minutes apart", "lock", "never both hold it; pid and host named",
          clocks_apart, 20),
    Fault("a heartbeat of the future", "lock", "watched for 90 s, then taken over", future_stamp,
          6),
    Fault("a lock lost while silent", "training", "nothing more is written", lost, 1, 1),
    Fault("eight hosts at once", "lock", "one gets it", many_at_once, 100, 4),
)
