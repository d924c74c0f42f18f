"""The first lines of a program: data, network, devices, cost."""

import jax

from cellseg_jax import config as config_lib
from cellseg_jax.data.split import PARTS
from cellseg_jax.models import onednn
from cellseg_jax.step import memory as step_memory
from cellseg_jax.step.mesh import unused
from cellseg_jax.train.run import Run
from cellseg_jax.train.slots import Slots


def rows(run: Run, slots: Slots) -> list[tuple[str, str]]:
    """(name, text) of each line, for terminal.summary; the run is in a slot, its step compiled."""
    config, arrays, devices = run.config, run.arrays, jax.devices()
    states, others = slots.states, slots.progress.num_runs - 1
    counts = " / ".join(f"{len(run.parts[p])} {p}" for p in PARTS)
    parameters = sum(x.size for x in jax.tree.leaves(states.states[0].params))
    changed = config_lib.diff(config_lib.plain(config), config)
    return [
        ("run", f"{run.folder.path}" + (f" and {others} more" if others else "")),
        ("config", ", ".join(f"{k}={b!r}" for k, (_, b) in changed.items()) or "the default"),
        ("data", f"{config.data.name}: {len(arrays.names)} images, {counts}; "
                 f"{'x'.join(map(str, arrays.image.shape[1:]))} {arrays.image.dtype}, "
                 f"on the {slots.residence}"),
        ("network", f"{config.model.name}: {parameters // states.execution.width:,} parameters"),
        ("devices", "; ".join(filter(None, (
            f"{len(devices)} {devices[0].device_kind}", _unused(run.config, slots),
            str(states.execution))))),
        ("length", f"{run.num_steps} steps of {config.train.batch_size} images"
                   + (f", continuing at step {run.step}" if run.step else "")),
        *([("convolutions", onednn.status().text)] if devices[0].platform == "cpu" else []),
        *_cost(states.compiled)]


def _unused(config, slots) -> str:
    member, data = slots.states.execution.mesh
    return unused(config, min(member, slots.progress.num_runs) * data, jax.device_count())


def _cost(compiled) -> list[tuple[str, str]]:
    """FLOPs and memory, as far as the compiler knows them."""
    flops, memory = step_memory.flops(compiled), compiled.memory_analysis()
    found = []
    if flops > 0:
        found.append(("cost", f"{flops / 1e9:.1f} GFLOP per call and device"))
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        found.append(("memory", f"{used / 2**30:.2f} GiB per device: "
                      f"{memory.argument_size_in_bytes / 2**30:.2f} state and data, "
                      f"{memory.temp_size_in_bytes / 2**30:.2f} temporary"))
    return found
