"""Terminal output: plain lines in pipes, bars only where a line can be redrawn."""

import os
import pty
import subprocess
import sys

import pytest

from cellseg_jax import errors
from cellseg_jax.report import terminal

SCRIPT = """
from cellseg_jax.report import terminal
from cellseg_jax.train.progress import Progress
with terminal.counting("reading images") as progress:
    progress(1, 2); progress(2, 2)
with Progress(2, 2) as training:
    training.begin(0, "a", 4, 0); training.begin(1, "b", 4, 0)
    for step in range(1, 5):
        training.advance({0: (step, 0.5), 1: (step, 0.25)})
        training.logged(0, {"step": step, "epoch": step, "lr": 0.1, "train_loss": 0.5})
"""


def test_no_control_codes_in_a_pipe():
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=env, check=True)
    assert done.stderr == b"" and b"\x1b" not in done.stdout and b"\r" not in done.stdout
    assert done.stdout.decode().splitlines()[0] == "reading images: 2 of 2"


@pytest.mark.slow
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


def test_counting_shows_nothing_if_unused(capsys):
    with terminal.counting("reading"):
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
