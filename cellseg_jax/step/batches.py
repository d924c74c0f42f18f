"""Batches: their layout, and how decoded images reach the devices.

grain gives the rows of each step (data.pipeline). A dataset that fits in device memory is copied to
every device, and the step gathers its rows; else grain streams their pixels. Both give equal
batches.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Integer

from cellseg_jax import targets
from cellseg_jax.config import derived
from cellseg_jax.crops import round_up
from cellseg_jax.data import pipeline
from cellseg_jax.data.cache import Arrays
from cellseg_jax.errors import InputError
from cellseg_jax.step.memory import RESIDENT_SHARE, device_memory
from cellseg_jax.step.mesh import put

PIXELS = ("image", "label", "pixel_weight")  # arrays over the pixels of a sample


# --- the layout of a batch: {name: (shape, dtype)} of one row -----------------------------


def sample_layout(config) -> dict:
    """What a decoded sample is: image, label, range, and with some targets pixel_weight.

    Images of 8 bits; the cache keeps 16 where it must.
    """
    size, channels = derived.input_size(config), derived.channels(config)
    sample = {"image": ((*size, channels), np.uint8), "label": (size, np.int32),
              "range": ((channels, 2), np.float32)}
    if targets.TARGETS[config.data.target].pixel_weight is not None:
        sample["pixel_weight"] = (size, np.float16)
    return sample


def index_layout(config) -> dict:
    """What names a row of resident samples, as data.order gives it: see map_train."""
    rows = {"id": ((), np.int32)}
    if config.data.copies:
        rows["copy"] = ((), np.int32)
    if config.data.fit == "random_crop":
        rows["place"] = ((2,), np.int32)
    return rows


def layout(config) -> dict:
    """What train_step takes: the sample, its weight, and its row but for the place.

    Of images that are augmented before they are cut, a sample has all patches.
    """
    rows = {k: v for k, v in index_layout(config).items() if k != "place"}
    sample = sample_layout(config)
    if config.data.augment_before_grid and config.data.grid > 1:
        sample |= {k: ((config.data.grid**2, *shape), dtype)
                   for k, (shape, dtype) in sample.items() if k in PIXELS}
    return sample | {"weight": ((), np.float32)} | rows


def eval_layout(config, resident: bool) -> dict:
    """What eval_step takes; resident labels keep the type of the cache, most often 16 bits."""
    label = {"label": (derived.input_size(config), np.uint16)} if resident else {}
    return sample_layout(config) | label | {"weight": ((), np.float32)}


def resident_layout(config, count: int, pixels: int) -> "Resident":
    """The Resident of `count` stored images of `pixels` each, whole arrays instead of rows."""
    samples = count * config.data.grid**2
    fitted = {k: ((samples, *shape), dtype)
              for k, (shape, dtype) in eval_layout(config, True).items() if k != "weight"}
    if config.data.fit != "random_crop":
        return Resident(fitted, fitted)
    flat = {k: ((count * pixels, *shape[3:]), dtype)
            for k, (shape, dtype) in fitted.items() if k in PIXELS}
    places = {"offset": ((samples,), np.int32), "size": ((samples, 2), np.int32)}
    return Resident({**flat, **places, "range": fitted["range"]}, fitted)


# --- where the decoded images lie -----------------------------------------------------------------


class Resident(NamedTuple):
    """All decoded samples on every device of a mesh."""

    train: dict  # what step.map_train gathers from
    eval: dict  # image, label, range, maybe pixel_weight of the fitted samples


def resident_source(config, arrays: Arrays, mesh: Mesh) -> Resident | None:
    """All decoded samples on every device of the mesh, or None where they stay on the host.

    Raises: InputError if the device cannot count the pixels.
    """
    flat = arrays.flat if "image" in arrays.flat else {}
    # The device counts pixels in 32 bits: of windows, and of patches that are cut after a warp.
    counted = arrays.label.size if config.data.augment_before_grid else len(flat.get("label", ()))
    countable = counted < 2**31
    if config.data.residence == "host":
        return None
    fits = countable and arrays.nbytes <= RESIDENT_SHARE * device_memory()
    if config.data.residence == "auto" and not fits:
        return None
    if not countable:
        raise InputError("config.data.residence: got 'device', but the images have more than "
                         "2**31 pixels; expected 'host'")
    everywhere = NamedSharding(mesh, P())
    fitted = {"image": arrays.image, "label": arrays.label,
              "range": arrays.range(config.data.normalize)}
    if arrays.pixel_weight is not None:
        fitted["pixel_weight"] = arrays.pixel_weight
    fitted = {k: put(v, everywhere) for k, v in fitted.items()}
    if not flat:
        return Resident(fitted, fitted)
    whole = {**flat, "offset": arrays.offsets.astype(np.int32),
             "size": arrays.flat_sizes.astype(np.int32)}
    whole = {k: put(v, everywhere) for k, v in whole.items()}
    return Resident({**whole, "range": fitted["range"]}, fitted)


def eval_batches(config, arrays: Arrays, indices: Integer[np.ndarray, " n"], mesh: Mesh,
                 resident: Resident | None) -> Iterator[dict]:
    """Batches of eval_layout on the mesh: every index once, padded by rows of weight 0."""
    rows = NamedSharding(mesh, P(("member", "data")))
    size = round_up(config.eval.batch_size, mesh.size)
    if resident is None:
        for batch in pipeline.eval_batches(arrays, indices, normalize=config.data.normalize,
                                           batch_size=size, threads=config.data.threads):
            yield {k: put(v, rows) for k, v in batch.items() if k != "id"}
        return
    for start in range(0, len(indices), size):
        chosen = np.asarray(indices[start : start + size])
        padded = np.resize(chosen, size)
        batch = _gather(resident.eval, put(padded, rows))
        yield {**batch, "weight": put((np.arange(size) < len(chosen)).astype(np.float32), rows)}


@jax.jit
def _gather(source, index):
    return {k: v[index] for k, v in source.items()}


class Batches:
    """The arguments (source, index) of the compiled step for the run in each slot.

    A step that was read already gives the same batch again, so runs may begin and end beside one
    another.

    Args:
      resident: None streams the batches.
    """

    def __init__(self, num_slots: int, resident: Resident | None, mesh: Mesh):
        self.members = [None] * num_slots
        self.resident = resident
        self.sharding = NamedSharding(mesh, P("member", "data"))
        # Processes lie along the batch where members do not spread; else each reads all rows.
        self.by_process = mesh.shape["member"] == 1
        self.streams, self.last = [None] * num_slots, [(-1, None)] * num_slots

    def begin(self, slot: int, member) -> None:
        """Give the slot to a run (train.run.Run): arrays, order, config, step, num_steps."""
        self.members[slot], self.last[slot] = member, (-1, None)
        self.streams[slot] = (self._stream(member) if self.resident is None else
                              pipeline.train_rows(member.order, member.num_steps))

    def next(self, slots) -> tuple[dict, dict | None]:
        """What the step of these slots takes: (source, index) of step.map_train."""
        if self.resident is not None:
            rows = [self._indices(slot) for slot in slots]
            return self.resident.train, {
                k: put(np.stack([r[k] for r in rows]), self.sharding) for k in rows[0]}
        batches = [self._read(slot) for slot in slots]
        stacked = {k: np.stack([batch[k] for batch in batches]) for k in batches[0]}
        return {k: self._put_rows(v) for k, v in stacked.items()}, None

    # An empty slot gets the rows of another slot, and a run that has ended those of its last step:
    # their states do not change.

    def _indices(self, slot):
        slot = next(s for s in (slot, *range(len(self.members))) if self.members[s])
        return self.streams[slot][min(self.members[slot].step, self.members[slot].num_steps - 1)]

    def _read(self, slot):
        member = self.members[slot]
        if member is None:
            return next(batch for _, batch in self.last if batch is not None)
        step, batch = self.last[slot]
        wanted = min(member.step, member.num_steps - 1)
        if step < wanted:  # a run that became non-finite ends at a step before its last batch
            batch = next(self.streams[slot])
            self.last[slot] = (wanted, batch)
        return batch

    def _stream(self, member):
        start = min(member.step, member.num_steps - 1)
        return pipeline.train_batches(
            member.arrays, member.order, normalize=member.config.data.normalize, start=start,
            stop=member.num_steps, rows=self._rows(member.config.train.batch_size),
            threads=member.config.data.threads)

    def _rows(self, batch_size) -> slice:
        """The rows of the global batch that this process reads."""
        if not self.by_process:
            return slice(None)
        share = batch_size // jax.process_count()
        return slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def _put_rows(self, x):
        if not self.by_process:
            return put(x, self.sharding)
        return jax.make_array_from_process_local_data(self.sharding, x)
