"""Shapes in annotations: jaxtyping and beartype check them while tests run, at no cost later."""

import contextlib

import jaxtyping
from beartype import BeartypeConf, beartype

# step.state is not among them: the leaves of a TrainState may be shapes or arrays of the host.
ROOMS = ("augment", "classical", "crops", "losses", "metrics", "models", "optim", "pruning",
         "random_bits", "step.batches", "step.eval_step", "step.inputs", "step.mapped", "step.mesh",
         "step.programs", "step.spec", "step.train_step", "targets")
check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, too


def install() -> None:
    """Check every call of the functions of ROOMS; before the package is imported."""
    rooms = [f"cellseg_jax.{room}" for room in ROOMS]
    jaxtyping.install_import_hook(rooms, f"{__name__}.check")


@contextlib.contextmanager
def unchecked():
    """Annotations mean nothing here, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
