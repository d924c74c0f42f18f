"""Data ten times larger than the memory of the process: the cache is a map, so it trains."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, child_environment, tiny_config

from cellseg_jax import train
from cellseg_jax.step.memory import DoesNotFit
from cellseg_jax.train import training_data

LIMIT = 2**30  # bytes of private memory
CHILD = """
import json, pathlib, resource, sys, threading, time
limit, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
import numpy as np
from absl import flags
from cellseg_jax import config as config_lib, data, train
from cellseg_jax.data import records

flags.FLAGS.mark_as_parsed()

def noise(count=2_450):
    def sample(i):
        rng = np.random.default_rng(i)
        image = rng.integers(0, 255, (64, 64, 4), np.uint8).repeat(12, 0).repeat(12, 1)
        return records.Sample(image, (image[..., 0] > 128).astype(np.int32) * 7, "")
    return records.Records(records.Record(f"{i:05d}", f"{i:05d}", (), lambda i=i: sample(i))
                           for i in range(count))

data.DATASETS["noise"] = noise
config = config_lib.default()
config.data = dict(name="noise", size=(768, 768), cache=str(folder / "cache"),
                   split=(0.99, 0.005, 0.005))
config.model = dict(name="unet", channels=(4, 8))
config.train.steps, config.train.batch_size, config.eval.batch_size = 20, 1, 1
config = config_lib.complete(config)
peak = [0]

def watch():
    while True:
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) * 1024)
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
result = train.train([config], [folder / "run"])[0]
held = sum(f.stat().st_size for f in (folder / "cache").rglob("*.npy"))
program = json.loads((folder / "run/environment.json").read_text())["program"]
print(json.dumps({"status": result.status, "peak": peak[0], "data": held,
                  "residence": program["residence"]}))
"""


def test_a_network_too_large_for_memory_is_refused_before_data_are_read(tmp_path, monkeypatch):
    """JAX would end the process: "overflow in static extent product"."""
    monkeypatch.setattr(training_data, "load", None)
    config = tiny_config(model__channels=(10**9, 10**9))
    with pytest.raises(DoesNotFit, match=r"^config.model: unet with the state of its optimiser "
                       r"does not fit: needs \d+"):
        train.train([config], [tmp_path / "run"])
    assert not (tmp_path / "run").exists()


@pytest.mark.weekly
def test_data_ten_times_larger_than_memory_trains(tmp_path):
    if shutil.disk_usage(tmp_path).free < 13 * LIMIT:
        pytest.skip("needs 13 GiB of free disk")
    try:
        # RLIMIT_DATA counts the stacks of idle threads and reserved arenas: both are kept small.
        done = subprocess.run(
            ["bash", "-c", 'ulimit -s 2048; exec "$@"', "", sys.executable, "-c", CHILD, str(LIMIT),
             str(tmp_path)], cwd=ROOT, env=child_environment() | {"MALLOC_ARENA_MAX": "2"},
            capture_output=True, text=True, timeout=900)
    finally:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(seen)
    assert seen["status"] == "done" and seen["residence"] == "host"
    assert seen["data"] > 10 * LIMIT and seen["peak"] < LIMIT
