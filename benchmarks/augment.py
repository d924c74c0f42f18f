"""What augmenting costs: the train step of configs/quickstart.py with and without, in turns.

    python benchmarks/run.py augment

All augmentations of a row are applied to every image. The step is that of every run: it gathers
the images, augments, normalises and trains. "alone" is the same augmentation of the same batch
without a network. The aim is less than 15 % of the step for all warps together.
"""

import pathlib

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.measuring import Result, Table, in_turns, median, times_faster
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
OPTIONS = {
    "cases": (["none", "whole pixels", "all but elastic", "elastic", "all geometric",
               "all colour"], "the first is what the others are compared with; all: "
              + ", ".join(CASES)),
    "rounds": (25, "turns"),
    "size": (0, "pixels per side; 0: quickstart's"),
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


def measure(options) -> Result:
    config = config_lib.load(str(QUICKSTART))
    batch, size = config.train.batch_size, config.data.size
    size = (options.size, options.size) if options.size else size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, *size, derived.channels(config))).astype(np.uint8)
    source = {"image": image, "label": (image[..., 0] > 127).astype(np.uint16),
              "range": np.broadcast_to(np.array([0, 255], np.float32), (*image.shape[::3], 2))}
    runs = {}
    for case in options.cases:
        runs[case, "step"] = make_step(CASES[case], config, source)
        if CASES[case]:
            runs[case, "alone"] = make_alone(CASES[case], source)
    seconds = in_turns(runs, options.rounds)
    plain = seconds[options.cases[0], "step"]
    rows = []
    for case in options.cases:
        step, alone = seconds[case, "step"], seconds.get((case, "alone"))
        rows.append([case, 1e3 * median(step), 100 * (1 / times_faster(step, plain) - 1),
                     *([1e3 * median(alone), 100 * median(alone) / median(plain)] if alone
                       else [None, None])])
    head = ["augmentation", "step, ms", "more, %", "alone, ms", "alone, % of a step"]
    return Result([Table(head, rows)], [f"Batch {image.shape}, {options.rounds} rounds."])
