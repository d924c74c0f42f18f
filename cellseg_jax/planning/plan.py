"""The plan of a run: its cost, whether it fits its devices, and what would fit.

On a TPU slice, or on GPUs that are only described, nothing runs: memory comes from the compiler,
speed from assumptions that the plan states. Speed on this machine is measured.
"""

import dataclasses
import math
import time

import jax
import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.data.scale import ScaleOptions, scaled_size
from cellseg_jax.errors import InputError
from cellseg_jax.planning import shapes
from cellseg_jax.planning.search import (
    Search,
    alternatives,
    largest_eval_batch,
    largest_training_batch,
)
from cellseg_jax.planning.target import LOCAL, Target
from cellseg_jax.report import terminal
from cellseg_jax.step.memory import GIB, all_reduced, flops, refusal
from cellseg_jax.step.mesh import unused
from cellseg_jax.step.programs import check_model
from cellseg_jax.train import measure

# Of the peak that training steps of convolutional networks reach; neither was measured here.
ASSUMED_UTILISATION = {"tpu": 0.3, "gpu": 0.1}
SEARCH_SECONDS = 600.0  # after which no other program is compiled to find one that fits
SAMPLED_IMAGES = 8  # whose size is read
UNKNOWN_COUNT = 100  # images of data that is not there and of no published number


def plan(config, topology: str = LOCAL, *, search: bool = True, limit: float | None = None
         ) -> dict:
    """Everything `rows` prints, as plain data; memory in bytes per device.

    Args:
      topology: "local", GPUs such as "h100x8", or a TPU slice such as "v5e:2x4".
      search: find the largest batch that fits, too.
      limit: bytes of a device, instead of what it has.
    Raises: InputError for a method without training, a network that cannot be built, or a
      topology that does not exist.
    """
    if derived.is_classical(config):
        raise InputError(f"config.model.name: {config.model.name} learns nothing, so there is "
                         "nothing to plan")
    check_model(config)
    target = Target(topology, limit)
    images, notes = images_of(config)
    mesh = target.mesh(config)
    used = mesh.shape["data"]
    too_few = unused(config, used, len(target.devices))
    limit, source = target.limit(mesh.size)
    resident = shapes.is_resident(config, images, limit)
    out = {
        "model": config.model.name, "topology": topology, "devices": used,
        "device": mesh.devices.flat[0].device_kind, "batch_size": config.train.batch_size,
        "limit": limit, "limit_source": source, "residence": "device" if resident else "host",
        "images": images.count, "notes": [*notes, *filter(None, [too_few])],
    }
    began = time.monotonic()
    terminal.progress_line(f"compiling the train step and the validation for {used} "
                           f"{out['device']}, {config.train.batch_size} images per step")
    programs = target.compiled(config, images, resident, exact=True)
    out |= {"compile_seconds": time.monotonic() - began, "needs": programs.needs,
            "fits": programs.needs <= limit, "validation": programs.validation,
            "workspace": programs.workspace}
    if programs.train is not None:
        out |= _cost(programs, config, mesh, target, resident)
        out["notes"] += _margin(programs)
    what_fits = Search(config, images, resident, target, limit, time.monotonic() + SEARCH_SECONDS)
    out |= _what_fits(what_fits, programs, mesh.size, search)
    if search and what_fits.out_of_time:
        out["notes"].append(f"after {SEARCH_SECONDS:.0f} s no other size was compiled: a larger "
                            "batch than the largest named here may fit")
    if out["fits"] and target.is_local:
        seconds = measure.measured_step(config)
        out |= {"step_seconds": seconds, "assumption": "measured, without augmentation"}
    if not out["fits"]:
        out["refusal"] = refusal(programs.needs, limit) + f" ({source})" + out["refusal"]
    if "step_seconds" in out:
        out["images_per_second"] = config.train.batch_size / out["step_seconds"]
    return out


def _what_fits(search, programs, num_devices, find_batch) -> dict:
    """The largest batches, and for a run that does not fit its alternatives, as keys of a plan."""
    config, out = search.config, {}
    training_fits, validation = programs.training <= search.limit, programs.validation
    if programs.validation > search.limit:  # else no other batch of training could help
        size = out["largest_eval_batch"] = largest_eval_batch(search, num_devices)
        search = dataclasses.replace(
            search, config=config_lib.changed(config, {"eval.batch_size": size} if size else {}))
        validation = search.needs({}, training=False) if size else validation
    if find_batch:
        out["largest_batch"] = out.get("largest_eval_batch", 1) and largest_training_batch(
            search, programs.training, validation)
    if programs.needs > search.limit:
        out["key"] = "config.eval.batch_size" if training_fits else "config.train.batch_size"
        out["alternatives"] = alternatives(search, config, training_fits)
        out["refusal"] = _fitting(out, search.config)
    return out


def _fitting(plan, config) -> str:
    """The end of a refusal: what fits."""
    fitting = [f"{a['change']} ({a['needs'] / GIB:.2f} GiB)"
               for a in plan["alternatives"] if a["fits"]]
    if plan.get("largest_batch") and plan["key"] == "config.train.batch_size":
        also = (f"config.eval.batch_size={config.eval.batch_size} and "
                if plan.get("largest_eval_batch") else "")
        fitting.insert(0, f"{also}config.train.batch_size={plan['largest_batch']}")
    return f"; what fits: {', or '.join(fitting)}" if fitting else (
        "; of smaller batches, remat, bfloat16, accumulate and more devices nothing that was "
        "tried fits: choose a smaller network or config.data.size")


def _margin(programs) -> list[str]:
    """A note on what of the memory is not the compiler's count."""
    if not programs.workspace:
        return []
    return [f"temporaries include {programs.workspace / 2**20:,.0f} MiB for workspaces of cuDNN's "
            "convolutions: an estimate, since only a GPU shows which algorithms run"]


def _cost(programs, config, mesh, target, resident) -> dict:
    """What the compiled programs show, and of described devices the speed that follows."""
    needs, used = programs.footprint, mesh.shape["data"]
    flop = (shapes.lowered_flops(config, used) if target.is_gpu
            else flops(programs.train, config.optimizer.accumulate))
    out = {
        "num_parameters": needs.parameters // (8 if config.train.precision == "float64" else 4),
        "memory": needs._asdict(),
        "flops": flop * used,
        "all_reduced": all_reduced(programs.train, config.optimizer.accumulate)
        if used > 1 else 0,
    }
    if target.is_local:
        if jax.default_backend() == "cpu":
            out["process_peak"] = shapes.cpu_peak(programs, config, mesh.size, resident)
        return out
    teraflops, gigabytes = target.throughput(config.train.precision)
    all_reduce_seconds = (2 * (used - 1) / used * out["all_reduced"]
                          / (gigabytes * 1e9))
    share = ASSUMED_UTILISATION["gpu" if target.is_gpu else "tpu"]
    seconds = flop / (teraflops * 1e12 * share) + all_reduce_seconds + measure.CALL_SECONDS
    kind = "TF32" if target.is_gpu and config.train.precision != "bfloat16" else "bf16"
    assumption = (f"{share:.0%} of {teraflops:g} {kind} TFLOP/s per device, ring "
                  f"all-reduce at {gigabytes:g} GB/s that overlaps with nothing, "
                  f"{1e3 * measure.CALL_SECONDS:g} ms per call, input that keeps up")
    return out | {"step_seconds": seconds, "collective_share": all_reduce_seconds / seconds,
                  "assumption": assumption}


def images_of(config) -> tuple[shapes.Images, list[str]]:
    """How many images the dataset has and how large they are, and notes on how that is known."""
    options, scale = config.data, ScaleOptions(config.data.diameter, config.data.pixel_size)
    height, width = options.size
    if options.name == "synthetic" and not scale.used:
        return shapes.Images(options.count, math.prod(options.get("image_size", options.size))), []
    try:
        records = data.records_of(options)
    except InputError:
        count, pixels = data.published(options.name)
        count = count or UNKNOWN_COUNT
        return shapes.Images(count, pixels or height * width), [
            f"{options.name}: no data at {options.root or 'config.data.root'}; counted as {count} "
            "images"]
    pixels = height * width
    if options.fit == "random_crop":  # only then do images lie on the device at their own size
        chosen = np.linspace(0, len(records) - 1, min(len(records), SAMPLED_IMAGES)).astype(int)
        labels = [(records[i], records[i].read().label) for i in chosen]
        pixels = round(float(np.mean([
            math.prod(scaled_size(label.shape, scale.factor(record, label)))
            for record, label in labels])))
    return shapes.Images(len(records), pixels), []


def rows(plan: dict) -> list[tuple[str, str]]:
    """(name, text) of a plan, in reading order."""
    gib = lambda n: f"{n / GIB:.3f} GiB" if n < GIB else f"{n / GIB:.2f} GiB"
    out = [
        ("network", plan["model"]),
        ("devices", f"{plan['devices']} {plan['device']} ({plan['topology']}), compiled in "
                    f"{plan['compile_seconds']:.0f} s"),
        ("batch", f"{plan['batch_size']} images per step"),
        ("data", f"{plan['images']:,} images on the {plan['residence']}"),
    ]
    if "memory" in plan:
        out += [
            ("parameters", f"{plan['num_parameters']:,}"),
            ("FLOPs", f"{plan['flops'] / 1e9:,.1f} GFLOP per step, as XLA counts them"),
            *((f"  {name.replace('_', ' ')}", gib(n)) for name, n in plan["memory"].items()),
            ("training", f"{gib(sum(plan['memory'].values()))} per device"),
            ("validation", f"{gib(plan['validation'])} per device"),
        ]
    out.append(("device has", f"{gib(plan['limit'])} ({plan['limit_source']})"))
    out.append(("fits", "yes" if plan["fits"] else f"no: needs {gib(plan['needs'])}"))
    if "process_peak" in plan:
        out.append(("process", f"{gib(plan['process_peak'])} at most, Python and JAX included"))
    for key, name in (("largest_eval_batch", "largest eval batch"),
                      ("largest_batch", "largest batch")):
        if key in plan:
            most = plan[key]
            out.append((name, "not found in time" if most is None else f"{most} images"
                        if most else "none fits"))
    out += [("  instead" if a["fits"] else "  not enough", f"{a['change']}: {gib(a['needs'])}")
            for a in plan.get("alternatives", ())]
    if "memory" in plan:
        share = plan.get("collective_share")
        out.append(("collectives", f"{plan['all_reduced'] / 2**20:.2f} MiB all-reduced per step "
                    "and device, " + ("their time is not known" if share is None
                                      else f"{share:.1%} of the time")))
    if "step_seconds" in plan:
        out.append(("speed", f"{1 / plan['step_seconds']:.4g} steps/s, "
                    f"{plan['images_per_second']:.4g} images/s: {plan['assumption']}"))
    return out + [("note", text) for text in plan["notes"]]
