"""Training: `train.train(configs, workdirs)`; called itself, `cellseg_jax.train(settings, ...)`."""

import importlib
import sys
import types


class _Callable(types.ModuleType):
    """A module that is a function too: `cellseg_jax.train` is both."""

    def __call__(self, *args, **options):
        return importlib.import_module(f"{__name__}.from_arrays").train_run(*args, **options)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str):
    """`train`, imported when it is used: an estimate of a study trains nothing."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.loop").train
