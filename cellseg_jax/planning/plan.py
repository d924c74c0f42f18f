"""The plan of a run: its cost, whether it fits its devices, and what would.

On a TPU slice nothing runs: memory and FLOPs are the compiler's, speed follows from assumptions
that the plan states. Speed on this machine is measured.
"""

import importlib.util
import math
import time

import jax
import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError, pick
from cellseg_jax.planning import shapes
from cellseg_jax.report import terminal
from cellseg_jax.step.memory import GIB, all_reduced, available_memory, refusal
from cellseg_jax.step.memory import flops as flops_
from cellseg_jax.step.mesh import check_mesh, default_mesh
from cellseg_jax.step.state import check_model
from cellseg_jax.train import measure

# Of one device as libtpu describes them (two per chip of v2, v3, v4 and tpu7x; the runtime of a
# real v4 may show one): GiB of memory, bf16 TFLOP/s, GB/s to other chips.
# Source: cloud.google.com/tpu/docs/system-architecture-tpu-vm.
GENERATIONS = {
    "v2": (8, 22.5, 124),
    "v3": (16, 61.5, 164),
    "v4": (16, 137.5, 150),
    "v5e": (16, 197, 200),
    "v5p": (95, 459, 600),
    "v6e": (32, 918, 448),
    "tpu7x": (96, 1153, 600),
}
RESERVED = 0.25  # GiB that the compiler leaves to the runtime: it says 15.75 of 16 on a v5e
UTILISATION = 0.3  # of the peak that training steps of convolutional networks reach, assumed
SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SEARCH_SECONDS = 600.0  # after which no other program is compiled to find one that fits
SLACK = 1.3  # the quickest compile level reports at most so many times the memory of the default
PIXELS = {"dsb2018": 330 * 400, "bbbc039": 520 * 696, "isbi2012": 512 * 512, "ebhi_seg": 224 * 224,
          "livecell": 520 * 704}  # of an image, where no data is at hand


def plan(config, topology: str = "local", *, search: bool = True, limit: float | None = None
         ) -> dict:
    """Everything `rows` prints, as plain data; memory in bytes per device.

    Args:
      topology: "local" or a TPU slice such as "v5e:2x4".
      search: find the largest batch that fits, too.
      limit: bytes of a device, instead of what it has.
    Raises: InputError.
    """
    if derived.is_classical(config):
        raise InputError(f"config.model.name: {config.model.name} learns nothing, so there is "
                         "nothing to plan")
    check_model(config)
    bound = _Bound(topology, limit)
    images, notes = images_of(config)
    mesh = bound.mesh(config.train.batch_size)
    check_mesh(config, mesh)
    limit, source = bound.limit(mesh.size)
    resident = shapes.is_resident(config, images, limit)
    out = {
        "model": config.model.name, "topology": topology, "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind, "batch_size": config.train.batch_size,
        "limit": limit, "limit_source": source, "residence": "device" if resident else "host",
        "images": images.count, "notes": notes,
    }
    began = time.monotonic()
    terminal.progress_line(f"compiling the train step and the validation for {mesh.size} "
                   f"{out['device']}, {config.train.batch_size} images per step")
    programs = bound.compiled(config, images, resident, sure=True)
    out |= {"compile_seconds": time.monotonic() - began, "needs": programs.needs,
            "fits": programs.needs <= limit, "validation": programs.validation}
    if programs.train is not None:
        out |= _cost(programs, config, mesh, topology, resident)
    deadline = time.monotonic() + SEARCH_SECONDS
    base, trains = config, programs.training <= limit
    if programs.validation > limit:  # else no other batch of training could help
        size = largest_batch(
            lambda n: bound.needs_of(config, images, resident, {"eval.batch_size": n},
                                     training=False),
            limit, unit=mesh.size, at=config.eval.batch_size // 2, most=config.eval.batch_size,
            deadline=deadline)
        out["largest_eval_batch"] = size
        base = config_lib.changed(config, {"eval.batch_size": size} if size else {})
    if search:
        out["largest_batch"] = out.get("largest_eval_batch", 1) and _largest_training_batch(
            base, images, resident, bound, mesh.size, limit, deadline)
    if not out["fits"]:
        out["key"] = "config.eval.batch_size" if trains else "config.train.batch_size"
        out["alternatives"] = _alternatives(
            config, base, images, resident, bound, limit, deadline, trains)
        out["refusal"] = (refusal(programs.needs, limit) + f" ({source})" + _told(out, base))
    elif topology == "local":
        seconds = measure.measured_step(config)
        out |= {"step_seconds": seconds, "assumption": "measured, without augmentation"}
    if "step_seconds" in out:
        out["images_per_second"] = config.train.batch_size / out["step_seconds"]
    return out


def _largest_training_batch(config, images, resident, bound, num_devices, limit, deadline
                            ) -> int | None:
    """The largest train.batch_size that fits, where validation fits beside the batch of now."""
    at = config.train.batch_size
    now = bound.compiled(config, images, resident, sure=False, training=False).validation
    # While a run validates, the next batch of a stream lies ready.
    batch = 0 if resident else shapes.batch_bytes(config, images, bound.mesh(at))
    return largest_batch(
        lambda n: max(now and now + batch * (n - at) // at, bound.needs_of(
            config, images, resident, {"train.batch_size": n}, validation=False)),
        limit, unit=num_devices * config.optimizer.accumulate, at=at,
        most=_training_samples(config, images), deadline=deadline)


def _training_samples(config, images) -> int:
    """Of an epoch, which no batch may exceed; of an official split, about."""
    share = 0.8 if isinstance(config.data.split, str) else config.data.split[0]
    count = int(images.count * share * config.data.train_fraction)
    return max(count * config.data.grid**2 * (config.data.copies + 1), 1)


class _Bound:
    """The devices of a plan: what there is of them and what compiles for them."""

    def __init__(self, topology: str, limit: float | None):
        self.topology, self.given = topology, limit
        self.devices = jax.devices() if topology == "local" else tpu_devices(topology)

    def mesh(self, batch_size):
        if self.topology == "local":
            return default_mesh(1, batch_size)
        return shapes.mesh_of(self.devices, batch_size)

    def limit(self, num_devices) -> tuple[float, str]:
        if self.given is not None:
            return self.given, "as given"
        if self.topology == "local":
            return available_memory(num_devices if jax.default_backend() == "cpu" else 1)
        generation = self.topology.partition(":")[0]
        return ((GENERATIONS[generation][0] - RESERVED) * GIB,
                f"{generation}: {GENERATIONS[generation][0]} GiB less {RESERVED} of the runtime")

    def compiled(self, config, images, resident, *, sure: bool, **parts) -> shapes.Programs:
        """The programs; on a TPU what does not fit is compiled again at the default level.

        Args:
          sure: also where it is far from fitting.
          parts: training or validation = False, of footprint.compiled_programs.
        """
        limit, mesh = self.limit(len(self.devices))[0], self.mesh(config.train.batch_size)
        tpu = self.topology != "local"
        for quick in ((True, False) if tpu else (False,)):
            programs = shapes.compiled_programs(
                config, mesh, images, resident=resident, quick=quick, **parts)
            if programs.needs <= limit or not (sure or programs.needs <= SLACK * limit):
                break
        return programs

    def needs_of(self, config, images, resident, changes, **parts) -> int:
        """Bytes that a run needs after changes of config keys."""
        terminal.progress_line("compiling with " + (", ".join(
            f"config.{key}={value}" for key, value in changes.items()) or self.topology))
        changed = config_lib.changed(config, changes)
        return self.compiled(changed, images, resident, sure=False, **parts).needs


def tpu_devices(topology: str):
    """The described devices of a TPU slice. Raises InputError."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('--topology: a TPU slice needs libtpu; pip install -e ".[plan]"')
    generation = topology.partition(":")[0]
    pick(GENERATIONS, generation, "--topology")
    from jax.experimental import topologies

    # Its entries cannot be read again without a TPU.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        sizes = ", ".join(f"{generation}:{size}" for size in _sizes(generation)[:6])
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--topology: got {topology!r}; expected a slice such as {sizes} "
                         f"(libtpu: {why})") from error


def _sizes(generation: str):
    return CUBES if generation in ("v4", "v5p", "tpu7x") else SQUARES


def images_of(config) -> tuple[shapes.Images, list[str]]:
    """How many images the dataset has and how large they are, and notes on how that is known."""
    options = config.data
    height, width = options.size
    if options.name == "synthetic":
        return shapes.Images(options.count, math.prod(options.get("image_size", options.size))), []
    try:
        records = data.records_of(options)
    except InputError:
        count = data.PUBLISHED.get(options.name, 100)
        return shapes.Images(count, PIXELS.get(options.name, height * width)), [
            f"{options.name}: no data at {options.root or 'config.data.root'}; counted as {count} "
            "images"]
    pixels = height * width
    if options.fit == "random_crop":  # only then do images lie on the device at their own size
        chosen = np.linspace(0, len(records) - 1, min(len(records), 8)).astype(int)
        sizes = [math.prod(records[i].read().image.shape[:2]) for i in chosen]
        pixels = round(float(np.mean(sizes)))
    return shapes.Images(len(records), pixels), []


def largest_batch(needs, limit: float, *, unit: int, at: int, most: int, deadline: float
                  ) -> int | None:
    """The largest multiple of `unit` whose programs fit, as far as compiling a few sizes tells.

    Two sizes give a line of bytes by images; what it predicts is compiled, and cut by a tenth
    until it fits.

    Args:
      needs: batch size -> bytes per device.
      at: where to begin.
      most: images that there are.
      deadline: time.monotonic() after which nothing is compiled.
    Returns: a size whose program was compiled and fits; 0 if none does, None if time ran out.
    """
    known = {}

    def fits(size):
        known[size] = known.get(size) or needs(size)
        return known[size] <= limit

    most = max(most // unit * unit, unit)
    size = min(max(at // unit * unit, unit), most)
    while not fits(size) and size > unit:  # a size that compiles at all
        if time.monotonic() > deadline:
            return None
        size = max(size // 2 // unit * unit, unit)
    if not fits(size):
        return 0
    best, second = size, min(2 * size, most)
    if second == size or time.monotonic() > deadline:
        return best
    if fits(second):
        best = second
    slope = (known[second] - known[size]) / (second - size)
    guess = most if slope <= 0 else size + int((limit - known[size]) / slope)
    while time.monotonic() < deadline:
        guess = min(guess // unit * unit, most)
        if guess <= best or fits(guess):
            return max(best, guess)
        guess = min(int(0.9 * guess), guess - unit)
    return best


def _cost(programs, config, mesh, topology, resident) -> dict:
    """What the compiled programs tell, and what follows on a TPU."""
    needs = programs.footprint
    flops = flops_(programs.train, config.optimizer.accumulate)
    out = {
        "num_parameters": needs.parameters // (8 if config.train.precision == "float64" else 4),
        "memory": needs._asdict(),
        "flops": flops * mesh.size,
        "all_reduced": all_reduced(programs.train, config.optimizer.accumulate)
        if mesh.size > 1 else 0,
    }
    if topology == "local":
        if jax.default_backend() == "cpu":
            out["process_peak"] = shapes.cpu_peak(programs, config, mesh.size, resident)
        return out
    _, teraflops, gigabytes = GENERATIONS[topology.partition(":")[0]]
    talking = 2 * (mesh.size - 1) / mesh.size * out["all_reduced"] / (gigabytes * 1e9)
    seconds = flops / (teraflops * 1e12 * UTILISATION) + talking + measure.CALL_SECONDS
    assumption = (f"{UTILISATION:.0%} of {teraflops:g} bf16 TFLOP/s per device, ring all-reduce at "
                  f"{gigabytes:g} GB/s that overlaps with nothing, "
                  f"{1e3 * measure.CALL_SECONDS:g} ms per call, input that keeps up")
    return out | {"step_seconds": seconds, "collective_share": talking / seconds,
                  "assumption": assumption}


def _alternatives(config, base, images, resident, bound, limit, deadline, trains) -> list[dict]:
    """What else to ask for, compiled: [{"change", "changes", "topology", "needs", "fits"}].

    Args:
      base: config, with a smaller eval.batch_size where validation needs one and one fits.
      trains: the train step fits.
    """
    rows = config.train.batch_size // len(bound.devices)
    more = _differ(config, base)
    found = []

    def ask(changes, topology=bound.topology) -> bool:
        where = bound if topology == bound.topology else _Bound(topology, bound.given)
        needs = where.needs_of(base, images, resident, changes)
        words = [f"config.{k}={v}" for k, v in (more | changes).items()]
        words += [f"--topology={topology}"] if where is not bound else []
        fits = needs <= limit
        found.append({"change": " and ".join(words), "changes": more | changes,
                      "topology": topology, "needs": needs, "fits": fits})
        return fits

    if more and trains:
        ask({})
        return found
    changes = [] if config.train.remat else [{"train.remat": True}]
    if config.train.precision == "float32":
        changes.append({"train.precision": "bfloat16"})
    for change in changes:
        if time.monotonic() <= deadline:
            ask(change)
    for n in (2, 4, 8, 16, 32, 64):
        if (n > config.optimizer.accumulate and rows % n == 0 and time.monotonic() <= deadline
                and ask({"optimizer.accumulate": n})):
            break
    for size in _larger(bound.topology, config.train.batch_size, len(bound.devices)):
        if time.monotonic() > deadline or ask({}, size):
            break
    return found


def _differ(config, base) -> dict:
    size = base.eval.batch_size
    return {"eval.batch_size": size} if size != config.eval.batch_size else {}


def _larger(topology, batch_size, num_devices) -> list[str]:
    """Slices of the generation with more devices over which the batch divides."""
    generation = topology.partition(":")[0]
    if topology == "local":
        return []
    per_chip = 2 if generation in ("v2", "v3", "v4", "tpu7x") else 1
    found = []
    for size in _sizes(generation):
        devices = per_chip * math.prod(map(int, size.split("x")))
        if devices > num_devices and batch_size % devices == 0:
            found.append(f"{generation}:{size}")
    return found


def _told(plan, base) -> str:
    fitting = [f"{a['change']} ({a['needs'] / GIB:.2f} GiB)"
               for a in plan["alternatives"] if a["fits"]]
    if plan.get("largest_batch") and plan["key"] == "config.train.batch_size":
        also = (f"config.eval.batch_size={base.eval.batch_size} and "
                if plan.get("largest_eval_batch") else "")
        fitting.insert(0, f"{also}config.train.batch_size={plan['largest_batch']}")
    return f"; what fits: {', or '.join(fitting)}" if fitting else (
        "; of smaller batches, remat, bfloat16, accumulate and more devices nothing that was "
        "tried fits: choose a smaller network or config.data.size")


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
            ("FLOPs", f"{plan['flops'] / 1e9:,.1f} GFLOP per step, of the compiled step as XLA "
                      "counts them"),
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
                    "and device, " + ("the compiler does not tell their time" if share is None
                                      else f"{share:.1%} of the time")))
    if "step_seconds" in plan:
        out.append(("speed", f"{1 / plan['step_seconds']:.4g} steps/s, "
                    f"{plan['images_per_second']:.4g} images/s: {plan['assumption']}"))
    return out + [("note", text) for text in plan["notes"]]
