"""Which execution runs train in: where they were begun, else the fastest of those measured."""

import json
import types

import pytest
from helpers import tiny_config

from cellseg_jax import data, train
from cellseg_jax.files import read_json
from cellseg_jax.runs.folder import ENVIRONMENT_FILE
from cellseg_jax.step.memory import DoesNotFit
from cellseg_jax.step.spec import make_spec
from cellseg_jax.train import choose_execution
from cellseg_jax.train.execution import Execution, stored
from cellseg_jax.train.run import Task


def tasks_of(folder, configs):
    return [Task(k, config, folder / str(k), alone=False) for k, config in enumerate(configs)]


def chosen(monkeypatch, tmp_path, speeds, count=4, epochs=50):
    """What is taken where measuring an execution gives images/s, or DoesNotFit for None."""
    measured = []

    def fake(self, execution):
        measured.append((execution.backend, execution.slots))
        speed = speeds[measured[-1]]
        if speed is None:
            raise DoesNotFit("no room")
        return types.SimpleNamespace(execution=execution), speed, 1e-3

    monkeypatch.setattr(choose_execution.Trial, "measured", fake)
    configs = [tiny_config(seed=k, train__epochs=epochs) for k in range(count)]
    spec = make_spec(configs)
    first = Execution("loop", 0, (1, 1), spec.inactive)
    states = choose_execution.fastest(
        spec, first, tasks_of(tmp_path, configs), data.load(configs[0].data))
    assert not any(tmp_path.glob("?")), "no folder is opened for a measurement"
    return (states.execution.backend, states.execution.slots), measured


LOOP, TWO, FOUR = ("loop", 1), ("unroll", 2), ("unroll", 4)


@pytest.mark.parametrize("speeds, expected, num_measured", [
    ({LOOP: 10, TWO: 20, FOUR: 30}, FOUR, 3), ({LOOP: 10, TWO: 20, FOUR: 20.5}, TWO, 3),
    ({LOOP: 10, TWO: 10.4}, LOOP, 2), ({LOOP: 10, TWO: 20, FOUR: None}, TWO, 3)])
def test_the_fastest_is_taken_and_more_slots_only_where_they_gain(
        monkeypatch, tmp_path, capsys, speeds, expected, num_measured):
    taken, measured = chosen(monkeypatch, tmp_path, speeds)
    assert taken == expected and len(measured) == num_measured
    assert "4 runs share a program: loop, 1 slot" in capsys.readouterr().err


def test_little_work_is_not_measured(monkeypatch, tmp_path):
    assert chosen(monkeypatch, tmp_path, {}, count=1) == (LOOP, [])
    assert chosen(monkeypatch, tmp_path, {}, count=4, epochs=2) == (LOOP, [])
    monkeypatch.setattr(choose_execution, "MIN_GAIN_RATIO", 1e9)
    assert chosen(monkeypatch, tmp_path, {LOOP: 10}) == (LOOP, [LOOP])


def test_a_run_goes_on_where_it_was_begun_and_new_ones_join_it(monkeypatch, tmp_path):
    configs = [tiny_config(seed=k) for k in range(3)]
    inactive = make_spec(configs).inactive
    new, before = (Execution(name, slots, (1, 1), inactive)
                   for name, slots in (("loop", 0), ("vmap", 2)))
    monkeypatch.setattr(choose_execution, "stored",
                        lambda workdir: before if workdir.name == "1" else None)
    tasks = tasks_of(tmp_path, configs)
    assert choose_execution.assigned(tasks, new) == [(before, [tasks[1], tasks[0], tasks[2]])]
    requested = new._replace(backend="unroll", slots=4)
    assert choose_execution.assigned(tasks, requested) == [(requested, tasks)]
    # A term that the program was compiled without cannot be switched on in it.
    clipped = tasks_of(tmp_path, [*configs[:2], tiny_config(optimizer__clip=1.0)])
    assert choose_execution.assigned(clipped, new) == [(before, [clipped[1]]),
                                             (new, [clipped[0], clipped[2]])]


@pytest.mark.slow
def test_runs_train_in_the_program_that_was_measured_as_each_alone(tmp_path, monkeypatch, float64):
    monkeypatch.setattr(choose_execution, "MIN_GAIN_RATIO", 0)
    monkeypatch.setattr(choose_execution, "FASTER", 0)  # the last that is measured is taken
    configs = [tiny_config(seed=k, train__epochs=13, train__precision="float64") for k in (0, 1)]
    folders = [tmp_path / str(k) for k in (0, 1)]
    results = train.train(configs, folders)
    assert [(r.status, r.step) for r in results] == [("done", 52)] * 2
    program = read_json(folders[0] / ENVIRONMENT_FILE)["program"]
    assert (program["backend"], program["slots"]) == ("unroll", 2)
    alone = train.train(configs[1:], [tmp_path / "alone"])[0]
    assert alone.metrics["val_loss"] == pytest.approx(results[1].metrics["val_loss"], abs=1e-8)


def test_a_run_goes_on_where_it_was_begun_if_there_are_as_many_devices(tmp_path, capsys):
    config = tiny_config(train__steps=1, data__cache=str(tmp_path))
    train.train([config], [tmp_path / "run"])
    file = tmp_path / "run" / ENVIRONMENT_FILE
    environment = read_json(file)
    capsys.readouterr()
    program = environment["program"]
    assert stored(tmp_path / "run") == Execution(
        program["backend"], program["slots"], tuple(program["mesh"]), tuple(program["zeros"]))
    assert not capsys.readouterr().err
    for change in ({"devices": ["cpu cpu"] * 4}, {"processes": 2}):
        file.write_text(json.dumps(environment | change))
        assert stored(tmp_path / "run") is None
        said = capsys.readouterr().err
        assert "results agree to rounding" in said
        devices = (environment | change)["devices"]
        assert f"started on {len(devices)} device(s)" in said
