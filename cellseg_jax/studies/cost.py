"""What a study will cost, before it is run: programs, steps, hours on the devices of this machine.

Seconds of a step follow from its FLOPs and the speed of one convolution. That is rough: enough to
distinguish an afternoon from a month. Where more time is given, steps are measured.
"""

import functools
import math
import random
import time
from typing import NamedTuple

from cellseg_jax import config as config_lib
from cellseg_jax import data, models
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.models.flops import forward_flops
from cellseg_jax.report import terminal
from cellseg_jax.step import kept
from cellseg_jax.studies.file import config_of
from cellseg_jax.studies.study import representatives
from cellseg_jax.train import measure

PASSES = 3  # FLOPs of a training step in forward passes: one forward, two backward
TRACED_SIZE = (64, 64)  # pixels at which FLOPs are counted
TYPICAL_GFLOP = 2.0  # of the step that is measured first: below, calls cost more than arithmetic
STEP_RATE_SHARE = 0.4  # of the FLOP rate of one convolution that training steps reach, about
MAX_ROWS = 40  # programs that are printed
SAMPLED = 48  # programs that are built; of a larger study the rest is taken to be alike


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
    costs: list[Cost]  # of the programs that were built
    notes: list[str]


def estimate(study, *, repeats: int, rows=None, smoke: bool = False, measure_seconds: float = 0.0
             ) -> Estimate:
    """The cost of a study of which nothing has been run.

    Args:
      rows: names, all if None.
      measure_seconds: of measuring, compilation included; 0: by FLOPs alone.
    """
    shares = dict.fromkeys(rows, 1) if rows is not None else representatives(study)
    runs = sum(shares.values()) * repeats
    # Of a grid these stand for the programs that it needs, of a table they are its rows.
    chosen, programs = list(shares), len(shares)
    if programs > SAMPLED:
        chosen = random.Random(0).sample(chosen, SAMPLED)
    scale, notes, keys = len(shares) / len(chosen), [], {}
    for row in chosen:
        config = config_of(study, row, 0, smoke=smoke)
        if not derived.is_classical(config):
            program = keys.setdefault(config_lib.program_key(config), [row, config, 0])
            program[2] += shares[row] * repeats
    if scale > 1:
        measure_seconds = 0
        notes.append(f"looked at {len(chosen)} of {programs} programs, chosen at random")
    if not measure_seconds:
        notes.append("seconds of a step follow from those of one convolution, and are rough"
                     + "; --measure=20 measures steps for 20 seconds" * (scale == 1))
    images = _Images(notes)
    found = [(_cost(config, row, count, images), config) for row, config, count in keys.values()]
    costs = _timed(found, measure_seconds)
    hours = scale * sum(c.runs * c.steps * c.seconds for c in costs) / 3600
    return Estimate(round(scale * len(costs)), runs, hours, costs, list(dict.fromkeys(notes)))


class _Images:
    """Samples of an epoch, by the number of files; blank ones that are left out are not known."""

    def __init__(self, notes):
        self.notes, self.counts = notes, {}  # a folder that many rows share is listed once

    def training_samples(self, config) -> int:
        options = config.data
        if options.name == "synthetic":
            return derived.training_samples(config, options.count)
        key = options.to_json()
        if key not in self.counts:
            self.counts[key] = self._listed(options) or self._published(options)
        return derived.training_samples(config, self.counts[key])

    def _listed(self, options) -> int:
        """Images of config.data, without mixed ones; 0 where it cannot be listed."""
        try:
            return len(data.records_of({**options, "mix": (), "blank_images": 0}))
        except InputError:
            return 0

    def _published(self, options) -> int:
        count = data.published(options.name)[0] or 100
        self.notes.append(f"{options.name}: no data at {options.root or 'config.data.root'}; "
                          f"counted as {count} images")
        return count


def _cost(config, row, runs, images) -> Cost:
    samples = images.training_samples(config)
    steps = derived.num_steps(config, max(samples // config.train.batch_size, 1))
    height, width = derived.input_size(config)
    model = {**config.model, "num_outputs": derived.num_outputs(config)}
    flop = _forward_flop_per_pixel(tuple(sorted(model.items())), derived.channels(config))
    return Cost(row, runs, steps, PASSES * flop * height * width
                * config.train.batch_size / 1e9, math.nan, False)


@functools.lru_cache(maxsize=256)
def _forward_flop_per_pixel(model, channels) -> float:
    """At TRACED_SIZE pixels, which are cheap to trace."""
    return kept.number(lambda: _traced_flop_per_pixel(model, channels), "FLOP", model, channels)


def _traced_flop_per_pixel(model, channels) -> float:
    options = dict(model)
    options.pop("dropout", None)
    if "image_size" in options:
        options["image_size"] = TRACED_SIZE
    flops = forward_flops(models.make(**options), (*TRACED_SIZE, channels))
    return flops / math.prod(TRACED_SIZE)


def _timed(found, measure_seconds) -> list[Cost]:
    """The costs with seconds: of typical steps measured while time is left, of others by FLOPs."""
    began, done = time.monotonic(), []
    rate = None if measure_seconds else STEP_RATE_SHARE * measure.convolution_gflop_per_second()
    order = sorted(found, key=lambda pair: abs(math.log((pair[0].gflop + 1e-3) / TYPICAL_GFLOP)))
    for cost, config in order:
        left = measure_seconds - (time.monotonic() - began)
        measured = rate is None or left > 10 * cost.gflop / rate + measure_seconds / 4
        seconds = (measure.measured_step(config) if measured
                   else cost.gflop / rate + measure.CALL_SECONDS)
        rate = rate or cost.gflop / seconds
        done.append(cost._replace(seconds=seconds, measured=measured))
    return done


def print_estimate(study, ahead: Estimate, task: tuple[int, int]) -> None:
    """Print a line per program, the most expensive first, and the sum.

    Args:
      task: (i, n) of --task=i/n, (0, 1) where one task runs the whole study.
    """
    hours = lambda cost: cost.runs * cost.steps * cost.seconds / 3600
    rows = [(c.row, str(c.runs), f"{c.steps:,}", f"{c.gflop:.3g}", f"{c.seconds:.3g}",
             "measured" if c.measured else "by FLOPs", f"{hours(c):.3g}")
            for c in sorted(ahead.costs, key=hours, reverse=True)]
    columns = ("program of row", "runs", "steps", "GFLOP/step", "s/step", "", "hours")
    terminal.print_table(f"{study.title}: the programs", columns, rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        print(f"... and {len(rows) - MAX_ROWS} more")
    for text in ahead.notes:
        terminal.log(text)
    share = f"; a task of {task[1]}: about {_duration(ahead.hours / task[1])}"
    print(f"{ahead.programs:,} programs to compile, {ahead.runs:,} runs, about "
          f"{_duration(ahead.hours)} of training steps on this machine, one run after the other, "
          f"beside compiling and scoring{share if task[1] > 1 else ''}")


def _duration(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
