"""Atomic writes, files that are absent or damaged, CSV, and locks between processes."""

import ast
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from cellseg_jax import files
from cellseg_jax.errors import InputError, os_error_line
from cellseg_jax.files import strangers


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


def test_strangers_are_links_out_of_a_folder_and_what_is_no_file(tmp_path):
    folder = tmp_path / "run"
    (folder / "eval").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "inside").symlink_to("a.json")
    strangers.check(folder)
    strangers.check(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(folder)
    strangers.check(tmp_path / "link")
    with pytest.raises(InputError, match="link: is a link to"):
        strangers.check(tmp_path / "link", itself=True)
    for target in (tmp_path, "../../x", "/etc/passwd", "nothing/../../../x"):
        (folder / "eval" / "b").symlink_to(target)
        with pytest.raises(InputError, match="eval/b: is a link to .*, out of .*run"):
            strangers.check(folder)
        (folder / "eval" / "b").unlink()
    os.mkfifo(folder / "eval" / "test.json")
    with pytest.raises(InputError, match="test.json: is a FIFO; expected a file"):
        strangers.check(folder)


def test_atomic_file_and_logs_follow_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("old")
    for name in ("log", f"a.{files.owner()}.tmp", "a"):
        (tmp_path / name).symlink_to(outside)
    with pytest.raises(OSError):
        files.append_line(tmp_path / "log", "new")
    with pytest.raises(OSError):
        files.system_lock(tmp_path / "log", wait=False)
    files.write_atomic(tmp_path / "a", "new")
    assert outside.read_text() == "old" and not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("text", [
    "=1+1", "+1+1", "-a", "@x", "\tx", "'=1", "''+x", "plain", "'plain", "", "a=b", "-1.5", "+2"])
def test_csv_cells_are_no_formulas_and_are_read_back(tmp_path, text):
    files.write_csv(tmp_path / "a.csv", [{"name": text, "score": -0.5}])
    row, = files.read_csv(tmp_path / "a.csv")
    assert row == {"name": text, "score": "-0.5"}
    cell = files.csv_cell(text)
    assert cell[:1] not in tuple("=+-@\t") or text in ("-1.5", "+2")


def test_read_jsonl_keeps_the_lines_after_a_damaged_one(tmp_path):
    whole = ['{"step": 1}', '{"step": 2}', '{"step": 3}']
    (tmp_path / "a").write_bytes(b"\n".join([
        whole[0].encode(), b'{"step": 1, "x', b"\xff\xfe", b"[1]", b'{"step": "2"}', b"",
        whole[1].encode(), b"[" * 10**5, whole[2].encode(), b'{"st']))
    assert files.read_jsonl(tmp_path / "a") == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("content", ["[]", "5", "null", '"x"', "[" * 10**5, "{", ""])
def test_read_json_names_a_file_that_holds_no_object(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="a.json: is damaged"):
        files.read_json(tmp_path / "a.json")


def test_read_json_takes_no_memory_for_a_file_with_holes(tmp_path):
    (tmp_path / "a.json").touch()
    os.truncate(tmp_path / "a.json", 10**12)
    with pytest.raises(InputError, match="has 1,000,000,000,000 bytes; expected at most"):
        files.read_json(tmp_path / "a.json")


def test_interpreting_names_the_file_and_leaves_other_errors():
    with pytest.raises(InputError, match="a.json: cannot be read .*KeyError: 'x'"):
        with files.interpreting("a.json"):
            {}["x"]
    with pytest.raises(OSError, match="full"), files.interpreting("a.json"):
        raise OSError("full")


def test_the_longest_names_can_be_written(tmp_path):
    files.write_atomic(tmp_path / ("n" * 255), "x")
    with pytest.raises(OSError) as caught:
        files.write_atomic(tmp_path / ("n" * 256), "x")
    assert "shorter name" in os_error_line(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["n" * 255]
