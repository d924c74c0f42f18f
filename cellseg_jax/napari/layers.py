"""What layers of a viewer hold: 2-D images of some channels, and where their labels lie.

    picture = picture_of([layer])            # a layer with its axes (..., Y, X), gray or rgb
    picture = picture_of([dapi, gfp])        # the channels of one image, in this order
    picture.read((3,))                       # (H, W, C) pixels of plane 3

Nothing here needs napari: a layer is anything with the attributes of its image layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax.errors import InputError

BY_NAME, NONE, LAST = "by its name", "none", "last"  # which axis of a layer holds channels
CHANNEL_AXES = (BY_NAME, NONE, "0", "1", "2", LAST)
CHANNEL_NAMES = ("c", "channel", "channels")


class Picture(NamedTuple):
    """The image, or the planes of a stack, that one or several layers hold."""

    name: str
    shape: tuple[int, ...]  # of the label: planes, then height and width
    channels: int
    kind: str  # rgb | channels (of an axis) | layers (each is a channel) | gray
    read: Callable[[tuple[int, ...]], np.ndarray]  # numbers of a plane -> (H, W, C) pixels
    place: dict  # scale, translate, ... that lay the label over the image
    pixel_size: tuple[tuple[float, str], ...]  # height and width of a pixel, each with its unit

    def name_of(self, plane: tuple[int, ...]) -> str:
        """Name of a plane for messages."""
        return f"{self.name}, plane {', '.join(map(str, plane))}" if plane else self.name


def picture_of(layers, channel_axis: str = BY_NAME) -> Picture:
    """What is segmented of some image layers: one, or several that are channels of one image.

    Args:
      layers: of napari, or alike.
      channel_axis: of CHANNEL_AXES, of one layer that is not rgb.
    Raises: InputError where the layers make no image.
    """
    if not layers:
        raise InputError("image: no layer is chosen; open an image and click on its name in the "
                         "list")
    pictures = [_picture(layer, channel_axis if len(layers) == 1 else NONE) for layer in layers]
    first = pictures[0]
    for picture in pictures[1:]:
        if picture.shape != first.shape:
            raise InputError(f"layers {first.name} and {picture.name} have sizes {first.shape} and "
                             f"{picture.shape}; expected equal ones, as channels of one image")
        if not np.allclose(picture.place["scale"], first.place["scale"]):
            raise InputError(f"layers {first.name} and {picture.name} have different scales; "
                             "expected channels of one image")
    if len(pictures) == 1:
        return first
    coloured = [picture.name for picture in pictures if picture.channels > 1]
    if coloured:
        raise InputError(f"layer {coloured[0]} is rgb; as one of several layers it would be one "
                         "channel: choose it alone, or split it (right-click, Split RGB)")
    return first._replace(
        name=" + ".join(picture.name for picture in pictures), channels=len(pictures),
        kind="layers",
        read=lambda plane: np.concatenate([one.read(plane) for one in pictures], -1))


def _picture(layer, channel_axis: str) -> Picture:
    """Of one layer."""
    data = layer.data[0] if layer.multiscale else layer.data  # a pyramid's full resolution
    axes = list(range(len(data.shape) - bool(layer.rgb)))  # without that of red, green and blue
    channel = None if layer.rgb else _channel_axis(layer, channel_axis, len(axes))
    kept = [axis for axis in axes if axis != channel]
    if len(kept) < 2:
        raise InputError(f"layer {layer.name}: has axes {data.shape}, one of them channels; "
                         "expected height and width too")
    *leading, _, _ = kept
    last = len(data.shape) - 1 if layer.rgb else channel

    def read(plane):
        index = [slice(None)] * len(data.shape)
        for axis, number in zip(leading, plane, strict=True):
            index[axis] = number
        pixels = np.asarray(data[tuple(index)])
        if last is None:
            return pixels[..., None]
        return np.moveaxis(pixels, sum(axis < last for axis in kept[-2:]), -1)

    return Picture(layer.name, tuple(int(data.shape[axis]) for axis in kept),
                   1 if last is None else int(data.shape[last]),
                   "rgb" if layer.rgb else "gray" if channel is None else "channels",
                   read, _place(layer, kept),
                   tuple((float(layer.scale[axis]), str(layer.units[axis])) for axis in kept[-2:]))


def _channel_axis(layer, chosen: str, ndim: int) -> int | None:
    """The number of the axis with channels; None where there is none."""
    if chosen == NONE:
        return None
    if chosen == BY_NAME:
        names = [str(name).lower() for name in layer.axis_labels]
        return next((n for n, name in enumerate(names) if name in CHANNEL_NAMES), None)
    axis = ndim - 1 if chosen == LAST else int(chosen)
    if axis >= ndim:
        raise InputError(f"channel axis: got {chosen}; layer {layer.name} has axes 0 to {ndim - 1}")
    return axis


def _place(layer, kept) -> dict:
    """The arguments that lay another layer, with some of the axes alone, over a layer."""
    ndim, inside = len(layer.scale), np.ix_(kept, kept)
    shear = np.asarray(layer.shear)
    if shear.ndim == 1:  # what is above the diagonal
        above, shear = shear, np.eye(ndim)
        shear[np.triu_indices(ndim, 1)] = above
    affine = np.asarray(getattr(layer.affine, "affine_matrix", layer.affine))
    return {"scale": np.asarray(layer.scale)[kept], "translate": np.asarray(layer.translate)[kept],
            "rotate": np.asarray(layer.rotate)[inside], "shear": shear[inside],
            "affine": affine[np.ix_([*kept, ndim], [*kept, ndim])],
            "units": tuple(layer.units[axis] for axis in kept),
            "axis_labels": tuple(layer.axis_labels[axis] for axis in kept)}


def check_channels(picture: Picture, chosen: str) -> None:
    """InputError where nobody said which of many channels a run is to take.

    Args:
      chosen: those that the run was trained on or a user named; "" where it takes gray or RGB.
    """
    if chosen or picture.channels in (1, 3) or picture.kind == "rgb":
        return
    raise InputError(f"{picture.name}: has {picture.channels} channels; the run takes gray or RGB: "
                     "name one or three in the field channels, such as 0 for the first, or choose "
                     "the layer of one")
