"""The stack of an OME-Zarr image (NGFF 0.4 in Zarr v2, 0.5 in v3) at its full resolution."""

import numpy as np

from cellseg_jax.data.micrometres import in_micrometres
from cellseg_jax.data.stacks import Plane, Stack
from cellseg_jax.errors import InputError


def is_zarr(path) -> bool:
    """Whether a path looks like the folder of an OME-Zarr image."""
    return path.is_dir() and (path.suffix.lower() == ".zarr" or (path / "zarr.json").exists()
                              or (path / ".zattrs").exists())


def zarr_stack(path) -> Stack:
    """The stack of an OME-Zarr folder; its pixels are read chunk by chunk.

    Raises: InputError where the folder is no image, or the package zarr is missing.
    """
    try:
        import zarr  # here: an extra that only OME-Zarr needs
    except ImportError as error:
        raise InputError("OME-Zarr needs another package: pip install zarr") from error
    try:
        # A consolidated summary may be older than the arrays beside it.
        group = zarr.open_group(path, mode="r", use_consolidated=False)
    except FileNotFoundError as error:
        raise InputError("has no Zarr group; expected the folder of an OME-Zarr image") from error
    attributes = group.attrs.asdict()
    attributes = attributes.get("ome", attributes)
    multiscales = attributes.get("multiscales")
    if not multiscales:
        inside = ", ".join(sorted(name for name, _ in group.groups())[:5])
        raise InputError("has no multiscales as an OME-Zarr image has; expected one"
                         + (f": is it one of {inside} inside?" if inside else ""))
    level = multiscales[0]["datasets"][0]
    array = group[level["path"]]
    described = [{"name": axis} if isinstance(axis, str) else axis for axis in
                 multiscales[0].get("axes", "tczyx"[-array.ndim :])]
    axes = [axis["name"] for axis in described]
    if axes[-2:] != ["y", "x"]:
        raise InputError(f"its axes are {axes}; expected y and x last")
    if array.dtype.kind not in "buif":
        raise InputError(f"pixels are {array.dtype}; expected 8 or 16 bit integers")

    def plane(index):
        return Plane((*array.shape[-2:], 1), np.dtype(array.dtype),
                     lambda start, stop: array[(*index, slice(start, stop))][..., None])

    planes = [plane(index) for index in np.ndindex(*array.shape[:-2])]
    letters = "".join(map(_letter, described[:-2]))
    return Stack(letters, array.shape[:-2], planes, _names(attributes),
                 _pixel_size(multiscales[0], level))


def _letter(axis: dict) -> str:
    """Of an axis by its type, which may have any name, or by its name; Q of others."""
    letters = {"channel": "C", "time": "T", "space": "Z", "c": "C", "t": "T", "z": "Z"}
    return letters.get(axis.get("type")) or letters.get(axis["name"].lower(), "Q")


def _names(attributes) -> tuple[str, ...]:
    channels = (attributes.get("omero") or {}).get("channels", ())
    names = [channel.get("label") for channel in channels]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()


def _pixel_size(multiscale, level):
    units = [axis.get("unit") if isinstance(axis, dict) else None
             for axis in multiscale.get("axes", ())][-2:]
    try:
        scales = [np.asarray(transform["scale"][-2:], float) for part in (multiscale, level)
                  for transform in part.get("coordinateTransformations", ())
                  if "scale" in transform]
        sizes = np.prod(scales, 0) if scales else None
    except (TypeError, ValueError):  # the pixels are good all the same
        sizes = (np.nan, np.nan)
    if len(units) < 2 or np.shape(sizes) != (2,):
        return None
    return in_micrometres(*zip(sizes, units, strict=True))
