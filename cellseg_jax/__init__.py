"""Cell segmentation in JAX: a config describes a run, a study is a table of runs.

    run = cellseg_jax.load("runs/NAME")        # a trained run: inference.trained_run.TrainedRun
    label = run.predict(image)
    run = cellseg_jax.train({"train.epochs": 20}, images, labels, workdir="runs/mine")

Nothing is imported before one of these is used: JAX must find its environment set.
"""

import importlib


def __getattr__(name: str):
    if name not in ("load", "train", "__version__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cli = importlib.import_module("cellseg_jax.cli")
    if name == "__version__":
        return cli.version()
    cli.prepare_jax()
    if name == "train":  # the room, which can be called
        return importlib.import_module("cellseg_jax.train")
    return importlib.import_module("cellseg_jax.inference.trained_run").load
