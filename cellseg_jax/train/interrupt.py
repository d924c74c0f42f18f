"""SIGTERM and Ctrl-C: training saves and stops."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields interrupted(): whether SIGTERM or Ctrl-C came, the same on every process.

    Every process has to call it equally often. A second Ctrl-C ends at once. The handlers of
    before are restored in the end.
    """
    if jax.process_count() > 1:  # JAX's own coordination makes all processes stop together
        rounds = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(rounds))
        return
    received, previous = threading.Event(), {}

    def request(number, _):
        received.set()
        if number == signal.SIGINT:  # not SIGTERM, which schedulers send more than once
            signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, request) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
