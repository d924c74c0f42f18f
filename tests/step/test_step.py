"""The step: the same numbers however it is mapped, one compilation, inert members.

The references are the same program on one device. In float64 everything agrees to 1e-8; in
float32 the bounds are those that rounding allows (Adam turns noise in tiny gradients into steps).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax.config import complete, default
from cellseg_jax.normalize import normalize
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import NON_FINITE, RUNNING, init_state
from cellseg_jax.train.slot_states import QUICK_COMPILE

STEPS, BATCH, SIZE, NUM_SAMPLES = 20, 8, 16, 24
OPTIMIZERS = {
    "adam": dict(optimizer__name="adam", optimizer__lr=5e-3),
    "nesterov": dict(optimizer__name="sgd", optimizer__momentum=0.9, optimizer__nesterov=True,
                     optimizer__lr=5e-3),
    "adamax": dict(optimizer__name="adamax", optimizer__lr=5e-3),
}


def mesh_of(members, data):
    return jax.make_mesh((members, data), ("member", "data"), axis_types=(AxisType.Auto,) * 2,
                         devices=jax.devices()[: members * data])


def source(rng):
    label = rng.integers(0, 3, (NUM_SAMPLES, SIZE, SIZE)).astype(np.uint16)
    image = (40 * label[..., None] + rng.integers(0, 120, (NUM_SAMPLES, SIZE, SIZE, 4)))
    range_ = np.broadcast_to(np.array([0.0, 255.0], np.float32), (NUM_SAMPLES, 4, 2))
    return {"image": image.astype(np.uint8), "label": label, "range": range_}


def trajectory(configs, mesh, members="vmap", steps=STEPS, steps_per_epoch=3, begin=lambda s: s):
    """Losses (steps, K) and the final state of members trained on random rows from begin(state)."""
    spec = make_spec(configs)
    by_member, rows = (NamedSharding(mesh, p) for p in (P("member"), P("member", "data")))
    states = [jax.jit(lambda v: init_state(spec, v, (SIZE, SIZE, 4)),
                      compiler_options=QUICK_COMPILE)(
        traced_values(c, spec, steps_per_epoch + k)) for k, c in enumerate(configs)]
    state = begin(jax.tree.map(lambda *x: jnp.stack(x), *states))
    state = jax.device_put(state, by_member)
    data = jax.device_put(source(np.random.default_rng(0)), NamedSharding(mesh, P()))
    train_step = map_train(spec, mesh, members)
    losses = []
    for n in range(steps):
        index = np.stack([np.random.default_rng([c.seed, n]).permutation(NUM_SAMPLES)[:BATCH]
                          for c in configs]).astype(np.int32)
        state, out = train_step(state, data, {"id": jax.device_put(index, rows)})
        losses.append(np.asarray(out["loss"]))
    assert train_step._cache_size() == 1
    return np.stack(losses), jax.device_get(state)


def compiled_step(config):
    """The program of one member on one device."""
    spec = make_spec([config])
    init = functools.partial(init_state, spec, image_shape=(SIZE, SIZE, 4))
    state = jax.eval_shape(init, traced_values(config, spec, 3))
    one = lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, BATCH, *x.shape[1:]), x.dtype),
                         source(np.random.default_rng(0)))
    batch |= {"id": jax.ShapeDtypeStruct((1, BATCH), np.int32),
              "weight": jax.ShapeDtypeStruct((1, BATCH), np.float32)}
    return map_train(spec, mesh_of(1, 1)).lower(jax.tree.map(one, state), batch, None).compile()


def configs_of(name, precision, count=1):
    base = dict(train__precision=precision, train__epochs=100, augment__turn=(0.5, 3.0),
                model__channels=(4, 8), **OPTIMIZERS[name])
    return [tiny_config(**base | dict(seed=k, optimizer__lr=5e-3 / (1 + k))) for k in range(count)]


def assert_close(state, reference, tolerance):
    for part in ("params", "batch_stats", "ema"):
        a, b = (jax.tree.leaves(getattr(s, part)) for s in (state, reference))
        assert all(np.abs(x - y).max() < tolerance for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "nesterov", "adamax"])
def test_float64_is_equal_on_1_device_8_devices_a_mesh_and_together(name):
    with jax.enable_x64(True):
        configs = configs_of(name, "float64", 2)
        alone = [trajectory([c], mesh_of(1, 1)) for c in configs[:1]]
        losses, state = alone[0]
        assert losses[-1] < losses[0] and np.ptp(losses) > 1e-3
        eight, eight_state = trajectory(configs[:1], mesh_of(1, 8))
        assert np.abs(eight - losses).max() < 1e-8
        assert_close(eight_state, state, 1e-8)
        ways = [(mesh_of(2, 4), "vmap")]
        if name == "nesterov":  # how members share a device has nothing to do with the optimiser
            ways += [(mesh_of(1, 1), "vmap"), (mesh_of(1, 1), "unroll")]
        for mesh, members in ways:
            together, pair = trajectory(configs, mesh, members)
            assert np.abs(together[:, :1] - losses).max() < 1e-8
            first = jax.tree.map(lambda x: x[:1], pair)
            assert_close(first, state, 1e-8)
            assert np.abs(together[:, 1] - together[:, 0]).max() > 1e-3  # two runs, not one twice


@pytest.mark.slow
def test_members_with_other_rates_limits_and_averages_train_as_each_alone():
    """What is zero in one of them is the exact identity there."""
    with jax.enable_x64(True):
        configs = []
        for k, options in enumerate((
                {}, dict(optimizer__clip=0.3, optimizer__warmup=3, optimizer__ema=0.9,
                         optimizer__schedule_gamma=0.5, optimizer__rms_decay=0.8))):
            config = tiny_config(seed=k, train__precision="float64", optimizer__name="rmsprop",
                                 optimizer__schedule="exponential", train__epochs=9,
                                 augment__flip_horizontal=(0.0, 1.0), **options)
            with config.unlocked():
                config.model = dict(name="simple_conv")
            configs.append(config)
        losses, state = trajectory(configs, mesh_of(1, 1), steps=15)
        for k, config in enumerate(configs):
            alone, own = trajectory([config], mesh_of(1, 1), steps=15, steps_per_epoch=3 + k)
            member = jax.tree.map(lambda x, k=k: x[k : k + 1], state)
            if not own.ema:
                jax.tree.map(np.testing.assert_array_equal, member.ema, member.params)
                member = member.replace(ema={})
            assert np.abs(losses[:, k : k + 1] - alone).max() < 1e-8
            assert_close(member, own, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["simple_conv", "unet"])
def test_micro_batches_are_one_big_batch_or_with_batch_norm_equal_on_any_devices(model):
    with jax.enable_x64(True):
        split = tiny_config(train__precision="float64", optimizer__name="sgd", optimizer__lr=1e-2,
                            optimizer__momentum=0.9, train__epochs=100, optimizer__ema=0.9,
                            optimizer__accumulate=2, augment__flip_horizontal=(0.0, 1.0))
        whole = split.copy_and_resolve_references()
        if model == "simple_conv":
            with split.unlocked(), whole.unlocked():
                split.model = whole.model = dict(name="simple_conv")
            whole.optimizer.accumulate = 1
        losses, state = trajectory([whole], mesh_of(1, 1), steps=4)
        split_losses, split_state = trajectory([split], mesh_of(1, 4), steps=4)
    assert np.ptp(losses) > 1e-3
    assert np.abs(split_losses - losses).max() < 1e-8
    assert_close(split_state, state, 1e-8)


@pytest.mark.parametrize("name,tolerance", [
    ("nesterov", 1e-5), ("adam", 1e-3)])
@pytest.mark.slow
def test_float32_losses_agree_within_rounding(name, tolerance):
    configs = configs_of(name, "float32", 2)
    losses, _ = trajectory(configs[:1], mesh_of(1, 1))
    eight, _ = trajectory(configs[:1], mesh_of(1, 8))
    together, _ = trajectory(configs, mesh_of(2, 4))
    assert np.abs(eight - losses).max() < tolerance
    assert np.abs(together[:, :1] - losses).max() < tolerance


@pytest.mark.slow
def test_finished_and_non_finite_members_stay_as_they_are():
    good, bad = configs_of("nesterov", "float32", 2)
    bad.unlock()
    bad.optimizer.lr = 1e30
    good.unlock()
    good.train.steps = 5
    bad.train.steps = 50
    _, state = trajectory([good, bad], mesh_of(1, 1), steps=12)
    assert state.step[0] == 5 and state.stop[0] == RUNNING
    assert state.step[1] < 5 and state.stop[1] == NON_FINITE
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    _, alone = trajectory([good], mesh_of(1, 1), steps=5)
    assert_close(jax.tree.map(lambda x: x[:1], state), alone, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nesterov", "adam"])
def test_zeros_of_a_pruned_member_stay_and_those_of_another_do_not(name):
    pruned, whole = configs_of(name, "float32", 2)
    pruned.train.prune = 0.25

    def half_zero(state):
        inputs = lambda x: jnp.arange(x.shape[-2])[:, None] % 2
        half = lambda path, x: x * inputs(x) if path[-1].key == "kernel" else x
        return state.replace(params=jax.tree_util.tree_map_with_path(half, state.params))

    _, state = trajectory([pruned, whole], mesh_of(1, 1), steps=4, begin=half_zero)
    for path, kernel in jax.tree_util.tree_leaves_with_path(state.params):
        if path[-1].key == "kernel":
            assert (kernel[0, ..., ::2, :] == 0).all() and (kernel[0, ..., 1::2, :] != 0).any()
            assert (kernel[1, ..., ::2, :] != 0).any()


@pytest.mark.slow
def test_less_kept_for_the_backward_pass_gives_the_same_steps_in_less_memory():
    whole, less = configs_of("nesterov", "float32") + configs_of("nesterov", "float32")
    less.train.remat = True
    losses, state = trajectory([whole], mesh_of(1, 1), steps=4)
    again, other = trajectory([less], mesh_of(1, 1), steps=4)
    np.testing.assert_allclose(again, losses, atol=1e-6)
    assert_close(other, state, 1e-5)
    sizes = [compiled_step(config).memory_analysis().temp_size_in_bytes
             for config in (whole, less)]
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.slow
def test_one_cpu_overwrites_the_state_without_a_copy():
    """Selected number by number, moments were copied first; and so were summed gradients."""
    program = compiled_step(tiny_config(optimizer__name="adam", model__channels=(4, 8))).as_text()
    assert not re.findall(r"= f32\[1,3,3,\d+,[48]\].* copy\(", program)
    assert not re.findall(r"f32\[3,3,.* all-reduce\(", program)


@pytest.mark.slow
def test_gradients_are_summed_over_the_steps_of_an_epoch():
    """Of plain gradient descent a step is the rate times the gradient."""
    config = tiny_config(optimizer__name="sgd", optimizer__lr=0.01, optimizer__weight_decay=0.0,
                         model__channels=(4, 8), train__epochs=9, train__log_gradients=True)
    states = [trajectory([config], mesh_of(1, 1), steps=n)[1] for n in range(1, 5)]
    kernel = lambda n: states[n - 1].params["down_0"]["conv"]["kernel"]
    logged = lambda n: states[n - 1].gradient_sum["down_0/conv"]
    step_of = lambda n: np.abs(kernel(n) - kernel(n - 1)).mean() / 0.01
    assert list(states[0].gradient_sum) == ["bottom/conv", "down_0/conv", "up_0"]
    np.testing.assert_allclose(logged(3) - logged(1), step_of(2) + step_of(3), rtol=1e-3)
    np.testing.assert_allclose(logged(4), step_of(4), rtol=1e-3)  # the next epoch of three steps


@pytest.mark.slow
def test_bfloat16_keeps_float32_parameters_and_learns_as_float32_does():
    losses, state = trajectory(configs_of("nesterov", "bfloat16"), mesh_of(1, 1))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    exact, _ = trajectory(configs_of("nesterov", "float32"), mesh_of(1, 1))
    assert exact[-1] < 0.9 * exact[0]
    # 8 bits of mantissa, 0.4 % of each activation; 1.8 % of the loss was seen after 20 steps.
    np.testing.assert_allclose(losses, exact, rtol=0.03)
    assert np.abs(np.subtract(losses, exact)).max() > 1e-4  # it is another precision


@pytest.mark.slow
def test_coarse_logits_take_part_in_the_loss():
    """The loss of a step is the weighted sum over all sizes, computed here by hand."""
    config = default()
    config.data.name = "synthetic"
    config.model = dict(
        name="unet_plan", features_per_stage=(2, 2, 3, 3), blocks_per_stage=(1, 1, 1, 1))
    config = complete(config)
    spec = make_spec([config])
    values = traced_values(config, spec, 3)
    state = jax.jit(lambda v: init_state(spec, v, (SIZE, SIZE, 4)),
                    compiler_options=QUICK_COMPILE)(values)
    batch = {k: v[:BATCH] for k, v in source(np.random.default_rng(0)).items()}
    batch |= {"weight": np.ones(BATCH, np.float32), "id": np.arange(BATCH)}
    one = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)  # noqa: E731
    train_step = map_train(spec, mesh_of(1, 1))
    _, out = train_step(one(state), one(batch), None)

    @jax.jit
    def by_hand(state, batch):
        full = spec.hparams(values)
        image = normalize(batch["image"], batch["range"], spec.dtype)
        logits, sown = spec.module({}).apply(
            {"params": state.params}, image, train=True, mutable=["intermediates"])
        target = spec.encode(batch["label"])
        small, = sown["intermediates"]["deep_supervision"]
        return (2 / 3 * spec.losses(logits, target, full)
                + 1 / 3 * spec.losses(small, target[:, 1::2, 1::2], full)).mean()

    np.testing.assert_allclose(out["loss"][0], by_hand(state, batch), rtol=1e-5)
