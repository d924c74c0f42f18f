"""Which files and folders a listing depends on, so that an unchanged dataset is not listed again.

While a dataset is listed within `tracked`, the functions that look into folders and read lists
call `depends_on`. `unchanged` then costs one stat call per file and folder: a file that was
rewritten has another size or time, and a folder in which files came or went has another time.
"""

import contextlib
import contextvars
import os
import pathlib
from collections.abc import Iterator

_TRACKED = contextvars.ContextVar("tracked", default=None)


@contextlib.contextmanager
def tracked() -> Iterator[dict]:
    """{path: its state before it was read} of everything that `depends_on` is called with."""
    states = {}
    token = _TRACKED.set(states)
    try:
        yield states
    finally:
        _TRACKED.reset(token)


def depends_on(path) -> pathlib.Path:
    """Note that the listing under way depends on a file or folder, which may be absent."""
    states = _TRACKED.get()
    if states is not None:
        states.setdefault(os.path.abspath(path), _state(path))
    return path


def unchanged(states: dict) -> bool:
    """Whether all files and folders are as they were when they were looked at.

    A file that was changed within the clock tick of its time, at equal size, goes unseen.
    """
    return all(_state(path) == state for path, state in states.items())


def _state(path):
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
