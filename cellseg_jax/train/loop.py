"""Training, top to bottom: from a list of configs to checkpoints and logs.

One config is the ordinary case. Configs that differ only in values (config.VALUE_KEYS) share one
compiled program: each takes one of its slots, with its own step, epoch length and run folder, and
those that find no slot wait for one that has ended.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.cli.stopping import let_finish
from cellseg_jax.config import derived
from cellseg_jax.errors import pick, refuse_urls
from cellseg_jax.report import terminal
from cellseg_jax.step import preview
from cellseg_jax.train import preflight, summary, training_data
from cellseg_jax.train.choose_execution import choose
from cellseg_jax.train.classical import begin_classical
from cellseg_jax.train.early_stopping import learning_rate
from cellseg_jax.train.execution import BACKENDS
from cellseg_jax.train.interrupt import interruptible
from cellseg_jax.train.progress import Progress, print_findings
from cellseg_jax.train.queue import Queue
from cellseg_jax.train.result import Result
from cellseg_jax.train.run import Run, Task, Usage, is_main_process
from cellseg_jax.train.slot_states import SlotStates
from cellseg_jax.train.slots import Slots
from cellseg_jax.train.training_data import TrainingData
from cellseg_jax.train.validation import Validation


def train(configs: Sequence[ConfigDict], workdirs: Sequence[str], *, mesh=None, backend: str = "",
          slots: int = 0) -> list[Result]:
    """Train every config into its workdir, or continue there; SIGTERM and Ctrl-C save and stop.

    Runs that have ended are left as they are. Runs that were begun go on in the program that they
    were begun in, where there are as many devices as then.

    Args:
      mesh: jax.sharding.Mesh with axes ("member", "data"); default: as many devices as the
        batch divides over, see step.mesh.mesh_shape.
      backend: execution.BACKENDS; "" = by measurement, where that is worth its time.
      slots: runs under way at once; 0 = by measurement.
    Returns: a Result per config, in order.
    Raises: InputError for what the user has to change: config, data, folder, memory.
    """
    configs = [config_lib.complete(c) for c in configs]
    refuse_urls(workdirs, "workdirs")
    if len(configs) != len(workdirs) or len(set(map(str, workdirs))) != len(workdirs):
        raise ValueError(f"{len(configs)} configs need as many distinct workdirs: {workdirs}")
    if backend:
        pick(dict.fromkeys(BACKENDS), backend, "--backend")
    results = {i: Result(str(w), "interrupted", 0, {}) for i, w in enumerate(workdirs)}
    groups = {}
    for i, (config, workdir) in enumerate(zip(configs, workdirs, strict=True)):
        task = Task(i, config, pathlib.Path(workdir), alone=len(configs) == 1)
        if derived.is_classical(config):
            results[i] = begin_classical(task)
        else:
            groups.setdefault(config_lib.program_key(config), []).append(task)
    with interruptible() as interrupted:
        for states, tasks, data in programs(groups.values(), mesh, backend, slots):
            ended = run_program(states, tasks, data, interrupted)
            results |= ended
            if any(result.status == "interrupted" for result in ended.values()):
                break
        if all(result.status != "interrupted" for result in results.values()):
            interrupted.pass_on()
    return [results[i] for i in range(len(configs))]


def programs(groups, mesh, backend: str, slots: int,
             ) -> Iterator[tuple[SlotStates, list[Task], TrainingData]]:
    """The programs of all groups of tasks, each made when the one before has ended.

    Args:
      groups: lists of tasks; those of a list share data and network.
    """
    for group in groups:
        preflight.check_state(group[0].config)
        data = training_data.load(group[0].config)
        for states, tasks in choose(named(group), data.arrays, mesh, backend, slots):
            yield states, tasks, data


def named(tasks: list[Task]) -> list[Task]:
    """The tasks with names for the progress: their workdirs from where they part ways."""
    above = os.path.commonpath([task.workdir.absolute().parents[1] for task in tasks])
    return [task._replace(name=os.path.relpath(task.workdir, above)) for task in tasks]


def run_program(states: SlotStates, tasks: list[Task], data: TrainingData,
                interrupted: Callable[[], bool]) -> dict[int, Result]:
    """Train the tasks in the slots of one program; {number: Result}.

    Tasks that had no turn before an interruption are not in the result.
    """
    config = tasks[0].config
    with contextlib.ExitStack() as opened:
        opened.callback(states.clear)
        queue = Queue(tasks, data.arrays, states, opened)
        progress = opened.enter_context(Progress(len(tasks), config.train.batch_size))
        slots = Slots(states, config, data, progress)
        validation, augmented = Validation(slots), preview.augmented_program(states.spec)
        timer = SaveTimer(config.train.checkpoint_minutes)

        fill(slots, queue, validation, augmented)
        while slots.occupied():
            slots.step()
            events = [(slot, run) for slot, run in slots.occupied() if run.at_event()]
            # The devices are up to two steps behind, so that they never wait for the host.
            slots.drain(ahead=0 if events else 2)
            stopping, timed = interrupted(), timer.due(bool(events))
            failed = any(run.failed for _, run in slots.occupied())
            if not (events or stopping or timed or failed):
                continue
            slots.drain()
            # Evaluate first, then save once: a timed save and a new best are one checkpoint.
            best = {slot for slot, run in events
                    if not run.failed and log_epoch(slot, run, slots, validation)}
            if stopping:
                let_finish()
            for slot, run in slots.occupied():
                due = timed or stopping or not run.training
                if slot in best or (due and run.saved != run.step):
                    save(slot, run, slots, is_best=slot in best)
            if timed:
                timer.restart()
            for slot, run in slots.occupied():
                if not run.running:
                    run.finish()
                if stopping or not run.training:
                    queue.end(slots.release(slot))
            if not stopping:
                fill(slots, queue, validation, augmented)
    return queue.results


def fill(slots: Slots, queue: Queue, validation: Validation, augmented: Callable) -> None:
    """Give the free slots to the next runs; the first of all compiles the program.

    Raises: DoesNotFit, before the run's folder is claimed; InputError as Queue.next.
    """
    for slot in slots.free():
        run, state = queue.next() or (None, None)
        if run is None:
            break
        first = not slots.states.checked
        slots.assign(slot, run, state)
        if first:
            preflight.check(slots, run, validation)
        report_findings(slots.data, run, first)
        record = slots.states.execution._asdict() | {"residence": slots.residence}
        run.start(record, augmented, slots.images)
        if first and is_main_process():
            terminal.summary(summary.rows(run, slots))
        slots.progress.begin(run.task.number, run.task.name, run.pause_step, run.step)


def report_findings(data: TrainingData, run: Run, first: bool) -> None:
    """Print what is wrong with a run that is new: with its config, and all data or its split."""
    if is_main_process() and run.step == 0:
        found = [*data.arrays.findings, *data.findings] if first else []
        found += training_data.split_findings(data, run.parts)
        print_findings(found + data.unreported(run.findings()), run.task.workdir)


def log_epoch(slot: int, run: Run, slots: Slots, validation: Validation) -> bool:
    """Log the epoch, or the part of it, that the run has done, and validate it where that is due.

    Returns: whether the run is at its best so far.
    """
    loss, gradients = slots.states.sums(slot)
    steps, is_best = run.steps_in_epoch(), False
    line = {"train_loss": loss / steps}
    if gradients:
        run.log_gradients({layer: total / steps for layer, total in gradients.items()})
    if run.validation_due():
        scores = validation.scores(run, slots.states.get(slot))
        line |= {f"val_{name}": value for name, value in scores.items()}
        is_best = run.judge(scores)
        slots.states.set(slot, stop=run.stop, lr=learning_rate(run.judgement, run.config))
    run.log(line, Usage.now(slots.images), len(slots.occupied()))
    slots.progress.logged(run.task.number, {**run.metrics, **run.timing})
    return is_best


def save(slot: int, run: Run, slots: Slots, is_best: bool) -> None:
    """Save the run in the background."""
    if jax.process_count() > 1:  # orbax's barriers have one name for all runs: no two saves at once
        for _, other in slots.occupied():
            other.checkpoints.wait()
    run.save(slots.states.get(slot), run.judgement.best if is_best else None)


class SaveTimer:
    """When config.train.checkpoint_minutes have passed since the last timed save."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = time.monotonic()

    def due(self, at_event: bool) -> bool:
        """Whether a save is due; of several processes the first decides, at events only."""
        due = time.monotonic() - self._since > self.seconds
        if jax.process_count() == 1:
            return due
        return at_event and bool(multihost_utils.broadcast_one_to_all(np.asarray(due)))
