"""The host's side of one run that is being trained: its data, its folder, when something is due."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.data import order
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.data.records import Finding
from cellseg_jax.errors import InputError
from cellseg_jax.files import interpreting, read_json, read_jsonl
from cellseg_jax.report import panels, terminal
from cellseg_jax.runs.checkpoint import Checkpoints
from cellseg_jax.runs.folder import (
    AUGMENTED_PICTURE,
    CHECKPOINTS,
    ENVIRONMENT_FILE,
    GRADIENTS_LOG,
    METRICS_LOG,
    RESULT_FILE,
    TIMING_LOG,
    RunFolder,
    check_same_split,
    no_checkpoint,
)
from cellseg_jax.step import preview
from cellseg_jax.step.memory import peak_memory
from cellseg_jax.step.mesh import fetch
from cellseg_jax.step.state import NON_FINITE, RUNNING, STOPPED_EARLY, TrainState
from cellseg_jax.train import tensorboard
from cellseg_jax.train.early_stopping import Judgement, judge
from cellseg_jax.train.result import STATUS, Result, write_result, write_split
from cellseg_jax.train.training_data import known_of


class Task(NamedTuple):
    """A run that `train` was asked for."""

    number: int  # among all of them
    config: ConfigDict
    workdir: pathlib.Path
    alone: bool  # the only one: that it is in use elsewhere is an error
    name: str = ""  # in the progress
    until: float = 1.0  # share of its steps after which it pauses, at the next validation


def is_main_process() -> bool:
    """Whether this process prints and writes for all that train together."""
    return jax.process_index() == 0


class Usage(NamedTuple):
    """What this process has used when a line is logged."""

    seconds: float
    cpu_seconds: float
    images: int  # of all runs that train together

    @classmethod
    def now(cls, images: int) -> "Usage":
        """The clocks as they are."""
        return cls(time.monotonic(), time.process_time(), images)


class Run:
    """One run under way.

    Its folder is not touched before `open`; `close` gives it back.
    """

    def __init__(self, task: Task, arrays: Arrays):
        self.task, self.config, self.arrays = task, task.config, arrays
        self.parts = data.split_of(self.config.data, arrays)
        self.order = order.order_of(self.config, arrays, self.parts["train"])
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_steps = derived.num_steps(self.config, self.steps_per_epoch)
        self.pause_step = self._pause_step()
        self.folder = self.checkpoints = self.board = None
        self.step, self.saved, self.stop = 0, -1, RUNNING
        self.judgement = Judgement()
        self.lr, self.metrics, self.timing = self.config.optimizer.lr, {}, {}
        self.logged_at = Usage(0, 0, 0)

    # --- begin and end ----------------------------------------------------------------------------

    def open(self) -> None:
        """Open the folder for writing.

        Raises: InputError where it is another run's or its checkpoints were deleted, InUse where
          another process writes into it.
        """
        self.folder = RunFolder(self.task.workdir, self.config, self.arrays.fingerprint,
                                writer=is_main_process())
        if self.folder.extended:
            terminal.log(self.folder.extended)
        began, saves = self.folder.path / ENVIRONMENT_FILE, self.folder.path / CHECKPOINTS
        if began.exists() and not saves.is_dir():
            raise InputError(f"--workdir: {saves} is missing, although the run was begun "
                             f"({began.name}); restore it, or use another --workdir")
        check_same_split(self.folder.path, self.arrays, self.parts)
        self.checkpoints = Checkpoints(saves, self.folder.check)
        if not self.checkpoints.steps():
            self._refuse_restart()

    def ended_before(self) -> bool:
        """Whether result.json records that the run has ended; then it is taken as it is."""
        file = self.folder.path / RESULT_FILE
        if not file.exists() or self.folder.extended:
            return False
        with interpreting(file):
            result = read_json(file)
            self.step, self.metrics = int(result["step"]), dict(result["metrics"])
            self.stop = {status: k for k, status in STATUS.items()}[result["status"]]
        return True

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest saved state, or None; the logs are cut to it.

        Raises: InputError as Checkpoints.restore_latest.
        """
        restored = self.checkpoints.restore_latest(abstract, terminal.log)
        state, judgement = restored or (None, None)
        if state is None:
            self._refuse_restart()
        else:
            self.step = self.saved = fetch(state.step).item()
            self.stop = fetch(state.stop).item()
            self.judgement = Judgement.restored(judgement)
            for changed in filter(None, (self.folder.other_code(), self.folder.other_arithmetic())):
                terminal.log(f"{self.folder.path}: {changed}")
            if self.folder.extended and self.stop == STOPPED_EARLY:
                self.judgement = dataclasses.replace(self.judgement, waited=0)
                self.stop = RUNNING
        self.folder.cut_logs(self.step)
        return state

    def _refuse_restart(self) -> None:
        """InputError where a run that has ended would begin again at step 0."""
        if (self.folder.path / RESULT_FILE).exists():
            raise InputError(f"--workdir: {no_checkpoint(self.folder.path)}")

    def start(self, program: dict, augmented: Callable, images: int) -> None:
        """Write what is known before the first step.

        Args:
          program: how the run is computed, for environment.json.
          augmented: of preview.augmented_program.
          images: as in Usage.
        """
        if self.folder.writer:
            known = known_of(self.config, self.arrays, self.parts["train"])
            self.folder.write_environment(program, self.arrays.fingerprint, known)
            self.folder.begin()
            write_split(self.folder, self.arrays, self.parts)
            if not (self.folder.path / AUGMENTED_PICTURE).exists():
                panels.write_png(self.folder.path / AUGMENTED_PICTURE, preview.augmented_sheet(
                    self.config, self.arrays, self.order, augmented))
            self.board = tensorboard.Board(self.folder.path)
        self.logged_at = Usage.now(images)

    def result(self) -> Result:
        """How the run has ended, or that it pauses or was interrupted."""
        status = STATUS[self.stop]
        if self.running:
            status = "interrupted" if self.training else "paused"
        return Result(str(self.task.workdir), status, self.step, self.metrics)

    def finish(self) -> None:
        """After the last save: wait for it, and write that the run has ended."""
        self.checkpoints.wait()
        if self.folder.writer:
            self.folder.check()
            write_result(self.folder, self.result(), self.num_steps,
                         read_jsonl(self.folder.path / TIMING_LOG, ()))

    def close(self) -> None:
        """Give the folder back; a second time does nothing."""
        with contextlib.ExitStack() as opened:  # each is closed, whatever closing another raises
            for resource in (self.folder, self.board, self.checkpoints):
                if resource:
                    opened.callback(resource.close)
            self.checkpoints = self.board = self.folder = None

    def findings(self) -> list[Finding]:
        """Keys of its config that change nothing, and a warm-up that is longer than the run."""
        unread = config_lib.unread(self.config) | self._unread_without_validation()
        found = [Finding("warning", f"config.{key}", f"nothing reads it, since {why}")
                 for key, why in unread.items()]
        strata = set(np.take(self.arrays.strata, self.parts["train"]).tolist())
        if self.config.data.balance and len(strata) == 1:
            found.append(Finding("warning", "config.data.balance", "all training images are of the "
                                 f"one stratum {strata.pop()!r}: there is nothing to balance, they "
                                 "are drawn with replacement"))
        optimizer, unit = self.config.optimizer, self.config.optimizer.schedule_per
        length = (self.num_steps if unit == "step" else
                  math.ceil(self.num_steps / self.steps_per_epoch))
        if optimizer.warmup >= length:
            found.append(Finding("warning", "config.optimizer.warmup",
                                 f"got {optimizer.warmup}, but the run has {length} {unit}s: the "
                                 "learning rate never reaches optimizer.lr"))
        return found

    def _unread_without_validation(self) -> dict[str, str]:
        """{key: why nothing reads it} where it turns out that the split has no validation images.

        Of fractions that is known before, and refused (config.rules).
        """
        if len(self.parts["val"]):
            return {}
        keys = {"train.early_stopping": self.config.train.early_stopping > 0,
                "optimizer.schedule": self.config.optimizer.schedule == "plateau"}
        return {key: f"data.split={self.config.data.split!r} has no validation images"
                for key, used in keys.items() if used}

    # --- what is due ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether steps are left to do."""
        return self.stop == RUNNING and self.step < self.num_steps

    @property
    def training(self) -> bool:
        """Whether steps are left to do now: it has neither ended nor to pause."""
        return self.running and self.step < self.pause_step

    def _pause_step(self) -> int:
        """The first step with a validation at which the share task.until is done."""
        if self.task.until >= 1:
            return self.num_steps
        every = self.steps_per_epoch * self.config.eval.every
        wanted = self.task.until * self.num_steps
        return min(math.ceil(wanted / every - 1e-9) * every, self.num_steps)

    @property
    def failed(self) -> bool:
        """Whether its loss or gradient became non-finite."""
        return self.stop == NON_FINITE

    def steps_in_epoch(self) -> int:
        """Steps of the current epoch that are done, after at least one step."""
        return (self.step - 1) % self.steps_per_epoch + 1

    def at_event(self) -> bool:
        """Whether the step just done ends an epoch or the run: a line is logged."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.num_steps

    def validation_due(self) -> bool:
        """Whether the run is validated after the step just done."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        due = self.step == self.num_steps or (rest == 0 and epoch % self.config.eval.every == 0)
        return due and len(self.parts["val"]) > 0

    # --- what happens to it -----------------------------------------------------------------------

    def judge(self, scores: dict) -> bool:
        """Take note of a validation: whether it is the best so far; may stop the run early."""
        self.judgement, is_best, stop = judge(
            self.judgement, scores, self.config, self.step / self.steps_per_epoch)
        if stop:
            self.stop = STOPPED_EARLY
        return is_best

    def log(self, line: dict, usage: Usage, running: int) -> None:
        """One line of scores and one of timing; `running` runs shared the time since the last."""
        seconds, cpu_seconds, images = (b - a for a, b in zip(self.logged_at, usage, strict=True))
        self.logged_at = usage
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
        self.step, self.stop = at, NON_FINITE
        names = [self.arrays.names[i] for i in self.order.rows(at)["id"]]
        self.metrics = {"step": at, "stopped": "loss or gradient not finite in the next step",
                        "lr": lr, "images": names}
        self.folder.log(METRICS_LOG, self.metrics)
        terminal.log(f"{self.folder.path}: loss or gradient not finite after step {at} (lr "
                     f"{lr:g}); stopped there. A lower optimizer.lr usually helps; the batch is "
                     f"in {METRICS_LOG}")

    def save(self, state: TrainState, score: float | None) -> None:
        """Save the state in the background; `score` is that of a new best."""
        self.checkpoints.save(state, self.step, score, self.judgement.to_json())
        self.saved = self.step
