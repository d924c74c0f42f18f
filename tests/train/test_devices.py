"""Any number of devices: batches that do not divide over them, and runs that go on on others."""

import json
import subprocess
import sys
import textwrap

import pytest
from helpers import ROOT, child_environment, run_command, tiny_config

from cellseg_jax import train
from cellseg_jax.data.synthetic import twins
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, read_jsonl
from cellseg_jax.step.mesh import make_mesh

UNETR = {"model.hidden_size": 24, "model.num_heads": 4, "model.mlp_dim": 32,
         "model.num_layers": 4, "model.feature_size": 4}
SMALL = {
    "unetr_sgd": UNETR | {"data.count": 16},  # batch 4
    "unet_adam_poly": {"data.count": 40, "model.channels": (4, 8)},  # batch 16
    "small_unet": {"data.count": 12, "data.grid": 4},  # batch 44
    "em_unet": {"data.count": 16, "model.channels": (4, 8),  # batch 2
                "augment.elastic_sigma": 4.0},
    "ebhi_unet": {"data.count": 16, "model.channels": (4, 8)},  # batch 4, a loss over the batch
}
# Devices of 2, 4, 8 and 16 that a run uses.
USED = {"unetr_sgd": {2: 2, 4: 4, 8: 4, 16: 4}, "unet_adam_poly": {2: 2, 4: 4, 8: 8, 16: 16},
        "small_unet": {2: 2, 4: 4, 8: 4, 16: 11}, "em_unet": {2: 2, 4: 2, 8: 2, 16: 2},
        "ebhi_unet": {2: 2, 4: 4, 8: 4, 16: 4}}
COMMON = {"data.name": "synthetic", "data.size": (32, 32), "data.image_size": (48, 48),
          "data.mix": (), "train.steps": 3, "train.epochs": 0,
          "train.precision": "float64", "eval.batch_size": 3}
WORKER = textwrap.dedent("""
    import json, sys
    from absl import flags
    from cellseg_jax import config as config_lib, train
    from cellseg_jax.files import read_json, read_jsonl

    flags.FLAGS.mark_as_parsed()
    folder, configs, out = sys.argv[1], json.loads(sys.argv[2]), {}
    for name, changes in configs.items():
        config = config_lib.load(f"configs/{name}.py")
        with config.unlocked():
            config.data.split = (0.7, 0.2, 0.1)  # of some it is official
        config = config_lib.changed(config, changes)
        run = f"{folder}/{name}"
        assert train.train([config], [run])[0].status == "done"
        out[name] = {"mesh": read_json(f"{run}/environment.json")["program"]["mesh"],
                     "lines": read_jsonl(f"{run}/metrics.jsonl")}
    print(json.dumps(out))
""")


def trained(folder, devices):
    """{config: {"mesh", "lines" of metrics.jsonl}} of small variants on fake devices."""
    changes = {name: COMMON | changes for name, changes in SMALL.items()}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), json.dumps(changes)], cwd=ROOT, timeout=900,
        capture_output=True, text=True, env=child_environment(devices) | {"JAX_ENABLE_X64": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.weekly
def test_losses_are_equal_on_any_number_of_devices_in_float64(tmp_path):
    one_device = trained(tmp_path / "1", 1)
    assert sum(len(one["lines"]) for one in one_device.values()) > len(SMALL)
    for devices in (2, 4, 8, 16):
        found = trained(tmp_path / str(devices), devices)
        for name, expected in one_device.items():
            assert expected["mesh"] == [1, 1]
            assert found[name]["mesh"] == [1, USED[name][devices]]
            for one, other in zip(expected["lines"], found[name]["lines"], strict=True):
                assert one["step"] == other["step"]
                for key in ("train_loss", "val_loss"):
                    assert other[key] == pytest.approx(one[key], abs=1e-9, rel=0), (name, key)


def test_a_given_mesh_over_which_the_batch_does_not_divide_is_refused(tmp_path):
    with pytest.raises(InputError, match="batch_size: got 6; expected a multiple of the 8 devices"):
        train.train([tiny_config(train__batch_size=6)], [tmp_path / "run"], mesh=make_mesh(1, 8))
    with pytest.raises(InputError, match="config.optimizer.accumulate: got 2.*1 images"):
        train.train([tiny_config(optimizer__accumulate=2)], [tmp_path / "run"],
                    mesh=make_mesh(1, 8))


@pytest.mark.slow
def test_three_runs_with_batches_of_two_share_eight_devices(tmp_path, float64, capsys):
    configs = [tiny_config(train__batch_size=2, train__steps=5, train__precision="float64", seed=k)
               for k in range(3)]
    train.train(configs, [tmp_path / str(k) for k in range(3)])
    said = capsys.readouterr().out
    assert "6 of 8 devices are used, since batches of 2 do not divide over more" in said
    for k, config in enumerate(configs):
        assert read_json(tmp_path / f"{k}/environment.json")["program"]["mesh"] == [3, 2]
        train.train([config], [tmp_path / f"alone{k}"], mesh=make_mesh(1, 1))
        one, other = (read_jsonl(tmp_path / f"{name}{k}/metrics.jsonl") for name in ("", "alone"))
        for a, b in zip(one, other, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-9, rel=0)


# --- the commands ---------------------------------------------------------------------------------


def command(mode, workdir, twin, devices, **changes):
    """python -m cellseg_jax.main with configs/unetr_sgd.py, its network and its images small."""
    changes = UNETR | {"data.size": "(32, 32)", "train.epochs": 1, "train.precision": "float64",
                       "data.root": twin, "eval.panels": 0} | changes
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    done = run_command("main", "--config=configs/unetr_sgd.py", f"--mode={mode}", *flags,
                       f"--workdir={workdir}", devices=devices, timeout=600, JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins") / "dsb2018"
    twins.write("dsb2018", folder, count=24, size=(48, 48))
    return folder


@pytest.mark.slow
def test_unetr_sgd_trains_evaluates_and_restores_on_eight_devices(tmp_path, twin):
    done = command("train", tmp_path / "run", twin, devices=8)
    assert done.stdout.count("4 of 8 devices are used, since batches of 4 do not divide over more: "
                             "make config.train.batch_size a multiple of 8 to use all") == 1
    scores = read_json(tmp_path / "run/eval/test.json")
    assert (tmp_path / "run/report.html").exists()
    (tmp_path / "run/eval/test.json").unlink()
    command("eval", tmp_path / "run", twin, devices=8)
    again = read_json(tmp_path / "run/eval/test.json")
    for key in ("metrics", "metrics_original_size", "checkpoint_step", "n_images"):
        assert again[key] == scores[key]
    image = min(twin.rglob("images/*.*"))
    done = run_command("predict", f"--workdir={tmp_path}/run", f"--images={image}",
                       "--format=tiff", f"--out={tmp_path}/out", devices=8, JAX_ENABLE_X64="1")
    assert done.returncode == 0 and list((tmp_path / "out").iterdir()), done.stderr[-3000:]


@pytest.mark.parametrize("devices", [pytest.param((1, 8), marks=pytest.mark.slow),
                                     pytest.param((8, 1), marks=pytest.mark.weekly)])
def test_a_run_goes_on_on_other_devices(tmp_path, twin, one_device_run, devices):
    first, second = devices
    command("train", tmp_path / "run", twin, first)
    done = command("train", tmp_path / "run", twin, second, **{"train.epochs": 2})
    assert f"started on {first} device(s) of 1 process(es), resumed on {second} of 1" in done.stderr
    program = read_json(tmp_path / "run/environment.json")["program"]
    assert program["mesh"] == [1, min(second, 4)]
    lines = [read_jsonl(run / "metrics.jsonl") for run in (one_device_run, tmp_path / "run")]
    for one, other in zip(*lines, strict=True):
        for key in ("train_loss", "val_loss"):
            assert other[key] == pytest.approx(one[key], abs=1e-9, rel=0)


@pytest.fixture(scope="module")
def one_device_run(tmp_path_factory, twin):
    run = tmp_path_factory.mktemp("reference") / "run"
    command("train", run, twin, 1, **{"train.epochs": 2})
    return run
