#!/usr/bin/env bash
# jax 0.10.2 on a CPU: the gradient of a 3x3 convolution for its kernel takes over three times as long
# as that for its image, which has as many products, and one core alone computes it.
#
# JAX derives it as a convolution of the image with the cotangent as a kernel of the size of the
# image, and 3x3 outputs, for which XLA's code is slow. The same sums are one product of matrices,
# for each image: the image with its columns shifted by each of three taps, times the cotangent with
# its rows shifted by each, give all nine taps at once.
#
# Seen, 44 images of 32x32 pixels and 32 channels, CPU time of the best of ten: 98 ms as derived,
# 30 ms by shifted copies, 28 ms for the image; with two cores the derived one takes as long.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.6"
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PY'
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

rng = np.random.default_rng(0)
image, cotangent = (jnp.array(rng.normal(size=(44, 32, 32, 32)), jnp.float32) for _ in range(2))
kernel = jnp.array(rng.normal(size=(3, 3, 32, 32)), jnp.float32)


def convolve(image, kernel):
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def derived(image, cotangent):
    return jax.vjp(lambda k: convolve(image, k), kernel)[1](cotangent)[0]


def for_image(image, cotangent):
    return jax.vjp(lambda x: convolve(x, kernel), image)[1](cotangent)[0]


def shifted(image, cotangent):
    def add(i, total):
        columns = jnp.pad(lax.dynamic_index_in_dim(image, i, 0, False), ((0, 0), (1, 1), (0, 0)))
        rows = jnp.pad(lax.dynamic_index_in_dim(cotangent, i, 0, False), ((1, 1), (0, 0), (0, 0)))
        x = jnp.concatenate([columns[:, v : v + 32] for v in range(3)], axis=-1)
        y = jnp.concatenate([rows[2 - u : 34 - u] for u in range(3)], axis=-1)
        x, y = lax.optimization_barrier((x.reshape(-1, 96), y.reshape(-1, 96)))
        return total + lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    total = lax.fori_loop(0, 44, add, jnp.zeros((96, 96)))
    return total.reshape(3, 32, 3, 32).transpose(2, 0, 1, 3)


def measured(gradient):
    """(result, CPU ms, wall ms), the least of ten."""
    program, times = jax.jit(gradient), []
    jax.block_until_ready(program(image, cotangent))
    for _ in range(10):
        start = time.process_time(), time.perf_counter()
        found = jax.block_until_ready(program(image, cotangent))
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return found, *(1e3 * min(column) for column in zip(*times))


slow, quick, other = measured(derived), measured(shifted), measured(for_image)
np.testing.assert_allclose(slow[0], quick[0], rtol=0, atol=1e-4 * float(abs(slow[0]).max()))
for name, (_, cpu, wall) in dict(derived=slow, shifted=quick, image=other).items():
    print(f"{name}: {cpu:.0f} ms of CPU time, {wall:.0f} ms")
assert slow[1] > 1.5 * max(quick[1], other[1]), "the derived gradient is not slow any more"
if len(os.sched_getaffinity(0)) > 1:
    assert slow[2] > 0.8 * slow[1], "several cores compute the derived gradient now"
PY
