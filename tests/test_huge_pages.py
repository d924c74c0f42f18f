"""A command starts once more with large pages; whatever is no command, or needs none, does not."""

import os
import sys
import types

import pytest

from cellseg_jax.cli import huge_pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """[(program, arguments, environment), ...] of what would have been started."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(huge_pages, "KERNEL", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "-m", "cellseg_jax.main", "--x"])
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="cellseg_jax.main"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    return calls


def test_a_command_starts_again_as_it_was_started(started):
    huge_pages.restart()
    (program, arguments, environment), = started
    assert (program, arguments[0]) == (sys.executable, sys.executable)
    assert arguments[1:] == ["-X", "dev", "-m", "cellseg_jax.main", "--x"]
    assert environment == os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_other_tunables_are_kept(started, monkeypatch):
    monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.check=3")
    huge_pages.restart()
    assert started[0][2]["GLIBC_TUNABLES"] == "glibc.malloc.check=3:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("why", ["set", "other program", "always", "never", "no file", "musl"])
def test_nothing_is_started_where_it_has_no_use(why, started, monkeypatch):
    if why == "set":
        monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.hugetlb=0")
    if why == "other program":
        monkeypatch.setattr(sys.modules["__main__"].__spec__, "name", "pytest.__main__")
    if why in ("always", "never"):
        huge_pages.KERNEL.write_text("always madvise never".replace(why, f"[{why}]"))
    if why == "no file":
        huge_pages.KERNEL.unlink()
    if why == "musl":
        monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("", ""))
    huge_pages.restart()
    assert not started


def test_the_console_script_is_a_command(started, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cellseg", "train"])
    assert huge_pages.is_command()
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert not huge_pages.is_command()
