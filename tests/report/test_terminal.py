"""Terminal output: plain lines in pipes, bars only where a line can be redrawn."""

import os
import pty
import subprocess
import sys

import pytest

from cellseg_jax import errors
from cellseg_jax.report import terminal

TEST = {
    "split": "test", "n_images": 3,
    "metrics": {"dice_mean": 0.91234, "iou_mean": 0.85, "loss": 0.1},
    "metrics_original_size": {"dice_mean": 0.9, "iou_mean": 0.84, "ap50": None},
    "per_stratum": {"[red] a": {"n": 2, "dice_mean": 0.95, "iou_mean": 0.9},
                    "b": {"n": 1, "dice_mean": 0.8, "iou_mean": 0.7}},
}
SCRIPT = """
from cellseg_jax.report import terminal
with terminal.reading() as progress:
    progress(1, 2); progress(2, 2)
with terminal.Training(2, 2) as training:
    training.begin(0, "a", 4, 0); training.begin(1, "b", 4, 0)
    for step in range(1, 5):
        training.advance({0: (step, 0.5), 1: (step, 0.25)})
        training.logged(0, {"step": step, "epoch": step, "lr": 0.1, "train_loss": 0.5})
"""


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_training_plain_lines(capsys, clock):
    with terminal.Training(1, batch_size=4) as training:
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
    with terminal.Training(2, batch_size=8) as training:
        training.begin(0, "a", 4, 0)
        training.begin(1, "b", 2, 0)
        for a, b in ((1, 1), (2, 2), (3, 2), (4, 2)):
            clock[0] += 1.0
            training.advance({0: (a, 0.5), 1: (b, 0.25)})
    assert training.images_per_second == pytest.approx(6 * 8 / 4)


def test_each_of_many_runs_prints_less_often(capsys, clock):
    names = [f"run{k}" for k in range(10)]
    with terminal.Training(10, batch_size=1) as training:
        for k, name in enumerate(names):
            training.begin(k, name, 200, 0)
        for step in range(1, 101):
            clock[0] += 1.0
            training.advance({k: (step, 0.5) for k in range(10)})
            for k in range(10):
                training.logged(k, {"step": step, "epoch": step})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and [line.split()[0] for line in lines] == names


def test_no_control_codes_in_a_pipe():
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=env, check=True)
    assert done.stderr == b"" and b"\x1b" not in done.stdout and b"\r" not in done.stdout
    assert done.stdout.decode().splitlines()[0] == "reading images: 2 of 2"


def test_bar_in_a_terminal():
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=child, stderr=child, env=env)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux raises this at the end of a pseudo terminal
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert process.wait() == 0
    assert b"\x1b[" in shown and b"2 runs" in shown and b"8/8" in shown
    assert b"epoch 3" in shown  # in a terminal no line is left out


def test_reading_shows_nothing_if_unused(capsys):
    with terminal.reading():
        pass
    assert capsys.readouterr() == ("", "")


def test_log_and_error_are_one_line_each(capsys):
    terminal.log("a note")
    errors.print_error("two\n  lines [bold]")
    assert capsys.readouterr() == ("", "a note\nerror: two lines [bold]\n")


def test_summary_aligns_and_keeps_brackets(capsys):
    terminal.summary([("model", "unet [depth 5]"), ("images per step", "16")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["model            unet [depth 5]", "images per step  16"]


def test_scores_shows_both_sizes_and_strata(capsys):
    terminal.scores(TEST)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dice_mean", "0.9123", "0.9000"] in shown
    assert ["ap50", "-", "-"] in shown
    assert ["[red]", "a", "2", "0.9500", "0.9000"] in shown
