"""The agenda of one GPU: all that only a GPU shows, in less than 25 minutes.

    python benchmarks/run.py on_gpu --folder=DIR --out=DIR [--minutes=25] [--root=stage1_train]

Cells are begun in the order of their worth while time is left, each in a process of its own, and
each writes DIR/cells/NAME.json when it ends. A second start goes on behind them. A cell that fails
is kept with its error (--again runs those again). --tiny is the same with small arrays, also on a
CPU.

Steps: a side is a process; ours and MONAI's (or torch's of tests/reference) as it is written, NCHW,
and by torch.compile, channels last; all with TF32. A turn is as many steps as take 0.3 seconds. The
share of the roofline is of the larger of operations / peak and bytes that XLA counts / bandwidth.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import member_convolution, population, pruning
from benchmarks.measuring import (
    Result,
    Sample,
    Side,
    Table,
    in_turns,
    median,
    serve,
    timed,
    times_faster,
)
from benchmarks.train_step import CASES, Case, made_up, our_program, our_step
from cellseg_jax.models import conv, resample
from cellseg_jax.planning.gpu import GPUS
from cellseg_jax.runs.provenance import commit
from cellseg_jax.step import memory

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPTIONS = {
    "folder": (pathlib.Path, "of the cells"),
    "minutes": (25.0, "after which no cell is begun, and those under way end"),
    "root": ("", "stage1_train, for report 0's networks; else synthetic images"),
    "only": ([], "cells whose names begin so"),
    "again": (False, "cells that failed are run again"),
    "tiny": (False, "small arrays, to see that it runs"),
}
BATCH = {"unet_128": 64, "unet_512": 16, "unetr_128": 16, "unet_classic_128": 16,
         "small_unet_64": 44, "unet_add_64": 64, "simple_conv_64": 64, "segnet_128": 16,
         "medt_128": 8, "unet_plan_128": 16, "segformer_128": 32}
PRECISIONS = ("float32", "bfloat16")
REPORT_0 = ("unet_adam", "unet_sgd", "unetr_adam", "unetr_sgd")
LEAST_SECONDS, CELL_SECONDS = 20.0, 400.0  # that must be left to begin a cell; that one may take
TURN_SECONDS, ROUNDS = 0.3, 9
TOO_LONG = "not ready after"
MIB = 2**20
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the GPU


class Cell(NamedTuple):
    """A part of the agenda: a table of rows."""

    name: str
    run: Callable  # (options) -> Table


def small(case: Case, tiny: bool) -> Case:
    """The case with the batch of a GPU, or a tiny one."""
    name = next(name for name, other in CASES.items() if other is case)
    return case._replace(size=64, batch=2) if tiny else case._replace(batch=BATCH[name])


def repeated(run: Callable) -> Callable:
    """A function that gives the seconds of one step, measured over a turn of them."""
    steps = max(1, math.ceil(TURN_SECONDS / max(timed(run).wall, 1e-6)))

    def clock() -> Sample:
        return Sample(*(seconds / steps for seconds in timed(lambda: run(steps))))

    return clock


def gpu_here():
    """The facts of this GPU; None of one that is not known."""
    kind = jax.devices()[0].device_kind
    return next((gpu for gpu in GPUS.values() if kind.startswith(gpu.name.split("-SXM")[0])), None)


# --- steps ----------------------------------------------------------------------------------------


def side(name: str, which: str, precision: str, tiny: str) -> None:
    """The process of one side of a case."""
    case = small(CASES[name], tiny == "True")
    arrays = made_up(case)
    if which == "ours":
        program = our_program(case, *arrays, precision)
        run, facts = our_step(program), functools.partial(facts_of, program)
    else:
        from benchmarks.torch_networks import torch_step  # torch is in no process of ours

        run, facts = torch_step(name, *arrays, bfloat16=precision == "bfloat16",
                                compiled=which == "compiled"), dict
    run(), run()
    serve(repeated(run), facts=facts)


def facts_of(program) -> dict:
    """Bytes and operations of our step."""
    stats = jax.devices()[0].memory_stats() or {}  # a CPU has none
    given = program.state, program.source, program.index
    like = jax.tree.map(  # arrays of the state were donated; their shapes remain
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), given)
    compiled = program.step.lower(*like).compile()
    return {"peak": stats.get("peak_bytes_in_use"), "bytes": compiled.cost_analysis().get(
        "bytes accessed"), "flops": memory.flops(compiled),
        "predicted": memory.footprint(compiled, like).total}


def steps(name: str, options) -> Table:
    """A row per precision."""
    rows = []
    for precision in PRECISIONS:
        running, errors = {}, []
        started = {which: Side(["benchmarks.on_gpu", "side", name, which, precision,
                                str(options.tiny)], os.environ)
                   for which in ("eager", "compiled", "ours")}
        try:
            for which, process in started.items():
                try:
                    process.step()
                    running[which] = process
                except RuntimeError as error:
                    errors.append(f"{which}: {error}")
            found = in_turns(running, 1 if options.tiny else ROUNDS, warm=1, clock=Side.step)
            facts = running["ours"].ask("facts") if "ours" in running else {}
        finally:
            for process in started.values():
                process.close()
        rows.append(step_row(name, precision, small(CASES[name], options.tiny).batch, found, facts)
                    + ["; ".join(errors)])
    return Table(["case", "precision", "batch", "ours, images/s", "times eager",
                  "times torch.compile", "% of the roofline", "predicted, MiB", "peak, MiB",
                  "did not run"], rows, "Training steps")


def step_row(name, precision, batch, found, facts) -> list:
    """What the seconds of the sides say."""
    ours, gpu, share = found.get("ours"), gpu_here(), None
    if ours and gpu and facts.get("flops") and facts.get("bytes"):
        peak = gpu.bf16_teraflops if precision == "bfloat16" else gpu.tf32_teraflops
        least = max(facts["flops"] / (peak * 1e12), facts["bytes"] / (gpu.memory_gigabytes * 1e9))
        share = 100 * least / median(ours)
    times = [times_faster(ours, found[which]) if ours and which in found else None
             for which in ("eager", "compiled")]
    mib = [facts[key] / MIB if facts.get(key) else None for key in ("predicted", "peak")]
    return [name, precision, batch, batch / median(ours) if ours else None, *times, share, *mib]


# --- forms of operations --------------------------------------------------------------------------


def transposed(options) -> Table:
    """Gradients of transposed convolutions, of lax and as padded convolutions."""
    rows = []
    sizes = ((4, 8, 2),) if options.tiny else ((256, 32, 16), (128, 64, 16), (32, 128, 16))
    for channels, side_, n in sizes:
        for kernel_size, pads in ((2, (1, 1)), (3, (1, 2))):
            for precision in PRECISIONS:
                forms = transposed_forms((n, side_, side_, channels), kernel_size, pads, precision)
                found = in_turns(forms, 1 if options.tiny else ROUNDS, clock=lambda run: run())
                lax, padded = found.values()
                rows.append([f"{channels} channels, {side_}x{side_}, batch {n}", kernel_size,
                             precision, 1e3 * median(lax), 1e3 * median(padded),
                             times_faster(padded, lax)])
    return Table(["shape", "kernel", "precision", "lax, ms", "padded, ms", "times as fast"], rows,
                 "Gradients of transposed convolutions")


def transposed_forms(shape, kernel_size, pads, precision) -> dict:
    """{form: a clock of it}."""
    image = jnp.ones(shape, precision)
    kernel = jnp.full((kernel_size, kernel_size, shape[-1], shape[-1] // 2), 0.01, precision)
    geometry = (1, 2, (pads, pads))
    forward = functools.partial(conv.plain_convolution, stride=1, dilation=2, pads=(pads, pads))
    cotangent = jnp.ones_like(forward(image, kernel))
    forms = {"lax": lambda x, k, y: jax.vjp(forward, x, k)[1](y),
             "padded": lambda x, k, y: conv.xla_gradients(x, k, y, *geometry)}
    return {name: calls(jax.jit(form), image, kernel, cotangent) for name, form in forms.items()}


def calls(function, *arguments) -> Callable:
    """A clock of a compiled function; a turn waits for the last of its calls."""
    def run(count=1):
        jax.block_until_ready([function(*arguments) for _ in range(count)])

    run(), run()
    return repeated(run)


def pooling(options) -> Table:
    """Gradients of 2x2 max-pooling: reduce_window beside two maxima."""
    def window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    rows = []
    for shape in ((2, 8, 8, 4),) if options.tiny else ((16, 128, 128, 64), (16, 32, 32, 256)):
        for precision in PRECISIONS:
            image = jax.random.normal(jax.random.key(0), shape, precision)
            forms = {form: calls(jax.jit(jax.grad(lambda x, f=form: jnp.square(f(x)).sum())), image)
                     for form in (window, resample.max_pool)}
            found = in_turns(forms, 1 if options.tiny else ROUNDS, clock=lambda run: run())
            one, two = found.values()
            rows.append(["x".join(map(str, shape)), precision, 1e3 * median(one), 1e3 * median(two),
                         times_faster(two, one)])
    return Table(["image", "precision", "reduce_window, ms", "two maxima, ms", "times as fast"],
                 rows, "Max-pooling with its gradient")


def of(module, title: str, options, **changes) -> Table:
    """The table of another benchmark."""
    chosen = {name: default for name, (default, _) in module.OPTIONS.items()} | changes
    if options.tiny and "rounds" in chosen:
        chosen["rounds"] = 1
    return module.measure(argparse.Namespace(**chosen)).tables[0]._replace(title=title)


# --- whole runs -----------------------------------------------------------------------------------


def command_of(config: str, options, *flags: str) -> list[str]:
    """The flags of a command that uses a config, on real images where there are some."""
    data = ["--config.data.root=" + options.root] if options.root else [
        "--config.data.name=synthetic", "--config.data.count=32"]
    size = 64 if options.tiny else 512
    if not options.root:
        data += [f"--config.data.image_size=({size}, {size})"]
    return [f"--config={ROOT}/configs/{config}.py", *data, f"--config.data.size=({size}, {size})",
            *flags]


def trained(options, command, **environment) -> dict:
    """A run in a folder of its own: its last line of timing, and seconds in all."""
    folder = options.folder / "runs" / hashlib.md5(repr(command).encode()).hexdigest()
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cellseg_jax.main", *command,
                           f"--workdir={folder}"], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    last = json.loads((folder / "timing.jsonl").read_text().splitlines()[-1])
    result = json.loads((folder / "eval" / "test.json").read_text())
    return last | {"minutes": (time.monotonic() - started) / 60,
                   "dice": result["metrics"]["dice_mean"]}


def report_0(config: str, options) -> Table:
    """A network of report 0 at its size, for three epochs; memory beside its plan."""
    epochs = ["--config.train.epochs=3"]
    found = trained(options, command_of(config, options, *epochs))
    name = next((name for name, gpu in GPUS.items() if gpu is gpu_here()), "")
    needs = None
    if name:
        file = options.folder / f"plan_{config}.json"
        subprocess.run([sys.executable, "-m", "cellseg_jax.plan", f"--topology={name}", "--nobatch",
                        *command_of(config, options, *epochs), f"--json={file}"], check=True,
                       capture_output=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        needs = json.loads(file.read_text())["needs"] / MIB
    return Table(["config", "images/s", "minutes in all", "test Dice", "planned without a GPU, MiB",
                  "peak, MiB"],
                 [[config, found["images_per_second"], found["minutes"], found["dice"], needs,
                   1024 * found["peak_memory_gib"]]], "Report 0's networks, three epochs")


def input_path(options) -> Table:
    """Images per second of a run by where its images lie."""
    rows = []
    for residence in ("device", "host"):
        flags = ("--config.train.epochs=3", f"--config.data.residence={residence}")
        found = trained(options, command_of("unet_adam", options, *flags))
        rows.append([residence, found["images_per_second"]])
    return Table(["images on the", "images/s"], rows, "Input of report 0's U-Net")


def bits(options) -> Table:
    """Whether two processes get the same parameters, with and without deterministic operations."""
    rows = []
    for name in ("simple_conv_64",) if options.tiny else ("unet_128", "unetr_128", "segformer_128"):
        for flag in ("", "--xla_gpu_deterministic_ops=true"):
            flags = os.environ.get("XLA_FLAGS", "") + (
                f" {flag}" if jax.default_backend() == "gpu" else "")
            done = [subprocess.run(
                [sys.executable, "-m", "benchmarks.on_gpu", "hashed", name, str(options.tiny)],
                check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                # Compiled twice: what is fastest is measured each time.
                env=os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
            ).stdout for _ in range(2)]
            one, two = (json.loads(text.splitlines()[-1]) for text in done)
            rows.append([name, "yes" if flag else "no",
                         "yes" if one["hash"] == two["hash"] else "no", 1e3 * one["seconds"]])
    return Table(["case", "deterministic", "two runs equal bit for bit", "step, ms"], rows,
                 "Twenty steps in two processes")


def hashed(name: str, tiny: str) -> None:
    """Prints a hash of the parameters after twenty steps, and the seconds of one."""
    case = small(CASES[name], tiny == "True")
    program = our_program(case, *made_up(case))
    state = program.state
    for number in range(20):
        if number == 5:  # those before compile and allocate
            jax.block_until_ready(state)
            began = time.perf_counter()
        state, _ = program.step(state, program.source, program.index)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    text = hashlib.blake2b(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    print(json.dumps({"hash": text, "seconds": (time.perf_counter() - began) / 15}))


# --- the agenda -----------------------------------------------------------------------------------


def agenda(tiny: bool) -> list[Cell]:
    """All cells, those of most worth first."""
    step = lambda name: Cell(f"step_{name}", functools.partial(steps, name))
    first = ["unet_512", "unetr_128", "unet_classic_128", "small_unet_64"]
    slots = [2] if tiny else [2, 4, 8, 16]
    cells = [
        *map(step, ["simple_conv_64"] if tiny else first),
        Cell("bits", bits),
        Cell("report0_unet_adam", functools.partial(report_0, "unet_adam")),
        Cell("population", lambda options: of(
            population, "Runs at once", options, slots=slots, backends=["unroll", "vmap"],
            **(dict(steps=1) if tiny else {}))),
        Cell("transposed", transposed),
        Cell("pooling", pooling),
        Cell("members", lambda options: of(
            member_convolution, "Convolutions of K members, times one by one", options,
            quick=tiny)),
        Cell("input", input_path),
        Cell("pruning", lambda options: of(
            pruning, "Pruning map", options,
            **(dict(size=16, channels=[4, 8], images=8, levels=1) if tiny else {}))),
    ]
    if not tiny:
        cells += [step(name) for name in CASES if name not in first]
        cells += [Cell(f"report0_{config}", functools.partial(report_0, config))
                  for config in REPORT_0[1:]]
    return cells


def kept(options, cell: Cell) -> dict | None:
    """What a cell has written, if it need not run again."""
    file = options.folder / "cells" / f"{cell.name}.json"
    found = json.loads(file.read_text()) if file.exists() else None
    here = {"device": jax.devices()[0].device_kind, "tiny": options.tiny}
    if found and not here.items() <= found.items():
        raise SystemExit(f"{file}: of {found['device']}, tiny={found['tiny']}, and here is {here}; "
                         "take another --folder")
    return None if found and options.again and found["error"] else found


def begin(options, cell: Cell, seconds: float) -> dict:
    """Run a cell in its process, for so many seconds at most, and keep what it found."""
    file = options.folder / "cells" / f"{cell.name}.json"
    arguments = json.dumps(vars(options), default=str)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(options.folder.resolve() / "compiled")}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.on_gpu", "cell", cell.name, arguments], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | cache)
    started, table, error = time.monotonic(), None, ""
    try:
        out, err = process.communicate(timeout=seconds)
        if process.returncode:
            error = (err.strip().splitlines() or [f"code {process.returncode}"])[-1][-300:]
        else:
            table = json.loads(out.splitlines()[-1])
    except subprocess.TimeoutExpired:
        error = f"{TOO_LONG} {seconds:.0f} s"
    finally:  # after Ctrl-C too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its sides too
        process.communicate()
    found = {"table": table, "error": error, "seconds": round(time.monotonic() - started, 1),
             "device": jax.devices()[0].device_kind, "commit": commit(), "tiny": options.tiny}
    if not error.startswith(TOO_LONG) or seconds >= CELL_SECONDS:  # else the next start repeats it
        file.write_text(json.dumps(found, indent=1))
    return found


def measure(options) -> Result:
    os.environ.update(ENVIRONMENT)
    options.folder = options.folder.resolve()
    (options.folder / "cells").mkdir(parents=True, exist_ok=True)
    deadline, cells = time.monotonic() + 60 * options.minutes, {}
    for cell in agenda(options.tiny):
        if options.only and not cell.name.startswith(tuple(options.only)):
            continue
        found, left = kept(options, cell), deadline - time.monotonic()
        if found is None and left >= LEAST_SECONDS:
            found = begin(options, cell, min(left, CELL_SECONDS))
            print(f"{cell.name}: {found['seconds']} s {found['error']}", file=sys.stderr)
        cells[cell.name] = found or {"table": None, "error": "no time was left"}
    return Result(*report(cells), cells)


def report(cells: dict) -> tuple[list[Table], list[str]]:
    """Tables of equal titles joined, and what did not run."""
    tables = {}
    for found in cells.values():
        if found["table"]:
            table = Table(**found["table"])
            joined = tables.setdefault(table.title, table._replace(rows=[]))
            joined.rows.extend(table.rows)
    wrong = [f"- {name}: {found['error']}" for name, found in cells.items() if found["error"]]
    return list(tables.values()), wrong


def in_process(name: str, text: str) -> None:
    """A cell in its process: prints its table as JSON."""
    options = argparse.Namespace(**json.loads(text))
    options.folder = pathlib.Path(options.folder)
    cell = next(cell for cell in agenda(options.tiny) if cell.name == name)
    print(json.dumps(cell.run(options)._asdict()))


if __name__ == "__main__":  # the process of a cell, of one side of it, or of a hash
    {"cell": in_process, "side": side, "hashed": hashed}[sys.argv[1]](*sys.argv[2:])
