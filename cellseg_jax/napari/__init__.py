"""The napari plugin: a trained run in a viewer, a reader of our outputs, sample data.

napari finds it by `napari.yaml`. Only this room knows of napari, and it imports it inside functions
alone: the package works without.
"""

import os

from cellseg_jax import cli

# Before JAX is imported by whichever command comes first. The viewer draws with the same GPU, so
# JAX takes of its memory only what it needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
cli.prepare_jax()
