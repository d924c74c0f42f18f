"""What several tests need: a run that trains in seconds, and commands in their own process."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cellseg_jax import config as config_lib
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import read_config
from cellseg_jax.step.batches import Batches
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state

ROOT = pathlib.Path(__file__).resolve().parent.parent


def tiny_config(**overrides):
    """A complete config of a run of a few seconds; overrides are dotted keys with __ for dots."""
    config = config_lib.default()
    config.data = dict(name="synthetic", size=(32, 32), count=40)
    config.model = dict(name="unet", channels=(4, 8), dropout=0.1)
    config.augment.flip_horizontal = (0.5, 1.0)
    config.train.epochs = 2
    config.train.batch_size = 8
    config.eval.batch_size = 8
    config = config_lib.complete(config)
    for key, value in overrides.items():
        config_lib.set_value(config, key.replace("__", "."), value)
    config_lib.check(config)
    return config


def data_config(**overrides):
    """config.data as a dict, of few and small synthetic images."""
    small = dict(name="synthetic", size=(32, 32), count=12, image_size=(32, 32))
    return config_lib.default().data.to_dict() | small | overrides


def run_command(module, *args, devices=1, cwd=None, timeout=300, **environment):
    """`python -m cellseg_jax.<module> *args` in a fresh process; returns CompletedProcess."""
    return subprocess.run(
        command(module, *args), cwd=cwd or ROOT, capture_output=True, text=True, timeout=timeout,
        env=child_environment(devices) | environment)


def command(module, *args):
    return [sys.executable, "-m", f"cellseg_jax.{module}", *args]


def child_environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def interrupt_at_batch(monkeypatch, number):
    """SIGTERM to this process as training asks for its `number`-th batch, counted from now."""
    calls, next_batch = [], Batches.next

    def next_and_signal(self, slots):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_batch(self, slots)

    monkeypatch.setattr(Batches, "next", next_and_signal)


def last_state(workdir):
    """The last checkpoint as a flat list of numpy arrays."""
    config = read_config(workdir)
    spec = make_spec([config])
    values = traced_values(config, spec)
    shape = (*config.data.size, 4)
    wanted = jax.eval_shape(lambda v: init_state(spec, v, shape), values)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {k: getattr(wanted, k) for k in wanted.__dataclass_fields__
              if k != "values" and getattr(wanted, k) != {}}
    directory = pathlib.Path(workdir) / "checkpoints"
    last = checkpoint.saved_steps(directory)["last"]
    return [np.asarray(x) for x in jax.tree.leaves(
        checkpoint.load(directory, last, checkpoint.abstract(wanted, device)))]


def last_judgement(workdir):
    """What the last checkpoint keeps of the validations before it."""
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    last = checkpoint.saved_steps(directory)["last"]
    with ocp.training.Checkpointer(directory, cleanup_tmp_directories=False) as orbax:
        return orbax.checkpointables_metadata(last).custom_metadata["judgement"]


def assert_same_run(one, other):
    one, other = pathlib.Path(one), pathlib.Path(other)
    for name in ("metrics.jsonl", "gradients.jsonl"):
        assert (one / name).exists() == (other / name).exists() >= (name == "metrics.jsonl")
        if (one / name).exists():
            assert (one / name).read_text() == (other / name).read_text()
    assert (checkpoint.saved_steps(one / "checkpoints")
            == checkpoint.saved_steps(other / "checkpoints"))
    assert last_judgement(one) == last_judgement(other)
    for a, b in zip(last_state(one), last_state(other), strict=True):
        np.testing.assert_array_equal(a, b)
