"""IMS files of Imaris (5.5, HDF5), read by h5py at their full resolution."""

import math

import numpy as np

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError

LEVEL = "DataSet/ResolutionLevel 0"


def imaris_stacks(path) -> list[Stack]:
    """The stack of a file, TCZYX where it has several times, channels and slices."""
    import h5py  # here: an extra

    with h5py.File(path, "r") as file:
        if LEVEL not in file or "DataSetInfo/Image" not in file:
            raise InputError(f"has no {LEVEL} or no DataSetInfo/Image; expected a file of Imaris "
                             "5.5 or later, save it with a newer Imaris")
        info = file["DataSetInfo/Image"].attrs
        width, height, depth = (int(_text(info, axis)) for axis in "XYZ")  # Data is padded
        times, channels = (_count(file[group], name) for group, name in (
            (LEVEL, "TimePoint"), (f"{LEVEL}/TimePoint 0", "Channel")))
        names = [_text(file[f"DataSetInfo/Channel {c}"].attrs, "Name")
                 if f"DataSetInfo/Channel {c}" in file else "" for c in range(channels)]
        types = [file[_data(0, c)].dtype for c in range(channels)]
        for t, c in np.ndindex(times, channels):
            shape = file[_data(t, c)].shape
            if any(have < want for have, want in zip(shape, (depth, height, width), strict=True)):
                raise InputError(f"TimePoint {t}, Channel {c} has {shape}; expected at least "
                                 f"{(depth, height, width)}, export it again")
        ends = [[float(_text(info, f"Ext{end}{axis}") or math.nan) for axis in (1, 0)]
                for end in ("Min", "Max")]
        unit = _text(info, "Unit")
    pixel_size = in_micrometres(*((abs(high - low) / length, unit) for low, high, length in
                                  zip(*ends, (height, width), strict=True)))
    named = all(names) and len(set(names)) == channels
    sizes = {axis: length for axis, length in (("T", times), ("C", channels), ("Z", depth))
             if length > 1}
    planes = [_plane(path, t, c, z, (height, width, 1), types[c])
              for t, c, z in np.ndindex(times, channels, depth)]
    return [Stack("".join(sizes), tuple(sizes.values()), planes, tuple(names) if named else (),
                  pixel_size)]


def _plane(path, time, channel, slice_, shape, dtype) -> Plane:
    def rows(start, stop):
        import h5py  # here: an extra

        with h5py.File(path, "r") as file:
            return file[_data(time, channel)][slice_, start:stop, : shape[1]][..., None]

    return Plane(shape, np.dtype(dtype), rows)


def _data(time, channel) -> str:
    return f"{LEVEL}/TimePoint {time}/Channel {channel}/Data"


def _count(group, name) -> int:
    return sum(key.startswith(f"{name} ") for key in group)


def _text(attributes, name) -> str:
    """An attribute, which Imaris writes as an array of single letters; "" if it is not there."""
    value = attributes.get(name, "")
    return b"".join(np.ravel(value)).decode("utf-8", "replace") if isinstance(
        value, np.ndarray) else str(value)
