"""A run over the planes of a picture: one after the other, so that it can be stopped between."""

from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from cellseg_jax.config.derived import class_names
from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.scale import believed
from cellseg_jax.errors import InputError
from cellseg_jax.inference.outputs.files import objects
from cellseg_jax.inference.trained_run import as_image, chosen
from cellseg_jax.napari.layers import Picture, check_channels


class Segmented(NamedTuple):
    """What was found in a picture; (..., H, W) is its shape."""

    label: np.ndarray  # (..., H, W) int32 ids, rising from plane to plane
    classes: np.ndarray | None  # (..., H, W) int32, of a run of classes
    features: dict[str, np.ndarray]  # {column: values}, a value per object; `index` is its id
    notes: tuple[str, ...]  # what a user should know


def segmented(run, picture: Picture, options: dict) -> Generator[int, None, Segmented]:
    """Yields how many planes are done; returns what was found.

    Planes are segmented by themselves. Their ids follow one another, so that one table describes
    all: cells are not linked over planes.

    Args:
      run: inference.trained_run.TrainedRun.
      options: of its `predict`.
    Raises: InputError where the run cannot take the picture.
    """
    config = run.config
    channels = options.get("channels") or config.data.get("channel_index", "")
    check_channels(picture, channels)
    names, notes, tables, last = class_names(config), {}, [], 0
    pixel_size = believed(in_micrometres(*picture.pixel_size)) or 0.0
    if config.data.pixel_size and pixel_size and not options.keys() & {"diameter", "scale"}:
        options = options | {"pixel_size": pixel_size}  # as of a file that knows it
    label = np.zeros(picture.shape, np.int32)
    classes = np.zeros_like(label) if names else None
    for done, plane in enumerate(np.ndindex(picture.shape[:-2]), 1):
        pixels = picture.read(plane)
        try:
            found = run.predict(pixels, **options)
            table = run.measure(found, chosen(as_image(pixels), channels).read(),
                                pixel_size=pixel_size)
        except InputError as error:
            what = str(error).removeprefix("image: ")
            raise InputError(f"{picture.name_of(plane)}: {what}") from error
        for note in run.notes:
            notes.setdefault(picture.name_of(plane), note)
        pieces, _ = objects(found, names)
        label[plane] = np.where(pieces, pieces + last, 0)
        if names:
            classes[plane] = found
        tables.append(_numbered(table, plane, last))
        last += int(pieces.max(initial=0))
        yield done
    features = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return Segmented(label, classes, features, _compact(notes))


def _numbered(table: dict[str, list], plane: tuple[int, ...], last: int) -> dict[str, np.ndarray]:
    """The table of one plane, with its ids above `last` and the numbers of the plane."""
    columns = {name: np.asarray(values) for name, values in table.items()}
    ids = columns["id"].astype(np.int64) + last
    where = {f"axis-{axis}": np.full(len(ids), number) for axis, number in enumerate(plane)}
    return {"index": ids, **where, **columns, "id": ids, "label": ids}


def _compact(notes: dict[str, str]) -> tuple[str, ...]:
    """One line, however many planes have a note."""
    if not notes:
        return ()
    (name, first), *others = notes.items()
    more = f" (and {len(others)} other planes)" if others else ""
    return (f"{name}{more}: {first}",)
