"""Progress of training in a pipe: few lines, right rates, and what is wrong with the data."""

import pytest

from cellseg_jax.data.records import Finding
from cellseg_jax.report import terminal
from cellseg_jax.train.progress import Progress, print_findings


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_training_plain_lines(capsys, clock):
    with Progress(1, batch_size=4) as training:
        training.begin(0, "run", 100, 0)
        for step in range(1, 101):
            clock[0] += 1.0
            training.advance({0: (step, 0.5)})
            training.logged(0, {"step": step, "epoch": step, "lr": 1e-3, "train_loss": 0.5,
                                **({"val_dice_mean": 0.75} if step == 100 else {})})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11  # the first, one per ten seconds, the last
    assert lines[0] == "epoch 1  step 1/100  lr 0.001  train loss 0.5000  4 images/s"
    assert lines[-1] == ("epoch 100  step 100/100  lr 0.001  train loss 0.5000  val Dice 0.7500  "
                         "4 images/s")


def test_training_counts_images_of_moving_runs_only(clock):
    with Progress(2, batch_size=8) as training:
        training.begin(0, "a", 4, 0)
        training.begin(1, "b", 2, 0)
        for a, b in ((1, 1), (2, 2), (3, 2), (4, 2)):
            clock[0] += 1.0
            training.advance({0: (a, 0.5), 1: (b, 0.25)})
    assert training.images_per_second == pytest.approx(6 * 8 / 4)


def test_each_of_many_runs_prints_less_often(capsys, clock):
    names = [f"run{k}" for k in range(10)]
    with Progress(10, batch_size=1) as training:
        for k, name in enumerate(names):
            training.begin(k, name, 200, 0)
        for step in range(1, 101):
            clock[0] += 1.0
            training.advance({k: (step, 0.5) for k in range(10)})
            for k in range(10):
                training.logged(k, {"step": step, "epoch": step})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and [line.split()[0] for line in lines] == names


def test_warnings_are_a_line_each_and_notes_are_counted(capsys):
    print_findings([Finding("warning", "a.png", "is empty"), *[Finding("note", "b", "c")] * 2],
                   "runs/my run")
    assert capsys.readouterr().err.splitlines() == [
        "warning: a.png: is empty",
        "2 notes on the data: python -m cellseg_jax.doctor --workdir='runs/my run' shows them"]
