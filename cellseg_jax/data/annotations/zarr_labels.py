"""Labels in Zarr: an array (napari), an OME-Zarr label image, or the labels of an OME-Zarr image.

The full resolution is read, whatever a consolidated summary says, since it may be older than the
arrays. Axes before y and x must have length 1.
"""

import numpy as np

from cellseg_jax.errors import InputError


def read(path, name: str = "") -> np.ndarray:
    """(H, W) integers of a Zarr folder.

    Args:
      name: of the label, where an image has several.
    Raises: InputError if there is no label, several and no name, or a stack.
    """
    try:
        import zarr  # here: an extra that only Zarr needs
    except ImportError as error:
        raise InputError(f"{path}: Zarr needs another package: pip install 'cellseg_jax[zarr]'"
                         ) from error
    try:
        array = _array(path, zarr, name)
        label = array[(0,) * (array.ndim - 2)] if set(array.shape[:-2]) <= {1} else None
    except InputError:
        raise
    except Exception as error:  # zarr raises many types; all of them mean a damaged folder
        raise InputError(f"{path}: cannot be read as Zarr ({error!r})") from error
    if label is None or label.ndim != 2:
        raise InputError(f"{path}: its label has the shape {array.shape}; expected one plane (y, x)"
                         ", export each plane by itself")
    return np.asarray(label)


def _array(path, zarr, name):
    try:
        group = zarr.open_group(path, mode="r", use_consolidated=False)
    except (FileNotFoundError, ValueError):  # a folder without a group: of an array
        return zarr.open_array(path, mode="r")
    if (path / "labels").is_dir():  # without a group of its own, too
        names = sorted(one.name for one in (path / "labels").iterdir()
                       if (one / "zarr.json").exists() or (one / ".zgroup").exists())
        if name not in names and (name or len(names) != 1):
            raise InputError(f"{path}: has the labels {', '.join(names) or '(none)'}; choose one, "
                             "such as config.data.annotations=zarr:NAME")
        group = zarr.open_group(path / "labels" / (name or names[0]), mode="r",
                                use_consolidated=False)
    attributes = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise InputError(f"{path}: has no labels and no multiscales; expected an OME-Zarr image "
                         "with labels, or a label image")
    return group[multiscales[0]["datasets"][0]["path"]]
