"""Convolutions of oneDNN for float32 on a CPU, called by XLA's foreign function interface.

XLA's gradients of convolutions cost a CPU more than all else in a step. oneDNN is in the extra
`cpu` (Linux on x86-64), and onednn.cc is compiled once against the headers of the installed
jaxlib. What is missing or does not compute right is said by `status`, and XLA's convolutions stay.
A handler written in Python needs no compiler, but a call in flight when the process ends waits for
the interpreter forever.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import math
import os
import pathlib
import re
import subprocess
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jaxtyping import Array, Float

from cellseg_jax import files

PACKAGE = "onednn-cpu-gomp"
SWITCH = "CELLSEG_ONEDNN"  # an environment variable; "off" leaves XLA's convolutions
SOURCES = tuple(pathlib.Path(__file__).with_name(name) for name in ("onednn.cc", "winograd.h"))
TARGET = "cellseg_onednn"
FORWARD, IMAGE_GRADIENT, KERNEL_GRADIENT = range(3)  # of onednn.cc
Pads = tuple[tuple[int, int], tuple[int, int]]
_disabled = contextvars.ContextVar("disabled", default=False)


class Status(NamedTuple):
    """Whether oneDNN's convolutions are used, and which ones are, in words."""

    ready: bool
    text: str


class Unavailable(Exception):
    """Why oneDNN's convolutions are not used."""


@functools.cache
def status() -> Status:
    """Found, built, registered and checked at the first call of the process."""
    try:
        if os.environ.get(SWITCH) == "off":
            raise Unavailable(f"{SWITCH}=off")
        if jax.default_backend() != "cpu":
            raise Unavailable("the devices are no CPU")
        library = _library()
        handler = ctypes.CDLL(str(_built(library)))
        jax.ffi.register_ffi_target(
            TARGET, jax.ffi.pycapsule(handler.cellseg_convolve), platform="cpu")
        _check()
    except Unavailable as reason:
        return Status(False, f"XLA ({reason})")
    return Status(True, f"oneDNN ({PACKAGE} {metadata.version(PACKAGE)})")


@contextlib.contextmanager
def disabled():
    """What is traced within has XLA's convolutions alone: for files that other programs read."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def is_disabled() -> bool:
    """Whether what is traced now has XLA's convolutions alone."""
    return _disabled.get()


def usable(image, kernel) -> bool:
    """Whether these functions take the arrays, which may be traced."""
    return (image.dtype == kernel.dtype == jnp.float32
            and all(isinstance(n, int) and n for n in (*image.shape, *kernel.shape))
            and not is_disabled() and status().ready)


def forward(
    image: Float[Array, "n h w c"], kernel: Float[Array, "u v c k"], shape, stride: int,
    pads: Pads,
) -> Float[Array, "n _ _ k"]:
    """The convolution, of this shape; zeros of `pads`, ((low, high), (low, high)), around it."""
    return _call(FORWARD, image, kernel, shape, stride, pads)


def image_gradient(
    cotangent: Float[Array, "n p q k"], kernel: Float[Array, "u v c k"], shape, stride: int,
    pads: Pads,
) -> Float[Array, "n h w c"]:
    """The gradient with respect to the image, which has this shape."""
    return _call(IMAGE_GRADIENT, cotangent, kernel, shape, stride, pads)


def kernel_gradient(
    image: Float[Array, "n h w c"], cotangent: Float[Array, "n p q k"], shape, stride: int,
    pads: Pads,
) -> Float[Array, "u v c k"]:
    """The gradient with respect to the kernel, which has this shape."""
    return _call(KERNEL_GRADIENT, image, cotangent, shape, stride, pads)


def _call(kind, first, second, shape, stride, pads):
    like = jax.typeof(first)  # both vary over the same axes of a mesh
    sharding = like.sharding if like.manual_axis_type.varying else None
    result = jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=sharding, manual_axis_type=like.manual_axis_type)
    (top, bottom), (left, right) = pads
    return jax.ffi.ffi_call(TARGET, result, vmap_method="expand_dims")(
        first, second, kind=np.int64(kind), stride=np.int64(stride),
        pads=np.array([top, left, bottom, right], np.int64))


def flops(program: str) -> float:
    """Of all calls in the text of a compiled program, beyond the -1 that XLA counts for each.

    Each pixel of the output, or of its gradient, is multiplied once with each number of the
    kernel, or of its gradient.
    """
    return float(sum(_flops_of(line) + 1 for line in program.splitlines()
                     if f'custom_call_target="{TARGET}"' in line))


def _flops_of(line: str) -> int:
    shapes = [[int(n) for n in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", line)]
    kind = int(re.search(r"kind = (\d+)", line)[1])
    result, first, second = shapes[:3]
    kernel = {FORWARD: second, IMAGE_GRADIENT: second, KERNEL_GRADIENT: result}[kind]
    output = {FORWARD: result, IMAGE_GRADIENT: first, KERNEL_GRADIENT: second}[kind]
    members = math.prod(result[:-4])
    return 2 * members * math.prod(output[-4:-1]) * math.prod(kernel[-4:])


def _library() -> pathlib.Path:
    """The shared library of the package."""
    try:
        listed = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise Unavailable("pip install cellseg_jax[cpu] for faster ones") from None
    found = [path.locate() for path in listed if path.name == "libdnnl.so.3"]
    if not found or not pathlib.Path(found[0]).exists():
        raise Unavailable(f"{PACKAGE} has no libdnnl.so.3 here")
    return pathlib.Path(found[0]).resolve()


def _built(library: pathlib.Path) -> pathlib.Path:
    """onednn.cc as a shared library, compiled where it was not before."""
    headers = jax.ffi.include_dir()
    made_of = [*(path.read_text() for path in SOURCES), jaxlib.__version__, str(library), headers]
    key = hashlib.blake2b("\n".join(made_of).encode(), digest_size=12).hexdigest()
    path = files.user_cache() / f"onednn-{key}.so"
    if path.exists():
        return path
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-w", "-shared", "-fPIC",
               f"-I{headers}", str(SOURCES[0]), str(library), f"-Wl,-rpath,{library.parent}"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(path) as part:
            for threads in (["-fopenmp"], []):  # without, oneDNN's own are used
                done = subprocess.run(
                    [*command, *threads, "-o", str(part)], capture_output=True, text=True)
                if not done.returncode:
                    break
            else:
                why = [line for line in done.stderr.splitlines() if "error" in line] or [""]
                raise Unavailable(f"{SOURCES[0].name} does not compile: {why[0][:200]}")
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot build {SOURCES[0].name}: {error}") from None
    return path


def _check() -> None:
    """One convolution and its gradients on whole numbers, which float32 adds without error."""
    rng = np.random.default_rng(0)
    image, kernel, cotangent = (rng.integers(-4, 5, shape).astype(np.float32) for shape in (
        (2, 5, 6, 3), (3, 3, 3, 4), (2, 5, 6, 4)))
    pads = ((1, 1), (1, 1))

    def all_three(x, k, y):
        return (forward(x, k, y.shape, 1, pads), image_gradient(y, k, x.shape, 1, pads),
                kernel_gradient(x, y, k.shape, 1, pads))

    def patches(array):
        padded = np.pad(array, ((0, 0), *pads, (0, 0)))
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))

    want = (np.einsum("nhwcuv,uvck->nhwk", patches(image), kernel),
            np.einsum("nhwkuv,uvck->nhwc", patches(cotangent), kernel[::-1, ::-1]),
            np.einsum("nhwcuv,nhwk->uvck", patches(image), cotangent))
    try:
        with jax.ensure_compile_time_eval():
            got = jax.jit(all_three)(image, kernel, cotangent)
            right = all(map(np.array_equal, got, want))
    except jax.errors.JaxRuntimeError as error:
        raise Unavailable(f"oneDNN does not run: {str(error).splitlines()[0][:200]}") from None
    if not right:
        raise Unavailable("oneDNN computes another result here")
