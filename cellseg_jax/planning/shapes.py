"""The compiled programs of a config from shapes alone, without data."""

from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.models import onednn
from cellseg_jax.planning import gpu
from cellseg_jax.step import batches
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.memory import (
    HEAP_OVERHEAD,
    RESIDENT_SHARE,
    CompilerOutOfMemory,
    Footprint,
    array_bytes,
    exhausted,
    footprint,
    held_bytes,
    process_memory,
)
from cellseg_jax.step.mesh import make_mesh
from cellseg_jax.step.programs import abstract_state, eval_program, scoring_values
from cellseg_jax.step.spec import make_spec, traced_values

# Options of TPU compilers: several times faster, with somewhat more temporary memory.
QUICK_COMPILE = {"exec_time_optimization_effort": -1.0}
# Of initialisation, sample pictures and checkpoints; measured on a tiny run.
SMALL_PROGRAMS_BYTES = 50 * 2**20


class Images(NamedTuple):
    """What decides how much memory a dataset takes."""

    count: int  # as they are stored
    pixels: int  # of one of them at its original size


class Programs(NamedTuple):
    """The compiled programs of a run, and what they need."""

    train: Any  # None where it was not compiled, or the compiler found no room for it
    footprint: Footprint | None  # of the train step
    training: int  # bytes on each device while it trains; 0 where that was not compiled
    validation: int  # bytes on each device while it validates; 0 where that was not compiled
    workspace: int = 0  # of the temporaries, an estimate: see gpu.workspace

    @property
    def needs(self) -> int:
        """Bytes on each device at most."""
        return max(self.training, self.validation)


# --- shapes in place of arrays --------------------------------------------------------------------


def is_resident(config, images: Images, device_bytes: float) -> bool:
    """Whether batches.resident_source would put the dataset on devices of this size."""
    if config.data.residence != "auto":
        return config.data.residence == "device"
    train = batches.resident_layout(config, *images).train
    held = sum(array_bytes(*train[k]) for k in train if k in batches.PIXELS)
    countable = config.data.fit != "random_crop" or images.count * images.pixels < 2**31
    return countable and held <= RESIDENT_SHARE * device_bytes


def arguments(config, spec, mesh, images: Images, resident: bool) -> tuple:
    """(state, source, index) of step.mapped.map_train as shapes with shardings."""
    size, channels = derived.input_size(config), derived.channels(config)
    by_member, rows = NamedSharding(mesh, P("member")), NamedSharding(mesh, P("member", "data"))
    members, batch = mesh.shape["member"], config.train.batch_size
    state = abstract_state(config, spec, (*size, channels))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (members, *x.shape), x.dtype, sharding=by_member), state)
    one = batches.index_layout(config) if resident else batches.layout(config)
    index = {k: jax.ShapeDtypeStruct((members, batch, *shape), dtype, sharding=rows)
             for k, (shape, dtype) in one.items()}
    if not resident:
        return state, index, None
    whole = batches.resident_layout(config, *images).train
    source = {k: jax.ShapeDtypeStruct(*leaf, sharding=NamedSharding(mesh, P()))
              for k, leaf in whole.items()}
    return state, source, index


def compiled_programs(config, mesh, images: Images, *, resident: bool, quick: bool = False,
                      training: bool = True, validation: bool = True) -> Programs:
    """The train step and the validation of a run, compiled and measured.

    Args:
      quick: the shortest compile time of a TPU compiler.
      training: with the train step.
      validation: with the validation, where the split has a part for it.
    """
    spec = make_spec([config])
    given = arguments(config, spec, mesh, images, resident)
    backend = "unroll"  # one member: all back-ends are the same program
    extra = 0
    if resident and config.data.fit == "random_crop":  # the fitted images lie beside the flat ones
        extra = sum(array_bytes(*leaf) for leaf in
                    batches.resident_layout(config, *images).eval.values())
    train = needs = None
    trains = validates = workspace = 0
    if training:
        try:
            train = _compiled(map_train(spec, mesh, backend), given, mesh, quick)
            workspace = _workspace(train, mesh)
            needs = footprint(train, given, extra)
            needs = needs._replace(temporaries=needs.temporaries + workspace)
            trains = needs.total
        except CompilerOutOfMemory as error:
            trains, = error.args
    if validation and derived.has_part(config, "val"):
        try:
            validates = _validation(config, spec, mesh, given, extra, quick)
        except CompilerOutOfMemory as error:
            validates, = error.args
    return Programs(train, needs, trains, validates, workspace)


def _validation(config, spec, mesh, given, extra, quick) -> int:
    """Bytes on each device while a run validates: its state, data and the scoring program."""
    state, resident = given[0], given[2] is not None
    everywhere = NamedSharding(mesh, P())
    rows = NamedSharding(mesh, P(("member", "data")))
    count = round_up(config.eval.batch_size, mesh.size)
    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=everywhere)
    variables = jax.tree.map(one, {"params": state.params, "batch_stats": state.batch_stats})
    values = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=everywhere) for k, v in
              scoring_values(traced_values(config, spec)).items()}
    batch = {k: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=rows)
             for k, (shape, dtype) in batches.eval_layout(config, resident).items()}
    program = eval_program(spec, mesh, config.eval.threshold).function
    compiled = _compiled(program, (values, variables, batch), mesh, quick)
    memory = compiled.memory_analysis()
    held = held_bytes(given)
    parameters = held["parameters"] + held["batch_stats"]  # among the arguments, and in the state
    whole = parameters + held["optimizer"] + held["averaged"]
    return (2 * whole + held["images"] + extra + memory.argument_size_in_bytes - parameters
            + memory.output_size_in_bytes + memory.temp_size_in_bytes + _workspace(compiled, mesh))


def _workspace(compiled, mesh) -> int:
    """What a program for a GPU that is only described does not count."""
    device = mesh.devices.flat[0]
    described = device.platform == "gpu" and device not in jax.devices()
    return gpu.workspace(compiled.as_text()) if described else 0


def lowered_flops(config, num_devices: int) -> float:
    """Floating-point operations of one step on one of so many devices.

    As XLA counts them in the step before it is compiled, with the convolutions of a CPU: CUDA's
    compiler counts none.
    """
    spec, rows = make_spec([config]), config.train.batch_size // num_devices
    mesh = make_mesh(1, 1, jax.devices("cpu")[:1])
    one = config_lib.changed(config, {"train.batch_size": rows})
    given = arguments(one, spec, mesh, Images(1, 1), False)
    with onednn.disabled():  # the count of what is lowered knows XLA's convolutions only
        lowered = map_train(spec, mesh).lower(*given)
    counted = (lowered.cost_analysis() or {}).get("flops", 0.0)
    return counted * config.optimizer.accumulate


def _compiled(program, given, mesh, quick):
    tpu = mesh.devices.flat[0].platform == "tpu"
    try:
        return program.lower(*given).compile(
            compiler_options=QUICK_COMPILE if quick and tpu else None)
    except jax.errors.JaxRuntimeError as error:
        found = exhausted(str(error))
        if found is None:
            raise
        raise CompilerOutOfMemory(found[0]) from error


def batch_bytes(config, images, mesh) -> int:
    """Bytes on each device of a streamed batch of training."""
    return held_bytes(arguments(config, make_spec([config]), mesh, images, False))["images"]


def cpu_peak(programs: Programs, config, num_devices: int, resident: bool) -> int:
    """Bytes of private memory that a training process on the CPU holds at most.

    Call it in a process that compiled the programs and holds no arrays: what that process holds
    is what Python, JAX and the compiled programs take in the training process as well.
    """
    needs, threads = programs.footprint, config.data.threads
    # Streamed batches: read ahead (twice the readers), being read, under way and on the host.
    streamed = 0 if resident else (3 * threads + 4) * needs.images
    saving = 3 * needs.state + needs.images  # a copy to score and save, and its bytes for the disk
    arrays = max(programs.training + streamed, programs.validation, saving)
    return round(process_memory() + SMALL_PROGRAMS_BYTES + HEAP_OVERHEAD * num_devices * arrays)
