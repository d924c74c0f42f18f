"""The runs that wait for a slot: opened one by one, restored or fresh."""

import collections
import contextlib

import numpy as np

from cellseg_jax.report import terminal
from cellseg_jax.runs.checkpoint import abstract
from cellseg_jax.runs.lock import InUse
from cellseg_jax.step.mesh import put
from cellseg_jax.step.programs import abstract_state
from cellseg_jax.step.spec import traced_values
from cellseg_jax.step.state import TrainState
from cellseg_jax.train import initial_weights
from cellseg_jax.train.early_stopping import learning_rate
from cellseg_jax.train.result import Result
from cellseg_jax.train.run import Run, Task
from cellseg_jax.train.slot_states import SlotStates


class Queue:
    """The tasks of a program that had no turn yet, and the results of those that had.

    Args:
      opened: closes all runs in the end.
    """

    def __init__(self, tasks: list[Task], arrays, states: SlotStates, opened: contextlib.ExitStack):
        self.results: dict[int, Result] = {}
        self._waiting = collections.deque(tasks)
        self._arrays, self._states, self._opened = arrays, states, opened
        self._shape = arrays.image.shape[1:]
        self._init = states.init(self._shape)

    def next(self) -> tuple[Run, TrainState] | None:
        """The next run that has steps to do, open, and its state; None where there is none.

        Those before it get their result: they have ended before, were killed between their last
        save and their result, or are in use by another process.

        Raises: InputError where a run cannot begin or go on; InUse for a run that is the only one.
        """
        while self._waiting:
            task = self._waiting.popleft()
            run = Run(task, self._arrays)
            self._opened.callback(run.close)
            try:
                run.open()
            except InUse as error:
                if task.alone:
                    raise
                terminal.log(error.fact)
                self.results[task.number] = Result(str(task.workdir), "in use", 0, {})
                continue
            if not run.ended_before():
                state = self._first_state(run)
                if run.training:
                    return run, state
                if not run.running:
                    run.finish()
            self.end(run)
        return None

    def end(self, run: Run) -> None:
        """The run has ended or was interrupted: keep its result, give its folder back."""
        self.results[run.task.number] = run.result()
        run.close()

    def _first_state(self, run: Run) -> TrainState:
        """The state that an open run goes on from: the newest saved one, or a fresh one."""
        everywhere = self._states.replicated
        values = traced_values(run.config, self._states.spec, run.steps_per_epoch)
        values = {k: put(v, everywhere) for k, v in values.items()}
        wanted = abstract_state(run.config, self._states.spec, self._shape)
        state = run.restore(abstract(wanted, everywhere))
        if state is None:
            return initial_weights.apply(run.config, self._init(values), everywhere,
                                         run.task.workdir)
        lr = np.asarray(learning_rate(run.judgement, run.config), values["lr"].dtype)
        return state.replace(values={**values, "lr": put(lr, everywhere)},
                             stop=put(np.asarray(run.stop, state.stop.dtype), everywhere))
