"""Against torch: optimisers on a network's worth of arrays, 50 steps in float64; plateaus."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellseg_jax.optim import PLATEAU, averaged, make, reduce_on_plateau

torch = pytest.importorskip("torch")

STEPS, STEPS_PER_EPOCH = 50, 6
CASES = {
    "adam": ("Adam", {"lr": 5e-3, "weight_decay": 3e-5}, {}),
    "adam_no_decay": ("Adam", {"lr": 5e-3}, {}),
    "amsgrad": ("Adam", {"lr": 5e-3, "weight_decay": 3e-2}, {"amsgrad": True}),
    "sgd": ("SGD", {"lr": 5e-3, "weight_decay": 3e-5}, {}),
    "sgd_nesterov": (
        "SGD",
        {"lr": 5e-3, "weight_decay": 3e-5, "momentum": 0.99},
        {"nesterov": True},
    ),
    "adamax": ("Adamax", {"lr": 1e-2, "weight_decay": 3e-2}, {}),
    "adamw": ("AdamW", {"lr": 5e-3, "weight_decay": 0.3}, {"amsgrad": True}),
    "rmsprop": ("RMSprop", {"lr": 1e-3, "weight_decay": 3e-2, "momentum": 0.9}, {}),
}


@pytest.mark.parametrize("schedule", [None, "polynomial", "cosine"])
@pytest.mark.parametrize("case", CASES)
def test_optimizer_matches_torch(case, schedule):
    kind, numbers, structure = CASES[case]
    rng = np.random.default_rng(0)
    shapes = {"kernel": (8, 3), "bias": (3,)}
    start = {k: rng.normal(size=shape) for k, shape in shapes.items()}
    inputs, truth = rng.normal(size=(STEPS, 5, 8)), rng.normal(size=(STEPS, 5, 3))

    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    optimizer = getattr(torch.optim, kind)(theirs.values(), **numbers, **structure)
    epochs = -(-STEPS // STEPS_PER_EPOCH)
    schedulers = torch.optim.lr_scheduler
    scheduler = schedulers.LambdaLR(
        optimizer, lambda epoch: (1 - epoch / epochs) ** 0.9 if schedule else 1.0
    )
    clip, warmup = (6.0, 2) if schedule == "cosine" else (0.0, 0)
    if schedule == "cosine":  # the one with everything: warm-up, clipping, averaging
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        rise = schedulers.LinearLR(optimizer, 1 / 3, total_iters=2)
        falling = schedulers.CosineAnnealingLR(optimizer, epochs - 2)
        scheduler = schedulers.SequentialLR(optimizer, [rise, falling], [2])
    swa = torch.optim.swa_utils
    average = swa.AveragedModel(torch.nn.ParameterDict(theirs),
                                multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        out = torch.tanh(torch.tensor(inputs[step]) @ theirs["kernel"] + theirs["bias"])
        ((out - torch.tensor(truth[step])) ** 2).sum().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), clip or 1e300)))
        optimizer.step()
        average.update_parameters(torch.nn.ParameterDict(theirs))
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()

    def loss(params, inputs, truth):
        return ((jnp.tanh(inputs @ params["kernel"] + params["bias"]) - truth) ** 2).sum()

    with jax.enable_x64(True):
        length = dict(num_steps=STEPS, steps_per_epoch=STEPS_PER_EPOCH)
        options = dict(structure, schedule=schedule, clip=clip, warmup=warmup, **length)

        @jax.jit
        def train_step(numbers, params, state, inputs, truth):
            tx, _ = make(kind.lower(), **numbers, **options)
            updates, state = tx.update(jax.grad(loss)(params, inputs, truth), state, params)
            return optax.apply_updates(params, updates), state

        average_step = jax.jit(averaged)
        numbers = {k: jnp.asarray(v) for k, v in numbers.items()}
        mean = ours = {k: jnp.asarray(v) for k, v in start.items()}
        state = make(kind.lower(), **numbers, **options)[0].init(ours)
        for step in range(STEPS):
            ours, state = train_step(numbers, ours, state, inputs[step], truth[step])
            mean = average_step(mean, ours, decay=0.9, count=step)
    if clip:
        assert min(norms) < clip < max(norms)
    for name in shapes:
        assert ours[name].dtype == jnp.float64
        for got, expected in ((ours, theirs), (mean, average.module)):
            expected = expected[name].detach().numpy()
            np.testing.assert_allclose(got[name], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(20))
def test_plateau_matches_torch(seed):
    rng = np.random.default_rng(seed)
    options = dict(factor=rng.choice([0.1, 0.5]), patience=int(rng.integers(4)),
                   cooldown=int(rng.integers(4)), min_lr=rng.choice([0.0, 1e-3]))
    mode, lr = rng.choice(["min", "max"]), 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, **options)
    state = PLATEAU
    for score in 1 + 0.2 * rng.normal(size=60) + rng.choice([-0.01, 0.01]) * np.arange(60):
        scheduler.step(score)
        state = reduce_on_plateau(state, score if mode == "max" else -score, lr=lr, **options)
        np.testing.assert_allclose(lr * state["scale"], optimizer.param_groups[0]["lr"], rtol=1e-12)
    assert state["scale"] < 1
