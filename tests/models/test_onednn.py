"""oneDNN's convolutions: XLA's values and gradients everywhere, and nothing of them elsewhere."""

import os
import re
import signal
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cellseg_jax.interop.stablehlo import to_stablehlo
from cellseg_jax.models import onednn
from cellseg_jax.models.conv import Conv, convolution, plain_convolution
from cellseg_jax.step import memory

needs_onednn = pytest.mark.skipif(
    not onednn.status().ready, reason=f"convolutions are of {onednn.status().text}")
GEOMETRIES = {  # sizes of image and kernel, and the rest
    "3x3": ((9, 8), (3, 3, 4, 5), dict(pads=((1, 1), (1, 1)))),
    "1x1": ((5, 4), (1, 1, 4, 5), dict(pads=((0, 0), (0, 0)))),
    "even": ((5, 4), (2, 2, 3, 5), dict(pads=((0, 1), (0, 1)))),
    "rectangle": ((7, 9), (1, 3, 3, 5), dict(pads=((0, 0), (1, 1)))),
    "wide": ((12, 11), (3, 3, 128, 130), dict(pads=((1, 1), (1, 1)))),
    "few pixels": ((6, 4), (3, 3, 128, 130), dict(pads=((1, 1), (1, 1)))),
    "odd": ((23, 9), (3, 3, 24, 27), dict(pads=((0, 3), (2, 1)))),
    "large": ((25, 40), (3, 3, 16, 17), dict(pads=((1, 1), (1, 1)))),
    "4x4": ((23, 17), (4, 4, 24, 27), dict(pads=((1, 2), (1, 2)))),
    "4x4 odd": ((16, 29), (4, 4, 25, 48), dict(pads=((0, 3), (3, 1)))),
    "large even": ((24, 26), (2, 2, 65, 130), dict(pads=((0, 1), (1, 0)))),
    "large 5x3": ((30, 28), (5, 3, 20, 18), dict(pads=((0, 2), (0, 0)))),
    "stride": ((9, 8), (3, 3, 4, 5), dict(stride=2, pads=((1, 1), (1, 1)))),
    "stride 1x1": ((8, 7), (1, 1, 4, 5), dict(stride=2, pads=((0, 0), (0, 0)))),
    "up": ((4, 5), (3, 3, 4, 5), dict(dilation=2, pads=((1, 2), (1, 2)))),
    "up 2x2": ((4, 5), (2, 2, 4, 5), dict(dilation=2, pads=((1, 1), (1, 1)))),
    "up cut": ((4, 5), (3, 3, 4, 5), dict(dilation=2, pads=((2, 1), (2, 1)))),
}


def arrays(case, *leading, dtype=np.float32):
    size, shape, geometry = GEOMETRIES[case]
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=(*leading, *shape)).astype(dtype)
    fan_in = np.float32(np.prod(shape[:3]))
    return normal(2, *size, shape[2]), normal(*shape) / np.sqrt(fan_in).astype(dtype), geometry


def loss_and_gradients(form, geometry):
    geometry = dict(stride=1, dilation=1) | geometry
    loss = lambda image, kernel: jnp.sin(form(image, kernel, **geometry)).sum()
    return jax.value_and_grad(loss, argnums=(0, 1))


def exact(image, kernel, geometry):
    """Loss and gradients of lax's convolution in float64."""
    with jax.enable_x64(True):
        wide = (jnp.asarray(x, jnp.float64) for x in (image, kernel))
        return jax.tree.map(np.asarray, loss_and_gradients(plain_convolution, geometry)(*wide))


def assert_close(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(1, np.abs(other).max()))


def calls(function, *arguments):
    """How many convolutions of oneDNN the program has."""
    return jax.jit(function).lower(*arguments).as_text().count(f"@{onednn.TARGET}(")


@needs_onednn
@pytest.mark.parametrize("case", GEOMETRIES)
def test_values_and_gradients_are_those_of_lax(case):
    image, kernel, geometry = arrays(case)
    ours = loss_and_gradients(convolution, geometry)
    assert calls(ours, image, kernel) == 3
    assert_close(jax.jit(ours)(image, kernel), exact(image, kernel, geometry))


@needs_onednn
@pytest.mark.parametrize("case", ["3x3", "odd", "stride", "up"])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_members_are_computed_one_by_one(case, axes):
    images, kernels, geometry = arrays(case, 3)
    one = [x if axis == 0 else x[0] for x, axis in zip((images, kernels), axes, strict=True)]
    got = jax.jit(jax.vmap(loss_and_gradients(convolution, geometry), in_axes=axes))(*one)
    want = [exact(*(x[m if axis == 0 else 0] for x, axis in zip((images, kernels), axes,
                                                                  strict=True)), geometry)
            for m in range(3)]
    assert_close(got, jax.tree.map(lambda *leaves: np.stack(leaves), *want))


@needs_onednn
def test_members_of_members():
    images, kernels, geometry = arrays("3x3", 2, 3)
    inner = jax.vmap(loss_and_gradients(convolution, geometry), in_axes=(0, None))
    got = jax.jit(jax.vmap(inner))(images, kernels[:, 0])
    want = [[exact(images[i, j], kernels[i, 0], geometry) for j in range(3)] for i in range(2)]
    rows = [jax.tree.map(lambda *leaves: np.stack(leaves), *row) for row in want]
    assert_close(got, jax.tree.map(lambda *leaves: np.stack(leaves), *rows))


@needs_onednn
@pytest.mark.parametrize("case", ["3x3", "up"])
def test_same_over_eight_devices_and_in_a_scan(case):
    size, shape, geometry = GEOMETRIES[case]
    rng = np.random.default_rng(0)
    image = rng.normal(size=(8, *size, shape[2])).astype(np.float32)
    kernel = rng.normal(size=shape).astype(np.float32)

    def step(image, kernel):
        def loss(image, kernel):
            form = partial(convolution, **geometry)
            one = lambda total, row: (total + jnp.sin(form(row[None], kernel)).sum(), None)
            start = jax.lax.pcast(jnp.float32(0), "data", to="varying")
            return jax.lax.psum(jax.lax.scan(one, start, image)[0], "data")

        return jax.value_and_grad(loss, argnums=(0, 1))(image, kernel)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P("data"), P()),
                           out_specs=(P(), (P("data"), P())))
    for _ in range(5):  # devices call at the same time
        assert_close(jax.jit(mapped)(image, kernel), exact(image, kernel, geometry))


@needs_onednn
@pytest.mark.parametrize("case", ["wide", "odd", "large even"])
def test_two_runs_are_equal_bit_for_bit(case):
    image, kernel, geometry = arrays(case)
    step = jax.jit(loss_and_gradients(convolution, geometry))
    first = step(image, kernel)
    for _ in range(100):
        assert all(map(np.array_equal, jax.tree.leaves(step(image, kernel)),
                       jax.tree.leaves(first)))


@needs_onednn
def test_operations_are_counted_as_xla_counts_its_own():
    image, kernel, _ = arrays("wide")
    geometry = dict(stride=1, dilation=1, pads=((0, 0), (0, 0)))
    compiled = [jax.jit(partial(form, **geometry)).lower(image, kernel).compile()
                for form in (convolution, plain_convolution)]
    assert memory.flops(compiled[0]) == memory.flops(compiled[1]) == 2 * 2 * 10 * 9 * 9 * 128 * 130


@needs_onednn
@pytest.mark.parametrize("change", ["dtype", "disabled", "stride and dilation"])
def test_others_are_xlas(change):
    image, kernel, geometry = arrays("3x3", dtype=np.float16 if change == "dtype" else np.float32)
    if change == "stride and dilation":
        geometry = geometry | dict(stride=2, dilation=2)
    ours = loss_and_gradients(convolution, geometry)
    if change != "disabled":
        assert calls(ours, image, kernel) == 0
        return
    assert calls(ours, image, kernel) == 3
    with onednn.disabled():
        assert calls(loss_and_gradients(convolution, geometry), image, kernel) == 0


def test_exported_programs_need_no_onednn():
    pytest.importorskip("flatbuffers", reason="of the extra export")
    conv = Conv(3)
    variables = conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    program = to_stablehlo(partial(conv.apply, variables), (1, 8, 8, 2))
    assert onednn.TARGET.encode() not in program.data
    image = jnp.ones((2, 8, 8, 2))
    got = jax.export.deserialize(bytearray(program.data)).call(image)
    np.testing.assert_allclose(got, conv.apply(variables, image), atol=1e-6)


@needs_onednn
@pytest.mark.parametrize(("fault", "reason"), [
    ("switched off", "CELLSEG_ONEDNN=off"),
    ("not installed", r"pip install cellseg_jax\[cpu\]"),
    ("no compiler", "no-such-compiler cannot build onednn.cc"),
    ("does not compile", "onednn.cc does not compile: .*error"),
    ("computes wrongly", "oneDNN computes another result here"),
])
def test_what_is_missing_is_said_and_xla_computes(fault, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if fault == "switched off":
        monkeypatch.setenv(onednn.SWITCH, "off")
    if fault == "not installed":
        monkeypatch.setattr(onednn, "PACKAGE", "no-such-package")
    if fault == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    if fault == "does not compile":
        (tmp_path / "onednn.cc").write_text("int f() { return 1 }\n")
        monkeypatch.setattr(onednn, "SOURCES", [tmp_path / "onednn.cc"])
    if fault == "computes wrongly":
        monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *args, **options: None)
        monkeypatch.setattr(onednn, "forward", lambda *args: onednn._call(0, *args) + 1)
    found = onednn.status.__wrapped__()
    assert not found.ready and found.text.startswith("XLA (")
    assert re.search(reason, found.text), found.text


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_convolutions_by_products_of_matrices(threads):
    """As with AVX2, for which oneDNN's own are slower, on any processor."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__,
               "-k", "lax or bit"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": threads}).stdout
    assert f"{len(GEOMETRIES) + 3} passed" in out, out[-500:]


PROGRAM = """
import sys, time
import jax, jax.numpy as jnp
from cellseg_jax import cli
cli.prepare_jax()
from cellseg_jax.models import onednn
from cellseg_jax.models.conv import convolution
assert onednn.status().ready
kernel = jnp.full((3, 3, 32, 32), 1e-3)
@jax.jit
def run(image, kernel):
    once = lambda i, x: convolution(x, kernel, pads=((1, 1), (1, 1)))
    return jax.lax.fori_loop(0, int(sys.argv[1]), once, image).sum()
image = jnp.ones((4, 64, 64, 32))
"""


def program(text, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + text, *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | environment)


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("ending", ["sys.exit(75)", "raise KeyboardInterrupt", "del result"])
def test_process_ends_with_a_call_in_flight(ending):
    codes = {"sys.exit(75)": 75, "raise KeyboardInterrupt": -signal.SIGINT, "del result": 0}
    process = program(f"result = run(image, kernel); time.sleep(0.2); print('on')\n{ending}", "500")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (codes[ending], "on\n"), err[-500:]


@needs_onednn
@pytest.mark.slow
def test_signal_ends_a_process_with_a_call_in_flight():
    process = program("result = run(image, kernel); print('on', flush=True); time.sleep(1); "
                      "result.block_until_ready()", "1000000")
    assert process.stdout.readline() == "on\n"
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


@needs_onednn
@pytest.mark.slow
def test_second_start_takes_the_compiled_program(tmp_path):
    hits = ("from jax import monitoring\nhits = []\n"
            "monitoring.register_event_listener(lambda event, **_: hits.append(event))\n"
            "print(float(run(image, kernel)), "
            "hits.count('/jax/compilation_cache/cache_hits') > 0)")
    environment = dict(JAX_COMPILATION_CACHE_DIR=str(tmp_path),
                       JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    first, second = (program(hits, "3", **environment).communicate(timeout=120)[0].split()
                     for _ in range(2))
    assert first[0] == second[0] and (first[1], second[1]) == ("False", "True")


@needs_onednn
@pytest.mark.slow
@pytest.mark.parity
def test_beside_torchs_own_threads():
    text = """
import numpy as np, torch
x, k = torch.ones(4, 32, 64, 64), torch.full((32, 32, 3, 3), 1e-3)
for _ in range(20):
    ours = convolution(image, kernel, pads=((1, 1), (1, 1)))
    theirs = torch.nn.functional.conv2d(x, k, padding=1).permute(0, 2, 3, 1)
    assert np.allclose(ours, theirs.numpy(), atol=1e-5)
print("equal")
"""
    out, err = program(text, "1").communicate(timeout=200)
    assert out == "equal\n", err[-500:]
