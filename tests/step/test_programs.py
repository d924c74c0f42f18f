"""Programs that runs share: one per content, and not more than a number of them."""

import gc
import weakref

import jax
from helpers import tiny_config

from cellseg_jax.step import programs
from cellseg_jax.step.mesh import all_devices
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state


def spec_of(**options):
    return make_spec([tiny_config(**options)])


def test_runs_that_differ_in_training_alone_share_their_programs():
    mesh, spec = all_devices(), spec_of()
    for other in (spec_of(seed=3), spec_of(optimizer__name="sgd"), spec_of(train__remat=True),
                  spec_of(optimizer__clip=1.0), spec_of(train__log_gradients=True)):
        assert programs.eval_program(other, mesh, 0.5) is programs.eval_program(spec, mesh, 0.5)
        assert programs.probs_program(other, mesh) is programs.probs_program(spec, mesh)
        assert programs.calibration_program(other) is programs.calibration_program(spec)
    assert programs.eval_program(spec, mesh, 0.5) is not programs.eval_program(spec, mesh, 0.6)
    for other in (spec_of(model__channels=(4, 4)), spec_of(train__precision="bfloat16")):
        assert programs.probs_program(other, mesh) is not programs.probs_program(spec, mesh)
    fewer = spec_of(loss__focal=0.0)  # is not compiled
    assert programs.eval_program(fewer, mesh, 0.5) is not programs.eval_program(spec, mesh, 0.5)
    assert programs.probs_program(fewer, mesh) is programs.probs_program(spec, mesh)


def test_the_shapes_of_a_state_are_kept_per_spec():
    config = tiny_config()
    first = programs.abstract_state(config, make_spec([config]), (32, 32, 4))
    assert programs.abstract_state(config, make_spec([config]), (32, 32, 4)) is first
    assert not set(first.values) & set(make_spec([config]).inactive)


def test_the_shapes_of_a_state_are_those_of_its_values():
    """Ranges of augmentation are pairs, other values numbers."""
    config = tiny_config(augment__rotation=(0.5, 30.0))
    spec, shape = make_spec([config]), (32, 32, 4)
    values = traced_values(config, spec)
    found = programs.abstract_state(config, spec, shape)
    assert found == jax.eval_shape(lambda v: init_state(spec, v, shape), values)
    assert found.values["augment.rotation"].shape == (2,) and found.values["seed"].shape == ()


def test_the_number_of_programs_is_bounded():
    mesh, spec = all_devices(), spec_of()
    first = weakref.ref(programs.eval_program(spec, mesh, 0.5))
    for n in range(1, programs.MAX_PROGRAMS + 5):
        programs.eval_program(spec, mesh, 0.5 + n / 1000)
        assert programs.cached.cache_info().currsize <= programs.MAX_PROGRAMS
    gc.collect()
    assert programs.cached.cache_info().currsize == programs.MAX_PROGRAMS
    assert first() is None  # so its executable is freed
