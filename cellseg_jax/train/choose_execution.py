"""Which execution runs train in: the one they were begun in, a requested or the fastest one."""

import time
from collections.abc import Iterator

import jax

from cellseg_jax.report import terminal
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import CHECKPOINTS
from cellseg_jax.step.batches import Batches, resident_source
from cellseg_jax.step.memory import DoesNotFit
from cellseg_jax.step.mesh import check_mesh, default_mesh
from cellseg_jax.step.spec import Spec, make_spec, traced_values
from cellseg_jax.train import preflight
from cellseg_jax.train.execution import Execution, candidates, requested, stored
from cellseg_jax.train.result import has_ended
from cellseg_jax.train.run import Run, Task
from cellseg_jax.train.slot_states import SlotStates, init_program

FEW_STEPS = 100  # of all runs: too few to measure anything
MIN_GAIN_RATIO = 20  # work left, in multiples of what measuring another execution costs
FASTER = 1.05  # another execution is taken where it is so many times as fast


def choose(tasks: list[Task], arrays, mesh, backend: str, slots: int,
           ) -> Iterator[tuple[SlotStates, list[Task]]]:
    """The compiled programs to run one after another, and the tasks that train in each.

    No folder of a run is opened for it: a choice by measurement steps states of its own.

    Args:
      tasks: of one config.program_key.
      mesh, backend, slots: as train.train has them.
    Raises: InputError where the batch does not divide over a mesh that is given; DoesNotFit.
    """
    config = tasks[0].config
    spec = make_spec([task.config for task in tasks])
    if mesh is None:
        mesh = default_mesh(len(tasks), config.train.batch_size, config.optimizer.accumulate)
    check_mesh(config, mesh)
    new = requested(backend, slots, mesh, len(tasks), spec.inactive)
    for execution, queue in assigned(tasks, new):
        own = spec.replace(inactive=execution.zeros)
        yield (SlotStates(own, execution) if execution.slots
               else fastest(own, execution, queue, arrays)), queue


def assigned(tasks: list[Task], new: Execution) -> list[tuple[Execution, list[Task]]]:
    """Each execution and its tasks: where a run was begun, if it may go on there, else `new`.

    Tasks that were not begun join those that were, where these are all in one execution. So do
    those that have ended, which compute nothing.
    """
    inactive = {task.number: set(make_spec([task.config]).inactive) for task in tasks}
    fits = lambda task, execution: inactive[task.number] >= set(execution.zeros)
    begun, fresh = {}, []
    for task in tasks:
        open_end = not new.slots and not has_ended(task.workdir, task.config)
        before = stored(task.workdir) if open_end else None
        if before and fits(task, before):
            begun.setdefault(before, []).append(task)
        else:
            fresh.append(task)
    if len(begun) == 1 and all(fits(task, *begun) for task in fresh):
        return [(execution, queue + fresh) for execution, queue in begun.items()]
    return [*begun.items(), *([(new, fresh)] if fresh else [])]


def fastest(spec: Spec, first: Execution, queue: list[Task], arrays) -> SlotStates:
    """The program of the fastest execution by a few steps each; of `first` where work is short."""
    first = first._replace(slots=first.mesh[0])
    # Processes would have to agree on what each of them measured.
    waiting = [] if jax.process_count() > 1 else [
        task for task in queue if not has_ended(task.workdir, task.config)]
    if len(waiting) < 2:
        return SlotStates(spec, first)
    trial = Trial(spec, Run(waiting[0], arrays))
    saved = checkpoint.saved_steps(waiting[0].workdir / CHECKPOINTS).get("last", 0)
    steps_left = len(waiting) * (trial.run.num_steps - saved)
    if steps_left < FEW_STEPS:
        return SlotStates(spec, first)
    chosen, best, cost = trial.measured(first)
    log = [f"{first}: {best:.4g} images/s"]
    for execution in candidates(first, len(waiting)):
        seconds_left = steps_left * trial.run.config.train.batch_size / best
        if seconds_left < MIN_GAIN_RATIO * cost * execution.slots:
            continue
        try:
            states, speed, _ = trial.measured(execution)
        except DoesNotFit:
            log.append(f"{execution}: out of memory")
            break
        log.append(f"{execution}: {speed:.4g} images/s")
        if speed > FASTER * best:
            chosen, best = states, speed
        elif execution.mesh == first.mesh:
            break
    reason = "the fastest" if len(log) > 1 else "too little work to measure others"
    terminal.log(f"{len(waiting)} runs share a program: {'; '.join(log)}; taking "
                 f"{chosen.execution} ({reason}; --backend and --slots decide otherwise)")
    return chosen


class Trial:
    """Measures executions on the batch of a run's first step; the samples stay on the devices."""

    def __init__(self, spec: Spec, run: Run):
        self.spec, self.run = spec, run
        self._sources = {}  # by mesh

    def measured(self, execution: Execution) -> tuple[SlotStates, float, float]:
        """The compiled program without runs, images per second of all slots, seconds it took.

        Raises: DoesNotFit.
        """
        terminal.log(f"measuring {execution}; its compilation may take minutes ...")
        started, config = time.monotonic(), self.run.config
        with preflight.refusing(config, "train.batch_size"):
            states = SlotStates(self.spec, execution)
            arguments = self._filled(states)
            preflight.compile_checked(states, arguments[0], config)
            once = lambda: [states.step(c, a) for c, a in enumerate(arguments)]
            jax.block_until_ready([once(), once()])
            rounds, began = 0, time.monotonic()
            while rounds < 3 or rounds < 50 and time.monotonic() - began < 1.0:
                jax.block_until_ready(once())
                rounds += 1
        now = time.monotonic()
        states.clear()
        images = rounds * execution.slots * config.train.batch_size
        return states, images / (now - began), now - started

    def _filled(self, states: SlotStates) -> list[tuple]:
        """The arguments of each chunk's step, with a fresh state of the run in every slot."""
        run, mesh = self.run, states.execution.mesh
        if mesh not in self._sources:
            self._sources[mesh] = resident_source(run.config, run.arrays, states.mesh)
        batches = Batches(states.execution.slots, self._sources[mesh], states.mesh)
        batches.begin(0, run)
        init = init_program(self.spec, run.arrays.image.shape[1:], states.replicated)
        values = traced_values(run.config, self.spec, run.steps_per_epoch)
        for slot in range(states.execution.slots):
            states.put(slot, init(values))
        return [batches.next(chunk) for chunk in states.chunks]
