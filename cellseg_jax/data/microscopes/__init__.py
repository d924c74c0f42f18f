"""Files of microscopes, each read by a package of the extra `microscopes`.

A reader gives the stacks of a file, as those of a TIFF (`data.stacks`); several scenes (positions,
series) are several stacks. LSM, QPTIFF and MicroManager files are TIFFs and not read here.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from cellseg_jax.data.microscopes.imaris import imaris_stacks
from cellseg_jax.data.microscopes.leica import lif_stacks
from cellseg_jax.data.microscopes.nikon import nd2_stacks
from cellseg_jax.data.microscopes.olympus import OIF_FOLDER, oif_stacks
from cellseg_jax.data.microscopes.zeiss import czi_stacks
from cellseg_jax.data.stacks import Stack
from cellseg_jax.errors import InputError


class Reader(NamedTuple):
    """One format."""

    name: str
    package: str  # to install
    stacks: Callable[[pathlib.Path], list[Stack]]


READERS = {
    ".czi": Reader("CZI (Zeiss)", "pylibCZIrw", czi_stacks),
    ".ims": Reader("IMS (Imaris)", "h5py", imaris_stacks),
    ".lif": Reader("LIF (Leica)", "liffile", lif_stacks),
    ".nd2": Reader("ND2 (Nikon)", "nd2", nd2_stacks),
    ".oib": Reader("OIB (Olympus)", "oiffile", oif_stacks),
    ".oif": Reader("OIF (Olympus)", "oiffile", oif_stacks),
}


def microscope_stacks(path) -> list[Stack]:
    """The stacks of a file whose suffix is one of READERS; pixels are read on demand.

    Raises: InputError where the package that reads it is missing. Damaged files raise whatever the
      package raises.
    """
    path = pathlib.Path(path)
    reader = READERS[path.suffix.lower()]
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        return reader.stacks(path)
    except ModuleNotFoundError as error:
        raise InputError(f"{reader.name} needs the package {reader.package}, which is missing: "
                         "pip install 'cellseg_jax[microscopes]'") from error
