"""Many small runs at once: total images/s of K runs in one program beside K runs one after another.

    python benchmarks/population.py [--case=small_unet|ebhi] [--slots=1,2,4,8,16] [--rounds=8]

All programs are compiled first; then rounds of a few steps of each, interleaved, so that whatever
else the machine does meets all of them. Printed are medians and their ratio to one run alone,
which is what K runs one after the other reach.
"""

import statistics
import sys
import time

import jax
from absl import app, flags

from cellseg_jax import config as config_lib
from cellseg_jax.step.spec import make_spec
from cellseg_jax.train import measure
from cellseg_jax.train.execution import Execution

FLAGS = flags.FLAGS
flags.DEFINE_string("case", "small_unet", "small_unet (report 1) or ebhi (report 2, batch 4)")
flags.DEFINE_list("slots", ["1", "2", "4", "8", "16"], "numbers of runs")
flags.DEFINE_list("backends", ["unroll", "vmap"], "beside the loop")
flags.DEFINE_integer("rounds", 8, "of the interleaved measurement")
flags.DEFINE_integer("steps", 3, "of each program in a round")
# The networks of the reports; report 1's on patches of 32x40, report 2's at half its size.
CASES = {
    "small_unet": ("configs/small_unet.py", [("data.size", "(128, 160)"), ("data.grid", "4")]),
    "ebhi": ("configs/ebhi_unet.py", [("data.size", "(112, 112)")]),
}


def main(_):
    """Compile, measure in turns, print a Markdown table."""
    config = config_lib.load(CASES[FLAGS.case][0], CASES[FLAGS.case][1])
    spec = make_spec([config])
    programs = [Execution("loop", 1, (1, 1), spec.inactive)]
    programs += [Execution(backend, int(k), (1, 1), spec.inactive)
                 for backend in FLAGS.backends for k in FLAGS.slots if int(k) > 1]
    steps = {}
    for program in programs:
        started = time.monotonic()
        steps[program] = measure.synthetic_step(config, spec, program)
        print(f"compiled {program} in {time.monotonic() - started:.1f} s", file=sys.stderr)
    rates = {program: [] for program in programs}
    for _ in range(FLAGS.rounds):
        for program, once in steps.items():
            started = time.monotonic()
            for _ in range(FLAGS.steps):
                out = once()
            jax.block_until_ready(out)
            images = FLAGS.steps * program.slots * config.train.batch_size
            rates[program].append(images / (time.monotonic() - started))
    alone = statistics.median(rates[programs[0]])
    print(f"{FLAGS.case} on {jax.devices()[0].device_kind}, batch {config.train.batch_size}\n")
    print("| back-end | runs at once | images/s in all | beside one after another |")
    print("|---|---|---|---|")
    for program in programs:
        rate = statistics.median(rates[program])
        print(f"| {program.backend} | {program.slots} | {rate:.4g} | {rate / alone:.2f} |")


if __name__ == "__main__":
    app.run(main)
