"""Which tests a commit runs: every slow and weekly test once in PARTS commits, never by chance."""

import subprocess

import pytest
from helpers import ROOT
from helpers_tiers import (
    LONG,
    LONG_FILES,
    PARTS,
    SLOW_PARTS,
    chosen_part,
    part_of,
    part_of_commit,
    reason_to_skip,
    slow_part_of,
)

IDS = [*(f"tests/train/test_train.py::test_claim_{k}" for k in range(400)), *LONG]


WEEKLY, SLOW = part_of(IDS[0]), slow_part_of(IDS[0])


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                   check=True, capture_output=True)


def test_so_many_commits_in_a_row_run_every_weekly_test_once():
    runs = [[i for i in IDS if not reason_to_skip({"weekly"}, i, slow=True, part=part)]
            for part in range(PARTS)]
    assert sorted(sum(runs, [])) == sorted(IDS)
    assert all(8 < len(run) < 40 for run in runs)  # about 20 each
    assert part_of(IDS[0]) == 16  # the same on every machine, in every process
    long = [[LONG[i] for i in run if i in LONG] for run in runs]
    several = [sum(seconds) for seconds in long if len(seconds) > 1]  # else alone, and longer
    assert max(several) < 1.2 * min(several)
    assert all(seconds[0] >= max(several) for seconds in long if len(seconds) == 1)


def test_so_many_commits_in_a_row_run_every_slow_file_whole_once():
    files = [*(f"tests/test_{k}.py" for k in range(60)), *LONG_FILES]
    ids = [f"{file}::test_{k}" for file in files for k in range(3)]
    runs = [[i for i in ids if not reason_to_skip({"slow"}, i, slow=True, part=part)]
            for part in range(PARTS)]
    assert PARTS % SLOW_PARTS == 0 and runs[:SLOW_PARTS] == runs[SLOW_PARTS:2 * SLOW_PARTS]
    assert sorted(sum(runs[:SLOW_PARTS], [])) == sorted(ids)
    assert all(len(run) == 3 * len({i.partition("::")[0] for i in run}) > 5 for run in runs)
    assert slow_part_of(ids[0]) == 4  # the same on every machine, in every process
    files = [[i.removesuffix("::test_0") for i in run[::3]] for run in runs[:SLOW_PARTS]]
    long = [[LONG_FILES[i] for i in run if i in LONG_FILES] for run in files]
    several = [sum(seconds) for seconds in long if len(seconds) > 1]  # two files are longer alone
    assert max(several) - min(several) < 60 < min(map(sum, long))


@pytest.mark.slow  # the table of faults takes long to import
def test_the_long_tests_are_there():
    """A name of before would leave its test to the hash."""
    from faults.table import faults

    rows = {f"{row.fault}, {row.phase}" for row in faults() if not row.whole}
    assert all((ROOT / file).is_file() for file in LONG_FILES)
    for test in LONG:
        file, _, name = test.partition("::")
        function, _, parameters = name.removesuffix("]").partition("[")
        assert f"def {function}(" in (ROOT / file).read_text(), test
        assert parameters in rows or "test_faults" not in file, test


@pytest.mark.parametrize("marks, slow, part, runs", [
    (set(), False, None, True), ({"slow"}, False, None, False), ({"slow"}, True, None, True),
    ({"slow"}, True, SLOW, True), ({"slow"}, True, SLOW + SLOW_PARTS, True),
    ({"slow"}, True, SLOW + 1, False),
    ({"weekly"}, False, None, False), ({"weekly"}, True, None, True),
    ({"weekly"}, True, WEEKLY, True), ({"weekly"}, True, WEEKLY + 1, False),
    ({"slow", "weekly"}, True, WEEKLY + SLOW_PARTS, False),
    ({"weekly", "whole"}, True, WEEKLY, False), ({"weekly", "whole"}, True, None, True),
    ({"weekly", "whole"}, False, None, False)])
def test_a_test_runs_by_its_marks(marks, slow, part, runs):
    assert (reason_to_skip(marks, IDS[0], slow=slow, part=part) == "") == runs


def test_the_part_is_the_number_of_commits_modulo_parts(tmp_path):
    assert part_of_commit(tmp_path) is None and chosen_part("commit", tmp_path) is None
    git(tmp_path, "init", "-q", "whole")
    assert part_of_commit(tmp_path / "whole") is None  # no commit yet
    for number in range(1, PARTS + 2):
        git(tmp_path / "whole", "commit", "-q", "--allow-empty", "-m", "x")
        assert part_of_commit(tmp_path / "whole") == number % PARTS
    assert chosen_part("commit", tmp_path / "whole") == 1
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path}/whole", "shallow")
    assert part_of_commit(tmp_path / "shallow") is None  # its count would never change
    assert chosen_part("all", tmp_path / "whole") is None
    assert chosen_part("3", tmp_path / "whole") == 3


def test_the_files_that_are_begun_first_exist(request):
    """Their names are a hint of speed alone, so that nothing else would tell of a stale one."""
    conftest = next(plugin for plugin in request.config.pluginmanager.get_plugins()
                    if hasattr(plugin, "LONGEST"))
    assert all((conftest.ROOT / "tests" / name).is_file() for name in conftest.LONGEST)
