"""The images that peers are trained on are those of a run; the peers' scripts can be called."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from helpers import ROOT, child_environment

from cellseg_jax import config, data
from cellseg_jax.data.synthetic import twins

SCRIPTS = sorted((ROOT / "benchmarks/peers").glob("train_*.py"))


def run(*command):
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=child_environment(),
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_explains_itself_without_the_peer(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout


@pytest.mark.slow
def test_export_has_the_split_of_a_run_and_scores_itself_as_perfect(tmp_path):
    twins.write("dsb2018", tmp_path / "dsb2018", count=12, size=(32, 32))
    root, out = tmp_path / "dsb2018/stage1_train", tmp_path / "out"
    flags = ("--config=configs/unet_adam.py", f"--config.data.root={root}",
             "--config.data.size=(32, 32)")
    done = run("-m", "benchmarks.peers.export_split", *flags, f"--out={out}")
    assert done.returncode == 0, done.stderr

    settings = config.load(str(ROOT / "configs/unet_adam.py"), [
        ("data.root", str(root)), ("data.size", "(32, 32)"), ("data.cache", str(tmp_path))]).data
    arrays = data.load(settings)
    expected = {part: sorted(arrays.image_names[i] for i in indices)
                for part, indices in data.split_of(settings, arrays).items()}
    written = json.loads((out / "split.json").read_text())
    assert {part: sorted(names) for part, names in written.items()} == expected
    samples = {record.name: record.read() for record in data.records_of(settings)}
    for part, names in expected.items():
        for name in names:
            image, label = (tifffile.imread(out / part / kind / f"{name}.tif")
                            for kind in ("images", "labels"))
            np.testing.assert_array_equal(label, samples[name].label)
            assert image.shape == label.shape and image.dtype == samples[name].image.dtype

    done = run("-m", "cellseg_jax.main", "--mode=eval", f"--labels={out}/test/labels", *flags,
               f"--workdir={tmp_path}/perfect")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "perfect/eval/test.json").read_text())
    assert scores["metrics_original_size"]["ap50"] == 1


def test_schedule_fills_the_time(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/peers"))
    import common

    for left, step, validation, most in ((1800, 1.0, 8.0, 40), (100, 1.5, 12.0, 40), (5, 9, 9, 3)):
        epochs, per_epoch = common.schedule(left, step, validation, most)
        used = epochs * (per_epoch * step + validation)
        assert epochs == 1 or per_epoch >= 10
        assert used <= left < used + epochs * step or (epochs, per_epoch) == (1, 1)
