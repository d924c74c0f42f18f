"""Optimisers and schedules: golden paths of torch, traced numbers, fixed state structure."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellseg_jax.errors import InputError
from cellseg_jax.optim import (
    OF_LENGTH,
    OPTIMIZERS,
    PLATEAU,
    SCHEDULES,
    averaged,
    make,
    reduce_on_plateau,
)
from cellseg_jax.optim.directions import clipped

GOLDEN = pathlib.Path(__file__).parent / "golden" / "optim_torch.npz"
LENGTH = {"num_steps": 50, "steps_per_epoch": 7}
CASES = {
    "adam": ("adam", {"lr": 5e-3, "weight_decay": 3e-2}),
    "adam_amsgrad": ("adam", {"lr": 5e-3, "weight_decay": 3e-2, "b1": 0.7, "b2": 0.9}),
    "sgd": ("sgd", {"lr": 5e-3, "weight_decay": 3e-2}),
    "sgd_momentum": ("sgd", {"lr": 5e-3, "momentum": 0.9}),
    "sgd_nesterov": ("sgd", {"lr": 5e-3, "weight_decay": 3e-2, "momentum": 0.99}),
    "adamax": ("adamax", {"lr": 5e-3, "weight_decay": 3e-2}),
    "adamw": ("adamw", {"lr": 5e-3, "weight_decay": 0.3}),
    "adamw_amsgrad": ("adamw", {"lr": 5e-3, "weight_decay": 0.3}),
    "rmsprop": ("rmsprop", {"lr": 5e-3, "weight_decay": 3e-2}),
    "rmsprop_momentum": (
        "rmsprop",
        {"lr": 5e-3, "weight_decay": 3e-2, "momentum": 0.9, "rms_decay": 0.8},
    ),
}


def path(name, numbers, structure, start, noise):
    """Parameters after each step; the optimiser is built inside the compiled step, as in training.

    Python numbers are closed over, arrays are traced.
    """
    static = {k: v for k, v in numbers.items() if not isinstance(v, jax.Array)}
    traced = {k: v for k, v in numbers.items() if k not in static}

    @jax.jit
    def step(traced, x, state, noise):
        tx, _ = make(name, **static, **traced, **structure, **LENGTH)
        updates, state = tx.update(x + jnp.sin(3 * x) + noise, state, x)
        return optax.apply_updates(x, updates), state

    x, out = jnp.asarray(start), []
    state = make(name, **numbers, **structure, **LENGTH)[0].init(x)
    for row in noise:
        x, state = step(traced, x, state, row)
        out.append(x)
    return np.stack(out)


@pytest.mark.parametrize("schedule,traced", [(None, False), ("polynomial", True)],
                         ids=["python", "traced"])
@pytest.mark.parametrize("case", CASES)
def test_optimizer_matches_golden_torch(case, schedule, traced):
    """Made by: python tests/golden/optim_torch.py (float64, needs torch)."""
    golden = np.load(GOLDEN)
    name, numbers = CASES[case]
    structure = {
        "schedule": schedule,
        "nesterov": case == "sgd_nesterov",
        "amsgrad": case.endswith("amsgrad"),
    }
    with jax.enable_x64(True):
        if traced:
            numbers = {k: jnp.asarray(v, jnp.float64) for k, v in numbers.items()}
        ours = path(name, numbers, structure, golden["start"], golden["noise"])
    expected = golden[case + ("_polynomial" if schedule else "")]
    np.testing.assert_allclose(ours[[0, 6, 7, -1]], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n != "plateau"])
def test_rates_match_golden_torch(name):
    """With and without warm-up, per epoch and per step, traced and not, until after the end."""
    golden = np.load(GOLDEN)[f"rate_{name}"]
    numbers = {"lr": 0.1, "power": 0.9, "gamma": 0.8}

    def rates(numbers, whole, per="step", length=1):
        lr_fn = make("sgd", **numbers, **whole, schedule=name, per=per, num_steps=12 * length,
                     steps_per_epoch=length)[1]
        return jax.vmap(lr_fn)(length * jnp.arange(13) + length - 1)

    with jax.enable_x64(True):
        for warmup, expected in zip((0, 3), golden, strict=True):
            whole = {"every": 3, "warmup": warmup}
            close = functools.partial(np.testing.assert_allclose, desired=expected, atol=1e-15,
                                      rtol=0)
            close(rates(numbers, whole))
            close(rates(numbers, whole, "epoch", 4))
            close(jax.jit(rates)(*jax.tree.map(jnp.asarray, (numbers, whole))))


def test_plateau_matches_golden_torch():
    golden = np.load(GOLDEN)
    cases = {"plain": (-1, dict(factor=0.5, patience=2, cooldown=0, min_lr=0.0)),
             "cooldown": (1, dict(factor=0.1, patience=0, cooldown=2, min_lr=5e-6))}
    for name, (sign, options) in cases.items():
        state, rates = PLATEAU, []
        for score in golden["scores"]:
            state = reduce_on_plateau(state, sign * score, lr=0.1, **options)
            rates.append(0.1 * state["scale"])
        np.testing.assert_allclose(rates, golden[f"plateau_{name}"], atol=1e-15, rtol=0)


def test_plateau_waits_for_more_than_its_patience_and_not_a_number_is_no_improvement():
    options = dict(lr=1.0, factor=0.5, patience=1, cooldown=0, min_lr=0.3)
    state, scales = PLATEAU, []
    for score in (0.0, 0.0, float("nan"), 0.0, 0.0, 0.0, 0.0, 1.0, 0.9):
        state = reduce_on_plateau(state, score, **options)
        scales.append(state["scale"])
    assert scales == [1, 1, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert state["best"] == 1.0 and state["waited"] == 1
    assert PLATEAU["scale"] == 1


def test_clipped_gradients_and_averaged_weights_match_golden_torch():
    golden = np.load(GOLDEN)
    name, numbers = CASES["adam"]
    with jax.enable_x64(True):
        start, noise = golden["start"], golden["noise"]
        for clip in (1.5, jnp.float64(1.5)):
            ours = path(name, numbers | {"clip": clip}, {}, start, noise)
            np.testing.assert_allclose(ours[[0, 6, 7, -1]], golden["clip"], atol=1e-9, rtol=0)
        average, ours = start, []
        for count, x in enumerate(path(name, numbers, {}, start, noise)):
            average = averaged(average, x, decay=0.9, count=count)
            ours.append(average)
    np.testing.assert_allclose(np.stack(ours)[[0, 6, 7, -1]], golden["ema"], atol=1e-9, rtol=0)


def test_clipping_by_zero_and_averaging_with_decay_zero_change_nothing():
    """Members that do neither share a program with those that do."""
    grads = {"a": jnp.array([3.0, -1e3]), "b": jnp.array([[0.1]])}
    for limit in (0.0, 1e4):
        jax.tree.map(np.testing.assert_array_equal, clipped(grads, jnp.float32(limit)), grads)
    short = clipped(grads, 1.0)
    np.testing.assert_allclose(optax.tree.norm(short), 1.0, rtol=1e-6)
    np.testing.assert_allclose(short["a"][1] / short["b"][0, 0], -1e4, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal,
                 averaged(short, grads, decay=jnp.float32(0), count=jnp.int32(5)), grads)


def test_polynomial_equals_hand_value():
    length = dict(num_steps=10, steps_per_epoch=4)
    _, per_epoch = make("sgd", lr=2.0, schedule="polynomial", power=1.0, **length)
    rates = [float(per_epoch(step)) for step in range(14)]
    np.testing.assert_allclose(rates, [2] * 4 + [4 / 3] * 4 + [2 / 3] * 4 + [0] * 2, rtol=1e-6)
    _, per_step = make("sgd", lr=2.0, schedule="polynomial", per="step", **length)
    np.testing.assert_allclose(per_step(5), 2 * 0.5**0.9, rtol=1e-6)
    np.testing.assert_array_equal(per_step(jnp.arange(10, 13)), 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_that_depend_on_the_length_are_known(schedule):
    rates = [float(make("sgd", lr=1.0, schedule=schedule, every=1, num_steps=steps,
                        steps_per_epoch=4)[1](9)) for steps in (40, 80)]
    assert (rates[0] != rates[1]) == (schedule in OF_LENGTH)


def test_lr_fn_follows_traced_lengths():
    """Members of one program have their own epochs: same rate as with Python numbers."""

    def rate(num_steps, steps_per_epoch):
        length = dict(num_steps=num_steps, steps_per_epoch=steps_per_epoch)
        return make("adam", lr=0.1, schedule="polynomial", **length)[1](33)

    rates = jax.jit(jax.vmap(rate))(jnp.array([40, 50, 100]), jnp.array([4, 7, 30]))
    np.testing.assert_allclose(rates, [rate(40, 4), rate(50, 7), rate(100, 30)], rtol=1e-6)


@pytest.mark.parametrize("name,schedule", [
    *((name, "polynomial") for name in OPTIMIZERS), *(("sgd", schedule) for schedule in SCHEDULES)])
def test_optimizer_updates_only_by_the_rate_it_reports(name, schedule):
    """The count in the state is the training step: update = lr_fn(step) * direction."""
    common = dict(weight_decay=0.1, schedule=schedule, **LENGTH)
    tx, lr_fn = make(name, lr=1e-2, **common)
    unit, _ = make(name, lr=1.0, **common | {"schedule": None})
    x, state, unit_state = jnp.ones(3), tx.init(jnp.ones(3)), unit.init(jnp.ones(3))
    for step in range(16):
        grads = jnp.sin(jnp.arange(3.0) + step)
        updates, state = tx.update(grads, state, x)
        shape, unit_state = unit.update(grads, unit_state, x)
        np.testing.assert_allclose(updates, lr_fn(step) * shape, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_structure_does_not_depend_on_traced_values(name):
    def state(values):
        lr, weight_decay, momentum = values
        numbers = dict(lr=lr, weight_decay=weight_decay, momentum=momentum)
        return make(name, **numbers, schedule="polynomial", **LENGTH)[0].init(jnp.ones(3))

    shapes = jax.eval_shape(state, jnp.zeros(3))
    assert shapes == jax.eval_shape(state, jnp.array([1.0, 0.1, 0.99]))
    members = jax.vmap(state)(jnp.array([[0.1, 0.0, 0.0], [0.1, 0.1, 0.99]]))
    assert jax.tree.structure(members) == jax.tree.structure(shapes)


def test_python_zero_momentum_keeps_no_buffer_and_traced_zero_is_plain_descent():
    plain, _ = make("sgd", lr=0.1, **LENGTH)
    traced, _ = make("sgd", lr=0.1, momentum=jnp.zeros(()), nesterov=True, **LENGTH)
    x = jnp.arange(3.0)
    assert len(jax.tree.leaves(plain.init(x))) == 1  # the count
    np.testing.assert_array_equal(
        plain.update(x, plain.init(x), x)[0], traced.update(x, traced.init(x), x)[0]
    )


def test_numbers_take_the_dtype_of_the_parameters():
    with jax.enable_x64(True):
        wide = dict.fromkeys(["lr", "weight_decay", "momentum", "b1", "b2", "rms_decay", "clip"],
                             jnp.float64(0.9))
        for name in OPTIMIZERS:
            tx, _ = make(name, **wide, **LENGTH)
            x = jnp.ones(2, jnp.float32)
            state = tx.init(x)
            updates, after = tx.update(x, state, x)
            assert updates.dtype == jnp.float32
            dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
            assert dtypes(state) == dtypes(after)


def test_make_rejects_unknown_names():
    with pytest.raises(InputError, match="did you mean adam"):
        make("adamm", lr=0.1, **LENGTH)
    with pytest.raises(InputError, match="config.optimizer.schedule"):
        make("adam", lr=0.1, schedule="poly", **LENGTH)
    with pytest.raises(InputError, match="config.optimizer.momentun: no such option.*momentum"):
        make("adam", lr=0.1, momentun=0.9, **LENGTH)
    with pytest.raises(InputError, match="config.optimizer.per"):
        make("adam", lr=0.1, per="epochs", **LENGTH)
