"""Programs that runs share: traced and compiled once per content, and a bounded number kept.

Hundreds of runs of a study are evaluated and predict with a few programs.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax.core import FrozenDict
from jax.sharding import Mesh

from cellseg_jax import classical, metrics
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.step.eval_step import map_eval, map_probs
from cellseg_jax.step.kept import Program
from cellseg_jax.step.spec import Spec, make_spec, traced_values
from cellseg_jax.step.state import TrainState, building, init_state, init_variables

MAX_PROGRAMS = 64  # kept; a network in use has five


@functools.lru_cache(maxsize=MAX_PROGRAMS)
def cached(make: Callable, *arguments):
    """make(*arguments), hashable ones, made once while it is among the last MAX_PROGRAMS."""
    return make(*arguments)


def eval_program(spec: Spec, mesh: Mesh, threshold: float) -> Program:
    """map_eval, one for all runs of the same network, losses and target."""
    return cached(_kept_eval, scoring_spec(spec), mesh, threshold)


def probs_program(spec: Spec, mesh: Mesh) -> Program:
    """map_probs, one for all runs of the same network."""
    return cached(_kept_probs, _network(spec), mesh)


def calibration_program(spec: Spec) -> Callable:
    """The compiled metrics.calibration_counts(label, probs), one for all runs of a target."""
    return cached(_calibration, scoring_spec(spec))


def soft_program(spec: Spec) -> Callable:
    """The compiled metrics.SOFT_SCORES of (label, probs), one for all runs of a target."""
    return cached(_soft, scoring_spec(spec))


def check_model(config) -> None:
    """Build the network for the config's images, without computing anything.

    Raises: InputError if it cannot be built; of a classical method, if an option is out of range.
    """
    if derived.is_labels(config):  # what is read is seen when it is scored
        return
    if derived.is_classical(config):
        method = classical.CLASSICAL[config.model.name]
        try:
            method(np.eye(3), **derived.classical_options(config))
        except ValueError as error:  # which begins with the option's name
            raise InputError(f"config.model.{error}") from error
        return
    abstract_state(config, make_spec([config]),
                   (*derived.input_size(config), derived.channels(config)))


def abstract_state(config, spec: Spec, image_shape: tuple[int, int, int]) -> TrainState:
    """The shapes of a run's state, for images (H, W, C).

    Raises: InputError if the network cannot be built.
    """
    return _as_shapes(init_state, config, spec, image_shape)


def abstract_variables(config, spec: Spec, image_shape: tuple[int, int, int]) -> dict:
    """The shapes of a network's variables, {"params", "batch_stats"}; otherwise as abstract_state.
    """
    return _as_shapes(init_variables, config, _network(spec), image_shape)


def scoring_spec(spec: Spec) -> Spec:
    """Without what only training reads, so that runs that differ in it share programs."""
    return spec.replace(
        optimizer=FrozenDict(), accumulate=1, window=None, remat=False, logged_layers=(),
        inactive=tuple(k for k in spec.inactive if k.startswith("loss.")))


def _network(spec: Spec) -> Spec:
    """Without what only training and scores read."""
    return scoring_spec(spec).replace(
        loss_options=FrozenDict(), target_options=FrozenDict(), ignore=False, inactive=())


def scoring_values(values: dict) -> dict:
    """Those of a run's traced values that eval_program takes."""
    return {k: v for k, v in values.items() if k.startswith("loss.")}


def _kept_eval(spec: Spec, mesh: Mesh, threshold: float) -> Program:
    function = map_eval(spec, mesh, threshold)
    return Program(function, mesh.devices.flat, "eval", spec, mesh, threshold)


def _kept_probs(spec: Spec, mesh: Mesh) -> Program:
    return Program(map_probs(spec, mesh), mesh.devices.flat, "probs", spec, mesh)


def _calibration(spec: Spec) -> Callable:
    return jax.jit(lambda label, probs: metrics.calibration_counts(
        spec.probabilities(spec.encode(label)), spec.probabilities(probs),
        known=spec.known(label)))


def _soft(spec: Spec) -> Callable:
    def scores(label, probs):
        maps = spec.encode(label), probs
        if spec.ignore:  # a pixel of 0 in both adds to no sum
            maps = (one * spec.known(label)[..., None] for one in maps)
        target, probs = map(spec.probabilities, maps)
        return {name: score(target, probs) for name, score in metrics.SOFT_SCORES.items()}

    return jax.jit(scores)


def _as_shapes(init: Callable, config, spec: Spec, image_shape):
    values = tuple(sorted((name, np.shape(value), value.dtype)
                          for name, value in traced_values(config, spec).items()))
    with building(config, image_shape):
        return cached(_eval_shape, init, spec, image_shape, values)


def _eval_shape(init, spec, image_shape, values: tuple[tuple[str, tuple[int, ...], np.dtype], ...]):
    values = {name: jax.ShapeDtypeStruct(*leaf) for name, *leaf in values}
    return jax.eval_shape(lambda v: init(spec, v, image_shape), values)
