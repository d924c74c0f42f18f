"""Labels as NumPy files: .npy with an array, and Cellpose's x_seg.npy.

x_seg.npy is a pickle of a dictionary. It is read without executing it: a name in it becomes an
inert placeholder instead of a class or function, so that nothing of the file runs; the label is
the array "masks" among these.
"""

import io
import pickle

import numpy as np

from cellseg_jax.errors import InputError

NUMBERS = "buif"  # kinds of dtypes
FIX = ("if you trust it: python -c \"import numpy, tifffile; tifffile.imwrite('{}_masks.tif', "
       "numpy.load('{}', allow_pickle=True).item()['masks'])\"")


def read(path) -> np.ndarray:
    """(H, W) numbers of a .npy file.

    Raises: InputError if it cannot be read or holds something else; it says how to convert it.
    """
    try:
        data = path.read_bytes()
        label = _masks(data) if _is_pickled(data) else np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy and pickle raise many types; all mean another file
        fix = FIX.format(str(path)[:-4].removesuffix("_seg"), path)
        raise InputError(f"{path}: cannot be read as an array without unpickling it ({error!r}); "
                         f"convert it, {fix}") from error
    if label.ndim != 2 or label.dtype.kind not in NUMBERS:
        raise InputError(f"{path}: holds {label.dtype} of shape {label.shape}; expected one (H, W) "
                         "label; save each plane by itself")
    return label


def _is_pickled(data: bytes) -> bool:
    file = io.BytesIO(data)
    return _header(file)[2].hasobject


def _header(file):
    """(shape, order, dtype) of an open .npy file, which is left where its content begins."""
    version = np.lib.format.read_magic(file)
    return (np.lib.format.read_array_header_1_0 if version == (1, 0) else
            np.lib.format.read_array_header_2_0)(file)


class _Placeholder:
    """What stands for an instance of any class, or for the result of any call, in a pickle."""

    def __new__(cls, *arguments):
        self = object.__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        """Nothing: what subclasses of list hold is not needed."""

    def extend(self, values):
        """Nothing, as `append`."""


class _Inert(pickle.Unpickler):
    """Reads a pickle, but finds no class and no function: placeholders stand for all of them."""

    def find_class(self, module, name):
        return type(name, (_Placeholder,), {})

    def persistent_load(self, pid):
        return _Placeholder()


def _masks(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    _header(file)
    whole = _Inert(file).load()
    found = whole.state[-1][0]["masks"]
    if type(found).__name__ != "_reconstruct":
        raise ValueError(f"masks is a {type(found).__name__}")
    _, shape, dtype, fortran, raw = found.state
    numbers = np.dtype(dtype.arguments[0]).newbyteorder(dtype.state[1])
    if numbers.kind not in NUMBERS or not isinstance(raw, bytes):
        raise ValueError("masks is no array of numbers")
    return np.frombuffer(raw, numbers).reshape(shape, order="F" if fortran else "C")
