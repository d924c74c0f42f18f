"""Which tests a commit runs: every weekly test once in four commits, and never by chance."""

import subprocess

import pytest
from helpers_tiers import chosen_quarter, quarter_of, quarter_of_commit, reason_to_skip

IDS = [f"tests/train/test_train.py::test_claim_{k}" for k in range(400)]


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                   check=True, capture_output=True)


def test_four_commits_in_a_row_run_every_weekly_test_once():
    runs = [[i for i in IDS if not reason_to_skip({"weekly"}, i, slow=True, quarter=q)]
            for q in range(4)]
    assert sorted(sum(runs, [])) == sorted(IDS)
    assert all(70 < len(run) < 130 for run in runs)  # about a quarter each
    assert quarter_of(IDS[0]) == 0  # the same on every machine, in every process


@pytest.mark.parametrize("marks, slow, quarter, runs", [
    (set(), False, None, True), ({"slow"}, False, None, False), ({"slow"}, True, 0, True),
    ({"weekly"}, False, None, False), ({"weekly"}, True, None, True), ({"weekly"}, True, 0, True),
    ({"weekly"}, True, 1, False), ({"slow", "weekly"}, True, 1, False)])
def test_a_test_runs_by_its_marks(marks, slow, quarter, runs):
    assert (reason_to_skip(marks, IDS[0], slow=slow, quarter=quarter) == "") == runs


def test_the_quarter_is_the_number_of_commits_modulo_four(tmp_path):
    assert quarter_of_commit(tmp_path) is None and chosen_quarter("commit", tmp_path) is None
    git(tmp_path, "init", "-q", "whole")
    assert quarter_of_commit(tmp_path / "whole") is None  # no commit yet
    for number in range(1, 6):
        git(tmp_path / "whole", "commit", "-q", "--allow-empty", "-m", "x")
        assert quarter_of_commit(tmp_path / "whole") == number % 4
    assert chosen_quarter("commit", tmp_path / "whole") == 1
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path}/whole", "shallow")
    assert quarter_of_commit(tmp_path / "shallow") is None  # its count would never change
    assert chosen_quarter("all", tmp_path / "whole") is None
    assert chosen_quarter("3", tmp_path / "whole") == 3


def test_the_files_that_are_begun_first_exist(request):
    """Their names are a hint of speed alone, so that nothing else would tell of a stale one."""
    conftest = next(plugin for plugin in request.config.pluginmanager.get_plugins()
                    if hasattr(plugin, "LONGEST"))
    assert all((conftest.ROOT / "tests" / name).is_file() for name in conftest.LONGEST)
