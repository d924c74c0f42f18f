"""What augmenting costs: the train step of configs/quickstart.py with and without, in turns.

    python benchmarks/augment.py

All augmentations of a row are applied to every image. The step is that of every run: it gathers
the images, augments, normalises and trains. "alone" is the same augmentation of the same batch
without a network. One after the other, so that other load on the machine meets all alike;
medians are printed. The aim is less than 15 % of the step for all warps together.
"""

import argparse
import os
import pathlib
import time

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cellseg_jax import augment
from cellseg_jax import config as config_lib
from cellseg_jax.config import derived
from cellseg_jax.step.mapped import map_train
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state

QUICKSTART = pathlib.Path(__file__).resolve().parent.parent / "configs" / "quickstart.py"
STRENGTHS = {"turn": 3.0, "rotation": 30.0, "shear": 5.0, "shift": 0.1, "elastic": 60.0}
CASES = {
    "none": (),
    "whole pixels": augment.WHOLE_PIXEL,
    "all but elastic": [name for name in augment.GEOMETRIC if name != "elastic"],
    "elastic": ("elastic",),
    "all geometric": augment.GEOMETRIC,
    "all colour": augment.INTENSITY,
    **{name: (name,) for name in augment.INTENSITY},
}


def pairs(names):
    """{name: (probability, strength)}: always applied."""
    rest = {name: 1.0 if name in augment.WHOLE_PIXEL else 0.2 for name in names}
    return {name: (1.0, STRENGTHS.get(name, strength)) for name, strength in rest.items()}


def make_step(names, config, source):
    """A function of nothing that trains one step and waits for it."""
    config = config.copy_and_resolve_references()
    for name in augment.AUGMENTATIONS:
        config.augment[name] = (0.0, 1.0)
    config.augment.update(pairs(names))
    spec = make_spec([config])
    values = traced_values(config, spec, 100)
    batch = len(source["image"])
    mesh = default_mesh(1, batch)
    state = jax.jit(lambda v: init_state(spec, v, source["image"].shape[1:]))(values)
    state = jax.device_put(jax.tree.map(lambda x: x[None], state), NamedSharding(mesh, P("member")))
    source = jax.device_put(source, NamedSharding(mesh, P()))
    rows = NamedSharding(mesh, P("member", "data"))
    index = jax.device_put({"id": np.arange(batch, dtype=np.int32)[None]}, rows)
    compiled = map_train(spec, mesh, "unroll")

    def run():
        nonlocal state
        state, _ = compiled(state, source, index)
        jax.block_until_ready(state)

    return run


def make_alone(names, source):
    """A function of nothing that augments the batch and waits for it."""
    @jax.jit
    def augmented(keys, image, label, settings):
        def one(key, image, label):
            if not set(names) & set(augment.GEOMETRIC):
                return augment.intensity(key, image, settings)
            return augment.warp(key, {"image": image, "label": label}, settings)
        return jax.vmap(one)(keys, image, label)

    keys = jax.random.split(jax.random.key(0), len(source["image"]))
    image = source["image"]
    if set(names) <= set(augment.INTENSITY):
        image = image.astype(np.float32) / 255
    arguments = jax.device_put((keys, image, source["label"], pairs(names)))
    return lambda: jax.block_until_ready(augmented(*arguments))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", default="none,whole pixels,all but elastic,elastic,"
                        "all geometric,all colour", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--size", type=int, default=0, help="pixels per side; 0: quickstart's")
    args = parser.parse_args()
    cases = args.cases.split(",")
    config = config_lib.load(str(QUICKSTART))
    batch, size = config.train.batch_size, config.data.size
    size = (args.size, args.size) if args.size else size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, *size, derived.channels(config))).astype(np.uint8)
    source = {"image": image, "label": (image[..., 0] > 127).astype(np.uint16),
              "range": np.broadcast_to(np.array([0, 255], np.float32), (*image.shape[::3], 2))}
    runs = {}
    for case in cases:
        runs[case, "step"] = make_step(CASES[case], config, source)
        if CASES[case]:
            runs[case, "alone"] = make_alone(CASES[case], source)
    for run in list(runs.values()) * 2:  # compile, allocate
        run()
    seconds = {which: [] for which in runs}
    for _ in range(args.rounds):
        for which, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[which].append(time.perf_counter() - start)
    plain = np.median(seconds[cases[0], "step"])
    print(f"batch {image.shape}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}, median of {args.rounds} rounds")
    print(f"{'augmentation':20}{'step ms':>9}{'more':>8}{'alone ms':>10}{'of step':>9}")
    for case in cases:
        ours = np.array(seconds[case, "step"])
        more = np.median(ours / seconds[cases[0], "step"]) - 1  # of neighbours in time
        alone = np.median(seconds.get((case, "alone"), 0))
        print(f"{case:20}{np.median(ours) * 1e3:9.1f}{more:8.1%}{alone * 1e3:10.2f}"
              f"{alone / plain:9.1%}")


if __name__ == "__main__":
    main()
