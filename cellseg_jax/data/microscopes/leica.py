"""LIF files of Leica: liffile describes them, and rows are mapped into memory from their places."""

import numpy as np

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError

IMAGE = "Data/Image/ImageDescription/"
LETTERS = {1: "X", 2: "Y", 3: "Z", 4: "T"}  # by DimID; others are loops, tiles and wavelengths
COLOURS = ("1", "2", "3")  # ChannelTag of red, green and blue


def lif_stacks(path) -> list[Stack]:
    """A stack for each image of a file. Scans without X or Y are left out, with a note.

    Raises: InputError where none is left, or the types of channels differ.
    """
    import liffile  # here: an extra

    with liffile.LifFile(path) as file:
        images = [(image.name, image.is_flim, image.xml_element, image.memory_block)
                  for image in file.images]
    stacks, others = [], []
    for name, is_flim, element, memory in images:
        sizes = {} if is_flim else _dimensions(element)
        if {"X", "Y"} <= sizes.keys():
            stacks.append(_stack(path, name, element, memory, sizes))
        else:
            others.append(name)
    if not stacks:
        raise InputError(f"has no image with axes X and Y ({len(others)} others)")
    if others:
        note = f"{len(others)} of its images are not in X and Y, and left out: {', '.join(others)}"
        first = stacks[0]
        planes = [plane._replace(notes=(note,)) for plane in first.planes]
        stacks[0] = first._replace(planes=planes)
    return stacks


def _dimensions(element) -> dict[str, dict]:
    """{axis: its attributes}; the n-th other axis has the letter Q, R, ..."""
    found = sorted(element.findall(f"{IMAGE}Dimensions/DimensionDescription"),
                   key=lambda one: -int(one.get("BytesInc")))  # the fastest axis last
    others = iter("QRSUVW")
    return {LETTERS.get(int(one.get("DimID"))) or next(others): one.attrib for one in found}


def _stack(path, name, element, memory, sizes) -> Stack:
    channels = [one.attrib for one in element.findall(f"{IMAGE}Channels/ChannelDescription")]
    types = {(int(one["DataType"]), -(-int(one["Resolution"]) // 8)) for one in channels}
    if len(types) != 1:
        raise InputError(f"image {name!r} has channels of different types; export it as OME-TIFF")
    [(kind, width)] = types
    width = 1 << (width - 1).bit_length()  # 12 bit are stored as 16
    dtype = np.dtype(f"<{'uf'[kind]}{width}")
    if sorted(one["ChannelTag"] for one in channels) == list(COLOURS):
        samples = [sorted((one["ChannelTag"], int(one["BytesInc"])) for one in channels)]
    else:
        samples = [[("", int(one["BytesInc"]))] for one in channels]
    loops = {axis: one for axis, one in sizes.items()
             if axis not in "XY" and int(one["NumberOfElements"]) > 1}
    lengths = [int(one["NumberOfElements"]) for one in loops.values()]
    steps = [int(one["BytesInc"]) for one in loops.values()]
    across, down = ((int(sizes[axis]["NumberOfElements"]), int(sizes[axis]["BytesInc"]))
                    for axis in "XY")
    planes = []
    for *place, c in np.ndindex(*lengths, len(samples)):
        start = memory.offset + int(np.dot(place, steps)) if place else memory.offset
        places = [start + offset for _, offset in samples[c]]
        planes.append(_plane(path, places, dtype, (down, across), memory.offset + memory.size))
    axes, counts = "".join(loops), tuple(lengths)
    if len(samples) > 1:
        axes, counts = f"{axes}C", (*counts, len(samples))
    return Stack(axes, counts, planes, _names(element, len(samples)), _pixel_size(sizes))


def _plane(path, places, dtype, down_across, end) -> Plane:
    """A plane of (height, bytes between rows) and (width, bytes between pixels)."""
    (height, row), (width, pixel) = down_across
    last = max(places) + (height - 1) * row + (width - 1) * pixel + dtype.itemsize
    if last > end:
        raise InputError(f"ends {last - end} bytes too early; copy it again from its source")

    def rows(start, stop):
        memory = np.memmap(path, np.uint8, "r")
        return np.stack([np.ndarray((stop - start, width), dtype, memory, place + start * row,
                                    (row, pixel)) for place in places], -1)

    return Plane((height, width, len(places)), dtype, rows, coloured=len(places) == 3)


def _names(element, count) -> tuple[str, ...]:
    """Of the channels: their dyes where the file names each, else the names of their colours."""
    channels = element.findall(f"{IMAGE}Channels/ChannelDescription")
    dyes = [next((one.findtext("Value") for one in channel.iterfind("ChannelProperty")
                  if one.findtext("Key") == "DyeName"), None) for channel in channels]
    for names in (dyes, [channel.get("LUTName") for channel in channels]):
        if len(names) == count and all(names) and len(set(names)) == count:
            return tuple(names)
    return ()


def _pixel_size(sizes):
    """Length is from the centre of the first pixel to that of the last one."""
    steps = []
    for axis in "YX":
        count, length = int(sizes[axis]["NumberOfElements"]), sizes[axis].get("Length", "")
        steps.append(float(length) / (count - 1) if length and count > 1 else None)
    return in_micrometres(*((abs(step) if step else None, sizes[axis].get("Unit"))
                            for step, axis in zip(steps, "YX", strict=True)))
