"""Atomic writes, files that are absent or damaged, CSV, and locks between processes."""

import ast
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from cellseg_jax import files
from cellseg_jax.errors import InputError


def test_write_atomic_replaces_the_whole_content(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomic(path, "long old content")
    files.write_atomic(path, "µ\n")
    assert path.read_bytes() == "µ\n".encode()
    files.write_atomic(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_file_keeps_the_old_content_after_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.atomic_file(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_atomic_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("renamed"), replace(*a)))
    files.write_atomic(tmp_path / "a", "four")
    assert events == [4, "renamed"]


def test_an_absent_file_is_an_error_or_the_default(tmp_path):
    for read in (files.read_json, files.read_jsonl, files.read_csv):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "no")
        assert read(tmp_path / "no", None) is None


def test_a_damaged_json_is_an_error_even_with_a_default(tmp_path):
    (tmp_path / "a.json").write_text('{"half":')
    with pytest.raises(InputError, match="a.json: is damaged"):
        files.read_json(tmp_path / "a.json", {})


def test_read_jsonl_leaves_out_a_line_cut_by_a_kill(tmp_path):
    (tmp_path / "a").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert files.read_jsonl(tmp_path / "a") == [{"step": 1}, {"step": 2}]


def test_csv_roundtrip_with_commas_quotes_and_absent_values(tmp_path):
    rows = [{"name": 'a "b", c', "dice": 0.1}, {"name": "line\nbreak"}]
    files.write_csv(tmp_path / "a.csv", rows)
    assert files.read_csv(tmp_path / "a.csv") == [
        {"name": 'a "b", c', "dice": "0.1"}, {"name": "line\nbreak", "dice": ""}]
    assert files.csv_text([{"b": 1, "a": 2}]) == "b,a\n1,2\n"
    assert files.csv_text([], ["x", "y"]) == "x,y\n"
    with pytest.raises(ValueError):
        files.csv_text([{"a": 1}, {"other": 2}])


def test_read_csv_refuses_what_was_cut_within_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('name\n"half')
    with pytest.raises(InputError, match="is damaged"):
        files.read_csv(tmp_path / "a.csv")


def test_locked_waits_for_another_thread(tmp_path):
    events, inside = [], threading.Event()

    def second():
        inside.wait()
        with files.locked(tmp_path / "a.lock"):
            events.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with files.locked(tmp_path / "a.lock"):
        inside.set()
        thread.join(0.3)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_locked_ends_with_a_killed_process(tmp_path):
    code = ("import os, sys; from cellseg_jax import files\n"
            "with files.locked(sys.argv[1]): os._exit(9)")
    path = str(tmp_path / "a.lock")
    done = subprocess.run([sys.executable, "-c", code, path],
                          env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 9
    with files.locked(path):
        pass


PACKAGE = pathlib.Path(files.__file__).parent
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "posix"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")),
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_needs_a_posix_system_to_be_imported(path):
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        assert not {name.split(".")[0] for name in names} & POSIX_ONLY
