"""The train step and the eval step: one pure per-device function each, and how it is mapped.

A per-device function sees its own rows of the global batch. `map_train` and `map_eval` put it on
a mesh with the axes ("member", "data"): members are independent runs that share one compiled
program, data is the batch. The loss is summed over `data` inside the differentiated function, so
autodiff reduces the gradients and every device holds the same parameters afterwards.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import augment, losses, metrics, models, optim, targets, windows
from cellseg_jax.models.unet_plan import coarse, supervision_weights
from cellseg_jax.normalize import normalize

RUNNING, STOPPED_EARLY, NON_FINITE = 0, 1, 2  # values of TrainState.stop
KEPT = ("conv_general_dilated", "dot_general")  # what train.remat keeps for the backward pass
VARIANTS = 2**32 - 1  # folded into the seed for stored variants; no step is that late


@flax.struct.dataclass
class TrainState:
    """All that a run is at one step. With members, every leaf has a leading axis K."""

    step: jax.Array  # () int32: optimiser steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # averaged params, {} without averaging
    loss_sum: jax.Array  # () of the steps of this epoch, so that a resumed epoch logs its mean
    gradient_sum: dict  # {layer: ()} likewise of mean |gradient|, {} where it is not logged
    best: jax.Array  # () best validation score so far, larger is better
    waited: jax.Array  # () int32: validations since then
    previous_loss: jax.Array  # () of the last validation
    plateau: dict  # state of optim.reduce_on_plateau, {} with other schedules
    stop: jax.Array  # () int32: RUNNING, STOPPED_EARLY or NON_FINITE
    values: dict  # traced hyper-parameters, {name: ()}: what members may differ in

    @property
    def weights(self) -> str:
        """The field of the parameters that are validated and predict."""
        return "ema" if self.ema else "params"


class Recipe(NamedTuple):
    """What all members of a program share: structure, not values."""

    model: dict  # name, num_outputs and options of models.make, dropout excluded
    loss_options: dict  # {loss name: options}
    optimizer: dict  # name, nesterov, amsgrad, schedule, per of optim.make
    accumulate: int  # micro-batches of a step
    target: str
    target_options: dict  # num_classes, contour_width
    window: tuple[int, int] | None  # of random crops
    remat: bool
    log_gradients: bool
    dtype: Any  # of image, parameters and loss
    zeros: tuple[str, ...]  # values that are zero in all members: left out of the program

    def module(self, values: dict, axis_name=None):
        dropout = {} if "dropout" not in values else {"dropout": values["dropout"]}
        return models.make(**self.model, **dropout, axis_name=axis_name)

    def logits(self, variables: dict, image, range_):
        """(n, H, W, K) of decoded images and their ranges, as evaluation and prediction see it."""
        image = normalize(image, range_, self.dtype)
        return self.module({}).apply(variables, image, train=False)

    def transformation(self, values: dict):
        """(tx, lr_fn) of optim.make."""
        names = ("lr", "weight_decay", "momentum", "b1", "b2", "rms_decay", "power", "gamma",
                 "every", "warmup", "clip", "num_steps", "steps_per_epoch")
        return optim.make(**self.optimizer, **{k: values[k] for k in names})

    def encode(self, label):
        """(n, H, W, K) of (n, H, W) labels."""
        target = targets.TARGETS[self.target].encode(label, **self.target_options)
        return target.astype(self.dtype)

    def losses(self, logits, target, values: dict, axis_name=None, pixel_weight=None):
        """(N,) weighted sum of the losses in use."""
        total = 0.0
        for name, options in self.loss_options.items():
            if f"loss.{name}" in self.zeros:
                continue
            if options.get("pooled"):  # evaluation has no batch to pool over: image by image
                options = {**options, "pooled": axis_name is not None, "axis_name": axis_name}
            loss = losses.LOSSES[name](logits, target, pixel_weight=pixel_weight, **options)
            total += values[f"loss.{name}"] * loss
        return total

    def all_values(self, traced: dict) -> dict:
        return {**dict.fromkeys(self.zeros, 0.0), **traced}


def init_state(recipe: Recipe, values: dict, image_shape) -> TrainState:
    """The state of one member at step 0; `values` hold its traced scalars."""
    full = recipe.all_values(values)
    key = jax.random.fold_in(jax.random.key(full["seed"].astype(jnp.uint32)), 0)
    image = jnp.zeros((1, *image_shape), recipe.dtype)
    variables = recipe.module({}).init(key, image, train=False)
    variables = jax.tree.map(lambda x: x.astype(recipe.dtype), variables)
    tx, _ = recipe.transformation(full)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        ema={} if "ema" in recipe.zeros else variables["params"],
        loss_sum=jnp.zeros((), recipe.dtype),
        gradient_sum={layer.name: jnp.zeros((), recipe.dtype)
                      for layer in _logged_layers(recipe, image_shape)},
        best=jnp.full((), -jnp.inf, jnp.float32),
        waited=zero,
        previous_loss=jnp.full((), jnp.inf, jnp.float32),
        plateau={} if recipe.optimizer["schedule"] != "plateau" else {
            k: jnp.asarray(v, jnp.int32 if isinstance(v, int) else recipe.dtype)
            for k, v in optim.PLATEAU.items()},
        stop=zero,
        values=values,
    )


def rematerialised(recipe: Recipe, forward: Callable) -> Callable:
    """The same function; with train.remat its gradient keeps convolutions and products only."""
    if not recipe.remat:
        return forward
    # Norms, activations and masks are cheap to compute again.
    return jax.checkpoint(forward, policy=lambda operation, *_, **__: operation.name in KEPT)


def of_what_is_left(grads, params, pruned=True):
    """The gradients, 0 for entries of kernels that are 0 where the network is `pruned`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, g, w: jnp.where((w == 0) & pruned, 0, g)
        if path[-1].key.endswith("kernel") else g, grads, params)


def _logged_layers(recipe: Recipe, image_shape) -> list[models.Layer]:
    """The layers whose gradients the steps sum up."""
    if not recipe.log_gradients:
        return []
    return models.kernel_layers(recipe.module({}), image_shape)


def keys(seed, step):
    """The keys of augmentation and of dropout in one step; fold 0 of the seed made the weights."""
    key = jax.random.fold_in(jax.random.key(jnp.asarray(seed, jnp.uint32)), step + 1)
    return jax.random.split(key)


def augmented(recipe: Recipe, values: dict, key, batch: dict, row) -> dict:
    """The batch as the network trains on it: warped, normalised, recoloured.

    Rows of a batch with copies are stored variants: their draws are keyed by sample and copy
    alone, and copy 0 is left as it is.

    Args:
      values: of recipe.all_values.
      key: of this step.
      batch: see train_step.
      row: (n,) number of each row in the global batch.
    Returns: the batch, its image (n, H, W, C) of recipe.dtype, about in [0, 1].
    """
    settings = {name: tuple(values[f"augment.{name}"]) for name in augment.AUGMENTATIONS
                if f"augment.{name}" not in recipe.zeros}
    options = {name: values[f"augment.{name}"] for name in augment.OPTIONS
               if f"augment.{name}" not in recipe.zeros}
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys, applies = fold(key, row), jnp.ones(row.shape, jnp.float32)
    if "copy" in batch:
        variants = jax.random.fold_in(jax.random.key(values["seed"].astype(jnp.uint32)), VARIANTS)
        keys = jax.vmap(jax.random.fold_in)(fold(variants, batch["id"]), batch["copy"])
        applies = (batch["copy"] > 0).astype(jnp.float32)
    pixels = {k: batch[k] for k in ("image", "label", "pixel_weight") if k in batch}

    def one(key, applies, sample, range_):
        chosen = {name: (probability * applies, strength)
                  for name, (probability, strength) in settings.items()}
        sample = augment.warp(key, sample, chosen | options)
        image = normalize(sample["image"], range_, recipe.dtype)
        return {**sample, "image": augment.colour(key, image, chosen)}

    if not settings:
        return {**batch, "image": normalize(batch["image"], batch["range"], recipe.dtype)}
    return {**batch, **jax.vmap(one)(keys, applies, pixels, batch["range"])}


def train_step(recipe: Recipe, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """One optimiser step of one member on this device's rows; runs under the axis "data".

    With recipe.accumulate = n the rows go through the network in n micro-batches, every n-th row
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
    values = recipe.all_values(state.values)
    if state.plateau:
        values["lr"] *= state.plateau["scale"]
    rows = batch["weight"].shape[0]
    row = jax.lax.axis_index("data") * rows + jnp.arange(rows)
    key_augment, key_dropout = keys(values["seed"], state.step)
    batch = augmented(recipe, values, key_augment, batch, row)
    batch["target"] = recipe.encode(batch["label"])
    batch["weight"] = batch["weight"].astype(recipe.dtype)
    batch["weight"] /= jax.lax.psum(batch["weight"].sum(), "data")
    module = recipe.module(values, axis_name="data")
    tx, lr_fn = recipe.transformation(values)

    forward = rematerialised(recipe, lambda variables, image, key: module.apply(
        variables, image, train=True, mutable=["batch_stats", "intermediates"],
        rngs={"dropout": key}))

    def objective(params, batch_stats, key, batch):
        logits, updated = forward(
            {"params": params, "batch_stats": batch_stats}, batch["image"], key)
        scales = (logits, *updated.get("intermediates", {}).get("deep_supervision", ()))
        per_image = 0.0
        for level, weight in enumerate(supervision_weights(len(scales))):
            pixels = {k: coarse(batch[k], level) for k in ("target", "pixel_weight") if k in batch}
            per_image += weight * recipe.losses(
                scales[level], values=values, axis_name="data", **pixels)
        loss = jax.lax.psum((per_image * batch["weight"]).sum(), "data")
        return loss, updated.get("batch_stats", {})

    differentiate = jax.value_and_grad(objective, has_aux=True)
    if recipe.accumulate == 1:
        (loss, batch_stats), grads = differentiate(
            state.params, state.batch_stats, key_dropout, batch)
    else:
        loss, batch_stats, grads = _accumulated(
            differentiate, recipe.accumulate, state, key_dropout, batch)
    if "prune" not in recipe.zeros:
        grads = of_what_is_left(grads, state.params, values["prune"] > 0)
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
            for layer in _logged_layers(recipe, batch["image"].shape[1:])},
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


def eval_step(recipe: Recipe, values: dict, variables: dict, batch: dict, threshold) -> dict:
    """Probabilities and scores of this device's rows, without the axis "data".

    Returns: {"probs" (n, H, W, K), "loss" (n,), "counts" metrics.Counts of (n, K), and "cells"
      Counts of (n, 1): cell or not, whatever the target is}.
    """
    target_kind = targets.TARGETS[recipe.target]
    logits = recipe.logits(variables, batch["image"], batch["range"])
    target = recipe.encode(batch["label"])
    probs = target_kind.probs(logits)
    return {
        "probs": probs,
        "loss": recipe.losses(logits, target, recipe.all_values(values),
                              pixel_weight=batch.get("pixel_weight")),
        "counts": metrics.pixel_counts(target, target_kind.mask(probs, threshold)),
        "cells": metrics.pixel_counts(batch["label"][..., None] > 0,
                                      target_kind.cell_mask(probs, threshold)),
    }


def map_train(recipe: Recipe, mesh, members: str = "vmap") -> Callable:
    """The compiled step(state, source, index) on a mesh with axes ("member", "data").

    state: TrainState with a leading axis K, donated. source: {name: (n, ...)} of all decoded
    samples on every device and index {"id": (K, N), ...} as data.order gives it; or index None
    and source a batch {name: (K, N, ...)}. members: how one device runs several members, "vmap"
    or "unroll" (on a CPU vmapped convolutions become slow grouped ones).
    """

    def per_device(state, source, index):
        def member(state, batch, index):
            if index is not None:
                batch = gathered(source, index, recipe.window)
            return train_step(recipe, state, batch)

        batch = source if index is None else None
        return _over_members(member, members)(state, batch, index)

    def mapped(state, source, index):
        rows = P("member", "data")
        specs = (P("member"), rows if index is None else P(), rows)
        f = jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=P("member"))
        return f(state, source, index)

    # Said in full, since jit would call a member axis of one device replicated and the state
    # that comes back would compile the step again.
    return jax.jit(mapped, donate_argnums=0, out_shardings=NamedSharding(mesh, P("member")))


def gathered(source: dict, index: dict, window) -> dict:
    """The batch of resident samples, or of windows of them where the index has places."""
    rows = {k: v for k, v in index.items() if k != "place"}
    rows["weight"] = jnp.ones(index["id"].shape, jnp.float32)
    if "place" not in index:
        return rows | {k: v[index["id"]] for k, v in source.items()}
    pixels = jax.vmap(lambda i, place: windows.rows(
        *place, window, source["size"][i], source["offset"][i]))(index["id"], index["place"])
    taken = {k: v.at[pixels].get(mode="promise_in_bounds") for k, v in source.items()
             if k in ("image", "label", "pixel_weight")}
    return rows | taken | {"range": source["range"][index["id"]]}


def _over_members(f: Callable, how: str) -> Callable:
    """f mapped over the leading axis of all arguments; None stays None."""

    def unrolled(*args):
        count = jax.tree.leaves(args)[0].shape[0]
        outs = [f(*jax.tree.map(lambda x: x[k], args)) for k in range(count)]
        return jax.tree.map(lambda *x: jnp.stack(x), *outs)

    def mapped(*args):
        if how == "unroll" or jax.tree.leaves(args)[0].shape[0] == 1:
            return unrolled(*args)
        return jax.vmap(f)(*args)

    return mapped


def map_eval(recipe: Recipe, mesh, threshold: float) -> Callable:
    """The compiled eval(values, variables, batch) of one member, its rows over the whole mesh."""
    rows = P(("member", "data"))

    def per_device(values, variables, batch):
        return eval_step(recipe, values, variables, batch, threshold)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), rows), out_specs=rows))


def map_probs(recipe: Recipe, mesh) -> Callable:
    """The compiled probs(variables, image, range) -> (n, H, W, K) float32, rows over the mesh."""
    rows = P(("member", "data"))

    def per_device(variables, image, range_):
        logits = recipe.logits(variables, image, range_)
        return targets.TARGETS[recipe.target].probs(logits).astype(jnp.float32)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows))
