"""How the per-device steps are mapped over members and devices.

This is the pmapped step. A step is written once, for the rows of one device; `jax.shard_map` maps
it over a mesh of devices with the axes ("member", "data"), and `jax.jit` compiles the whole into
one program. Members are independent runs that share the program, data is the batch; inside,
members of one device are vmapped or unrolled. Collectives (psum over "data") are written out, so
that each device does what is written.

`jax.pmap` is not called. In today's JAX it is itself jit(shard_map(...)), over one axis and all
devices that it is given; it has no second axis for members, no mesh that leaves devices out where
a batch does not divide, and its arrays carry a leading axis of devices. Sharding annotations on
jit alone would not do either: XLA rejects vmapped convolutions that are sharded so.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import crops
from cellseg_jax.step.batches import PIXELS
from cellseg_jax.step.spec import Spec
from cellseg_jax.step.train_step import train_step


def map_train(spec: Spec, mesh: Mesh, members: str = "vmap") -> Callable:
    """The compiled step(state, source, index) on a mesh with axes ("member", "data").

    Its arguments, for K members and N rows of the batch:
      state: TrainState with a leading axis K, donated.
      source: {name: (n, ...)} of all decoded samples, on every device; or, with index None, a
        batch {name: (K, N, ...)} of step.batches.layout.
      index: {"id": (K, N), ...} of step.batches.index_layout, as data.order gives it; or None.

    Args:
      members: how one device computes several members, "vmap" or "unroll" (on a CPU vmapped
        convolutions become slow grouped ones).
    """

    def per_device(state, source, index):
        def member(state, batch, index):
            if index is not None:
                batch = gather(source, index, spec.window, spec.grid)
            return train_step(spec, state, batch)

        batch = source if index is None else None
        return over_members(member, members)(state, batch, index)

    def mapped(state, source, index):
        rows = P("member", "data")
        specs = (P("member"), rows if index is None else P(), rows)
        # Unchecked, one device does not sum gradients over devices, for which a CPU copies them.
        f = jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=P("member"),
                          check_vma=mesh.shape["data"] > 1)
        return f(state, source, index)

    # Explicit, since jit would mark a member axis of one device as replicated, and the returned
    # state would compile the step again.
    return jax.jit(mapped, donate_argnums=0, out_shardings=NamedSharding(mesh, P("member")),
                   keep_unused=True)


def gather(source: dict, index: dict, window: tuple[int, int] | None, grid: int = 1) -> dict:
    """The batch of resident samples, or of windows of them where the index has places.

    With a grid (of Spec) the pixels are those of all samples, of which augmentation reads.

    Args:
      source: Resident.train.
      index: {name: (n, ...)} of step.batches.index_layout.
      window: (h, w) pixels.
    """
    rows = {k: v for k, v in index.items() if k != "place"}
    rows["weight"] = jnp.ones(index["id"].shape, jnp.float32)
    if grid > 1:
        return rows | source | {"range": source["range"][index["id"]]}
    if "place" not in index:
        return rows | {k: v[index["id"]] for k, v in source.items()}
    pixels = jax.vmap(lambda i, place: crops.rows(
        *place, window, source["size"][i], source["offset"][i]))(index["id"], index["place"])
    taken = {k: v.at[pixels].get(mode="promise_in_bounds") for k, v in source.items()
             if k in PIXELS}
    return rows | taken | {"range": source["range"][index["id"]]}


def over_members(f: Callable, members: str) -> Callable:
    """f mapped over the leading axis of all arguments, by "vmap" or "unroll"; None stays None."""

    def take(args, k):
        return jax.tree.map(lambda x: x[k], args)

    def unrolled(*args):
        count = jax.tree.leaves(args)[0].shape[0]
        outs = [f(*take(args, k)) for k in range(count)]
        return jax.tree.map(lambda *x: jnp.stack(x), *outs)

    def mapped(*args):
        if members == "unroll" or jax.tree.leaves(args)[0].shape[0] == 1:
            return unrolled(*args)
        return jax.vmap(f)(*args)

    return mapped
