"""Several processes: two of two devices each train one run, and one process goes on with it."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import child_environment, last_state, tiny_config

from cellseg_jax import train
from cellseg_jax.files import read_json, read_jsonl

WORKER = """
import os, signal, sys
import jax
from absl import flags
from helpers import tiny_config
from cellseg_jax import train
from cellseg_jax.train import run

flags.FLAGS.mark_as_parsed()
port, process, workdirs, epochs, residence = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process),
                           heartbeat_timeout_seconds=20)
configs = [tiny_config(train__precision="float64", train__epochs=int(epochs), seed=seed,
                       data__residence="device" if residence == "killed" else residence)
           for seed in range(workdirs.count(":") + 1)]
mesh = None
if len(configs) == 2:  # a member for each process
    mesh = jax.make_mesh((2, 2), ("member", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
if residence == "killed":  # before the second epoch is saved, in both processes
    log = run.Run.log
    def log_and_die(self, *args):
        log(self, *args)
        if self.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
    run.Run.log = log_and_die
    mesh = None
print(*(r.status for r in train.train(configs, workdirs.split(":"), mesh=mesh, slots=len(configs))))
jax.distributed.shutdown()
"""


def run_two(tmp_path, workdirs, epochs, residence):
    """Train in two processes of two devices each; both must end well, or die if "killed"."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = child_environment(devices=2) | {"JAX_ENABLE_X64": "1"}
    environment["PYTHONPATH"] += f":{pathlib.Path(__file__).parents[1]}"
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    processes = [subprocess.Popen(
        [sys.executable, str(script), port, str(k), workdirs, str(epochs), residence],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for k in range(2)]
    try:
        outputs = [p.communicate(timeout=240)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, output in zip(processes, outputs, strict=True):
        if residence == "killed":
            assert p.returncode < 0, output[-3000:]
        else:
            assert p.returncode == 0 and "done" in output, output[-3000:]


@pytest.mark.weekly
@pytest.mark.parametrize("residence", ["device", "host"])
def test_two_processes_equal_one_and_one_goes_on(tmp_path, float64, residence):
    run_two(tmp_path, str(tmp_path / "two"), 2, residence)
    train.train([tiny_config(train__precision="float64", train__epochs=2)], [tmp_path / "one"])
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    longer = tiny_config(train__precision="float64", train__epochs=3)
    for name in ("one", "two"):  # the checkpoint of two processes goes on in this one
        assert train.train([longer], [tmp_path / name])[0].step == 12
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.weekly
def test_killed_in_two_processes_two_runs_of_one_program_go_on_in_one(tmp_path, float64):
    folders = [tmp_path / "m0", tmp_path / "m1"]
    run_two(tmp_path, ":".join(map(str, folders)), 3, "killed")
    assert [max(read_json(f / "environment.json")["program"]["mesh"]) for f in folders] == [
        4, 4]
    assert not any((f / "result.json").exists() for f in folders)
    configs = [tiny_config(train__precision="float64", train__epochs=3, seed=k) for k in (0, 1)]
    assert [r.status for r in train.train(configs, folders)] == ["done", "done"]
    for config, folder in zip(configs, folders, strict=True):
        train.train([config], [tmp_path / f"{folder.name}_alone"])
        assert_equal_runs(tmp_path / f"{folder.name}_alone", folder)


@pytest.mark.weekly
@pytest.mark.parametrize("residence", ["device", "host"])
def test_two_members_on_two_processes_equal_each_alone(tmp_path, float64, residence):
    run_two(tmp_path, f"{tmp_path / 'm0'}:{tmp_path / 'm1'}", 2, residence)
    for seed in (0, 1):
        config = tiny_config(train__precision="float64", train__epochs=2, seed=seed)
        train.train([config], [tmp_path / f"alone{seed}"])
        assert_equal_runs(tmp_path / f"alone{seed}", tmp_path / f"m{seed}")


def assert_equal_runs(one, two):
    """Losses and the last state agree to 1e-8."""
    lines = [read_jsonl(run / "metrics.jsonl") for run in (one, two)]
    for a, b in zip(*lines, strict=True):
        assert abs(a["train_loss"] - b["train_loss"]) < 1e-8
        assert abs(a["val_loss"] - b["val_loss"]) < 1e-8
    for a, b in zip(last_state(one), last_state(two), strict=True):
        assert np.abs(a - b).max() < 1e-8
