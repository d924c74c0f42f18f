"""Measured seconds of a training step, on made-up data."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import augment
from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.step.batches import layout
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.train.execution import Execution
from cellseg_jax.train.slot_states import SlotStates, init_program

CALL_SECONDS = 1e-3  # of a step without arithmetic


def measured_step(config) -> float:
    """Seconds of one training step of a config on the devices of a run, on made-up images.

    Without augmentation, which takes a sixth of a step but as long to compile as the network.
    """
    config = config_lib.changed(config, {
        "data.copies": 0, "data.mix_copies": True, "data.augment_before_grid": False} | {
        f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS})
    spec = make_spec([config])
    mesh = default_mesh(1, config.train.batch_size, config.optimizer.accumulate).devices.shape
    execution = Execution("loop", mesh[0], mesh, spec.inactive)
    return float(np.median(_seconds(synthetic_step(config, spec, execution))))


def convolution_gflop_per_second() -> float:
    """Of a 3x3 convolution of 16 channels, forwards, on one device, beside little other load."""
    image, kernel = jnp.ones((16, 64, 64, 16)), jnp.ones((3, 3, 16, 16))
    convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    gflop = 2 * image.size * kernel.size / 16 / 1e9
    return gflop / min(_seconds(lambda: convolve(image, kernel)))


def _seconds(call) -> list[float]:
    """Of 3 to 20 calls, about 0.3 seconds of them; the first may compile."""
    seconds = []
    while len(seconds) < 3 or sum(seconds) < 0.3 and len(seconds) < 20:
        started = time.monotonic()
        jax.block_until_ready(call())
        seconds.append(time.monotonic() - started)
    return seconds


def synthetic_step(config, spec, execution: Execution) -> Callable:
    """f() is one compiled and warm step of all slots of an execution, on random images."""
    states = SlotStates(spec, execution)
    size, channels = derived.input_size(config), derived.channels(config)
    random_ = np.random.default_rng(0)
    shape = (execution.width, config.train.batch_size)
    batch = {name: np.ones((*shape, *row), dtype) for name, (row, dtype) in layout(config).items()}
    batch["image"] = random_.integers(0, 256, batch["image"].shape, batch["image"].dtype)
    batch["label"] = random_.integers(0, 2, batch["label"].shape, batch["label"].dtype)
    batch["range"] = batch["range"] * np.float32([0, 255])
    batch = jax.device_put(batch, NamedSharding(states.mesh, P("member", "data")))
    values = traced_values(config, spec)
    values["num_steps"] = np.int32(2**30)  # none of them ends
    init = init_program(spec, (*size, channels), states.replicated)
    for slot in range(execution.slots):
        states.put(slot, init({**values, "seed": np.uint32(slot)}))
    states.compile((batch, None))
    once = lambda: [states.step(c, (batch, None)) for c in range(len(states.chunks))]
    jax.block_until_ready([once(), once()])
    return once
