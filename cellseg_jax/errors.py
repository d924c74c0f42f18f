"""What a user did wrong, in one line, and the one way to look a name up in a table."""

import difflib
import sys
from collections.abc import Mapping


class InputError(ValueError):
    """Bad input or config. The commands print its one line and exit with code 2.

    The line names where (file or config key), what was found, what was expected and how to
    fix it: "config.data.root: folder 'x' does not exist; pass --config.data.root=DIR".
    """


def nearest(name: str, choices) -> str:
    """'; did you mean X?' for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def pick(table: Mapping, name: str, key: str):
    """table[name], or an InputError that names the config `key` and lists the choices."""
    if name in table:
        return table[name]
    choices = ", ".join(filter(None, table))
    raise InputError(f"{key}: got {name!r}; expected one of {choices}{nearest(name, table)}")


def print_error(error) -> None:
    """One plain line to stderr: what a user has to read first."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
