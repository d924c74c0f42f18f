"""Meshes of devices, and transfer to and from them."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, Sharding
from jaxtyping import Array, ArrayLike, Shaped

from cellseg_jax.errors import InputError

AXES = ("member", "data")

# --- meshes ---------------------------------------------------------------------------------------


def mesh_shape(num_members: int, batch_size: int, accumulate: int, num_devices: int,
               unit: int = 1) -> tuple[int, int]:
    """How many devices work along ("member", "data"): as many as the work divides over.

    Every device gets equally many rows of each micro-batch, since batch norm would see padding.
    Where the members do not suffice for a multiple of `unit` devices, some slots of the axis
    "member" stay empty.

    Args:
      num_members: runs that share the program.
      batch_size: images per step, a multiple of `accumulate`.
      unit: the mesh has a multiple of so many devices.
    """
    rows = batch_size // accumulate
    shapes = [(member, data) for data in range(1, min(rows, num_devices) + 1) if rows % data == 0
              for member in range(1, num_devices // data + 1) if member * data % unit == 0]
    return max(shapes, key=lambda shape: (min(shape[0], num_members) * shape[1], shape[1],
                                          -shape[0]))


def default_mesh(num_members: int, batch_size: int, accumulate: int = 1, devices=None) -> Mesh:
    """The mesh of `mesh_shape` on the devices, by default all devices of all processes.

    Each process owns equally many of its devices. On a TPU it has all of them: the compiler
    accepts few parts of a slice, and ends the process for some others (6 of 8).
    """
    devices = jax.devices() if devices is None else devices
    unit = len({device.process_index for device in devices})
    if devices[0].platform == "tpu":
        unit = len(devices)
    return make_mesh(*mesh_shape(num_members, batch_size, accumulate, len(devices), unit),
                     devices)


def unused(config, used: int, found: int) -> str:
    """Why a batch leaves some of the devices without work and how to use all; "" if it does not."""
    multiple = found * config.optimizer.accumulate
    if used >= found or config.train.batch_size % multiple == 0:
        return ""
    return (f"{used} of {found} devices are used, since batches of {config.train.batch_size} do "
            f"not divide over more: make config.train.batch_size a multiple of {multiple} to use "
            "all")


def check_mesh(config, mesh: Mesh | AbstractMesh) -> None:
    """InputError if a mesh that was given cannot train the config."""
    if tuple(mesh.axis_names) != AXES:
        raise InputError(f"mesh: got the axes {tuple(mesh.axis_names)}; expected {AXES}")
    data_devices, rest = mesh.shape["data"], config.train.batch_size % mesh.shape["data"]
    if rest:
        raise InputError(f"config.train.batch_size: got {config.train.batch_size}; expected a "
                         f"multiple of the {data_devices} devices of the mesh axis data")
    rows = config.train.batch_size // data_devices
    if rows % config.optimizer.accumulate:
        raise InputError(f"config.optimizer.accumulate: got {config.optimizer.accumulate}; "
                         f"expected a divisor of the {rows} images that each device gets per step")
    if mesh.size % jax.process_count():
        raise InputError(f"mesh: got {mesh.size} devices; expected a multiple of the "
                         f"{jax.process_count()} processes")


def make_mesh(member: int, data: int, devices=None) -> Mesh:
    """member * data devices along the axes ("member", "data"), equally many of each process."""
    chosen = of_each_process(jax.devices() if devices is None else devices, member * data)
    return Mesh(np.asarray(chosen).reshape(member, data), AXES, axis_types=(AxisType.Auto,) * 2)


def of_each_process(devices, count: int) -> list:
    """`count` of the devices, in the order of their processes: a process reads contiguous rows."""
    by_process = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    share = count // len(by_process)
    return [device for _, own in sorted(by_process.items()) for device in own[:share]]


def all_devices() -> Mesh:
    """Every device along the batch, for evaluation, which pads it by rows of weight 0."""
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
