"""What a run needs of its devices, known from its compiled programs before a step is done.

The programs are those that training runs, compiled for shapes instead of arrays, on devices that
are here or on a TPU slice that is only described. XLA says what they hold; nothing is guessed.
"""

import contextlib
import math
import os
import pathlib
import re
import resource
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import derived, predictor, recipe, step
from cellseg_jax.errors import InputError

GIB = 2**30
RESIDENT_SHARE = 0.3  # of a device that feed.resident_source fills with images
# TPU compilers at their quickest: several times faster, and somewhat more temporaries.
QUICK = {"exec_time_optimization_effort": -1.0}
SMALL_PROGRAMS = 50 * 2**20  # initialisation, samples, checkpoints: measured on a tiny run
HEAP = 1.15  # what a CPU's heap holds for each byte asked for: fitted to the runs of test_plan.py
CHANGES = ("a smaller config.train.batch_size, config.train.remat=True, "
           "config.train.precision='bfloat16', a larger config.optimizer.accumulate, "
           "or more devices")


class Images(NamedTuple):
    """A dataset as far as its size in memory goes."""

    count: int  # as they are stored
    pixels: int  # of one of them at its original size


class Footprint(NamedTuple):
    """Bytes on each device while it trains."""

    parameters: int
    optimizer: int
    averaged: int
    batch_stats: int
    images: int  # all of them where they are resident, else the batch
    temporaries: int  # activations, gradients and what XLA works with
    other: int  # scalars, layout padding, outputs that take no argument's place, the program

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer + self.averaged + self.batch_stats


class Programs(NamedTuple):
    """The compiled programs of a run, and what they need."""

    train: Any  # None where it was not compiled, or the compiler found no room for it
    footprint: Footprint | None  # of the train step
    training: int  # bytes on each device while it trains; 0 where that was not compiled
    validation: int  # bytes on each device while it validates; 0 where that was not compiled

    @property
    def needs(self) -> int:
        """Bytes on each device at most."""
        return max(self.training, self.validation)


class DoesNotFit(InputError):
    """A program cannot get the memory that it needs."""


class _OutOfMemory(Exception):
    """The compiler found no room for a program that needs so many bytes."""


def refusal(needs: float, has: float) -> str:
    """The line that says that a run does not fit."""
    return f"does not fit: needs {needs / GIB:.2f} GiB per device, has {has / GIB:.2f} GiB"


# --- shapes in place of arrays --------------------------------------------------------------------


def mesh_of(devices, batch_size: int) -> Mesh:
    """A mesh of all devices along the batch, as one run has it. Raises InputError."""
    if batch_size % len(devices):
        raise InputError(f"config.train.batch_size: got {batch_size}; expected a multiple of the "
                         f"{len(devices)} devices, or a smaller topology")
    return Mesh(np.asarray(devices).reshape(1, -1), ("member", "data"),
                axis_types=(AxisType.Auto,) * 2)


def dataset(config, images: Images) -> tuple[dict, dict]:
    """(train, eval) shapes of a resident dataset, {name: (shape, dtype)}; see feed.Resident.

    Counted as 8-bit images with 16-bit labels; the cache keeps others where it must.
    """
    count, channels = images.count * config.data.grid**2, derived.channels(config)
    weights = {"pixel_weight": (np.float16, ())} if config.data.target == "boundary" else {}
    kinds = {"image": (np.uint8, (channels,)), "label": (np.uint16, ()), **weights}
    size, range_ = derived.input_size(config), {"range": ((count, channels, 2), np.float32)}
    fitted = {k: ((count, *size, *last), dtype) for k, (dtype, last) in kinds.items()} | range_
    if config.data.fit != "random_crop":
        return fitted, fitted
    flat = {k: ((images.count * images.pixels, *last), dtype)
            for k, (dtype, last) in kinds.items()}
    places = {"offset": ((count,), np.int32), "size": ((count, 2), np.int32)}
    return flat | places | range_, fitted


def is_resident(config, images: Images, device_bytes: float) -> bool:
    """Whether feed.resident_source would put the dataset on devices of this size."""
    if config.data.residence != "auto":
        return config.data.residence == "device"
    train, _ = dataset(config, images)
    held = sum(_bytes(*train[k]) for k in train if k in ("image", "label", "pixel_weight"))
    countable = config.data.fit != "random_crop" or images.count * images.pixels < 2**31
    return countable and held <= RESIDENT_SHARE * device_bytes


def arguments(config, shared, mesh, images: Images, resident: bool) -> tuple:
    """(state, source, index) of step.map_train as shapes with shardings."""
    size, channels = derived.input_size(config), derived.channels(config)
    by_member, rows = NamedSharding(mesh, P("member")), NamedSharding(mesh, P("member", "data"))
    members, batch = mesh.shape["member"], config.train.batch_size
    state = jax.eval_shape(lambda v: step.init_state(shared, v, (*size, channels)),
                           recipe.traced_values(config, 1, shared))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (members, *x.shape), x.dtype, sharding=by_member), state)
    one = {"id": ((), np.int32)}
    if config.data.copies:
        one["copy"] = ((), np.int32)
    if resident:
        everywhere = NamedSharding(mesh, P())
        if config.data.fit == "random_crop":
            one["place"] = ((2,), np.int32)
        source = {k: jax.ShapeDtypeStruct(*leaf, sharding=everywhere)
                  for k, leaf in dataset(config, images)[0].items()}
    else:
        one |= {"image": ((*size, channels), np.uint8), "label": (size, np.int32),
                "range": ((channels, 2), np.float32), "weight": ((), np.float32)}
        if config.data.target == "boundary":
            one["pixel_weight"] = (size, np.float16)
    index = {k: jax.ShapeDtypeStruct((members, batch, *shape), dtype, sharding=rows)
             for k, (shape, dtype) in one.items()}
    return (state, source, index) if resident else (state, index, None)


def compiled_programs(config, mesh, images: Images, *, resident: bool, quick: bool = False,
                      training: bool = True, validation: bool = True) -> Programs:
    """The train step and the validation of a run, compiled and measured.

    Args:
      quick: the shortest compile time of a TPU compiler.
      training: with the train step.
      validation: with the validation, where the split has a part for it.
    """
    shared = recipe.make_recipe([config])
    given = arguments(config, shared, mesh, images, resident)
    backend = "unroll"  # one member: all back-ends are the same program
    extra = 0
    if resident and config.data.fit == "random_crop":  # the fitted images lie beside the flat ones
        extra = sum(_bytes(*leaf) for leaf in dataset(config, images)[1].values())
    train = needs = None
    trains = validates = 0
    if training:
        try:
            train = _compiled(step.map_train(shared, mesh, backend), given, mesh, quick)
            needs = footprint(train, given, extra)
            trains = needs.total
        except _OutOfMemory as error:
            trains, = error.args
    if validation and derived.has_part(config, "val"):
        try:
            validates = _validation(config, shared, mesh, given, extra, quick)
        except _OutOfMemory as error:
            validates, = error.args
    return Programs(train, needs, trains, validates)


def _validation(config, shared, mesh, given, extra, quick) -> int:
    """Bytes on each device while a run validates: its state, data and the scoring program."""
    state, resident = given[0], given[2] is not None
    everywhere = NamedSharding(mesh, P())
    rows = NamedSharding(mesh, P(("member", "data")))
    size, channels = derived.input_size(config), derived.channels(config)
    count = _padded(config.eval.batch_size, mesh.size)
    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=everywhere)
    variables = jax.tree.map(one, {"params": state.params, "batch_stats": state.batch_stats})
    values = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for k, v in
              predictor.scoring_values(recipe.traced_values(config, 1, shared)).items()}
    batch = {"image": ((*size, channels), np.uint8),
             "label": (size, np.uint16 if resident else np.int32),
             "range": ((channels, 2), np.float32), "weight": ((), np.float32)}
    if config.data.target == "boundary":
        batch["pixel_weight"] = (size, np.float16)
    batch = {k: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=rows)
             for k, (shape, dtype) in batch.items()}
    program = predictor.eval_program(shared, mesh, config.eval.threshold)
    memory = _compiled(program, (values, variables, batch), mesh, quick).memory_analysis()
    held = _held(given)
    parameters = held["parameters"] + held["batch_stats"]  # among the arguments, and in the state
    whole = parameters + held["optimizer"] + held["averaged"]
    return (2 * whole + held["images"] + extra + memory.argument_size_in_bytes - parameters
            + memory.output_size_in_bytes + memory.temp_size_in_bytes)


def _padded(count: int, devices: int) -> int:
    """As feed.eval_batches pads a batch."""
    return -(-count // devices) * devices


def _compiled(program, given, mesh, quick):
    tpu = mesh.devices.flat[0].platform == "tpu"
    try:
        return program.lower(*given).compile(compiler_options=QUICK if quick and tpu else None)
    except jax.errors.JaxRuntimeError as error:
        found = exhausted(str(error))
        if found is None:
            raise
        raise _OutOfMemory(found[0]) from error


def exhausted(text: str) -> tuple[int, int] | None:
    """(needed, available) bytes that a compiler's RESOURCE_EXHAUSTED names, else None."""
    number = r"([\d.]+)([KMGT]?)"
    for words in (rf"\({number}\) exceeds available HBM \({number}\)",
                  rf"Used {number} of {number} hbm"):
        found = re.search(words, text, re.IGNORECASE)
        if found and "RESOURCE_EXHAUSTED" in text:
            size, unit, limit, limit_unit = found.groups()
            scale = lambda x, u: round(float(x) * 1024 ** " KMGT".index(u.upper() or " "))
            return scale(size, unit), scale(limit, limit_unit)
    return None


# --- what a compiled program holds ----------------------------------------------------------------


def footprint(compiled, given, extra_images: int = 0) -> Footprint:
    """Where the bytes of a compiled train step go, on each device.

    Args:
      given: its (state, source, index), arrays or shapes with shardings.
      extra_images: bytes of images on each device that training does not read.
    """
    memory = compiled.memory_analysis()
    held = _held(given)
    outside = (memory.argument_size_in_bytes + memory.output_size_in_bytes
               - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes)
    other = max(outside - sum(held.values()), 0)
    held["images"] += extra_images
    return Footprint(**held, temporaries=memory.temp_size_in_bytes, other=other)


def _held(given) -> dict:
    """Bytes on each device of the arguments of a train step."""
    state, *batch = given
    return {name: sum(_shard_bytes(x) for x in jax.tree.leaves(tree)) for name, tree in (
        ("parameters", state.params), ("optimizer", state.opt_state), ("averaged", state.ema),
        ("batch_stats", state.batch_stats), ("images", batch))}


def batch_bytes(config, images, mesh) -> int:
    """Bytes on each device of a streamed batch of training."""
    return _held(arguments(config, recipe.make_recipe([config]), mesh, images, False))["images"]


def _shard_bytes(x) -> int:
    return _bytes(x.sharding.shard_shape(x.shape), x.dtype)


def _bytes(shape, dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def flops(compiled, accumulate: int = 1) -> float:
    """Of one call on one device, as XLA counts them: the body of the loop over micro-batches, in
    which nearly all of them are, once.
    """
    return (compiled.cost_analysis() or {}).get("flops", 0.0) * accumulate


def all_reduced(compiled, accumulate: int = 1) -> int:
    """Bytes that all-reduces of one call give on one device, by the program's text.

    Those in a loop, that over micro-batches, count `accumulate` times.
    """
    text = re.sub(r"/\*.*?\*/", "", compiled.as_text())  # long tuples number their entries
    parts = {name: body for name, body in re.findall(
        r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)}
    looped, new = set(), set(re.findall(r"body=%?([\w.-]+)", text))
    while new:
        looped |= new
        called = {name for part in new for name in re.findall(r"%([\w.-]+)", parts.get(part, ""))}
        new = (called & parts.keys()) - looped
    sizes = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s8": 1,
             "u8": 1, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
    return sum((accumulate if name in looped else 1)
               * sizes[kind] * math.prod(int(n) for n in shape.split(",") if n)
               for name, body in parts.items()
               for found in re.findall(r"= (\([^=]*?\)|\S+) all-reduce(?:-start)?\(", body)
               for kind, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", found) if kind in sizes)


# --- what there is --------------------------------------------------------------------------------


def available_memory(num_devices: int = 1) -> tuple[float, str]:
    """(bytes that one local device can still give or, of a GPU, gives at most; who says so).

    Devices of a CPU share the memory that is free now.
    """
    stats = [d.memory_stats() for d in jax.local_devices()]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] for s in stats), "the device's memory_stats"
    free = _meminfo("MemAvailable") + _meminfo("SwapFree")
    choices = [(free or math.inf, "/proc/meminfo")]
    own, status = process_memory(), _status("VmData")
    choices += [(limit - status, "ulimit -d") for limit in [resource.getrlimit(
        resource.RLIMIT_DATA)[0]] if limit != resource.RLIM_INFINITY]
    for limit, used, key in (("memory.max", "memory.stat", "anon"),
                             ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss")):
        root = pathlib.Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError, IndexError):  # no such cgroup, or "max"
            allowed = int((root / limit).read_text())
            held = re.findall(rf"^{key} (\d+)", (root / used).read_text(), re.MULTILINE)
            choices.append((allowed - max(int(held[0]), own), "the cgroup's limit"))
    free, source = min(choices)
    return max(free, 0) / num_devices, source


def process_memory() -> int:
    """Bytes that this process holds by itself: no files, no shared memory."""
    return _status("RssAnon")


def _status(key: str) -> int:
    return _kib("/proc/self/status", key)


def _meminfo(key: str) -> int:
    return _kib("/proc/meminfo", key)


def _kib(file: str, key: str) -> int:
    if not os.path.exists(file):  # no Linux
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", pathlib.Path(file).read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def cpu_peak(programs: Programs, config, num_devices: int, resident: bool) -> int:
    """Bytes of private memory that a training process on the CPU holds at most.

    Call it in a process that compiled the programs and holds no arrays: what that process holds
    is what Python, JAX and the compiled programs take in the training process as well.
    """
    needs, threads = programs.footprint, config.data.threads
    # Streamed batches: read ahead (twice the readers), being read, under way and on the host.
    batches = 0 if resident else (3 * threads + 4) * needs.images
    saving = 3 * needs.state + needs.images  # a copy to score and save, and its bytes for the disk
    arrays = max(programs.training + batches, programs.validation, saving)
    return round(process_memory() + SMALL_PROGRAMS + HEAP * num_devices * arrays)


# --- before the first step ------------------------------------------------------------------------


def compile_checked(population, given, config) -> None:
    """population.compile, with DoesNotFit where its step cannot get the memory it needs.

    What is refused would have died: only the step itself counts, on a CPU only what it allocates
    beyond the arrays that are there already.

    Args:
      given: feed.Batches.next of a chunk.
    """
    if population.compiled is not None:
        return
    with refusing(config, "train.batch_size"):
        population.compile(given)
    memory = population.compiled.memory_analysis()
    if memory is not None:
        held = memory.argument_size_in_bytes
        _check(population, held, _new_bytes(memory), config, "train.batch_size")


def check_validation(population, program, given, config) -> None:
    """Compile the validation, where the calls of training find it; DoesNotFit as compile_checked.

    Args:
      population: with a run in its first slot, compiled.
      program: predictor.eval_program.
      given: (values, variables, batch), the batch of as many rows as there are devices.
    """
    values, variables, batch = given
    rows = _padded(config.eval.batch_size, len(batch["weight"]))
    batch = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
             for k, x in batch.items()}
    with refusing(config, "eval.batch_size"):
        memory = program.lower(values, variables, batch).compile().memory_analysis()
    training = population.compiled.memory_analysis()
    if memory is not None and training is not None:
        loaded = sum(_shard_bytes(x) for x in batch.values())
        held = training.argument_size_in_bytes + memory.argument_size_in_bytes - loaded
        _check(population, held, loaded + _new_bytes(memory), config, "eval.batch_size")


@contextlib.contextmanager
def refusing(config, key: str):
    """DoesNotFit, with what to change, in place of RESOURCE_EXHAUSTED of compiler or device.

    Args:
      key: of the config, the batch that is too large.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = exhausted(str(error))
        said = refusal(*found) if found else f"does not fit ({' '.join(str(error).split())[:200]})"
        raise DoesNotFit(_advice(config, key, said)) from error


def _new_bytes(memory) -> int:
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _check(population, held, new, config, key) -> None:
    devices = len(jax.tree.leaves(population.states[0])[0].sharding.addressable_devices)
    has, _ = available_memory(devices)
    if jax.default_backend() == "cpu":
        has += held
    if held + new > has:
        raise DoesNotFit(_advice(config, key, refusal(held + new, has)))


def _advice(config, key, said) -> str:
    section, name = key.split(".")
    what, changes = {
        "train.batch_size": ("images per step", CHANGES),
        "eval.batch_size": ("images per validation call", "a smaller config.eval.batch_size")}[key]
    return (f"config.{key}: {config[section][name]} {what} {said}; change to {changes} "
            "(python -m cellseg_jax.plan with the same flags computes what fits)")
