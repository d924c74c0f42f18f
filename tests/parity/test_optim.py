"""Optimisers against torch on a network's worth of arrays: 50 steps in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cellseg_jax.optim import make

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
}


@pytest.mark.parametrize("schedule", [None, "polynomial"])
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
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: (1 - epoch / epochs) ** 0.9 if schedule else 1.0
    )
    for step in range(STEPS):
        optimizer.zero_grad()
        out = torch.tanh(torch.tensor(inputs[step]) @ theirs["kernel"] + theirs["bias"])
        ((out - torch.tensor(truth[step])) ** 2).sum().backward()
        optimizer.step()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()

    def loss(params, inputs, truth):
        return ((jnp.tanh(inputs @ params["kernel"] + params["bias"]) - truth) ** 2).sum()

    with jax.enable_x64(True):
        length = dict(num_steps=STEPS, steps_per_epoch=STEPS_PER_EPOCH)
        options = dict(structure, schedule=schedule, **length)

        @jax.jit
        def train_step(numbers, params, state, inputs, truth):
            tx, _ = make(kind.lower(), **numbers, **options)
            updates, state = tx.update(jax.grad(loss)(params, inputs, truth), state, params)
            return optax.apply_updates(params, updates), state

        numbers = {k: jnp.asarray(v) for k, v in numbers.items()}
        ours = {k: jnp.asarray(v) for k, v in start.items()}
        state = make(kind.lower(), **numbers, **options)[0].init(ours)
        for step in range(STEPS):
            ours, state = train_step(numbers, ours, state, inputs[step], truth[step])
    for name in shapes:
        expected = theirs[name].detach().numpy()
        assert ours[name].dtype == jnp.float64
        np.testing.assert_allclose(ours[name], expected, atol=1e-9, rtol=0)
