"""Training: `train(configs, workdirs)`; called itself, `cellseg_jax.train(settings, ...)`."""

import sys
import types

from cellseg_jax.train.from_arrays import train_run
from cellseg_jax.train.loop import train
from cellseg_jax.train.run import Result

__all__ = ["Result", "train", "train_run"]


class _Callable(types.ModuleType):
    """A module that is a function too: `cellseg_jax.train` is both."""

    def __call__(self, *args, **options):
        return train_run(*args, **options)


sys.modules[__name__].__class__ = _Callable
