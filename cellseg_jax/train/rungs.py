"""Runs that train part by part, all of them to a rung and then the chosen ones to the next."""

import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from cellseg_jax import config as config_lib
from cellseg_jax.train.interrupt import interruptible
from cellseg_jax.train.loop import programs, run_program
from cellseg_jax.train.result import Result
from cellseg_jax.train.run import Task


class Rungs:
    """Runs whose programs stay compiled between the parts of their training.

    A run that pauses has saved its state and freed its slot for the next one. It goes on later
    from there, as a run that was interrupted does: with the numbers of one that never stopped.

    Args:
      configs, workdirs: of all runs, each of a network with validation images.
      backend, slots: as train.train has them.
    """

    def __init__(self, configs: Sequence[ConfigDict], workdirs, *, backend: str = "",
                 slots: int = 0):
        self._execution = None, backend, slots
        self._groups, self._programs = {}, {}
        for number, (config, workdir) in enumerate(zip(configs, workdirs, strict=True)):
            task = Task(number, config_lib.complete(config), pathlib.Path(workdir), alone=False)
            self._groups.setdefault(config_lib.program_key(config), []).append(task)

    def train(self, until: Mapping[int, float]) -> dict[int, Result]:
        """Train some runs until a share of their steps is done, at the next validation.

        Args:
          until: {number of a run: share}; 1 is to its end.
        Returns: {number: Result}; without those that had no turn before an interruption, of which
          one at least has the status "interrupted" then.
        Raises: InputError as train.train.
        """
        results = {}
        with interruptible() as interrupted:
            for states, tasks, data in self._chosen(until):
                part = [task._replace(until=until[task.number]) for task in tasks
                        if task.number in until]
                ended = run_program(states, part, data, interrupted)
                results |= ended
                if len(ended) < len(part) or any(
                        one.status == "interrupted" for one in ended.values()):
                    return results
            interrupted.pass_on()
        return results

    def _chosen(self, until):
        """Yields the programs of some runs; each is made when it is first needed, for all runs."""
        for key, tasks in self._groups.items():
            if not any(task.number in until for task in tasks):
                continue
            if key not in self._programs:
                self._programs[key] = list(programs([tasks], *self._execution))
            for states, queue, data in self._programs[key]:
                if any(task.number in until for task in queue):
                    yield states, queue, data
