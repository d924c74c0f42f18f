"""SIGTERM and Ctrl-C: training saves and stops."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Interrupted:
    """interrupted() is whether SIGTERM or Ctrl-C came, the same on every process.

    Every process has to call it equally often.
    """

    def __init__(self):
        self.received, self.seen = [], 0  # numbers of signals; how many of them were seen
        self._rounds = itertools.count() if jax.process_count() > 1 else None

    def __call__(self) -> bool:
        """Whether one came so far."""
        if self._rounds:  # JAX's own coordination makes all processes stop together
            return multihost_utils.reached_preemption_sync_point(next(self._rounds))
        self.seen = len(self.received)
        return self.seen > 0

    def pass_on(self) -> None:
        """The signal came too late to stop anything here: it is for what comes after the block."""
        self.seen = 0


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupted]:
    """SIGTERM and Ctrl-C are noted instead of ending the process; a second Ctrl-C ends at once.

    The handlers of before are restored in the end; a signal that was not seen by then, or passed
    on, goes to them, so that none is lost.
    """
    interrupted, previous = Interrupted(), {}

    def request(number, _):
        interrupted.received.append(number)
        if number == signal.SIGINT:  # not SIGTERM, which schedulers send more than once
            signal.signal(number, previous[number])

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, request) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if len(interrupted.received) > interrupted.seen:
        signal.raise_signal(interrupted.received[0])
