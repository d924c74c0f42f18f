"""Plans: what a run needs, whether it fits, and what would; on TPU slices that are not here too."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import jax
import pytest
from helpers import ROOT, child_environment, run_command, tiny_config

from cellseg_jax import cli, data, train
from cellseg_jax import plan as command
from cellseg_jax.config import changed
from cellseg_jax.errors import InputError
from cellseg_jax.planning import shapes
from cellseg_jax.planning.plan import images_of, plan, rows
from cellseg_jax.planning.search import largest_batch
from cellseg_jax.step import memory as memory_lib
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.train import measure, preflight

# All of them take half an hour; set CELLSEG_PLAN_ALL=1.
CONFIGS = [path if path.stem == "quickstart" else pytest.param(path, marks=pytest.mark.skipif(
    not os.environ.get("CELLSEG_PLAN_ALL"), reason="one config is enough unless CELLSEG_PLAN_ALL"))
    for path in sorted((ROOT / "configs").glob("*.py"))]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs pip install -e ".[plan]"')


@pytest.fixture(scope="module", autouse=True)
def unmeasured():
    with pytest.MonkeyPatch.context() as patch:  # tests/test_studies.py measures steps
        patch.setattr(measure, "measured_step", lambda config: 0.25)
        yield


@pytest.fixture(scope="module")
def fitting():
    return plan(tiny_config(train__batch_size=8), search=False)


def test_a_plan_says_what_a_small_run_needs(fitting):
    assert fitting["fits"] and fitting["devices"] == 8 and fitting["num_parameters"] == 577
    memory = fitting["memory"]
    assert memory["parameters"] == 4 * 577
    assert memory["optimizer"] >= 2 * memory["parameters"]  # two moments
    assert memory["images"] > 40 * 32 * 32 * (4 + 2)  # all of them are on every device
    assert memory["temporaries"] > 0 and fitting["validation"] > 0
    assert fitting["all_reduced"] >= memory["parameters"]
    assert fitting["images_per_second"] == 8 / 0.25
    names = [name.strip() for name, _ in rows(fitting)]
    assert {"parameters", "FLOPs", "temporaries", "fits", "collectives", "speed"} <= set(names)


@pytest.mark.weekly
def test_what_does_not_fit_is_refused_with_numbers_and_what_would():
    config = tiny_config(train__batch_size=64, data__count=100, data__residence="host")
    limit = 0.8 * plan(config, search=False, limit=2**40)["needs"]
    found = plan(config, search=True, limit=limit)
    assert not found["fits"] and found["key"] == "config.train.batch_size"
    assert f"needs {found['needs'] / 2**30:.2f} GiB per device, has" in found["refusal"]
    assert {"config.train.remat=True", "config.train.precision=bfloat16",
            "config.optimizer.accumulate=2"} <= {a["change"] for a in found["alternatives"]}
    assert any(a["fits"] for a in found["alternatives"])
    assert 8 <= found["largest_batch"] < 64
    assert not any("no other size" in note for note in found["notes"])
    assert f"config.train.batch_size={found['largest_batch']}" in found["refusal"]
    _keeps_its_word(found, config, limit)
    largest = changed(config, {"train.batch_size": found["largest_batch"]})
    assert plan(largest, search=False, limit=limit)["fits"]


@pytest.mark.weekly
@pytest.mark.parametrize("residence", ["device", "host"])
def test_validation_that_does_not_fit_is_told_from_training(residence):
    config = tiny_config(eval__batch_size=512, data__residence=residence)
    whole = plan(config, search=False, limit=2**40)
    limit = (sum(whole["memory"].values()) + whole["validation"]) / 2
    found = plan(config, search=True, limit=limit)
    assert not found["fits"] and found["key"] == "config.eval.batch_size"
    size = found["largest_eval_batch"]
    assert 8 <= size < 512 and f"config.eval.batch_size={size}" in found["refusal"]
    assert "train.batch_size" not in found["refusal"]
    assert [a["changes"] for a in found["alternatives"]] == [{"eval.batch_size": size}]
    _keeps_its_word(found, config, limit)
    # What a larger batch of training is said to leave room for is there.
    both = changed(config, {"train.batch_size": found["largest_batch"], "eval.batch_size": size})
    assert plan(both, search=False, limit=limit)["fits"]

    limit = 0.8 * sum(whole["memory"].values())  # neither fits
    found = plan(config, search=True, limit=limit)
    assert found["needs"] == whole["needs"] > limit
    assert all("eval.batch_size" in a["changes"] for a in found["alternatives"]
               ) == bool(found["largest_eval_batch"])
    _keeps_its_word(found, config, limit)


def test_a_search_that_ends_before_its_time_is_noted(monkeypatch):
    monkeypatch.setattr("cellseg_jax.planning.plan.SEARCH_SECONDS", -1.0)
    found = plan(tiny_config(train__batch_size=8), search=True)
    assert found["largest_batch"] == 8
    assert any("a larger batch than the largest named here may fit" in note
               for note in found["notes"])


def _keeps_its_word(found, config, limit):
    for a in found["alternatives"]:
        assert plan(changed(config, a["changes"]), search=False, limit=limit)[
            "fits"] == a["fits"], a["change"]


@pytest.mark.parametrize("limit, expected", [(1000, 96), (100, 0), (140, 4), (10_000, 100)])
def test_largest_batch_is_that_of_a_loop_over_all_sizes(limit, expected):
    needs = lambda size: 110 + 7 * size + size**2 // 50  # nearly a line, as memory is
    slow = max([n for n in range(4, 101, 4) if needs(n) <= limit], default=0)
    found = largest_batch(needs, limit, unit=4, at=16, most=100, deadline=float("inf"))
    assert found % 4 == 0 and found <= slow and needs(found) <= limit or found == slow == 0
    assert found >= 0.85 * slow and slow == expected


def test_numbers_of_a_compiler_that_ran_out_of_memory():
    text = ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (63.76G) exceeds available HBM (15.75G).")
    assert memory_lib.exhausted(text) == (round(63.76 * 2**30), round(15.75 * 2**30))
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.5G of 512M hbm."
    assert memory_lib.exhausted(text) == (round(20.5 * 2**30), 512 * 2**20)
    assert memory_lib.exhausted("INTERNAL: (63.76G) exceeds available HBM (15.75G)") is None


@pytest.mark.parametrize("count", [1, 2])
def test_training_is_refused_before_its_first_step(count, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_lib, "available_memory", lambda *_: (2e4, "room for the state"))
    # Two runs of a hundred steps: their programs are measured first.
    configs = [tiny_config(train__steps=60, seed=k) for k in range(count)]
    with pytest.raises(InputError, match=r"batch_size: 8 images.* needs .* has .*remat=True"):
        train.train(configs, [tmp_path / f"run{k}" for k in range(count)])


def test_validation_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_lib, "available_memory", lambda *_: (2 * 2**20, "little"))
    wanted = r"config.eval.batch_size: 2000 images per validation call does not fit: .*smaller"
    with pytest.raises(InputError, match=wanted):
        train.train([tiny_config(eval__batch_size=2000)], [tmp_path / "run"])
    assert not list(tmp_path.glob("run/*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("residence", ["device", "host"])
def test_training_finds_the_validation_that_was_checked(residence, tmp_path, caplog):
    config = tiny_config(data__residence=residence, eval__batch_size=16, train__steps=4,
                         eval__threshold={"device": 0.37, "host": 0.38}[residence])
    with jax.log_compiles():
        train.train([config], [tmp_path / "run"])
    assert sum("Compiling jit(per_device)" in r.getMessage() for r in caplog.records) == 1


def test_a_device_that_runs_out_of_memory_is_one_line():
    wanted = r"train.batch_size: 8 .* \(RESOURCE_EXHAUSTED: Out"
    with pytest.raises(memory_lib.DoesNotFit, match=wanted):
        with preflight.refusing(tiny_config(), "train.batch_size"):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


@pytest.mark.parametrize("diameter", [0.0, 30.0])
def test_images_are_counted_as_they_are_stored(tmp_path, diameter):
    config = tiny_config(data__count=4, data__fit="random_crop", data__diameter=diameter,
                         data__cache=str(tmp_path))
    images, _ = images_of(config)
    stored = data.load(config.data).flat["label"].size
    assert images.count * images.pixels == pytest.approx(stored, abs=images.count)


@pytest.mark.slow
def test_all_reduces_of_micro_batches_count_each_time(fitting):
    config = tiny_config(train__batch_size=16, optimizer__accumulate=2)
    mesh = default_mesh(1, 16)
    images, _ = images_of(config)
    step = shapes.compiled_programs(config, mesh, images, resident=True, validation=False).train
    once, twice = memory_lib.all_reduced(step), memory_lib.all_reduced(step, 2)
    assert 4 * 577 <= once == fitting["all_reduced"]  # gradients, batch norm, loss
    assert 2 * once - 64 < twice < 2 * once  # the sum of weights is outside of the loop


def test_available_memory_is_that_of_the_machine_or_the_cgroup_whichever_is_less(monkeypatch):
    cgroup = []
    monkeypatch.setattr(memory_lib, "_cgroup_limits", lambda: cgroup)
    free, source = memory_lib.available_memory()
    with open("/proc/meminfo") as file:
        lines = {line.split()[0]: 1024 * int(line.split()[1]) for line in file}
    assert free == pytest.approx(lines["MemAvailable:"] + lines["SwapFree:"], rel=0.2)
    assert source == "free memory of the machine"
    held = memory_lib.process_memory() + 2**30  # with other processes of the cgroup
    cgroup.append((held + 100 * 2**20, held))
    assert memory_lib.available_memory() == (100 * 2**20, "the cgroup's limit")
    assert memory_lib.available_memory(4)[0] == 25 * 2**20


def test_a_topology_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[plan\]"'):
        plan(tiny_config(), "v5e:2x2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="--topology: got 'v9'"):
        plan(tiny_config(), "v9:2x2")


@pytest.mark.parametrize("out", [".", "nowhere/plan.json"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_compiled(out, monkeypatch,
                                                                            tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cellseg_jax.planning.plan.plan", None)
    words = ["plan", f"--config={ROOT}/configs/quickstart.py", f"--json={out}"]
    assert cli.run_command(command.main, command.define_flags, words) == 2
    assert f"--json: cannot write to {out!r}" in capsys.readouterr().err


# --- the real compilers ---------------------------------------------------------------------------


@pytest.mark.weekly
@needs_libtpu
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_fits_a_v5e(path, tmp_path):
    file = tmp_path / "plan.json"
    done = run_command("plan", f"--config={path}", "--topology=v5e:2x4", "--nobatch",
                       f"--json={file}", timeout=1800)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["fits"] and 0 < found["needs"] <= found["limit"]
    assert found["flops"] > 0 and found["images_per_second"] > 0
    print(path.stem, f"{found['needs'] / 2**30:.2f} GiB", done.stdout)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.skipif(not os.environ.get("CELLSEG_PLAN_ALL"),
                    reason="more than ten minutes; set CELLSEG_PLAN_ALL=1")
def test_what_no_chip_holds_is_refused_with_the_compilers_numbers(tmp_path):
    file = tmp_path / "plan.json"
    done = run_command(
        "plan", f"--config={ROOT}/configs/livecell_unet.py", "--topology=v5e:1x1", "--nobatch",
        "--config.train.batch_size=256", f"--json={file}", timeout=1800)
    assert done.returncode == 2
    found = json.loads(file.read_text())
    assert found["needs"] > found["limit"] and not found["fits"]
    assert f"needs {found['needs'] / 2**30:.2f} GiB per device, has" in done.stderr.splitlines()[0]
    assert found["alternatives"]


PEAK = textwrap.dedent("""
    import json, sys, threading, time
    from absl import flags
    from cellseg_jax import config as config_lib, train
    from cellseg_jax.planning import plan
    from cellseg_jax.step import memory

    flags.FLAGS.mark_as_parsed()
    config = config_lib.from_json(sys.argv[2])
    if sys.argv[1] == "predict":
        plan.measure.measured_step = lambda config: 1.0
        print(json.dumps(plan.plan(config, search=False)["process_peak"]))
    else:
        peak = [0]

        def watch():
            while True:
                peak[0] = max(peak[0], memory.process_memory())
                time.sleep(0.01)

        threading.Thread(target=watch, daemon=True).start()
        train.train([config], [sys.argv[3]])
        print(json.dumps(peak[0]))
""")
KINDS = {
    "activations": dict(model=dict(name="unet_classic", channels=(16, 32)), size=256, batch=16),
    "streamed": dict(model=dict(name="unet", channels=(16, 32, 64)), size=256, batch=64,
                     count=100, residence="host"),
    "resident": dict(model=dict(name="simple_conv"), size=512, batch=8, count=300),
    "parameters": dict(model=dict(name="unetr", image_size=0, num_layers=4), size=64, batch=2),
    "accumulated": dict(model=dict(name="unet_classic", channels=(16, 32)), size=256, batch=32,
                        accumulate=2, count=60),
    "instance_norm": dict(model=dict(name="unet_classic", channels=(16, 32), norm="instance"),
                          size=256, batch=16),
}


@pytest.mark.weekly
@pytest.mark.parametrize("kind", KINDS)
def test_predicted_peak_of_a_training_process_is_near_the_measured_one(kind, tmp_path):
    from cellseg_jax import config as config_lib

    options = {"count": 20, "residence": "auto", "accumulate": 1} | KINDS[kind]
    config = config_lib.default()
    size = (options["size"],) * 2
    config.data = dict(name="synthetic", size=size, image_size=size, count=options["count"],
                       residence=options["residence"], cache=str(tmp_path / "cache"))
    config.model = options["model"]
    config.optimizer.accumulate = options["accumulate"]
    config.train.batch_size, config.train.steps, config.eval.batch_size = options["batch"], 4, 2
    text = config_lib.to_json(config_lib.complete(config))
    found = {}
    for what in ("predict", "measure"):
        done = subprocess.run([sys.executable, "-c", PEAK, what, text, str(tmp_path / "run")],
                              capture_output=True, text=True, env=child_environment(), timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        found[what] = json.loads(done.stdout.splitlines()[-1])
    print(kind, {k: f"{v / 2**30:.2f} GiB" for k, v in found.items()})
    assert found["measure"] > 2**30  # else the interpreter hides what is wrong
    # The plan prints an upper bound. What a process holds at once varies by a fifth between runs of
    # the same program, with the order in which its threads give memory back.
    assert 0.9 * found["measure"] <= found["predict"] <= 1.35 * found["measure"]
