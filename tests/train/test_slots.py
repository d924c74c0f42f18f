"""Runs that share a program: slots, back-ends, and that nobody notices the others."""

import signal
import subprocess
import sys

import pytest
from helpers import ROOT, assert_same_run, child_environment, interrupt_at_batch, tiny_config

from cellseg_jax import train
from cellseg_jax.files import read_json, read_jsonl
from cellseg_jax.runs import checkpoint
from cellseg_jax.train import execution, slot_states
from cellseg_jax.train.execution import Execution


def losses(workdir):
    lines = read_jsonl(workdir / "metrics.jsonl")
    return [(s["step"], s["train_loss"], s["val_loss"]) for s in lines if "val_loss" in s]


def assert_close(one, other, tolerance=1e-8):
    assert [s for s, *_ in losses(one)] == [s for s, *_ in losses(other)]
    for a, b in zip(losses(one), losses(other), strict=True):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) < tolerance


def train_alone(configs, folder):
    return [train.train([c], [folder / str(k)])[0] for k, c in enumerate(configs)]


def test_a_call_of_the_loop_computes_one_run_per_device_and_other_programs_all_slots():
    assert Execution("loop", 4, (2, 4), ()).width == 2
    assert Execution("vmap", 4, (2, 4), ()).width == 4


def test_candidates_divide_over_the_devices_and_are_no_more_than_the_runs():
    one = execution.candidates(Execution("loop", 1, (1, 1), ()), num_runs=5)
    assert [p.slots for p in one] == [2, 4]
    many = execution.candidates(Execution("loop", 1, (1, 8), ()), num_runs=20)
    assert many[0] == Execution("loop", 8, (8, 1), ()) and all(
        p.slots <= 20 and p.slots % p.mesh[0] == 0 for p in many)
    assert execution.candidates(Execution("loop", 2, (2, 4), ()), num_runs=3) == [
        Execution("unroll", 2, (2, 4), ())]


SGD = dict(name="sgd", momentum=0.9, nesterov=True)
EACH_COMMIT = [("unroll", dict(name="adam")), ("vmap", dict(name="adam")),
               ("loop", dict(name="adam")), ("unroll", SGD)]
WEEKLY = [("vmap", SGD), *(("unroll", options) for options in (
    dict(name="adamw", weight_decay=1e-2), dict(name="adamax"), dict(name="rmsprop")))]


@pytest.mark.parametrize("backend, optimizer", [
    pytest.param(backend, options, id=f"{backend}-{options['name']}", marks=mark)
    for mark, cases in ((pytest.mark.slow, EACH_COMMIT), (pytest.mark.weekly, WEEKLY))
    for backend, options in cases])
def test_five_runs_in_two_slots_equal_each_alone_in_float64(tmp_path, float64, backend, optimizer):
    """Other seeds, rates, splits, epoch lengths and ends: batch norm and dropout are on."""
    options = {f"optimizer__{k}": v for k, v in optimizer.items()}
    configs = [tiny_config(**options | dict(
        train__precision="float64", seed=k, optimizer__lr=1e-3 * (k + 1), data__split_seed=k,
        data__split=((0.8, 0.1, 0.1), (0.5, 0.3, 0.2))[k % 2], train__epochs=2 + k % 3))
        for k in range(4)]
    configs.append(tiny_config(**options | dict(
        train__precision="float64", optimizer__lr=1e-9, train__epochs=9, train__early_stopping=1)))
    together = train.train(configs, [tmp_path / "t" / str(k) for k in range(5)],
                           backend=backend, slots=2)
    alone = train_alone(configs, tmp_path / "a")
    assert [(r.status, r.step) for r in together] == [(r.status, r.step) for r in alone]
    assert [r.status for r in alone] == ["done"] * 4 + ["stopped early"]
    for k in range(5):
        assert_close(tmp_path / "t" / str(k), tmp_path / "a" / str(k))


@pytest.mark.slow
def test_ended_runs_make_room_without_a_recompile(tmp_path, monkeypatch):
    compiled = []
    compile_ = slot_states.SlotStates.compile

    def counted(self, arguments):
        compiled.append(self.compiled is None)
        return compile_(self, arguments)

    monkeypatch.setattr(slot_states.SlotStates, "compile", counted)
    base = dict(optimizer__name="sgd", optimizer__momentum=0.9)
    configs = [tiny_config(**base, seed=k, train__epochs=epochs, optimizer__lr=lr)
               for k, (epochs, lr) in enumerate(((3, 1e-3), (9, 1e30), (1, 1e-3), (2, 2e-3)))]
    folders = [tmp_path / str(k) for k in range(4)]
    results = train.train(configs, folders, slots=2)
    assert [r.status for r in results] == ["done", "non-finite", "done", "done"]
    assert [r.step for r in results] == [12, results[1].step, 4, 8] and results[1].step < 4
    assert compiled == [True]  # for four runs
    last = read_jsonl(folders[1] / "metrics.jsonl")[-1]
    assert last["lr"] == pytest.approx(1e30) and len(last["images"]) == 8
    assert read_json(folders[1] / "result.json")["status"] == "non-finite"
    assert read_json(folders[0] / "result.json")["members"] == 2
    before = [(f / "metrics.jsonl").stat().st_mtime_ns for f in folders]
    again = train.train(configs, folders, slots=2)  # nothing is left to do, so nothing is compiled
    assert [(r.status, r.step) for r in again] == [(r.status, r.step) for r in results]
    assert before == [(f / "metrics.jsonl").stat().st_mtime_ns for f in folders]
    assert compiled == [True]


@pytest.mark.slow
def test_an_interrupted_group_goes_on_in_the_program_it_was_begun_in(tmp_path, monkeypatch):
    """Bit for bit, though another back-end would be the default."""
    configs = [tiny_config(seed=k, train__epochs=3) for k in range(3)]
    whole, cut = ([tmp_path / name / str(k) for k in range(3)] for name in ("whole", "cut"))
    train.train(configs, whole, backend="unroll", slots=2)
    interrupt_at_batch(monkeypatch, 9)
    stopped = train.train(configs, cut, backend="unroll", slots=2)
    assert [r.status for r in stopped] == ["interrupted"] * 3
    assert [r.status for r in train.train(configs, cut)] == ["done"] * 3
    assert read_json(cut[0] / "environment.json")["program"]["backend"] == "unroll"
    for a, b in zip(whole, cut, strict=True):
        assert_same_run(a, b)


KILLED = """
import os, signal, sys
from absl import flags
from helpers import tiny_config
from cellseg_jax import train
from cellseg_jax.train import run

flags.FLAGS.mark_as_parsed()
save, saves = run.Run.save, []

def save_and_die(self, state, score):
    save(self, state, score)
    saves.append(self.step)
    if len(saves) == int(sys.argv[2]):
        self.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)

run.Run.save = save_and_die
configs = [tiny_config(seed=k, train__epochs=3, train__best=("loss", "min")) for k in range(2)]
train.train(configs, [f"{sys.argv[1]}/{k}" for k in range(2)], backend="unroll", slots=2)
"""


@pytest.mark.weekly
def test_a_kill_between_the_saves_of_two_runs_resumes_both_bit_for_bit(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = child_environment()
    environment["PYTHONPATH"] += f":{ROOT / 'tests'}"
    run = lambda folder, saves: subprocess.run(
        [sys.executable, str(script), str(folder), str(saves)], env=environment,
        capture_output=True, text=True)
    whole = run(tmp_path / "whole", 1000)
    assert whole.returncode == 0, whole.stderr
    for saves in (1, 3):
        died = run(tmp_path / "cut", saves)
        assert died.returncode == -signal.SIGKILL, died.stderr
        steps = [checkpoint.saved_steps(tmp_path / "cut" / str(k) / "checkpoints")
                 for k in range(2)]
        assert steps[0] != steps[1]  # one has saved, the other has not
    end = run(tmp_path / "cut", 1000)
    assert end.returncode == 0, end.stderr
    for k in range(2):
        assert_same_run(tmp_path / "whole" / str(k), tmp_path / "cut" / str(k))
