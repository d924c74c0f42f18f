"""The train step: one pure function of a device's rows of the global batch.

It runs under the mesh axis "data" (see step.mapped). The loss is summed over `data` inside the
differentiated function, so autodiff reduces the gradients and every device holds the same
parameters afterwards.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from cellseg_jax import optim, pruning
from cellseg_jax.losses import coarse, supervision_weights
from cellseg_jax.step.inputs import augmented, step_keys
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.state import NON_FINITE, RUNNING, TrainState

TRUTH = ("target", "pixel_weight", "regression_weight")  # of spec.truth
# Kept for the backward pass with train.remat; ffi_call is a convolution of oneDNN.
REMAT_SAVES = ("conv_general_dilated", "dot_general", "ffi_call")


def train_step(spec: Spec, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """One optimiser step of one member on this device's rows; runs under the axis "data".

    With spec.accumulate = n the rows go through the network in n micro-batches, every n-th row
    each, and their gradients are summed: the same step in less memory, but for what is taken
    over a batch (batch norm and pooled losses see a micro-batch) and the masks of dropout.

    In a pruned member, entries of kernels that are 0 stay 0.

    A member that has finished, was stopped, or would become non-finite is returned unchanged
    (but for the stop flag), so that it can stay in the program while others go on.

    Args:
      batch: image (n, H, W, C) uint8|uint16, label (n, H, W) int, range (n, C, 2), weight (n,),
        id (n,); with some targets pixel_weight (n, H, W), with copies copy (n,); with
        spec.grid see inputs.augmented. See step.batches.layout.
    Returns: the new state and {"loss", "lr", "grad_norm", "stop"}, each ().
    """
    hparams = spec.hparams(state.values)
    key_augment, key_dropout = step_keys(hparams["seed"], state.step)
    batch = prepare(spec, hparams, key_augment, batch)
    loss, batch_stats, grads = gradients(spec, hparams, state, key_dropout, batch)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    running = (state.stop == RUNNING) & (state.step < hparams["num_steps"])
    new = changed(running & finite, state,
                  lambda state: update(spec, hparams, state, loss, batch_stats, grads))
    new = new.replace(stop=jnp.where(running & ~finite, NON_FINITE, state.stop))
    _, lr_fn = spec.transformation(hparams)
    return new, {"loss": loss, "lr": lr_fn(state.step), "grad_norm": grad_norm, "stop": new.stop}


def prepare(spec: Spec, hparams: dict, key: Key[Array, ""], batch: dict) -> dict:
    """The batch as the loss takes it: augmented, with its target; weights sum up to 1."""
    rows = batch["weight"].shape[0]
    row = jax.lax.axis_index("data") * rows + jnp.arange(rows)
    batch = augmented(spec, hparams, key, batch, row)
    weight = batch["weight"].astype(spec.dtype)
    return {**batch, **spec.truth(batch),
            "weight": weight / jax.lax.psum(weight.sum(), "data")}


def gradients(spec: Spec, hparams: dict, state: TrainState, key: Key[Array, ""],
              batch: dict) -> tuple[Float[Array, ""], dict, dict]:
    """(loss, batch_stats, gradients) of the global batch, in micro-batches one after the other.

    Row r of the global batch is in micro-batch r mod spec.accumulate, on any number of devices.
    """
    def differentiate(batch_stats, key, batch):
        (loss, batch_stats), grads = jax.value_and_grad(objective, argnums=2, has_aux=True)(
            spec, hparams, state.params, batch_stats, batch, key, "data")
        return loss, batch_stats, grads

    def add(sums, part):
        loss, batch_stats, grads = sums
        more, batch_stats, new = differentiate(
            batch_stats, jax.random.fold_in(key, part["number"]), part)
        return (loss + more, batch_stats, jax.tree.map(jnp.add, grads, new)), None

    count = spec.accumulate
    if count == 1:
        return differentiate(state.batch_stats, key, batch)
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    loss, grads = jax.tree.map(jnp.zeros_like, (state.loss_sum, state.params))
    return jax.lax.scan(add, (loss, state.batch_stats, grads),
                        {**parts, "number": jnp.arange(count)})[0]


def objective(spec: Spec, hparams: dict, params: dict, batch_stats: dict, batch: dict,
              key: Key[Array, ""] | None = None, axis_name: str | None = None):
    """The weighted sum of a batch's losses, and the new batch statistics.

    Coarse logits that the network sows (see models.resenc_unet) take part in the loss, against
    targets of their size; evaluation, and so every reported loss but that of training, ignores
    them.

    In a pruned member, the entries of kernels that are 0 are constants: they get no gradient, and
    what is logged of gradients is of what is left.

    Args:
      batch: image (n, H, W, C) normalised, weight (n,), and what spec.truth gives.
      key: of dropout, in training; None for the network as in evaluation, with the running
        statistics of batch norm.
      axis_name: mesh axis that shares the batch; None takes pooled losses image by image.
    Returns: ((), batch_stats).
    """
    if "prune" not in spec.inactive:
        params = pruning.hold_zeros(params, hparams["prune"] > 0)
    module, train = spec.module(hparams, axis_name), key is not None
    forward = rematerialised(spec, lambda variables, image, key: module.apply(
        variables, image, train=train, mutable=["batch_stats", "intermediates"],
        rngs={"dropout": key} if train else None))
    logits, updated = forward({"params": params, "batch_stats": batch_stats}, batch["image"], key)
    scales = (logits, *updated.get("intermediates", {}).get("deep_supervision", ()))
    per_image = 0.0
    for level, share in enumerate(supervision_weights(len(scales))):
        pixels = {k: coarse(batch[k], level) for k in TRUTH if k in batch}
        per_image += share * spec.losses(
            scales[level], hparams=hparams, axis_name=axis_name, **pixels)
    loss = (per_image * batch["weight"]).sum()
    if axis_name is not None:
        loss = jax.lax.psum(loss, axis_name)
    return loss, updated.get("batch_stats", {})


def rematerialised(spec: Spec, forward: Callable) -> Callable:
    """The same function; with train.remat its gradient keeps convolutions and products only."""
    if not spec.remat:
        return forward
    # Norms, activations and masks are cheap to compute again.
    return jax.checkpoint(
        forward, policy=lambda operation, *_, **__: operation.name in REMAT_SAVES)


def update(spec: Spec, hparams: dict, state: TrainState, loss: Float[Array, ""],
           batch_stats: dict, grads: dict) -> TrainState:
    """The state after one optimiser step along the gradients."""
    tx, _ = spec.transformation(hparams)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_epoch = state.step % hparams["steps_per_epoch"] == 0
    sizes = {layer.name: jnp.abs(functools.reduce(operator.getitem, layer.kernel, grads)).mean()
             for layer in spec.logged_layers}
    return state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=state.ema and optim.averaged(
            state.ema, params, decay=hparams["ema"], count=state.step),
        loss_sum=jnp.where(new_epoch, 0, state.loss_sum) + loss,
        gradient_sum={name: jnp.where(new_epoch, 0, state.gradient_sum[name]) + size
                      for name, size in sizes.items()},
    )


def changed(condition: Bool[Array, ""], state: TrainState, f: Callable) -> TrainState:
    """f(state) where the condition holds, else the state as it is.

    A GPU selects number by number: it would wait for a condition. A CPU chooses what to compute,
    since a branch of its own works in place; selection copies the whole donated state first.
    """
    def branch(state):
        return jax.lax.cond(condition, f, lambda state: state, state)

    def select(state):
        return jax.tree.map(lambda new, old: jnp.where(condition, new, old), f(state), state)

    return jax.lax.platform_dependent(state, cpu=branch, default=select)
