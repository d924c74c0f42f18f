"""The host's side of one run that is being trained: its data, its folder, when something is due."""

import json
import math
import time
from typing import NamedTuple

import jax
import numpy as np

from cellseg_jax import data, optim
from cellseg_jax.config import derived
from cellseg_jax.data import order
from cellseg_jax.files import read_json, read_jsonl, write_atomic
from cellseg_jax.report import panels, terminal
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import (
    AUGMENTED_PICTURE,
    CHECKPOINTS,
    GRADIENTS_LOG,
    METRICS_LOG,
    RESULT_FILE,
    SPLIT_FILE,
    TIMING_LOG,
    RunFolder,
)
from cellseg_jax.step.memory import peak_memory
from cellseg_jax.step.mesh import fetch
from cellseg_jax.step.state import NON_FINITE, RUNNING, STOPPED_EARLY
from cellseg_jax.train import preview, tensorboard

JUDGED = ("best", "waited", "stop", "previous_loss", "plateau")  # what validations decide
STATUS = {RUNNING: "done", STOPPED_EARLY: "stopped early",
          NON_FINITE: "non-finite"}


class Result(NamedTuple):
    """How one run ended.

    status is one of STATUS, "interrupted" by SIGTERM after saving, or "in use" by another process.
    """

    workdir: str
    status: str
    step: int
    metrics: dict  # of the last logged step


class Clock(NamedTuple):
    """What a program has used when a line is logged."""

    seconds: float
    cpu_seconds: float
    images: int  # of all runs that train together

    @classmethod
    def now(cls, images: int) -> "Clock":
        return cls(time.monotonic(), time.process_time(), images)


class Member:
    """One run of a program; `close` gives its folder back.

    Raises (on opening): InputError where the folder is another run's, rundir.InUse where another
      process writes into it.
    """

    def __init__(self, config, workdir, arrays):
        self.config, self.arrays = config, arrays
        self.parts = data.split_of(config.data, arrays)
        self.order = order.order_of(config, arrays, self.parts["train"])
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_steps = derived.num_steps(config, self.steps_per_epoch)
        writer = jax.process_index() == 0
        self.folder = RunFolder(workdir, config, arrays.fingerprint, writer=writer)
        if self.folder.extended:
            terminal.log(self.folder.extended)
        self.checkpoints = checkpoint.Checkpoints(self.folder.path / CHECKPOINTS)
        self.board = None
        self.step, self.saved, self.stop = 0, -1, RUNNING
        self.best, self.waited, self.previous_loss = -math.inf, 0, math.inf
        self.plateau = {}  # of optim.reduce_on_plateau, as numbers of the state's dtypes
        self.lr, self.metrics, self.timing = config.optimizer.lr, {}, {}
        self.failed_now = self.closed = False
        self.logged_at = Clock(0, 0, 0)

    @property
    def running(self) -> bool:
        return self.stop == RUNNING and self.step < self.num_steps

    def ended_before(self) -> bool:
        """Whether result.json says that the run has ended; then it is taken as it is."""
        file = self.folder.path / RESULT_FILE
        if not file.exists() or self.folder.extended:
            return False
        result = read_json(file)
        self.step, self.metrics = result["step"], result["metrics"]
        self.stop = next(k for k, status in STATUS.items() if status == result["status"])
        return True

    def restore(self, abstract):
        """The newest saved state, or None; the logs are cut to it."""
        state = self.checkpoints.restore_latest(abstract, terminal.log)
        if state is not None:
            for k in ("step", "best", "waited", "stop", "previous_loss"):
                setattr(self, k, fetch(getattr(state, k)).item())
            self.saved = self.step
            if self.folder.extended and self.stop == STOPPED_EARLY:
                self.waited, self.stop = 0, RUNNING
        self.folder.cut_logs(self.step)
        return state

    def start(self, program: dict, augmented, images: int) -> None:
        """Write what is known before the first step; `images` as in Clock."""
        self.folder.write_environment(program, self.arrays.fingerprint)
        if self.folder.writer:
            (self.folder.path / RESULT_FILE).unlink(missing_ok=True)
            write_split(self.folder, self.arrays, self.parts)
            if not (self.folder.path / AUGMENTED_PICTURE).exists():
                panels.write_png(self.folder.path / AUGMENTED_PICTURE, preview.augmented_sheet(
                    self.config, self.arrays, self.order, augmented))
            self.board = tensorboard.Board(self.folder.path)
        self.logged_at = Clock.now(images)

    def steps_in_epoch(self) -> int:
        """Steps of the current epoch that are done, after at least one step."""
        return (self.step - 1) % self.steps_per_epoch + 1

    def at_event(self) -> bool:
        return self.step % self.steps_per_epoch == 0 or self.step == self.num_steps

    def validation_due(self) -> bool:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        due = self.step == self.num_steps or (rest == 0 and epoch % self.config.eval.every == 0)
        return due and len(self.parts["val"]) > 0

    def judge(self, scores: dict) -> float | None:
        """The score, larger is better, if it is a new best; stops early and lowers the rate."""

        def score_of(metric, direction):
            # As the checkpoint keeps it: a resumed run must find the same ties.
            return float(np.float32(scores[metric] if direction == "max" else -scores[metric]))

        options, optimizer = self.config.train, self.config.optimizer
        score, loss = score_of(*options.best), score_of("loss", "max")
        better = score > self.best
        self.best, self.waited = (score, 0) if better else (self.best, self.waited + 1)
        over = self.waited >= options.early_stopping
        if options.early_stopping_mode == "minimum":
            over = (self.step >= options.early_stopping * self.steps_per_epoch
                    and loss >= self.previous_loss)
        if options.early_stopping and over:
            self.stop = STOPPED_EARLY
        self.previous_loss = loss
        if self.plateau:
            new = optim.reduce_on_plateau(
                self.plateau, score_of(*optimizer.plateau_metric), lr=optimizer.lr,
                factor=optimizer.plateau_factor, patience=optimizer.plateau_patience,
                cooldown=optimizer.plateau_cooldown, min_lr=optimizer.plateau_min_lr)
            self.plateau = {k: self.plateau[k].dtype.type(v) for k, v in new.items()}
        return score if better else None

    def log(self, line: dict, clock: Clock, running: int) -> None:
        """One line of scores and one of timing; `running` runs shared the time since the last."""
        seconds, cpu_seconds, images = (b - a for a, b in zip(self.logged_at, clock, strict=True))
        self.logged_at = clock
        self.metrics = {"step": self.step, "epoch": self.step / self.steps_per_epoch,
                        "lr": self.lr, **line}
        self.timing = {"step": self.step, "seconds": round(seconds, 3),
                       "cpu_seconds": round(cpu_seconds, 3), "members": running,
                       "images_per_second": round(images / seconds, 2),
                       "peak_memory_gib": round(peak_memory() / 2**30, 3)}
        self.folder.log(METRICS_LOG, self.metrics)
        self.folder.log(TIMING_LOG, self.timing)
        if self.board:
            self.board.add({**self.metrics, **self.timing})

    def log_gradients(self, means: dict) -> None:
        """{layer: mean absolute gradient of its kernel over the epoch so far}."""
        self.folder.log(GRADIENTS_LOG, {
            "step": self.step, "epoch": self.step / self.steps_per_epoch, "gradients": means})

    def fail(self, at: int, lr: float) -> None:
        """The step after `at` was not finite; the device kept the state of step `at`."""
        self.step, self.stop, self.failed_now = at, NON_FINITE, True
        names = [self.arrays.names[i] for i in self.order.rows(at)["id"]]
        self.metrics = {"step": at, "stopped": "loss or gradient not finite in the next step",
                        "lr": lr, "images": names}
        self.folder.log(METRICS_LOG, self.metrics)
        terminal.log(f"{self.folder.path}: loss or gradient not finite after step {at} (lr "
                      f"{lr:g}); stopped there. A lower optimizer.lr usually helps; the batch is "
                      f"in {METRICS_LOG}")

    def save(self, state, score) -> None:
        self.checkpoints.save(state, self.step, score)
        self.saved = self.step

    def result(self) -> Result:
        status = "interrupted" if self.running else STATUS[self.stop]
        return Result(str(self.folder.path), status, self.step, self.metrics)

    def finish(self) -> None:
        """After the last save: wait for it, and write that the run has ended."""
        self.checkpoints.wait()
        if self.folder.writer:
            file = self.folder.path / TIMING_LOG
            write_result(self.folder, self.result(), self.num_steps,
                         read_jsonl(file) if file.exists() else [])

    def close(self) -> None:
        """Give the folder back; a second time does nothing."""
        if self.closed:
            return
        self.closed = True
        self.checkpoints.close()
        if self.board:
            self.board.close()
        self.folder.close()


def write_result(folder, result: Result, num_steps: int, timing) -> None:
    """result.json: how a run ended and what it cost, by the lines of timing.jsonl."""
    # Of a run that trained beside others, its share.
    share = lambda key: round(sum(line[key] / line["members"] for line in timing), 3)
    write_atomic(folder.path / RESULT_FILE, json.dumps({
        "status": result.status, "step": result.step, "num_steps": num_steps,
        "train_seconds": share("seconds"), "cpu_seconds": share("cpu_seconds"),
        "members": max((line["members"] for line in timing), default=1),
        "peak_memory_gib": max((line["peak_memory_gib"] for line in timing),
                               default=round(peak_memory() / 2**30, 3)),
        "metrics": result.metrics}, indent=1))


def write_split(folder, arrays, parts) -> None:
    """split.json: the names of the images of each part."""
    cells = arrays.grid**2  # patches follow their image
    split = {part: list(dict.fromkeys(arrays.image_names[i // cells] for i in indices))
             for part, indices in parts.items()}
    write_atomic(folder.path / SPLIT_FILE, json.dumps(split, indent=1))
