"""SIGTERM and Ctrl-C in every phase of every command, and what they leave behind."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from faults.checkpoints import trained
from faults.table import Fault
from helpers import ROOT, assert_same_run, child_environment, command, run_command

from cellseg_jax.files import owner

# Work of a library that no handler interrupts, as a compile; and work that one does.
STUCK = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
LOOP = "[time.sleep(0.01) for _ in range(6000)]"
WORK = """
import hashlib, sys, time
from cellseg_jax import cli
from cellseg_jax.cli import stopping
stopping.GRACE = 0.5
def main(args, overrides):
    try:
        print("began", flush=True)
        {work}
    except KeyboardInterrupt:
        {after}
sys.exit(cli.run_command(main, lambda values: None, ["x"]))
"""
CONFIG = """
from cellseg_jax.config import default

def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(32, 32), count=40)
    config.model = dict(name="unet", channels=(4, 8))
    config.train.epochs, config.train.batch_size = 30, 8
    config.eval.batch_size = 8
    return config
"""
STUDY = """
from cellseg_jax.config import default
from cellseg_jax.studies import rows

TITLE = "rates"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=40)
BASE.model = dict(name="unet", channels=(4, 8))
BASE.train.epochs, BASE.train.batch_size, BASE.eval.batch_size = 10, 8, 8
ROWS = {"base": {}, "slow": {"optimizer.lr": 1e-4}}
REPEATS = 2
get_config = rows(BASE, ROWS)
"""


def child(work, after="raise"):
    """A command that does this work, once it is under way. Ctrl-C is as in a terminal."""
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-c", WORK.format(work=work, after=after)],
        env=child_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    assert process.stdout.readline() == "began\n"
    return process


def ended(process, within):
    """(exit code, what it wrote to stderr), within some seconds."""
    try:
        _, said = process.communicate(timeout=within)
    finally:
        process.kill()
    assert "Traceback" not in said, said
    return process.returncode, said


def sigterm_at_work(place, number):
    process = child((STUCK, LOOP)[number])
    process.send_signal(signal.SIGTERM)
    assert ended(process, 6)[0] == 75


def second_ctrl_c(place, number):
    process = child((STUCK, LOOP)[number], after=STUCK)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, said = ended(process, 2)
    assert code == 130 and said == "interrupted; the same command continues\n"


def late_signal(place, number):
    """It comes when all that can be saved is saved: what follows is not begun."""
    code = ("from cellseg_jax.cli import stopping\nfrom cellseg_jax.train import loop, run\n"
            "from cellseg_jax.train.one_run import train_and_score\nimport os, signal\n"
            "from helpers import tiny_config\nfinish = run.Run.{method}\n"
            "def finish_and_stop(self):\n    out = finish(self)\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n    return out\n"
            "run.Run.{method} = finish_and_stop\n"
            "with stopping.stopping_at_sigterm():\n"
            f"    train_and_score(tiny_config(train__epochs=1), {str(place / 'run')!r})\n")
    code = code.replace("{method}", ("finish", "close")[number])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=child_environment() | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"})
    assert done.returncode == 75, done.stderr
    assert json.loads((place / "run/result.json").read_text())["status"] == "done"
    assert not (place / "run/eval").exists()


def listens(process):
    """Whether the process has its handler of SIGTERM, which is so before JAX is imported."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> 14 & 1)
    return True


def stopped_at(share, whole, words, log):
    """SIGTERM after a share of a command's seconds; its exit code, which comes within 10 s."""
    process = subprocess.Popen(command(*words), env=child_environment() | {
        "PYTHONPATH": f"{ROOT}:{log.parent}"}, stdout=open(log, "a"), stderr=subprocess.STDOUT)
    try:
        while process.poll() is None and not listens(process):
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(share * whole)
        process.send_signal(signal.SIGTERM)
        return process.wait(10)
    finally:
        process.kill()


def commands(place):
    """{command: (its words, without the folder that it writes to; that folder's flag)}."""
    (place / "config.py").write_text(CONFIG)
    (place / "study.py").write_text(STUDY)
    from PIL import Image

    (place / "in").mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        image = rng.integers(0, 255, (48, 48, 3), np.uint8)
        Image.fromarray(image).save(place / "in" / f"{n}.png")
    return {"main": [f"--config={place}/config.py", f"--config.data.cache={place}/cache"],
            "study": [f"--study={place}/study.py"],
            "predict": [f"--workdir={trained()}", f"--images={place}/in", "--format=tiff,csv"]}


def stopped(name, times=3):
    """A case: a command is stopped at drawn moments and ends as if it had not been."""
    def case(place, number):
        rng, words = np.random.default_rng(number), [name, *commands(place)[name]]
        out = "--out" if name == "predict" else "--workdir"
        began = time.monotonic()
        done = run_command(*words, f"{out}={place / 'whole'}", PYTHONPATH=f"{ROOT}:{place}")
        assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - began
        for _ in range(times):
            code = stopped_at(rng.random(), seconds, [*words, f"{out}={place / 'cut'}"],
                              place / "log")
            log = (place / "log").read_text()
            assert code in (0, 75), log[-3000:]
        done = run_command(*words, f"{out}={place / 'cut'}", PYTHONPATH=f"{ROOT}:{place}")
        assert done.returncode == 0, done.stderr
        log = (place / "log").read_text()
        # Python drops what a handler raises in a callback of its memory management; the watching
        # thread ends the process then.
        assert log.count("Traceback") == log.count("Exception ignored"), log[-3000:]
        if name == "main":
            assert_same_run(place / "whole", place / "cut")
        files = [sorted(p.relative_to(f) for p in f.rglob("*") if "checkpoints" not in str(p)
                        and "tensorboard" not in str(p)) for f in (place / "whole", place / "cut")]
        assert files[0] == files[1]
    return case


def leftovers(place, number):
    """What a killed predict was writing is removed by the next; what others write is not."""
    from cellseg_jax.inference.images_in import claim

    out = place / "out"
    (out / "below").mkdir(parents=True)
    host = owner()[:8]
    dead = [out / f"a_label.tif.{host}-4194305.tmp", out / "below" / f"b.csv.{host}-4194305.tmp"]
    alive = [out / f"a_label.tif.{host}-1.tmp", out / "c_label.tif.00000000-4194305.tmp",
             out / "mine.tmp", out / "mine.123.tmp"]
    old = out / "d_label.tif.00000000-7.tmp"
    for file in (*dead, *alive, old):
        file.touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    claim(out, {"run": 1}, [(place / "b.png", out / "below" / "b")], ["tiff"])
    assert sorted(out.rglob("*.tmp")) == sorted(alive)
    shutil.rmtree(out)


FAULTS = (
    Fault("SIGTERM", "a long call of a library; a loop", "exit 75 within 10 s", sigterm_at_work,
          2, 1),
    Fault("a second Ctrl-C", "a long call of a library", "ends at once, exit 130", second_ctrl_c,
          2, 1),
    Fault("SIGTERM after the last save", "training", "exit 75; scoring is not begun", late_signal,
          2),
    Fault("SIGTERM at three drawn moments", "train and score",
          "exit 75 within 10 s, then as if not stopped", stopped("main"), 4),
    Fault("SIGTERM at three drawn moments", "predict",
          "exit 75 within 10 s, then as if not stopped", stopped("predict"), 3),
    Fault("SIGTERM at three drawn moments", "study",
          "exit 75 within 10 s, then as if not stopped", stopped("study"), 3),
    Fault("a killed predict", "predict", "its temporary files are removed by the next", leftovers,
          1, 1),
)
