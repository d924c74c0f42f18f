#!/usr/bin/env bash
# jax 0.10.2 on a CPU: one core alone computes some convolutions, and gradients of kernels take three
# times as long as those of images, which have as many products.
#
# XLA gives convolutions to the library YNNPACK, which does not divide some of them. With the flag
# xla_cpu_experimental_ynn_fusion_type=-individual_convolution XLA's older code computes them, on all
# cores. Products of matrices and sums are not changed by that.
#
# Seen on two cores, 44 images, 3x3 kernels, CPU and wall time in ms, the best of ten:
#
#                                   as it is       with the flag
#   16 channels, 64x64 pixels       34 and 17      34 and 17
#   32 channels, 32x32 pixels       29 and 29      28 and 14
#   its gradient for the image      30 and 30      27 and 14
#   its gradient for the kernel     132 and 128    40 and 20
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
cat > "$folder/time.py" <<'PY'
import os
import sys
import time

import jax
import jax.numpy as jnp
from jax import lax


def convolve(image, kernel):
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def measured(name, function, *arrays):
    """(CPU seconds, cores that computed it) of the best of ten."""
    program, times = jax.jit(function), []
    jax.block_until_ready(program(*arrays))
    for _ in range(10):
        start = time.process_time(), time.perf_counter()
        jax.block_until_ready(program(*arrays))
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = map(min, zip(*times))
    print(f"{name}: {1e3 * cpu:.0f} ms of CPU time, {1e3 * wall:.0f} ms")
    return cpu, cpu / wall


def gradient(of):
    return lambda image, kernel, cotangent: jax.vjp(convolve, image, kernel)[1](cotangent)[of]


ones = lambda side, channels: (
    jnp.ones((44, side, side, channels)), jnp.ones((3, 3, channels, channels)))
_, narrow = measured("16 channels", convolve, *ones(64, 16))
image, kernel = ones(32, 32)
_, wide = measured("32 channels", convolve, image, kernel)
for_image, _ = measured("gradient for the image", gradient(0), image, kernel, image)
for_kernel, cores = measured("gradient for the kernel", gradient(1), image, kernel, image)
flagged = bool(sys.argv[1:])
assert (for_kernel > 2 * for_image) != flagged, "the time of the gradient for the kernel changed"
if len(os.sched_getaffinity(0)) > 1:
    assert narrow > 1.5, "one core computed all, or others kept the cores busy"
    assert (wide > 1.5) == (cores > 1.5) == flagged, "the cores of 32 channels changed"
PY
export JAX_PLATFORMS=cpu
"$folder/env/bin/python" "$folder/time.py"
echo "with the flag:"
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-individual_convolution \
    "$folder/env/bin/python" "$folder/time.py" flag
