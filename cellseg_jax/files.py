"""Reading and writing of files: whole or not at all."""

import contextlib
import json
import os
import pathlib

from cellseg_jax.errors import InputError


@contextlib.contextmanager
def whole_file(path):
    """The path of a temporary file that takes the place of `path` when the block ends well."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path, text: str | bytes) -> None:
    """The whole file or nothing: a kill leaves the old content."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path) -> dict:
    """A JSON file of a run; InputError where it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); restore it, or use another "
                         "--workdir") from error


def read_jsonl(path) -> list[dict]:
    """The whole lines of a log; a last line cut by a kill is left out."""
    lines = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
