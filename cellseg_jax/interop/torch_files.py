"""Files of weights: .npz, .safetensors, and PyTorch's own without running pickled code."""

import json
import pathlib
import pickle
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from cellseg_jax.errors import InputError, pick


def load_weights(path) -> dict[str, np.ndarray]:
    """The state dict in a file: name to numpy array.

    Formats: .npz (np.savez), .safetensors, and .pt or .pth, which need torch. A torch file may
    hold the state dict under "state_dict" or "model"; what is no tensor is left out. Pickled
    code is never run.
    Raises: InputError for a file that is missing, damaged, of another kind or without weights.
    """
    path = pathlib.Path(path)
    read = pick(READERS, path.suffix, f"{path}: file type")
    try:
        arrays = read(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected weights to read") from None
    except InputError:
        raise
    except Exception as error:  # damage, and sizes that fit no memory, raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # of an empty file
        raise InputError(f"{path}: cannot be read as {path.suffix}: {reason}") from error
    if not arrays:
        raise InputError(f"{path}: holds no weights; expected a state dict, name to tensor")
    return arrays


def _read_npz(path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


# Little-endian numbers of safetensors: https://github.com/huggingface/safetensors
SAFE_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}


def _read_safetensors(path) -> dict:
    """Read 8 bytes, the length of a JSON header; types, shapes and offsets; the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < start:
        raise ValueError(f"{len(data)} bytes; expected a header that ends at byte {start}")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        if not 0 <= low <= high <= len(data) - start:
            raise ValueError(f"{name} is at bytes {low} to {high} of {len(data) - start}")
        array = np.frombuffer(data[start + low : start + high], SAFE_TYPES[entry["dtype"]])
        array = array.astype(np.float32) if entry["dtype"] == "BF16" else array
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def _read_torch(path) -> dict:
    try:
        import torch  # of the extra `parity`
    except ImportError:
        raise InputError(
            f"{path}: needs torch; install cellseg_jax[parity], or convert it to .safetensors"
        ) from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"damaged, or not weights alone: save network.state_dict() instead ({error})"
        ) from error
    if not isinstance(held, Mapping):
        raise ValueError(f"holds a {type(held).__name__}; expected a state dict")
    for key in ("state_dict", "model"):
        held = held[key] if isinstance(held.get(key), Mapping) else held
    return {key: to_numpy(value) for key, value in held.items() if isinstance(value, torch.Tensor)}


def to_numpy(value) -> np.ndarray:
    """An array, or a torch tensor on any device, of parameters too; bfloat16 as float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


READERS = {
    ".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch,
}
