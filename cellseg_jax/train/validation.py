"""Validation of the runs of a program, with one compiled step for all of them."""

from cellseg_jax import config as config_lib
from cellseg_jax.inference import measure
from cellseg_jax.step.batches import eval_batches
from cellseg_jax.step.programs import eval_program, scoring_values
from cellseg_jax.step.state import TrainState
from cellseg_jax.train.run import Run
from cellseg_jax.train.slots import Slots


class Validation:
    """Scores of a run's current weights on its validation images."""

    def __init__(self, slots: Slots):
        self.slots = slots
        self.program = eval_program(slots.states.spec, slots.states.mesh,
                                    slots.config.eval.threshold)

    def scores(self, run: Run, state: TrainState) -> dict:
        """{metric of config.VALIDATION_METRICS: value}."""
        batches = self._batches(run.config, run, run.parts["val"])
        return measure.validate(self.program, *_scored(state), batches, run.config)

    def smallest_call(self, run: Run, state: TrainState) -> tuple:
        """The arguments (values, variables, batch) of one image per device."""
        one = config_lib.changed(run.config, {"eval.batch_size": 1})
        few = run.parts["val"][:self.slots.states.mesh.size]
        return *_scored(state), next(self._batches(one, run, few))

    def _batches(self, config, run, indices):
        return eval_batches(config, run.arrays, indices, self.slots.states.mesh,
                            self.slots.resident)


def _scored(state: TrainState) -> tuple[dict, dict]:
    """(values, variables) that eval_program takes."""
    return scoring_values(state.values), {"params": getattr(state, state.weights),
                                          "batch_stats": state.batch_stats}
