"""--task=any: which run a process takes next, and many processes that are killed share a study."""

import random
import signal
import subprocess
import time

import pytest
from helpers import ROOT, child_environment, command, run_command, tiny_config
from helpers_study import SHARED_STEPS, SHARED_STUDY, logged_steps, table_without_costs

from cellseg_jax.runs import lock
from cellseg_jax.runs.lock import HEARTBEAT_LOST, Lock
from cellseg_jax.studies import work_queue
from cellseg_jax.studies.launch import PlannedRun

OTHER = "pid 7 on elsewhere"


def program(folder, *names, **overrides):
    return [PlannedRun(tiny_config(**overrides), folder / name) for name in names]


def names(runs):
    return [one.name for one in runs]


@pytest.fixture
def hold(monkeypatch):
    """hold(run, silent_s): another process has the run's folder."""
    held = {}
    monkeypatch.setattr(work_queue, "holder", lambda folder: held.get(folder, ("", 0.0)))
    return lambda one, silent_s=5.0: held.update({one.folder: (OTHER, silent_s)})


def test_a_process_takes_the_free_runs_of_the_program_with_the_fewest_others(tmp_path, hold):
    first, second = program(tmp_path, "a/0", "a/1"), program(tmp_path, "b/0", "b/1")
    assert names(work_queue._next([first, second])) == ["a/0", "a/1"]
    hold(first[0])
    assert names(work_queue._next([first, second])) == ["b/0", "b/1"]
    hold(second[1])
    assert names(work_queue._next([first, second])) == ["a/1"]
    hold(first[1])
    hold(second[0])
    assert work_queue._next([first, second]) == []


def test_the_run_of_a_silent_process_is_tried_when_nothing_is_free(tmp_path, hold):
    runs = program(tmp_path, "a/0", "a/1", "a/2")
    hold(runs[0], HEARTBEAT_LOST + 1)
    assert names(work_queue._next([runs])) == ["a/1", "a/2"]
    hold(runs[1])
    hold(runs[2], -3.0)  # a clock that is ahead
    assert names(work_queue._next([runs])) == ["a/0"]


def test_a_run_waits_for_the_one_that_it_starts_from(tmp_path, hold):
    base = program(tmp_path, "base/0")
    second = program(tmp_path, "second/0", train__weights="row:base")
    hold(base[0])
    assert work_queue._next([base, second]) == []
    (tmp_path / "base/0").mkdir(parents=True)
    (tmp_path / "base/0/result.json").write_text('{"status": "done"}')
    assert names(work_queue._next([second])) == ["second/0"]
    lost = program(tmp_path, "third/0", train__weights="row:failed")
    assert names(work_queue._next([lost])) == ["third/0"]  # whose error names the row


def test_what_is_not_trained_is_taken_one_by_one(tmp_path, hold):
    assert names(work_queue._next([program(tmp_path, "o/0", "o/1", model__name="otsu")])) == ["o/0"]


def test_the_holder_of_a_folder_is_seen_without_taking_it(tmp_path, monkeypatch):
    assert lock.holder(tmp_path) == ("", 0.0)
    with Lock(tmp_path):
        name, silent_s = lock.holder(tmp_path)
        assert name.startswith("pid ") and 0 <= silent_s < 5
    assert lock.holder(tmp_path)[0] == ""
    monkeypatch.setattr(lock.psutil, "pid_exists", lambda pid: False)
    (tmp_path / ".lock").write_text("pid 7 on " + lock.socket.gethostname())
    assert lock.holder(tmp_path) == ("", 0.0)
    (tmp_path / ".lock").write_text(OTHER)
    assert lock.holder(tmp_path)[0] == OTHER


# --- processes ------------------------------------------------------------------------------------

def holds_a_run(folder, pid):
    return any(p.read_text().startswith(f"pid {pid} on") for p in folder.glob("*/*/.lock"))


def share(folder, options, workers, runs, kills, limit_s):
    """Workers of --task=any do a study of so many runs, kills fall, others join for the killed.

    The k-th kill falls at a random moment after k / (kills + 1) of all runs have ended.
    """
    log, rng = folder.with_suffix(".log"), random.Random(0)
    began, killed, ended, end = [], 0, {}, time.monotonic() + limit_s
    with open(log, "a") as printed:
        while len(began) < workers + kills or any(p.poll() is None for p in began):
            assert time.monotonic() < end, log.read_text()[-3000:]
            if len(began) < workers + killed:
                began.append(subprocess.Popen(
                    [*command("study", *options, f"--workdir={folder}", "--task=any")],
                    cwd=ROOT, env=child_environment(), stdout=printed, stderr=subprocess.STDOUT))
            for path in folder.glob("*/*/result.json"):
                when = path.stat().st_mtime_ns
                assert ended.setdefault(path, when) == when, f"{path} was written twice"
            busy = [p for p in began if p.poll() is None and holds_a_run(folder, p.pid)]
            if busy and killed < kills and len(ended) >= runs * killed / (kills + 1):
                time.sleep(2 * rng.random())
                rng.choice(busy).kill()
                killed += 1
            time.sleep(0.05)
    assert sorted(p.returncode for p in began) == [-signal.SIGKILL] * kills + [0] * workers
    assert len(ended) == runs
    return log.read_text()


@pytest.mark.parametrize("workers, rows, repeats, kills", [
    pytest.param(2, ("base", "second"), 2, 1, marks=pytest.mark.weekly),
    pytest.param(8, ("base", "slow", "wide", "second", "otsu"), 8, 12, marks=pytest.mark.weekly)])
def test_killed_workers_share_a_study(tmp_path, workers, rows, repeats, kills):
    (tmp_path / "shared.py").write_text(SHARED_STUDY)
    options = (f"--study={tmp_path / 'shared.py'}", f"--repeats={repeats}", "--backend=loop",
               f"--rows={','.join(rows)}")
    many, alone = tmp_path / "many", tmp_path / "alone"
    printed = share(many, (*options, "--slots=2"), workers, len(rows) * repeats, kills, 2400)
    assert "Traceback" not in printed
    for row in rows:
        for repeat in range(repeats if row != "otsu" else 0):
            assert logged_steps(many / row / str(repeat)) == SHARED_STEPS
    done = run_command("study", *options, "--slots=1", f"--workdir={alone}", timeout=2400)
    assert done.returncode == 0, done.stderr
    assert table_without_costs(many) == table_without_costs(alone) != []
