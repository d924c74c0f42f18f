"""The slots of a program: which runs occupy them, their next batches, and what is in flight."""

import collections
import functools
from typing import NamedTuple

from cellseg_jax.step.batches import Batches, resident_source
from cellseg_jax.step.mesh import fetch
from cellseg_jax.step.state import NON_FINITE, RUNNING, TrainState
from cellseg_jax.train.progress import Progress
from cellseg_jax.train.run import Run
from cellseg_jax.train.slot_states import SlotStates
from cellseg_jax.train.training_data import TrainingData


class Stepped(NamedTuple):
    """A run that took part in a call of the step."""

    run: Run
    step: int  # of the run, afterwards
    place: int  # in the outputs of the call


class Slots:
    """Runs side by side in one compiled program, each at its own step."""

    def __init__(self, states: SlotStates, config, data: TrainingData, progress: Progress):
        self.states, self.config, self.data, self.progress = states, config, data, progress
        self.runs: list[Run | None] = [None] * states.execution.slots
        self.images = 0  # trained on, of all runs
        self.arguments = [None] * len(states.chunks)  # (source, index) of each chunk's next step
        self._in_flight = collections.deque()  # (list of Stepped, outputs), oldest first

    @functools.cached_property
    def resident(self):
        """All samples on the devices, or None; read when the first run takes a slot."""
        return resident_source(self.config, self.data.arrays, self.states.mesh)

    @property
    def residence(self) -> str:
        """Where the samples are: on the "device" or on the "host"."""
        return "device" if self.resident else "host"

    @functools.cached_property
    def _batches(self) -> Batches:
        return Batches(len(self.runs), self.resident, self.states.mesh)

    def occupied(self) -> list[tuple[int, Run]]:
        """(slot, run) of all runs under way."""
        return [(slot, run) for slot, run in enumerate(self.runs) if run]

    def free(self) -> list[int]:
        """The slots without a run."""
        return [slot for slot, run in enumerate(self.runs) if not run]

    def assign(self, slot: int, run: Run, state: TrainState) -> None:
        """The run takes the slot."""
        self.runs[slot] = run
        self.states.put(slot, state)
        self._batches.begin(slot, run)
        chunk = slot // self.states.execution.width
        self.arguments[chunk] = self._batches.next(self.states.chunks[chunk])

    def release(self, slot: int) -> Run:
        """The run that leaves the slot; its state stays there and is not advanced."""
        run, self.runs[slot] = self.runs[slot], None
        return run

    def step(self) -> None:
        """One step of every run; the host prepares the next batches while the devices compute."""
        for c, chunk in enumerate(self.states.chunks):
            runs = [(slot - chunk.start, self.runs[slot]) for slot in chunk if self.runs[slot]]
            if not runs:
                continue
            outputs = self.states.step(c, self.arguments[c])
            for _, run in runs:
                run.step += 1
            self.images += self.config.train.batch_size * len(runs)
            self._in_flight.append(([Stepped(run, run.step, k) for k, run in runs], outputs))
            self.arguments[c] = self._batches.next(chunk)

    def drain(self, ahead: int = 0) -> None:
        """Wait until the devices are at most `ahead` steps behind; note who became non-finite."""
        while len(self._in_flight) > ahead * len(self.states.chunks):
            stepped, outputs = self._in_flight.popleft()
            outputs = {name: fetch(x) for name, x in outputs.items()}
            for run, step, place in stepped:
                lr = float(outputs["lr"][place])
                if outputs["stop"][place] == NON_FINITE and run.stop == RUNNING:
                    run.fail(step - 1, lr)
                elif run.step >= step:
                    run.lr = lr
            self.progress.advance({run.task.number: (min(step, run.step),
                                                     float(outputs["loss"][place]))
                                   for run, step, place in stepped})
