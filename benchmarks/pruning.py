"""A pruning map in one program beside pruned networks scored one by one, in seconds per copy.

    python benchmarks/run.py pruning [--size=64] [--channels=8,16,32] [--images=64] [--levels=3]

The network is report 2's U-Net with those channels, its weights and images random. One by one is
what a loop over layers does: variables of its own for each copy, made on the device, and the
scores of one batch after the other fetched.
"""

import types

import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.measuring import Result, Table, in_turns, median, times_faster
from cellseg_jax import config as config_lib
from cellseg_jax.analysis.pruner import Pruner, SplitImages
from cellseg_jax.analysis.pruning import chosen_layers
from cellseg_jax.inference.measure import measure as scores_of
from cellseg_jax.pruning import counts, prune
from cellseg_jax.step.eval_step import map_eval
from cellseg_jax.step.mesh import all_devices, put
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.train.slot_states import init_program

OPTIONS = {
    "size": (64, "side of the images, pixels"),
    "channels": ([8, 16, 32, 64, 128], "of the U-Net, per level"),
    "images": (64, "that each copy is scored on"),
    "levels": (3, "sparsities of each layer"),
    "rounds": (5, "turns"),
}


def measure(options) -> Result:
    config = config_lib.load("configs/ebhi_unet.py", [
        ("data.size", f"({options.size}, {options.size})"),
        ("model.channels", str(tuple(options.channels)))])
    predictor = made_up_predictor(config)
    part = made_up_part(config, options.images, predictor.network.mesh)
    layers = chosen_layers(config, "conv")
    pruner = Pruner(predictor, layers, part)
    ranks = pruner.ranks("random_layers", seed=0)
    gone = np.zeros((options.levels * len(layers), len(layers)), np.int32)
    for n, layer in enumerate(layers):
        rows = slice(n * options.levels, (n + 1) * options.levels)
        gone[rows, n] = counts(int(np.prod(layer.shape)), 0.25, options.levels)

    network = predictor.network

    def one_by_one():
        found = []
        for copy in gone:
            n = int(np.argmax(copy))
            path = layers[n].kernel
            params = prune(network.variables["params"], {path: ranks[path]},
                           {path: int(copy[n])})
            found.append(scores_of(
                network.eval_step, network.values, {**network.variables, "params": params},
                part.batches()).main(config))
        return [np.stack(c) for c in zip(*found, strict=True)]

    ways = {"one by one": one_by_one,
            "one program": lambda: pruner.score(ranks, gone, width=len(gone))}
    slow, fast = (way() for way in ways.values())
    for a, b in zip(slow, fast, strict=True):  # a pixel at the threshold may fall on either side
        np.testing.assert_allclose(a, b, atol=1e-3 * options.size**2)
    seconds = in_turns(ways, options.rounds, warm=0)
    rows = [[name, 1e3 * median(own) / len(gone), times_faster(own, seconds["one by one"])]
            for name, own in seconds.items()]
    return Result([Table(["way", "ms per pruned copy", "times as fast"], rows)],
                  [f"{len(layers)} layers x {options.levels} levels, {options.images} images of "
                   f"{options.size}x{options.size}; one program: {pruner.how}."])


def made_up_predictor(config):
    """What scoring needs of a Predictor, with the weights of step 0."""
    spec, mesh = make_spec([config]), all_devices()
    init = init_program(spec, (*config.data.size, 3), NamedSharding(mesh, P()))
    state = init(traced_values(config, spec))
    return types.SimpleNamespace(config=config, network=types.SimpleNamespace(
        spec=spec, mesh=mesh,
        variables={"params": state.params, "batch_stats": state.batch_stats},
        values={k: v for k, v in state.values.items() if k.startswith("loss.")},
        eval_step=map_eval(spec, mesh, config.eval.threshold)))


def made_up_part(config, n, mesh) -> SplitImages:
    """n random images in batches of eval.batch_size, on the devices."""
    random = np.random.default_rng(0)
    whole = {"image": random.integers(0, 256, (n, *config.data.size, 3), np.uint8),
             "label": random.integers(0, 2, (n, *config.data.size), np.int32),
             "range": np.tile(np.float32([0, 255]), (n, 3, 1)),
             "weight": np.ones(n, np.float32)}
    rows = NamedSharding(mesh, P(("member", "data")))
    batches = [{k: put(v[i : i + config.eval.batch_size], rows) for k, v in whole.items()}
               for i in range(0, n, config.eval.batch_size)]
    return SplitImages(types.SimpleNamespace(grid=1), np.arange(n), lambda: batches)
