"""How the per-device steps are mapped over members and devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import crops, targets
from cellseg_jax.step.batches import PIXELS
from cellseg_jax.step.eval_step import eval_step
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.train_step import train_step


def map_train(spec: Spec, mesh, members: str = "vmap") -> Callable:
    """The compiled step(state, source, index) on a mesh with axes ("member", "data").

    state: TrainState with a leading axis K, donated. source: {name: (n, ...)} of all decoded
    samples on every device and index {"id": (K, N), ...} as data.order gives it; or index None
    and source a batch {name: (K, N, ...)}. members: how one device runs several members, "vmap"
    or "unroll" (on a CPU vmapped convolutions become slow grouped ones).
    """

    def per_device(state, source, index):
        def member(state, batch, index):
            if index is not None:
                batch = gather(source, index, spec.window)
            return train_step(spec, state, batch)

        batch = source if index is None else None
        return over_members(member, members)(state, batch, index)

    def mapped(state, source, index):
        rows = P("member", "data")
        specs = (P("member"), rows if index is None else P(), rows)
        f = jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=P("member"))
        return f(state, source, index)

    # Said in full, since jit would call a member axis of one device replicated and the state
    # that comes back would compile the step again.
    return jax.jit(mapped, donate_argnums=0, out_shardings=NamedSharding(mesh, P("member")))


def gather(source: dict, index: dict, window) -> dict:
    """The batch of resident samples, or of windows of them where the index has places."""
    rows = {k: v for k, v in index.items() if k != "place"}
    rows["weight"] = jnp.ones(index["id"].shape, jnp.float32)
    if "place" not in index:
        return rows | {k: v[index["id"]] for k, v in source.items()}
    pixels = jax.vmap(lambda i, place: crops.rows(
        *place, window, source["size"][i], source["offset"][i]))(index["id"], index["place"])
    taken = {k: v.at[pixels].get(mode="promise_in_bounds") for k, v in source.items()
             if k in PIXELS}
    return rows | taken | {"range": source["range"][index["id"]]}


def over_members(f: Callable, how: str) -> Callable:
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


def map_eval(spec: Spec, mesh, threshold: float) -> Callable:
    """The compiled eval(values, variables, batch) of one member, its rows over the whole mesh."""
    rows = P(("member", "data"))

    def per_device(values, variables, batch):
        return eval_step(spec, values, variables, batch, threshold)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), P(), rows), out_specs=rows))


def map_probs(spec: Spec, mesh) -> Callable:
    """The compiled probs(variables, image, range) -> (n, H, W, K) float32, rows over the mesh."""
    rows = P(("member", "data"))

    def per_device(variables, image, range_):
        logits = spec.logits(variables, image, range_)
        return targets.TARGETS[spec.target].probs(logits).astype(jnp.float32)

    return jax.jit(jax.shard_map(
        per_device, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows))
