"""What the network trains on, as a picture: a wrong augmentation is seen on the first day."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import UInt8

from cellseg_jax import data
from cellseg_jax.data import pipeline
from cellseg_jax.data.order import order_of
from cellseg_jax.report import panels
from cellseg_jax.step import inputs
from cellseg_jax.step.kept import Program
from cellseg_jax.step.spec import Spec, make_spec, traced_values

COUNT, COLUMNS = 12, 6  # pairs on a sheet, and side by side


def augmented_sheet(config, arrays, order, augmented: Callable) -> UInt8[np.ndarray, "h w 3"]:
    """Pairs of training samples, as decoded above and as trained on below.

    The pairs are the first COUNT rows of step 0; windows, augmentation and normalisation are
    the compiled step's, labels are outlined. Both of a pair have one gray scale, in which a
    change of brightness or contrast can be seen.

    Args:
      config: complete.
      arrays: its decoded data (data.load).
      order: data.order.order_of the run.
      augmented: of `augmented_program`, for all runs of one spec.
    """
    rows = {name: x[:COUNT] for name, x in order.rows(0).items()}
    window = config.data.size if "place" in rows else None
    batch = pipeline.take(arrays, rows, config.data.normalize, window)
    made = augmented(config, pipeline.take(
        arrays, rows, config.data.normalize, window, order.whole_images))
    low, high = np.moveaxis(batch["range"][:, None, None], -1, 0)
    shown = low + made["image"] * (high - low)  # in the unit of the decoded images
    before = [panels.overlay(*pair) for pair in zip(batch["image"], batch["label"], strict=True)]
    after = [panels.overlay(*trained) for trained in zip(
        shown, np.asarray(made["label"]), batch["image"], strict=True)]
    tiles, columns = [], min(COLUMNS, len(before))
    for start in range(0, len(before), columns):
        chosen = slice(start, start + columns)
        blank = [np.full_like(before[0], panels.PAPER)] * (columns - len(before[chosen]))
        tiles += [*before[chosen], *blank, *after[chosen], *blank]
    return panels.contact_sheet(tiles, columns)


def preview(config) -> UInt8[np.ndarray, "h w 3"]:
    """The sheet of a run not yet begun, from a few images evenly taken from its data."""
    arrays = data.load_few(config.data, COUNT)
    config = config.copy_and_resolve_references()
    config.train.batch_size = min(COUNT, arrays.num_samples)
    order = order_of(config, arrays, np.arange(arrays.num_samples))
    return augmented_sheet(config, arrays, order, augmented_program(make_spec([config])))


def augmented_program(spec: Spec) -> Callable:
    """augmented(config, batch): the batch as step 0 of the config's run trains on it."""

    cpu = jax.local_devices(backend="cpu")[0]  # whatever the run is on: it is a small program

    def augment(values, batch):
        key = inputs.step_keys(values["seed"], 0)[0]
        return inputs.augmented(spec, spec.hparams(values), key, batch,
                                np.arange(len(batch["id"])))

    made = Program(jax.jit(augment, keep_unused=True), [cpu], "preview", spec)

    def augmented(config, batch):
        with jax.default_device(cpu):
            return jax.device_get(made(traced_values(config, spec), batch))

    return augmented
