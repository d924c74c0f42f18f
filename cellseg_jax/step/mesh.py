"""Meshes of devices, and transfer to and from them."""

import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, Sharding
from jaxtyping import Array, ArrayLike, Shaped

from cellseg_jax.errors import InputError

# --- meshes ---------------------------------------------------------------------------------------


def default_mesh(num_members: int, batch_size: int) -> Mesh:
    """All devices: over the batch, and over members where the batch does not divide.

    Raises: InputError if there are too few members for that.
    """
    devices = jax.device_count()
    data_devices = devices if batch_size % devices == 0 else math.gcd(batch_size, devices)
    member_devices = devices // data_devices
    if num_members < member_devices:
        raise InputError(f"config.train.batch_size: got {batch_size}; expected a multiple of the "
                         f"{devices} devices")
    return make_mesh(member_devices, data_devices)


def check_mesh(config, mesh: Mesh) -> None:
    """Raise InputError where the batch does not divide over the mesh."""
    data_devices, rest = mesh.shape["data"], config.train.batch_size % mesh.shape["data"]
    if rest:
        raise InputError(f"config.train.batch_size: got {config.train.batch_size}; expected a "
                         f"multiple of the {data_devices} devices of the mesh axis data")
    rows = config.train.batch_size // data_devices
    if rows % config.optimizer.accumulate:
        raise InputError(f"config.optimizer.accumulate: got {config.optimizer.accumulate}; "
                         f"expected a divisor of the {rows} images that each device gets per step")


def make_mesh(member: int, data: int) -> Mesh:
    """The first member * data devices along the axes ("member", "data")."""
    return jax.make_mesh((member, data), ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def all_devices() -> Mesh:
    """Every device along the batch, for evaluation."""
    return make_mesh(1, jax.device_count())


# --- arrays and batches ---------------------------------------------------------------------------


def put(x: Shaped[ArrayLike, "..."], sharding: Sharding) -> Shaped[Array, "..."]:
    """A host array that every process holds, on devices."""
    x = np.asarray(x)
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def fetch(x: Shaped[ArrayLike, "..."]) -> np.ndarray:
    """A device array on every host."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
