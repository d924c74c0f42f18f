"""The widget of the viewer: a run, an image layer, and the labels that the run finds in it."""

import dataclasses
import math
import pathlib
from collections.abc import Generator
from typing import Any, NamedTuple

import cellseg_jax
from cellseg_jax.errors import InputError
from cellseg_jax.napari import layers as layers_lib

NUMBERS = ("diameter", "scale", "threshold")  # options of TrainedRun.predict; 0 leaves them out
OPTIONS = ("channels", *NUMBERS)
AS_TRAINED = "as trained"
LIST_HEIGHT = 110  # pixels, of the list of layers


class Fields(NamedTuple):
    """The parts of the widget, from top to bottom; magicgui's."""

    run: Any  # the folder
    images: Any  # the layers
    channel_axis: Any
    channels: Any  # numbers of those that the run is to take; "": as in the training
    diameter: Any  # of the cells, pixels; 0: as in the training
    scale: Any  # of the image for the network; 0: as in the training
    threshold: Any  # of the probability; 0: that of the run
    start: Any
    cancel: Any
    status: Any  # one line


@dataclasses.dataclass
class Work:
    """One widget at work."""

    viewer: Any
    fields: Fields
    worker: Any = None  # while it runs
    is_open: bool = True


def segment_widget(viewer=None):
    """The widget as a magicgui Container.

    Args:
      viewer: napari.Viewer; None: the one that is open.
    Raises: InputError without napari.
    """
    try:
        import napari  # here: an extra that only the viewer needs
        from magicgui import widgets
    except ImportError as error:
        raise InputError("the viewer needs other packages: pip install 'cellseg_jax[napari]'"
                         ) from error
    viewer = viewer or napari.current_viewer()
    fields = _fields(widgets, viewer, napari.layers.Image)
    container = widgets.Container(widgets=list(fields))
    work = Work(viewer, fields)
    fields.start.changed.connect(lambda _: _start(work))
    fields.cancel.changed.connect(lambda _: _cancel(work))
    container.native.destroyed.connect(lambda _: _closed(work))
    return container


def _fields(widgets, viewer, image_layer: type) -> Fields:
    images = lambda _: [layer for layer in viewer.layers if isinstance(layer, image_layer)]
    fields = Fields(
        widgets.FileEdit(label="run", mode="d", tooltip="the folder of a trained run, runs/NAME"),
        widgets.Select(label="image", choices=images, tooltip="one layer; or several (with Ctrl), "
                       "which are channels of one image, from top to bottom"),
        widgets.ComboBox(label="channel axis", choices=layers_lib.CHANNEL_AXES,
                         tooltip="which axis of the layer holds channels, from 0; all others but "
                         "the last two are planes. By its name: called channel or c"),
        widgets.LineEdit(label="channels", tooltip="numbers from 0 of the channels that the run is "
                         "to take, such as 1 or 0,2; empty: those of its training"),
        widgets.FloatSpinBox(label="diameter", max=10_000, tooltip="of the cells in the image, "
                             "pixels; the image is brought to the scale of the training"),
        widgets.FloatSpinBox(label="scale", max=100, step=0.1, tooltip="that the network sees "
                             "the image at, 1 being its own; in place of the diameter"),
        widgets.FloatSpinBox(label="threshold", max=1, step=0.05, tooltip="of the probability "
                             "from which a pixel is of a cell"),
        widgets.PushButton(text="Segment"),
        widgets.PushButton(text="Cancel"),
        widgets.Label(value="choose a run and an image"))
    if fields.images.choices:
        fields.images.value = [fields.images.choices[-1]]
    fields.channels.native.setPlaceholderText(AS_TRAINED)
    for name in NUMBERS:
        getattr(fields, name).native.setSpecialValueText(AS_TRAINED)  # in place of 0
    fields.images.native.setMaximumHeight(LIST_HEIGHT)
    fields.status.native.setWordWrap(True)
    fields.cancel.enabled = False
    return fields


def _start(work: Work) -> None:
    """Begin to segment what is chosen, in a thread of its own."""
    from napari.qt.threading import create_worker  # here: an extra that only the viewer needs

    fields, chosen = work.fields, list(work.fields.images.value)
    try:
        folder = _chosen_run(fields.run.value)
        picture = layers_lib.picture_of([layer for layer in work.viewer.layers if layer in chosen],
                                        fields.channel_axis.value)
    except InputError as error:
        _failed(work, str(error))
        return
    options = {name: getattr(fields, name).value for name in OPTIONS if getattr(fields, name).value}
    total = math.prod(picture.shape[:-2])
    worker = create_worker(_segment, folder, picture, options, _start_thread=False,
                           _progress={"total": total, "desc": f"segmenting {picture.name}"})
    worker.yielded.connect(lambda done: _say(work, f"segmented {done} of {total} planes"))
    worker.returned.connect(lambda found: _add(work, folder.name, picture, found))
    worker.errored.connect(lambda error: _say(work, f"failed: {error}"))
    worker.aborted.connect(lambda: _say(work, "cancelled: no labels are added"))
    worker.finished.connect(lambda: _set_running(work, None))
    _set_running(work, worker)
    _say(work, f"loading {folder.name}; its first image compiles the network")
    worker.start()


def _chosen_run(folder: pathlib.Path) -> pathlib.Path:
    if folder in (None, pathlib.Path()):
        raise InputError("run: no folder is chosen; expected that of a trained run, such as "
                         "runs/NAME")
    return folder


def _segment(folder: pathlib.Path, picture, options: dict) -> Generator:
    """Yields the number of planes done; returns planes.Segmented, or what is wrong as one line.

    A returned exception would be raised by the worker.
    """
    try:
        run = cellseg_jax.load(folder)
        from cellseg_jax.napari import planes  # JAX takes seconds: in the thread, the window reacts

        return (yield from planes.segmented(run, picture, options))
    except InputError as error:
        return str(error).removeprefix("workdir: ")


def _add(work: Work, run_name: str, picture, found) -> None:
    """Show what was found."""
    if isinstance(found, str):
        _failed(work, found)
        return
    from napari.utils import notifications  # here: an extra that only the viewer needs

    name = f"{picture.name} {run_name}"
    if found.classes is not None:
        work.viewer.add_labels(found.classes, name=f"{name} classes", **picture.place)
    work.viewer.add_labels(found.label, name=name, features=found.features, **picture.place)
    planes = "x".join(map(str, picture.shape[:-2]))
    over = f" in {planes} planes, not linked over planes" if planes else ""
    channels = f"{picture.channels} channel{'s' * (picture.channels > 1)}"
    _say(work, f"{len(found.features['index'])} objects{over}; image of {channels}"
         + "".join(f". Note: {note}" for note in found.notes))
    for note in found.notes:
        notifications.show_warning(note)


def _failed(work: Work, text: str) -> None:
    """One line, in the widget and as a notification."""
    from napari.utils import notifications  # here: an extra that only the viewer needs

    _say(work, text)
    notifications.show_error(text)


def _say(work: Work, text: str) -> None:
    if work.is_open:
        work.fields.status.value = text


def _set_running(work: Work, worker) -> None:
    work.worker = worker
    if work.is_open:
        work.fields.start.enabled, work.fields.cancel.enabled = not worker, bool(worker)


def _cancel(work: Work) -> None:
    work.worker.quit()
    _say(work, "stops after this plane")


def _closed(work: Work) -> None:
    """The widget is gone, and with it the reason to go on."""
    work.is_open = False
    if work.worker:
        work.worker.quit()
