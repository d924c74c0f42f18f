"""Training: `train(configs, workdirs)`."""

from cellseg_jax.train.loop import train
from cellseg_jax.train.run import Result

__all__ = ["Result", "train"]
