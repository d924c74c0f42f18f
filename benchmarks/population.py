"""Many small runs at once: total images/s of K runs in one program beside K runs one after another.

    python benchmarks/run.py population [--case=small_unet|ebhi] [--slots=2,4,8,16] [--rounds=8]

A turn is a few steps of each program. The ratio is to one run alone, which is what K runs one after
the other reach.
"""

import jax

from benchmarks.measuring import Result, Table, in_turns, median, times_faster
from cellseg_jax import config as config_lib
from cellseg_jax.step.spec import make_spec
from cellseg_jax.train import measure as measure_lib
from cellseg_jax.train.execution import Execution

OPTIONS = {
    "case": ("small_unet", "small_unet (report 1) or ebhi (report 2, batch 4)"),
    "slots": ([2, 4, 8, 16], "numbers of runs"),
    "backends": (["unroll", "vmap"], "beside the loop"),
    "rounds": (8, "turns"),
    "steps": (3, "of each program in a turn"),
}
# The networks of the reports; report 1's on patches of 32x40, report 2's at half its size.
CASES = {
    "small_unet": ("configs/small_unet.py", [("data.size", "(128, 160)"), ("data.grid", "4")]),
    "ebhi": ("configs/ebhi_unet.py", [("data.size", "(112, 112)")]),
}


def measure(options) -> Result:
    config = config_lib.load(*CASES[options.case])
    spec = make_spec([config])
    programs = [Execution("loop", 1, (1, 1), spec.inactive)]
    programs += [Execution(backend, k, (1, 1), spec.inactive)
                 for backend in options.backends for k in options.slots]
    ways = {program: several(measure_lib.synthetic_step(config, spec, program), options.steps)
            for program in programs}
    seconds = in_turns(ways, options.rounds, warm=0)
    alone, rows = seconds[programs[0]], []
    for program, own in seconds.items():
        images = options.steps * program.slots * config.train.batch_size
        rows.append([program.backend, program.slots, images / median(own),
                     program.slots * times_faster(own, alone)])
    return Result([Table(["back-end", "runs at once", "images/s in all",
                          "times one after another"], rows)],
                  [f"{options.case}, batches of {config.train.batch_size}."])


def several(step, count):
    """A function of nothing that makes so many steps and waits for the last."""
    return lambda: jax.block_until_ready([step() for _ in range(count)][-1])
