"""ND2 files of Nikon, read by nd2: positions of the stage are images of their own."""

import numpy as np

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError

POSITION = "P"


def nd2_stacks(path) -> list[Stack]:
    """A stack for each position of the stage."""
    import nd2  # here: an extra

    with nd2.ND2File(path) as file:
        loops = {axis: length for axis, length in file.sizes.items() if axis not in "CYXS"}
        size, dtype, channels = file.attributes, file.dtype, file.metadata.channels or ()
        count = size.channelCount or 1
        names = tuple(one.channel.name for one in channels)
        calibrated = channels and all(channels[0].volume.axesCalibrated[:2])
        width_um, height_um = channels[0].volume.axesCalibration[:2] if calibrated else (None,) * 2
    samples = size.componentCount // count
    shape = (count, size.heightPx, size.widthPx, samples)
    lengths = list(loops.values())
    frames = np.arange(int(np.prod(lengths))).reshape(lengths)
    place = list(loops).index(POSITION) if POSITION in loops else None
    axes = "".join(axis for axis in loops if axis != POSITION)
    positions = [frames] if place is None else np.moveaxis(frames, place, 0)
    named = len(names) == count and all(names) and len(set(names)) == count
    stacks = []
    for chosen in positions:
        planes = [_plane(path, int(frame), channel, shape, dtype)
                  for frame in chosen.ravel() for channel in range(count)]
        sizes = chosen.shape + (count,) * (count > 1)
        stacks.append(Stack(axes + "C" * (count > 1), sizes, planes, names if named else (),
                            in_micrometres((height_um, "um"), (width_um, "um"))))
    return stacks


def _plane(path, frame, channel, shape, dtype) -> Plane:
    _, height, width, samples = shape

    def rows(start, stop):
        import nd2  # here: an extra

        with nd2.ND2File(path) as file:
            pixels = file.read_frame(frame).reshape(shape)
            if not pixels.any():  # so nd2 reads what is not there
                raise InputError(f"lacks frame {frame}, or all of it is 0 (was its acquisition "
                                 "ended early, or its copy?); copy it again, or export the rest "
                                 "as OME-TIFF")
            return np.array(pixels[channel, start:stop])

    return Plane((height, width, samples), np.dtype(dtype), rows, coloured=samples == 3)
