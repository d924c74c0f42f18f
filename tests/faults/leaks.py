"""Nothing grows in a process that saves, trains, predicts, scores or exports many times.

Each case runs in a process of its own with 256 file descriptors, which prints a line of its use
of descriptors, threads and memory after each repetition.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

from faults.table import Fault
from helpers import ROOT, child_environment

DESCRIPTORS = 256


def used():
    """[file descriptors, threads, MiB of memory] of this process."""
    return [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")),
            int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024]


def save(place):
    from faults import checkpoints

    from cellseg_jax.runs.checkpoint import Checkpoints

    saves, step = Checkpoints(place / "checkpoints"), 0
    while True:
        step += 1
        saves.save(checkpoints.state(), step, score=step % 7 or None, judgement={"best": 1})
        yield


def train(place):
    """A study's runs: each other seeds and another folder, in programs of four."""
    from helpers import tiny_config

    from cellseg_jax import train as train_lib

    program = 0
    while True:
        program += 1
        runs = range(4 * program, 4 * program + 4)
        train_lib.train([tiny_config(seed=n, train__epochs=1) for n in runs],
                        [place / str(n) for n in runs])
        yield


def _run(place):
    from helpers import tiny_config

    from cellseg_jax import train as train_lib

    train_lib.train([tiny_config(train__epochs=1)], [place / "run"])
    return place / "run"


def predict(place):
    import numpy as np

    import cellseg_jax

    run, image = _run(place), np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    while True:
        cellseg_jax.load(run).predict([image] * 3)
        yield


def evaluate(place):
    from cellseg_jax.inference.score_run import score_run
    from cellseg_jax.runs.folder import read_config, scores_file

    run = _run(place)
    while True:
        scores_file(run).unlink(missing_ok=True)
        score_run(read_config(run), run, "test")
        yield


def export(place):
    from cellseg_jax.interop import exporting

    run, options = _run(place), exporting.ExportOptions("stablehlo", out=place / "export")
    while True:
        exporting.export(exporting.open_run(run, [], "best", options), options)
        yield


def flat(work, warm, repeat, memory=1.05):
    """A case: the use after `warm` and after `repeat` repetitions is the same."""
    def case(place, number):
        with fast_folder(place) as folder:
            done = subprocess.run(
                [sys.executable, "-m", __name__, work.__name__, str(folder), str(repeat)],
                capture_output=True, text=True, cwd=ROOT, env=child_environment()
                | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])})
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "["]
        before, after = lines[warm - 1], lines[-1]
        assert len(lines) == repeat
        assert after[0] <= before[0] + 5 and after[1] <= before[1] + 5, (before, after)
        assert after[2] <= memory * before[2], (before, after)
    return case


@contextlib.contextmanager
def fast_folder(place):
    """A folder in memory where there is one: thousands of saves wait for a disk otherwise."""
    if not os.access("/dev/shm", os.W_OK):
        yield place
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


FAULTS = (
    # One thing that is kept of every 56 saves is seen. A save takes about 35 kB for ever.
    Fault("300 saves with 256 descriptors", "training",
          "descriptors and threads within 5, memory within 5 %", flat(save, 20, 300), 1),
    Fault("2,000 saves with 256 descriptors", "training", "descriptors and threads within 5",
          flat(save, 20, 2000, 1.3), 1, whole=True),
    Fault("60 runs of a study", "training", "as above, memory within 5 %",
          flat(train, 5, 15), 1),
    Fault("60 predictions, each opening the run", "predict", "as above, memory within 5 %",
          flat(predict, 10, 60), 1),
    Fault("30 evaluations", "eval", "as above, memory within 5 %", flat(evaluate, 5, 30), 1),
    Fault("30 exports", "export", "as above", flat(export, 5, 30), 1),
)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    _, name, folder, repeat = sys.argv
    steps = globals()[name](pathlib.Path(folder))
    for _ in range(int(repeat)):
        next(steps)
        print(json.dumps(used()), flush=True)
