"""One training step of our networks and of torch's on this machine, in turns.

    python benchmarks/run.py train_step [--cases=unet_128,unet_512] [--rounds=15]

A step is forward, Dice-focal loss, gradient and Adam, in float32; ours also gathers and normalises
the uint8 images, which torch's gets normalised. MONAI's networks stand beside unet and unetr; the
torch networks of tests/reference, written from the papers, beside the others. Dropout is 0.2 where
MONAI has it, else 0.

Each side is a process of its own, as users have it: ours as commands start, with large pages; the
same with XLA's own convolutions where oneDNN's were taken; and torch with a thread per core. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment torch has large pages too. A side that
waits for its turn uses no core. Ratios are of wall time and of CPU time: torch's threads wait
busily for one another under load, which wall time shows.
"""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
from cellseg_jax import config as config_lib
from cellseg_jax.cli import huge_pages
from cellseg_jax.models import onednn
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import Spec, make_spec, traced_values
from cellseg_jax.step.state import TrainState, init_state


class Case(NamedTuple):
    """A network of ours, an image size and a batch; torch_networks has torch's of that name."""

    model: dict
    size: int
    batch: int


CASES = {
    "unet_128": Case(dict(name="unet"), 128, 16),
    "unet_512": Case(dict(name="unet"), 512, 4),
    "unetr_128": Case(dict(name="unetr", image_size=0), 128, 4),
    "unet_classic_128": Case(dict(name="unet_classic"), 128, 4),
    "small_unet_64": Case(dict(name="small_unet", dropout=0.0), 64, 44),
    "unet_add_64": Case(dict(name="unet_add", dropout=0.0), 64, 16),
    "simple_conv_64": Case(dict(name="simple_conv"), 64, 16),
    "segnet_128": Case(dict(name="segnet"), 128, 4),
    "medt_128": Case(dict(name="medt"), 128, 2),
    "unet_plan_128": Case(dict(name="unet_plan", deep_supervision=False), 128, 2),
    "segformer_128": Case(dict(name="segformer", drop_path=0.0, dropout=0.0), 128, 8),
}
OPTIONS = {"cases": (list(CASES), "networks"), "rounds": (15, "turns")}


class Program(NamedTuple):
    """A train step and what it takes."""

    spec: Spec
    step: Callable  # (state, source, index) -> (state, out)
    state: TrainState
    source: dict
    index: dict


def our_program(case: Case, image, label, precision: str = "float32") -> Program:
    """The step of every run, of a case, for images that lie on the device."""
    config = config_lib.default()
    config.data.size = (case.size, case.size)
    config.data.channels = "rgb"
    config.model = case.model
    config.train.precision = precision
    config = config_lib.complete(config)
    spec = make_spec([config])
    values = traced_values(config, spec, 100)
    values["num_steps"] = np.int32(2**30)  # it never ends
    mesh = default_mesh(1, len(image))
    rows = NamedSharding(mesh, P("member", "data"))
    state = jax.jit(lambda v: init_state(spec, v, image.shape[1:]))(values)
    state = jax.device_put(jax.tree.map(lambda x: x[None], state), NamedSharding(mesh, P("member")))
    range_ = np.broadcast_to(np.array([0, 255], np.float32), (len(image), 3, 2))
    source = {"image": image, "label": label, "range": range_}
    source = jax.device_put(source, NamedSharding(mesh, P()))
    index = jax.device_put({"id": np.arange(len(image), dtype=np.int32)[None]}, rows)
    return Program(spec, map_train(spec, mesh, "unroll"), state, source, index)


def our_step(program: Program) -> Callable:
    """A function that trains so many steps and waits for the last; its loss."""
    state = program.state

    def run(steps: int = 1) -> float:
        nonlocal state
        for _ in range(steps):
            state, out = program.step(state, program.source, program.index)
        jax.block_until_ready(state)
        return float(out["loss"][0])

    return run


def made_up(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 and labels (N, H, W) uint16, the same on every side."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (case.batch, case.size, case.size, 3)).astype(np.uint8)
    return image, (image[..., 0] > 127).astype(np.uint16)


def work(name: str, side: str) -> None:
    """A side in its process: a step for each line of stdin, and a line of JSON for each step."""
    case = CASES[name]
    if side == "torch":
        from benchmarks.torch_networks import torch_step  # torch is in no other side's process

        run = torch_step(name, *made_up(case))
    else:
        run = our_step(our_program(case, *made_up(case)))
    serve(lambda: timed(run))


def side_of(name: str, side: str) -> Side:
    """The process of one side of a case."""
    environment = os.environ | ({} if side == "torch" else huge_pages.wanted())
    environment |= {onednn.SWITCH: "off"} if side == "xla" else {}
    return Side(["benchmarks.train_step", name, side], environment)


def steps_of(name: str, sides, rounds: int) -> dict:
    """{side: [Sample, ...]} of steps in turns."""
    running = {side: side_of(name, side) for side in sides}
    try:
        return in_turns(running, rounds, clock=Side.step)
    finally:
        for process in running.values():
            process.close()


def measure(options) -> Result:
    sides = ("ours", *(["xla"] if onednn.status().ready else []), "torch")
    rows, found = [], {}
    for name in options.cases:
        seconds = found[name] = steps_of(name, sides, options.rounds)
        theirs = seconds["torch"]
        rows.append([name, CASES[name].batch / median(theirs),
                     *(times_faster(seconds[side], theirs, clock) for side in sides[:-1]
                       for clock in Sample._fields), os.getloadavg()[0]])
        print(*rows[-1], file=sys.stderr)
    columns = [f"{side}, {clock}" for side in sides[:-1] for clock in Sample._fields]
    return Result([Table(["case", "torch, images/s", *columns, "load"], rows)],
                  [f"Times as fast as torch. Convolutions of ours: {onednn.status().text}."], found)


if __name__ == "__main__":  # the process of one side
    work(*sys.argv[1:])
