"""Files of weights that are damaged, or made to take memory or to run code: one line each."""

import io
import json
import struct
import time
import zipfile

import numpy as np
from faults.table import Fault

from cellseg_jax.errors import InputError
from cellseg_jax.interop.torch_files import load_weights

WEIGHTS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.ones(4)}


class Harmless:
    """An object of code, which an unpickler would have to make."""

    made = []

    def __init__(self):
        self.made.append(1)

    def __reduce__(self):
        return Harmless, ()


def npz(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def declared(shape):
    """An .npz whose array declares a shape that its data do not have."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {
        "descr": "<f4", "fortran_order": False, "shape": shape})
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(16))
    return data.getvalue()


def safetensors(header, data=bytes(48), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} | changes}


NPZ, SAFE = npz(**WEIGHTS), safetensors(entry())
FILES = (
    *(("npz", NPZ[: len(NPZ) * n // 8]) for n in range(8)),
    *(("npz", NPZ[: 40 + 37 * n] + bytes([NPZ[40 + 37 * n] ^ 255]) + NPZ[41 + 37 * n :])
      for n in range(4)),
    ("npz", npz(a=np.array([Harmless()], object))), ("npz", declared((10**12,))),
    ("npz", declared((10**6, 10**6, 10**6))), ("npz", declared((-1,))), ("npz", npz()),
    ("npz", b"PK" + bytes(100)), ("npz", b"\x80\x04."),
    *(("safetensors", SAFE[: len(SAFE) * n // 6]) for n in range(6)),
    *(("safetensors", safetensors(header)) for header in (
        [], 5, "x", {"a": 5}, {"a": None}, {}, entry(dtype="F33"), entry(dtype=[]),
        entry(shape=[10**9, 10**9]), entry(shape="x"), entry(shape=[-1, -1]),
        entry(data_offsets=[0, 10**15]), entry(data_offsets=[40, 8]), entry(data_offsets=[-48, -1]),
        entry(data_offsets=["a", "b"]), entry(data_offsets=5), b"{", b"[" * 10**5)),
    ("safetensors", safetensors(entry(), length=2**63)),
    ("safetensors", safetensors(entry(), length=10**6)),
    *((suffix, content) for suffix in ("pt", "pth") for content in (
        b"", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(50), b"cbuiltins\nprint\n(S'x'\ntR.")),
)


def weights_file(place, number):
    suffix, content = FILES[number]
    path = place / f"w.{suffix}"
    path.write_bytes(content)
    made, began = len(Harmless.made), time.monotonic()
    try:
        found = load_weights(path)
    except InputError as error:
        assert str(path) in str(error)
    else:  # a flipped bit where nothing is read, such as in a date
        assert suffix == "npz" and all(np.array_equal(found[k], v) for k, v in WEIGHTS.items())
    assert len(Harmless.made) == made and time.monotonic() - began < 30


FAULTS = (
    Fault("a file of weights that is damaged or holds code", "train.weights",
          "one line; no code is run", weights_file, len(FILES), 0),
)
