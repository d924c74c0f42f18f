"""The Spec: which keys are values and which are structure, by one table."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import config as config_lib
from cellseg_jax import optim
from cellseg_jax.config import flatten, program_key
from cellseg_jax.config.defaults import TRACED, VALUE_KEYS
from cellseg_jax.step.spec import LENGTHS, hyperparameters, make_spec, traced_values

OTHER = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x / 2 + 0.25,
         tuple: lambda x: (x[0] / 2 + 0.3 if x and type(x[0]) is float else 7, *x[1:])}
# Another value of each key that the step reads as structure.
STRUCTURE = {
    "data.size": (64, 64), "data.fit": "random_crop", "data.channels": "rgb",
    "data.target": "contour", "data.normalize": "percentile", "data.contour_width": 3,
    "data.num_classes": 3, "data.grid": 2, "data.copies": 2, "model.channels": (4, 4),
    "model.num_res_units": 1, "loss.pooled": True, "loss.smooth": 0.5, "loss.gamma": 1.0,
    "optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.amsgrad": True,
    "optimizer.schedule": "cosine", "optimizer.schedule_per": "step", "optimizer.accumulate": 2,
    "train.batch_size": 4, "train.precision": "bfloat16", "train.remat": True,
    "train.log_gradients": True, "eval.threshold": 0.25,
}


def changed(config, key, value):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value
    return config


@pytest.mark.parametrize("key", TRACED)
def test_a_traced_key_is_no_structure(key):
    """Any value of it gives the same Spec, but for what is 0 and so left out."""
    config = tiny_config(augment__elastic=(0.5, 2.0))
    value = flatten(config)[key]
    other = changed(config, key, OTHER[type(value)](value))
    spec, new = make_spec([config]), make_spec([other])
    assert hyperparameters(config) != hyperparameters(other)
    assert spec.replace(inactive=()) == new.replace(inactive=())
    assert hash(spec.replace(inactive=())) == hash(new.replace(inactive=()))
    name, dtype = TRACED[key]
    array = traced_values(other, make_spec([config, other]))[name]
    assert array.dtype == (dtype or "float32")
    np.testing.assert_array_equal(array, np.asarray(flatten(other)[key], array.dtype))
    if key != "optimizer.ema":  # whether weights are averaged is a part of the state
        assert program_key(config) == program_key(other)


@pytest.mark.parametrize("key", STRUCTURE)
def test_a_key_of_structure_is_no_value(key):
    config = tiny_config()
    other = changed(config, key, STRUCTURE[key])
    assert flatten(other)[key] != flatten(config)[key]
    assert key not in VALUE_KEYS and program_key(config) != program_key(other)
    assert hyperparameters(config) == hyperparameters(other)


def test_every_key_that_changes_the_spec_is_no_value():
    """Whatever the default config holds: a Spec that differs belongs to another program."""
    config = tiny_config(augment__elastic=(0.5, 2.0))
    spec = make_spec([config])
    for key, value in flatten(config_lib.default()).items():
        if type(value) not in OTHER or key == "model.name":
            continue
        new = make_spec([changed(config, key, OTHER[type(value)](value))])
        if new.replace(inactive=()) != spec.replace(inactive=()):
            assert key not in VALUE_KEYS, key


def test_the_optimiser_takes_every_traced_number_of_its_section():
    fields = {field.name for field in dataclasses.fields(optim.Options)}
    taken = {name for key, (name, _) in TRACED.items() if key.startswith("optimizer.")}
    assert taken - fields == {"lr", "ema"}  # the step averages weights itself
    rest = {name for key, (name, _) in TRACED.items() if not key.startswith("optimizer.")}
    assert not fields & (rest | set(LENGTHS))


def test_inactive_is_what_is_zero_in_all_members():
    one = tiny_config(optimizer__clip=0.0, augment__noise=(0.0, 1.0))
    two = tiny_config(optimizer__clip=1.5, augment__noise=(0.0, 0.5))
    alone, other, both = (make_spec(c) for c in ([one], [two], [one, two]))
    assert "clip" in alone.inactive and "clip" not in other.inactive
    assert both == other  # the first limit, 0, is traced
    assert "augment.noise" in both.inactive
    assert not {"seed", "lr", "momentum", *LENGTHS} & set(alone.inactive)
    assert set(both.inactive) == set(alone.inactive) & set(other.inactive)
    assert traced_values(one, both)["clip"] == 0 and "clip" not in traced_values(one, alone)
    full = alone.hparams(traced_values(one, alone))
    assert full["clip"] == 0 and set(full) >= set(hyperparameters(one))


def test_lengths_alone_depend_on_the_data():
    config = tiny_config(train__epochs=7)
    spec = make_spec([config])
    short, long = (traced_values(config, spec, n) for n in (1, 5))
    assert (long["num_steps"], long["steps_per_epoch"]) == (35, 5)
    assert {k for k in short if (short[k] != long[k]).any()} == set(LENGTHS)


def test_a_spec_is_a_key_of_compiled_functions():
    config = tiny_config()
    spec, again = make_spec([config]), make_spec([config.copy_and_resolve_references()])
    assert spec is not again and spec == again and len({spec, again}) == 1
    double = jax.jit(lambda spec, x: 2 * x, static_argnums=0)
    double(spec, 1.0)
    double(again, 1.0)
    assert double._cache_size() == 1
