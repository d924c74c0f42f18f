"""CZI files of Zeiss, read by pylibCZIrw: scenes, mosaics, and the first level of pyramids."""

from xml.etree import ElementTree

import numpy as np

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError

# pixel type -> (type, samples); pylibCZIrw reads no others
TYPES = {"Gray8": ("u1", 1), "Gray16": ("u2", 1), "Gray32Float": ("f4", 1), "Bgr24": ("u1", 3),
         "Bgr48": ("u2", 3), "Bgr96Float": ("f4", 3)}


def czi_stacks(path) -> list[Stack]:
    """A stack for each scene; what no tile of a mosaic covers is 0."""
    from pylibCZIrw import czi  # here: an extra

    with czi.open_czi(str(path)) as file:
        box = file.total_bounding_box_no_pyramid
        sizes = {axis: end for axis, (_, end) in box.items()
                 if axis not in "XY" and (end > 1 or axis == "C")}
        types = [file.get_channel_pixel_type(channel) for channel in range(sizes["C"])]
        areas = file.scenes_bounding_rectangle_no_pyramid or {
            None: file.total_bounding_rectangle_no_pyramid}
        root = ElementTree.fromstring(file.raw_metadata)
        tiles = []
        file.enumerate_subblocks_subset(
            lambda _, tile: tiles.append(tile.coordinate.to_dict()) or True, only_layer0=True)
    unknown = sorted(set(types) - set(TYPES))
    if unknown:
        raise InputError(f"its pixels are {', '.join(unknown)}; expected {', '.join(TYPES)}")
    places = list(np.ndindex(*sizes.values()))
    there = {(tile.get("S"), *(tile.get(axis, 0) for axis in sizes)) for tile in tiles}
    for scene, place in ((scene, place) for scene in areas for place in places):
        if (scene, *place) not in there:  # it would be read as zeros
            at = ", ".join(f"{axis} {n}" for axis, n in zip(sizes, place, strict=True))
            raise InputError(f"lacks the plane {at}{'' if scene is None else f' of scene {scene}'} "
                             "(was its acquisition ended early?); export the rest as OME-TIFF")
    names, pixel_size = _names(root, sizes["C"]), _pixel_size(root)
    return [Stack("".join(sizes), tuple(sizes.values()),
                  [_plane(path, scene, area, dict(zip(sizes, place, strict=True)), types)
                   for place in places], names, pixel_size) for scene, area in areas.items()]


def _plane(path, scene, area, place, types) -> Plane:
    left, top, width, height = area
    dtype, samples = TYPES[types[place["C"]]]

    def rows(start, stop):
        from pylibCZIrw import czi  # here: an extra

        with czi.open_czi(str(path)) as file:
            band = file.read((left, top + start, width, stop - start), place, scene)
            return np.array(band[..., ::-1])  # blue, green, red

    return Plane((height, width, samples), np.dtype(dtype), rows, coloured=samples == 3)


def _names(root, count) -> tuple[str, ...]:
    """Of the channels, as Zen shows them, else as the image has them."""
    for where in ("DisplaySetting", "Information/Image/Dimensions"):
        names = [one.get("Name") for one in root.iterfind(f".//{where}/Channels/Channel")]
        if len(names) == count and all(names) and len(set(names)) == count:
            return tuple(names)
    return ()


def _pixel_size(root):
    values = {one.get("Id"): one.findtext("Value")
              for one in root.iterfind(".//Scaling/Items/Distance")}
    return in_micrometres((values.get("Y"), "m"), (values.get("X"), "m"))
