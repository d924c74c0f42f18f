"""Reading and writing of files: atomic writes, JSON, CSV, and locks between processes."""

import contextlib
import csv
import errno
import io
import json
import os
import pathlib
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Sequence

import psutil

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

from cellseg_jax.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems without locks
LEFTOVER_AGE = 86400  # seconds
MOST_TEXT = 2**28  # bytes of a JSON or CSV file that is read at once
LONGEST_NAME = 255  # bytes, of a file in nearly all file systems
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
FORMULA = "=+-@\t\r\n"  # how formulas begin in spreadsheets
REQUIRED = object()  # no default: an absent file is an error


def user_cache() -> pathlib.Path:
    """The folder of what can be made again: $XDG_CACHE_HOME/cellseg_jax or ~/.cache/cellseg_jax."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "cellseg_jax"


@contextlib.contextmanager
def atomic_file(path) -> Iterator[pathlib.Path]:
    """The path of a temporary file that replaces `path` when the block ends without an error.

    Until then `path` keeps its old content, whatever ends the process. A link of that name is
    replaced, and none is followed.

    Raises: OSError with the name of `path`, such as of a full disk.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(_temporary_name(path.name))
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # else a power cut after the rename could leave it empty
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # too long a name, or a read-only folder
                temporary.unlink(missing_ok=True)


def _temporary_name(name: str) -> str:
    """Beside a file; a long name is cut, so that the longest ones that can be written can be."""
    end = f".{owner()}.tmp"
    if len(name.encode()) + len(end) <= LONGEST_NAME or len(name.encode()) > LONGEST_NAME:
        return name + end
    return f"{zlib.crc32(name.encode()):08x}{end}"


@contextlib.contextmanager
def naming(path) -> Iterator[None]:
    """OSErrors of the block get the name of the file that it writes, where they have none."""
    try:
        yield
    except OSError as error:
        own = str(error.filename or "").endswith(f".{owner()}.tmp")
        if error.errno is not None and (own or error.filename is None):
            error.filename, error.filename2 = str(path), None
        raise


def append_line(path, line: str) -> None:
    """Append a line to a file, and wait until it is on the disk; a link is not followed.

    Raises: OSError with the name of `path`; the line may then be cut.
    """
    with naming(path), open(path, "a", opener=_without_links) as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _without_links(path, flags: int) -> int:
    return os.open(path, flags | NO_LINKS, 0o666)


def owner() -> str:
    """This process, in the names of temporary files: its host, hashed, and its number."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}-{os.getpid()}"


def remove_leftovers(folders) -> None:
    """Remove the temporary files that killed processes left in folders.

    Of another host, whose processes cannot be seen, those that are older than a day.
    """
    for path in (path for folder in folders for path in pathlib.Path(folder).glob("*.tmp")):
        found = re.search(r"\.([0-9a-f]{8})-([0-9]+)\.tmp$", path.name)
        if not found or found[0] == f".{owner()}.tmp":
            continue
        with contextlib.suppress(OSError):  # another process was faster, or may not
            old = time.time() - path.stat().st_mtime > LEFTOVER_AGE
            if old or found[1] == owner()[:8] and not psutil.pid_exists(int(found[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_atomic(path, text: str | bytes) -> None:
    """Write a file by way of a temporary one: a reader sees the old or the new content."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)


def read_json(path, default=REQUIRED) -> dict:
    """The object in a JSON file.

    Args:
      default: returned where there is no such file.
    Raises: FileNotFoundError without a file and without a default; InputError where the file is
      damaged, holds no object, or is larger than MOST_TEXT.
    """
    path = pathlib.Path(path)
    if default is not REQUIRED and not path.is_file():
        return default
    fix = "restore it, or use another --workdir"
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}); {fix}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: is damaged (it holds a {type(found).__name__}; expected an "
                         f"object); {fix}")
    return found


def _text(path) -> str:
    """The text of a file. Raises: InputError for one that is larger than MOST_TEXT."""
    size = os.stat(path).st_size
    if size > MOST_TEXT:
        raise InputError(f"{path}: has {size:,} bytes; expected at most {MOST_TEXT:,}, restore it")
    return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def interpreting(path) -> Iterator[None]:
    """Of what files of a run hold: where it is of other types than this code writes, InputError.

    Args:
      path: of the file, or of the folder where several are read.
    """
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read as this version writes it ({type(error).__name__}"
                         f": {error}); restore it, or use another folder") from error


def read_jsonl(path, default=REQUIRED) -> list[dict]:
    """The whole lines of a log; those that were cut or damaged, or have no step, are left out.

    Args:
      default: returned where there is no such file.
    Raises: FileNotFoundError without a file and without a default.
    """
    path = pathlib.Path(path)
    if default is not REQUIRED and not path.is_file():
        return default
    lines = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and type(line.get("step")) is int:
                    lines.append(line)
    return lines


def csv_cell(value):
    """A cell that no spreadsheet takes for a formula: texts that begin like one get a quote before.

    `csv_value` is the inverse. Numbers stay.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def csv_value(text: str) -> str:
    """The text that `csv_cell` made a cell of."""
    return text[1:] if text[:1] == "'" and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    begin = text.lstrip("'")[:1]
    if begin not in FORMULA or not begin:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False  # a negative number


def csv_text(rows: Sequence[dict], fields: Sequence[str] | None = None) -> str:
    r"""Rows as CSV with a header, lines ended by "\n".

    Args:
      fields: the columns, "" where a row has none of that name; by default the first row's keys.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if fields is None else fields,
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def write_csv(path, rows: Sequence[dict], fields: Sequence[str] | None = None) -> None:
    """Write `csv_text` of the rows atomically."""
    write_atomic(path, csv_text(rows, fields))


def read_csv(path, default=REQUIRED) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Args:
      default: returned where there is no such file.
    Raises: FileNotFoundError without a file and without a default; InputError if it is no CSV.
    """
    path = pathlib.Path(path)
    if default is not REQUIRED and not path.is_file():
        return default
    try:
        rows = list(csv.DictReader(io.StringIO(_text(path), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is damaged ({error}); restore it, or score the run again"
                         ) from error
    return [{key: csv_value(value or "") for key, value in row.items() if key is not None}
            for row in rows]


def system_lock(path, *, wait: bool) -> int | None:
    """The operating system's lock of a file, which ends with the process; to be closed.

    Args:
      wait: until another process that has it gives it back.
    Returns: the descriptor of the file; None where the system or the file system has no locks.
    Raises: BlockingIOError where another has it and `wait` is false; other OSErrors mean nothing
      about that.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(descriptor)
        if getattr(error, "errno", None) in NO_LOCKS:
            return None
        raise
    return descriptor


@contextlib.contextmanager
def locked(path) -> Iterator[bool]:
    """Hold the lock of `path`, waiting for the process that has it; it ends with a process.

    Yields whether there is such a lock: not every file system has them.
    """
    descriptor = system_lock(path, wait=True)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)
