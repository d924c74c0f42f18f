"""study --status: how far runs are, read from files that are written here by hand."""

import json
import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from cellseg_jax.errors import InputError
from cellseg_jax.runs import status
from cellseg_jax.runs.lock import Lock

CONFIG = {"train": {"steps": 0, "epochs": 10}, "data": {"split": [0.8, 0.1, 0.1]}}


def write_run(folder, epochs=0, seconds=2.0, config=CONFIG, result=None, scored=False):
    """The files of a run of four steps an epoch, each epoch logged after so many seconds."""
    (folder / "eval").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, line in (("metrics", lambda e: {"step": 4 * e, "epoch": float(e), "train_loss": 1}),
                       ("timing", lambda e: {"step": 4 * e, "seconds": seconds, "members": 2})):
        text = "".join(json.dumps(line(e + 1)) + "\n" for e in range(epochs))
        if text:
            (folder / f"{name}.jsonl").write_text(text)
    if result:
        (folder / "result.json").write_text(json.dumps({"status": result, "step": 4 * epochs}))
    if scored:
        (folder / "eval/test.json").write_text("{}")


@pytest.fixture
def study(tmp_path):
    status.write_plan(tmp_path, "six runs", [f"a/{k}" for k in range(7)], {"a"})
    write_run(tmp_path / "a/0", 10, result="done", scored=True)
    write_run(tmp_path / "a/1", 10, result="stopped early")
    write_run(tmp_path / "a/2", 3, result="non-finite")
    write_run(tmp_path / "a/3", 4)
    write_run(tmp_path / "a/4", 6, seconds=4.0)
    status.write_failure(tmp_path / "a/5", "train.weights: no file gone.pt")
    return tmp_path


def test_each_run_has_a_state_and_the_rest_of_the_time_is_estimated(study, capsys):
    with Lock(study / "a/4"):
        runs = status.seen_in(study)
        assert [one.state for one in runs] == [
            "done", "trained", "diverged", "stopped", "running", "failed", "waiting"]
        assert [one.num_steps for one in runs] == [40] * 5 + [0, 0]
        assert [one.step_seconds for one in runs[:5]] == [0.5, 0.5, 0.5, 0.5, 1.0]
        # a/3 has 24 steps of 0.5 s left, a/4 16 of 1 s, a/6 lasts as the others do: 4 x 20, 40
        assert status.seconds_left(runs) == pytest.approx(12 + 16 + (4 * 20 + 40) / 5)
        assert status.show(study) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("six runs: 1 of 7 runs done, 1 running, 1 stopped, 1 trained, 1 waiting, "
                        "1 diverged, 1 failed; about 0:52 of training left")
    found = {line.split()[0]: line for line in lines if line.strip().startswith("a/")}
    assert list(found) == ["a/4", "a/3", "a/1", "a/2", "a/5"]
    assert "running" in found["a/4"] and "24 of 40" in found["a/4"] and "pid " in found["a/4"]
    assert "gone.pt" in found["a/5"]


def test_without_a_process_nothing_is_promised(study):
    assert status.seconds_left(status.seen_in(study)) is None


def test_a_silent_process_a_damaged_file_and_runs_of_a_search_are_shown(tmp_path):
    write_run(tmp_path / "a/0", 2)
    lock = tmp_path / "a/0/.lock"
    lock.write_text("pid 7 on elsewhere")
    past = time.time() - 300
    os.utime(lock, (past, past))
    write_run(tmp_path / "a/1")
    (tmp_path / "a/1/config.json").write_text("{")
    write_run(tmp_path / "search/halving/trials/t000", 10, result="done", config=CONFIG | {
        "data": {"split": [0.9, 0.1, 0.0]}})
    states = {one.name: one.state for one in status.seen_in(tmp_path)}
    assert states == {"a/0": "silent", "a/1": "damaged", "search/halving/trials/t000": "done"}


def test_the_plan_grows_and_forgets_rows_that_the_study_has_no_more(tmp_path):
    status.write_plan(tmp_path, "t", ["a/0", "b/0"], {"a", "b"})
    status.write_plan(tmp_path, "t", ["b/0", "c/0"], {"b", "c"})
    assert [one.name for one in status.seen_in(tmp_path)] == ["b/0", "c/0"]
    with pytest.raises(InputError, match="--workdir: no folder .*; expected that of a study"):
        status.seen_in(tmp_path / "none")


def test_status_needs_no_jax(study):
    code = ("import sys; from cellseg_jax import cli, study; "
            "code = cli.run_command(study.main, study.define_flags, sys.argv); "
            "assert 'jax' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "--status", f"--workdir={study}"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of 7 runs done" in done.stdout, done.stderr
