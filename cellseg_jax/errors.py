"""What a user did wrong, in one line, and the one way to look up a name in a table."""

import difflib
import errno
import re
import sys
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """Bad input or config. The commands print its one line and exit with code 2.

    The line names where (file or config key), what was found, what was expected and how to
    fix it: "config.data.root: folder 'x' does not exist; pass --config.data.root=DIR".
    """


def refuse_urls(value, key: str) -> None:
    """InputError if a text, or one in a tuple, holds a URL: all files are read and written locally.

    `pathlib` would make the local folder "gs:" of it.
    """
    for text in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(text, str) and re.search(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise InputError(f"{key}: got {text!r}; expected a path of this machine: mount the "
                             "bucket with gcsfuse, or copy it with gcloud storage rsync "
                             "(launch/tpu_vm.sh does so)")


def nearest(name: str, choices) -> str:
    """'; did you mean X?' for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_choice(name: str, choices: Iterable[str], key: str) -> None:
    """InputError that names the flag or config `key` and lists the choices, if `name` is none."""
    choices = list(choices)
    if name not in choices:
        raise InputError(f"{key}: got {name!r}; expected one of "
                         f"{', '.join(filter(None, choices))}{nearest(name, choices)}")


def pick(table: Mapping, name: str, key: str):
    """table[name].

    Raises: InputError as `check_choice`.
    """
    check_choice(name, table, key)
    return table[name]


def shortened(value, most: int = 300) -> str:
    """repr of a value, for a message: cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def print_error(error) -> None:
    """One plain line to stderr: what a user has to read first."""
    print(error_line(error), file=sys.stderr, flush=True)


def error_line(error) -> str:
    """The line that `print_error` prints."""
    return "error: " + " ".join(str(error).split())


# What to do about errors of the machine, by their number.
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there: what was written whole before "
                    "stays as it is, and the same command continues"),
    errno.EROFS: "expected a folder that can be written",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "expected the permission for it"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs, or raise ulimit -n"),
    errno.ENAMETOOLONG: "expected a shorter name",
    errno.ELOOP: "expected a file, not a loop of links",
}


def os_error_line(error: OSError) -> str:
    """An error of the operating system with its file, and what to do about it."""
    where = f"{error.filename}: " if error.filename else ""
    advice = ADVICE.get(error.errno)
    return f"{where}{error.strerror or error}{f'; {advice}' if advice else ''}"
