"""Memory of the compiled step and validation, checked before the first step."""

import contextlib

import jax

from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.step import memory
from cellseg_jax.step.memory import REMEDIES, DoesNotFit, exhausted, refusal, shard_bytes
from cellseg_jax.step.programs import abstract_state
from cellseg_jax.step.spec import make_spec
from cellseg_jax.train.slot_states import SlotStates


def check_state(config) -> None:
    """Build a run's network and state as shapes, before an array is made.

    Raises: InputError if the network cannot be built; DoesNotFit if no device has room for it.
    """
    shape = (*derived.input_size(config), derived.channels(config))
    memory.check_fits(abstract_state(config, make_spec([config]), shape),
                      f"config.model: {config.model.name} with the state of its optimiser")


def check(slots, run, validation) -> None:
    """Compile the step and the validation of the program whose first run has just its slot, once.

    Args:
      slots: train.slots.Slots with `run` in slot 0.
      validation: train.validation.Validation.
    Raises: DoesNotFit where one of them cannot get the memory that it needs.
    """
    compile_checked(slots.states, slots.arguments[0], run.config)
    if len(run.parts["val"]):
        smallest = validation.smallest_call(run, slots.states.get(0))
        check_validation(slots.states, validation.program, smallest, run.config)
    slots.states.checked = True


def compile_checked(states: SlotStates, arguments: tuple, config) -> None:
    """states.compile for the arguments (Batches.next) of a chunk, once.

    What is refused would have died: only the step itself counts, on a CPU only what it allocates
    beyond the arrays that are there already.

    Raises: DoesNotFit where the step cannot get the memory that it needs.
    """
    if states.compiled is not None:
        return
    with refusing(config, "train.batch_size"):
        states.compile(arguments)
    analysis = states.compiled.memory_analysis()
    if analysis is not None:
        held = analysis.argument_size_in_bytes
        _check(states, held, _new_bytes(analysis), config, "train.batch_size")


def check_validation(states: SlotStates, program, arguments: tuple, config) -> None:
    """Compile the validation, where the calls of training find it.

    Args:
      states: with a run in its first slot, compiled.
      program: programs.eval_program.
      arguments: (values, variables, batch), the batch of as many rows as there are devices.
    Raises: DoesNotFit as compile_checked.
    """
    values, variables, batch = arguments
    rows = round_up(config.eval.batch_size, len(batch["weight"]))
    batch = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
             for k, x in batch.items()}
    with refusing(config, "eval.batch_size"):
        memory = program.compiled(values, variables, batch).memory_analysis()
    training = states.compiled.memory_analysis()
    if memory is not None and training is not None:
        loaded = sum(shard_bytes(x) for x in batch.values())
        held = training.argument_size_in_bytes + memory.argument_size_in_bytes - loaded
        _check(states, held, loaded + _new_bytes(memory), config, "eval.batch_size")


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
        text = " ".join(str(error).split())[:200]
        reason = refusal(*found) if found else f"does not fit ({text})"
        raise DoesNotFit(_advice(config, key, reason)) from error


def _new_bytes(memory) -> int:
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _check(states, held, new, config, key) -> None:
    devices = len(jax.tree.leaves(states.states[0])[0].sharding.addressable_devices)
    has, _ = memory.available_memory(devices)
    if jax.default_backend() == "cpu":
        has += max(held, 0)
    if held + new > has:
        raise DoesNotFit(_advice(config, key, refusal(held + new, has)))


def _advice(config, key, reason) -> str:
    section, name = key.split(".")
    what, changes = {
        "train.batch_size": ("images per step", REMEDIES),
        "eval.batch_size": ("images per validation call", "a smaller config.eval.batch_size")}[key]
    return (f"config.{key}: {config[section][name]} {what} {reason}; change to {changes} "
            "(python -m cellseg_jax.plan with the same --config and --config.* computes what "
            "fits)")
