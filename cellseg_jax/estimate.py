"""What a study will cost, before it is run: programs, steps, hours on the devices at hand.

Seconds of a step are measured for as many programs as fit into a few seconds; of the others they
follow from their FLOPs. That is rough, and tells an afternoon from a month.
"""

import functools
import math
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import augment, data, derived, feed, recipe, step, studyfile
from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.population import Population, Program, init_program

PASSES = 3  # FLOPs of a training step in forward passes: one forward, two backward
TRACED = (64, 64)  # pixels at which FLOPs are counted
TYPICAL_GFLOP = 2.0  # of the step that is measured first: below, calls cost more than arithmetic
CALL_SECONDS = 1e-3  # of a step without arithmetic
SHARE = 0.4  # of a convolution's rate that whole training steps reach, about
SAMPLED = 48  # programs that are looked at; of a larger study the rest is taken to be alike
# Images that a download holds, for plans without data at hand.
PUBLISHED = {"dsb2018": 670, "bbbc039": 200, "ebhi_seg": 2226, "isbi2012": 30, "livecell": 5239}


class Cost(NamedTuple):
    """One program of a study."""

    row: str  # one of those that train in it
    runs: int  # rows and repeats that share it
    steps: int  # of one run, at most (early stopping may end it)
    gflop: float  # of one step
    seconds: float  # of one step
    measured: bool  # or by FLOPs


class Estimate(NamedTuple):
    """A whole study."""

    programs: int
    runs: int
    hours: float
    costs: list[Cost]  # of the programs that were looked at
    notes: list[str]


def estimate(study, *, repeats: int, rows=None, smoke: bool = False, measure_seconds: float = 5.0
             ) -> Estimate:
    """What is ahead if nothing of the study has been run.

    Args:
      rows: names, all if None.
      measure_seconds: of measuring, compilation included.
    """
    shares = dict.fromkeys(rows, 1) if rows is not None else studyfile.representatives(study)
    runs = sum(shares.values()) * repeats
    # Of a grid these stand for the programs that it needs, of a table they are its rows.
    chosen, programs = list(shares), len(shares)
    if programs > SAMPLED:
        chosen = random.Random(0).sample(chosen, SAMPLED)
    scale, notes, keys = len(shares) / len(chosen), [], {}
    for row in chosen:
        config = studyfile.config_of(study, row, 0, smoke=smoke)
        if not derived.is_classical(config):
            program = keys.setdefault(config_lib.program_key(config), [row, config, 0])
            program[2] += shares[row] * repeats
    if scale > 1:
        measure_seconds = 0
        notes.append(f"looked at {len(chosen)} of {programs} programs, chosen at random; their "
                     "seconds follow from those of one convolution, and are rough")
    found = [(_cost(config, row, count, notes), config) for row, config, count in keys.values()]
    costs = _timed(found, measure_seconds)
    hours = scale * sum(c.runs * c.steps * c.seconds for c in costs) / 3600
    return Estimate(round(scale * len(costs)), runs, hours, costs, list(dict.fromkeys(notes)))


def measured_step(config) -> float:
    """Seconds of one training step of a config on all devices, on made-up images.

    Without augmentation, which takes a sixth of a step but as long to compile as the network.
    """
    config = config_lib.changed(config, {"data.copies": 0} | {
        f"augment.{name}": (0.0, 1.0) for name in augment.AUGMENTATIONS})
    shared = recipe.make_recipe([config])
    mesh = feed.default_mesh(1, config.train.batch_size)
    program = Program("loop", 1, (1, mesh.shape["data"]), shared.zeros)
    population = made_up_population(config, shared, program, mesh)
    return _median_seconds(population)


def convolution_gflop_per_second() -> float:
    """Of a 3x3 convolution of 16 channels, forwards, on one device."""
    image, kernel = jnp.ones((16, 64, 64, 16)), jnp.ones((3, 3, 16, 16))
    convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    gflop = 2 * image.size * kernel.size / 16 / 1e9
    return gflop / _median_seconds(lambda: convolve(image, kernel))


def _median_seconds(call) -> float:
    """Of 3 to 20 calls, about 0.3 seconds of them."""
    seconds = []
    while len(seconds) < 3 or sum(seconds) < 0.3 and len(seconds) < 20:
        started = time.monotonic()
        jax.block_until_ready(call())
        seconds.append(time.monotonic() - started)
    return float(np.median(seconds))


def made_up_population(config, shared, program, mesh) -> Callable:
    """f() is one compiled and warm step of all slots of a program, on random images."""
    size, channels = derived.input_size(config), derived.channels(config)
    random_ = np.random.default_rng(0)
    shape = (program.width, config.train.batch_size)
    batch = {
        "image": random_.integers(0, 256, (*shape, *size, channels), np.uint8),
        "label": random_.integers(0, 2, (*shape, *size), np.int32),
        "range": np.tile(np.float32([0, 255]), (*shape, channels, 1)),
        "weight": np.ones(shape, np.float32),
        "id": np.zeros(shape, np.int32),
    }
    if config.data.target == "boundary":
        batch["pixel_weight"] = np.ones((*shape, *size), np.float16)
    if config.data.copies:
        batch["copy"] = np.ones(shape, np.int32)
    batch = jax.device_put(batch, NamedSharding(mesh, P("member", "data")))
    population = Population(shared, program, mesh)
    values = recipe.traced_values(config, 1, shared)
    values["num_steps"] = np.int32(2**30)  # none of them ends
    init = init_program(shared, (*size, channels), NamedSharding(mesh, P()))
    for slot in range(program.slots):
        population.put(slot, init({**values, "seed": np.uint32(slot)}))
    population.compile((batch, None))
    once = lambda: [population.step(c, (batch, None)) for c in range(len(population.chunks))]
    jax.block_until_ready([once(), once()])
    return once


def _cost(config, row, runs, notes) -> Cost:
    images = _training_samples(config, notes)
    steps = derived.num_steps(config, max(images // config.train.batch_size, 1))
    height, width = derived.input_size(config)
    model = {**config.model, "num_outputs": derived.num_outputs(config)}
    flop = _forward_flop_per_pixel(tuple(sorted(model.items())), derived.channels(config))
    return Cost(row, runs, steps, PASSES * flop * height * width
                * config.train.batch_size / 1e9, math.nan, False)


def _training_samples(config, notes) -> int:
    """Samples of an epoch, by the number of files; blank ones that are left out are not known."""
    options = config.data
    count = options.count if options.name == "synthetic" else _listed(options.name, options.root)
    if count == 0:
        count = PUBLISHED.get(options.name, 100)
        notes.append(f"{options.name}: no data at {options.root or 'config.data.root'}; counted as "
                     f"{count} images")
    share = 0.8 if isinstance(options.split, str) else options.split[0]
    share *= options.train_fraction
    return max(1, round(count * share)) * options.grid**2 * (options.copies + 1)


@functools.lru_cache(maxsize=64)
def _listed(name, root) -> int:
    """Images of a dataset, 0 where it cannot be listed."""
    try:
        return len(data.records_of({**data.options(name), "name": name, "root": root, "mix": ()}))
    except InputError:
        return 0


@functools.lru_cache(maxsize=256)
def _forward_flop_per_pixel(model, channels) -> float:
    """As the compiler counts them at TRACED pixels; a size that is cheap to trace."""
    options = dict(model)
    options.pop("dropout", None)
    if "image_size" in options:
        options["image_size"] = TRACED
    module = step.models.make(**options)
    image = jax.ShapeDtypeStruct((1, *TRACED, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, image)
    return (lowered.cost_analysis() or {}).get("flops", 0.0) / math.prod(TRACED)


def _timed(found, measure_seconds) -> list[Cost]:
    """The costs with seconds: of typical steps measured while time is left, of others by FLOPs."""
    began, done = time.monotonic(), []
    rate = None if measure_seconds else SHARE * convolution_gflop_per_second()
    order = sorted(found, key=lambda pair: abs(math.log((pair[0].gflop + 1e-3) / TYPICAL_GFLOP)))
    for cost, config in order:
        left = measure_seconds - (time.monotonic() - began)
        measured = rate is None or left > 10 * cost.gflop / rate + measure_seconds / 4
        seconds = measured_step(config) if measured else cost.gflop / rate + CALL_SECONDS
        rate = rate or cost.gflop / seconds
        done.append(cost._replace(seconds=seconds, measured=measured))
    return done
