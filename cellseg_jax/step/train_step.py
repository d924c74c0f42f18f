"""The train step and the eval step: one pure per-device function each, and how it is mapped.

A per-device function sees its own rows of the global batch. `map_train` and `map_eval` put it on
a mesh with the axes ("member", "data"): members are independent runs that share one compiled
program, data is the batch. The loss is summed over `data` inside the differentiated function, so
autodiff reduces the gradients and every device holds the same parameters afterwards.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cellseg_jax import augment, optim
from cellseg_jax.models.resenc_unet import coarse, supervision_weights
from cellseg_jax.normalize import normalize
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.state import NON_FINITE, RUNNING, TrainState

REMAT_SAVES = ("conv_general_dilated", "dot_general")  # kept for the backward pass with train.remat
COPY_FOLD = 2**32 - 1  # folded into the seed for stored variants; no step is that late


def rematerialised(spec: Spec, forward: Callable) -> Callable:
    """The same function; with train.remat its gradient keeps convolutions and products only."""
    if not spec.remat:
        return forward
    # Norms, activations and masks are cheap to compute again.
    return jax.checkpoint(
        forward, policy=lambda operation, *_, **__: operation.name in REMAT_SAVES)


def mask_pruned(grads, params, pruned=True):
    """The gradients, 0 for entries of kernels that are 0 where the network is `pruned`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, g, w: jnp.where((w == 0) & pruned, 0, g)
        if path[-1].key.endswith("kernel") else g, grads, params)


def step_keys(seed, step):
    """The keys of augmentation and of dropout in one step; fold 0 of the seed made the weights."""
    key = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), step + 1)
    return jax.random.split(key)


def augmented(spec: Spec, values: dict, key, batch: dict, row) -> dict:
    """The batch as the network trains on it: warped, normalised, recoloured.

    Rows of a batch with copies are stored variants: their draws are keyed by sample and copy
    alone, and copy 0 is left as it is.

    Args:
      values: of spec.hparams.
      key: of this step.
      batch: see train_step.
      row: (n,) number of each row in the global batch.
    Returns: the batch, its image (n, H, W, C) of spec.dtype, about in [0, 1].
    """
    settings = {name: tuple(values[f"augment.{name}"]) for name in augment.AUGMENTATIONS
                if f"augment.{name}" not in spec.inactive}
    options = {name: values[f"augment.{name}"] for name in augment.OPTIONS
               if f"augment.{name}" not in spec.inactive}
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys, applies = fold(key, row), jnp.ones(row.shape, jnp.float32)
    if "copy" in batch:
        variants = jax.random.fold_in(jax.random.key(values["seed"].astype(jnp.uint32)), COPY_FOLD)
        keys = jax.vmap(jax.random.fold_in)(fold(variants, batch["id"]), batch["copy"])
        applies = (batch["copy"] > 0).astype(jnp.float32)
    pixels = {k: batch[k] for k in ("image", "label", "pixel_weight") if k in batch}

    def one(key, applies, sample, range_):
        chosen = {name: (probability * applies, strength)
                  for name, (probability, strength) in settings.items()}
        sample = augment.warp(key, sample, chosen | options)
        image = normalize(sample["image"], range_, spec.dtype)
        return {**sample, "image": augment.intensity(key, image, chosen)}

    if not settings:
        return {**batch, "image": normalize(batch["image"], batch["range"], spec.dtype)}
    return {**batch, **jax.vmap(one)(keys, applies, pixels, batch["range"])}


def train_step(spec: Spec, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """One optimiser step of one member on this device's rows; runs under the axis "data".

    With spec.accumulate = n the rows go through the network in n micro-batches, every n-th row
    each, and their gradients are summed: the same step in less memory, but for what is taken
    over a batch (batch norm and pooled losses see a micro-batch) and the masks of dropout.

    Coarse logits that the network sows (see models.unet_plan) take part in the loss, against
    targets of their size; evaluation, and so every reported loss but this one, ignores them.

    In a pruned member, entries of kernels that are 0 stay 0.

    A member that has finished, was stopped, or would become non-finite is returned unchanged
    (but for the stop flag), so that it can stay in the program while others go on.

    Args:
      batch: image (n, H, W, C) uint8|uint16, label (n, H, W) int, range (n, C, 2), weight (n,),
        id (n,); with some targets pixel_weight (n, H, W), with copies copy (n,).
    Returns: the new state and {"loss", "lr", "grad_norm", "stop"}, each ().
    """
    values = spec.hparams(state.values)
    rows = batch["weight"].shape[0]
    row = jax.lax.axis_index("data") * rows + jnp.arange(rows)
    key_augment, key_dropout = step_keys(values["seed"], state.step)
    batch = augmented(spec, values, key_augment, batch, row)
    batch["target"] = spec.encode(batch["label"])
    batch["weight"] = batch["weight"].astype(spec.dtype)
    batch["weight"] /= jax.lax.psum(batch["weight"].sum(), "data")
    module = spec.module(values, axis_name="data")
    tx, lr_fn = spec.transformation(values)

    forward = rematerialised(spec, lambda variables, image, key: module.apply(
        variables, image, train=True, mutable=["batch_stats", "intermediates"],
        rngs={"dropout": key}))

    def objective(params, batch_stats, key, batch):
        logits, updated = forward(
            {"params": params, "batch_stats": batch_stats}, batch["image"], key)
        scales = (logits, *updated.get("intermediates", {}).get("deep_supervision", ()))
        per_image = 0.0
        for level, weight in enumerate(supervision_weights(len(scales))):
            pixels = {k: coarse(batch[k], level) for k in ("target", "pixel_weight") if k in batch}
            per_image += weight * spec.losses(
                scales[level], hparams=values, axis_name="data", **pixels)
        loss = jax.lax.psum((per_image * batch["weight"]).sum(), "data")
        return loss, updated.get("batch_stats", {})

    differentiate = jax.value_and_grad(objective, has_aux=True)
    if spec.accumulate == 1:
        (loss, batch_stats), grads = differentiate(
            state.params, state.batch_stats, key_dropout, batch)
    else:
        loss, batch_stats, grads = _accumulated(
            differentiate, spec.accumulate, state, key_dropout, batch)
    if "prune" not in spec.inactive:
        grads = mask_pruned(grads, state.params, values["prune"] > 0)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    running = (state.stop == RUNNING) & (state.step < values["num_steps"])
    new_epoch = state.step % values["steps_per_epoch"] == 0
    params = optax.apply_updates(state.params, updates)
    new = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=state.ema and optim.averaged(
            state.ema, params, decay=values["ema"], count=state.step),
        loss_sum=jnp.where(new_epoch, 0, state.loss_sum) + loss,
        gradient_sum={
            layer.name: jnp.where(new_epoch, 0, state.gradient_sum[layer.name])
            + jnp.abs(functools.reduce(operator.getitem, layer.kernel, grads)).mean()
            for layer in spec.logged_layers},
    )
    new = jax.tree.map(lambda a, b: jnp.where(running & finite, a, b), new, state)
    stop = jnp.where(running & ~finite, NON_FINITE, state.stop)
    out = {"loss": loss, "lr": lr_fn(state.step), "grad_norm": grad_norm, "stop": stop}
    return new.replace(stop=stop), out


def _accumulated(differentiate, count: int, state: TrainState, key, batch: dict):
    """(loss, batch_stats, grads) of `count` micro-batches, one after the other.

    Row r of the global batch is in micro-batch r mod count, however many devices there are.
    """
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(sums, part):
        loss, batch_stats, grads = sums
        (more, batch_stats), new = differentiate(
            state.params, batch_stats, jax.random.fold_in(key, part["number"]), part)
        return (loss + more, batch_stats, jax.tree.map(jnp.add, grads, new)), None

    zeros = jax.tree.map(jnp.zeros_like, (state.loss_sum, state.params))
    sums, _ = jax.lax.scan(add, (zeros[0], state.batch_stats, zeros[1]),
                           {**parts, "number": jnp.arange(count)})
    return sums
