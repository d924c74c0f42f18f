"""Evaluation programs, traced and compiled once per content."""

from collections.abc import Callable

import jax

from cellseg_jax import metrics
from cellseg_jax.step.mapped import map_eval
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.state import TrainState, init_state

_PROGRAMS = {}  # what is traced and compiled, by the content that it depends on


def _once(make, spec: Spec, *arguments):
    """make(spec, *arguments), made once for all specs of that content."""
    key = (make, repr(spec), *arguments)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = make(spec, *arguments)
    return _PROGRAMS[key]


def _abstract_state(spec: Spec, shape, dtypes) -> TrainState:
    """Shapes of the state of a run whose traced values have the dtypes ((name, dtype), ...)."""
    values = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes}
    return jax.eval_shape(lambda v: init_state(spec, v, shape), values)


def _scoring(spec: Spec) -> Spec:
    """Without what evaluation knows nothing of, so that runs that differ in it share programs."""
    inactive = tuple(k for k in spec.inactive if k.startswith("loss."))
    return spec._replace(optimizer={}, accumulate=1, window=None, remat=False,
                           log_gradients=False, inactive=inactive)


def scoring_values(values: dict) -> dict:
    """Those of a run's traced values that eval_program takes."""
    return {k: v for k, v in values.items() if k.startswith("loss.")}


def eval_program(spec: Spec, mesh, threshold: float) -> Callable:
    """step.map_eval, compiled once for all runs of the same network, losses and target."""
    return _once(map_eval, _scoring(spec), mesh, threshold)


def _calibration(spec: Spec):
    return jax.jit(lambda label, probs: metrics.calibration_counts(spec.encode(label), probs))
