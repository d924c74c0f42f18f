"""SIGTERM and Ctrl-C of a command: how it ends, and that it ends soon.

Python runs handlers of signals between two steps of the interpreter, and so not while XLA compiles
or a file is decoded. A thread therefore watches for signals beside: it ends the process where the
handlers have not done so in time. All files are written atomically, so nothing is lost but work.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator

INTERRUPTED = 75  # exit code: stopped by SIGTERM after saving; the same command continues
CTRL_C = 130  # exit code: stopped by Ctrl-C
GRACE = 8.0  # seconds from SIGTERM until the process is ended

_finishing = threading.Event()


def let_finish() -> None:
    """From now on nothing but the last save is under way: it is not cut short."""
    _finishing.set()


def _stop(number, frame) -> None:
    """A handler: the process ends with INTERRUPTED or, at Ctrl-C, CTRL_C; no result is lost.

    While a module is imported it ends at once: an extension module cannot pass on what a handler
    raises while its types are made (jaxlib's ends with SIGABRT or SIGSEGV).
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(CTRL_C if number == signal.SIGINT else INTERRUPTED)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(INTERRUPTED)


@contextlib.contextmanager
def stopping_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the process with INTERRUPTED, in a block whose work can be done again.

    Only the main thread may handle signals: elsewhere, as in a viewer, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def until_exit() -> Iterator[None]:
    """SIGTERM ends a process that ends with this block with INTERRUPTED, and not after the block.

    Ctrl-C raises KeyboardInterrupt, as ever, but where that would end in an abort.

    While Python itself ends, no handler runs any more: a SIGTERM would take the place of the exit
    code of work that is done.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def ending_in_time() -> Iterator[None]:
    """`stopping_at_sigterm`, at the latest after GRACE; a second Ctrl-C ends the process at once.

    A process that several train together, and whose SIGTERM JAX handles, is not ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, _lost_exit(sys.unraisablehook)
    _finishing.clear()
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        with stopping_at_sigterm():
            yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        os.close(writer)  # which ends the watcher
        watcher.join()


def _lost_exit(hook):
    """`hook` for what is raised where Python cannot pass it on; an exit is asked for once more.

    A handler that runs in a callback of the garbage collector, as JAX has one, raises in vain.
    """
    def again(lost):
        if lost.exc_type is SystemExit:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            hook(lost)

    return again


def _watch(reader: int) -> None:
    """Until the other end of the pipe is closed: end the process where it does not do so itself."""
    deadline, interrupts = None, 0
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            if _finishing.is_set():
                deadline = None
                continue
            end(INTERRUPTED, "stopped; the same command continues")
        numbers = os.read(reader, 64)
        if not numbers:
            os.close(reader)
            return
        interrupts += numbers.count(signal.SIGINT)
        if interrupts > 1:
            end(CTRL_C, "interrupted; the same command continues")
        if signal.SIGTERM in numbers and deadline is None:
            deadline = time.monotonic() + GRACE


def end(code: int, text: str) -> None:
    """End the process and those that it has started, without unwinding and waiting for threads."""
    import psutil  # only now: it would delay --help

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(code)
