"""--device and --memory reach JAX before it starts."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

CHILD = """
import sys
from cellseg_jax import cli

def main(args, overrides):
    import os, jax
    print(jax.devices()[0].platform, os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"),
          os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"))
    return 0

sys.exit(cli.run_command(main, cli.define_device_flags, sys.argv))
"""


def child(*words, **environment):
    return subprocess.run([sys.executable, "-c", CHILD, *words], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | environment, timeout=120)


@pytest.mark.slow
def test_device_and_memory_are_set_before_jax_starts():
    done = child("--device=cpu", "--memory=0.5")
    assert done.returncode == 0 and done.stdout.split() == ["cpu", "0.5", "None"]
    assert child("--memory=grow").stdout.split()[1:] == ["None", "false"]
    wrong = child("--device=cuda:2", CUDA_VISIBLE_DEVICES="4,5")
    assert wrong.returncode == 2 and "expected a number below 2" in wrong.stderr
    absent = child("--device=tpu", JAX_PLATFORMS="")
    assert absent.returncode == 2  # libtpu, where it is installed, speaks first
    assert absent.stderr.splitlines()[-1].startswith("error: --device: tpu is not here")
    absent = child("--device=gpu", CUDA_VISIBLE_DEVICES="-1")
    assert absent.returncode == 2 and absent.stderr.startswith("error: --device: gpu is not here")
    assert len(absent.stderr.splitlines()) == 1
