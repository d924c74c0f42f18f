"""Weights from PyTorch, and networks for other programs."""

from cellseg_jax.interop.torch_files import load_weights
from cellseg_jax.interop.torch_weights import from_torch

__all__ = ["from_torch", "load_weights"]
