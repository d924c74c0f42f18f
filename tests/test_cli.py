"""What commands share: help without JAX, signals, no URLs, --device and --memory before JAX."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import types

import jax
import numpy as np
import pytest
from helpers import ROOT, child_environment, tiny_config

from cellseg_jax import __main__, cli, main, train
from cellseg_jax import config as config_lib
from cellseg_jax.cli import stopping
from cellseg_jax.errors import InputError
from cellseg_jax.inference.outputs import FORMATS
from cellseg_jax.models.conv import plain_convolution

CHILD = """
import sys
from cellseg_jax import cli

def main(args, overrides):
    import os, jax
    print(jax.devices()[0].platform, os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"),
          os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE"), os.environ["XLA_FLAGS"].split("=")[-1])
    return 0

sys.exit(cli.run_command(main, cli.define_device_flags, sys.argv))
"""


def child(*words, **environment):
    # The napari plugin sets it for the process that has imported it.
    inherited = {key: value for key, value in os.environ.items()
                 if key != "XLA_PYTHON_CLIENT_PREALLOCATE"}
    return subprocess.run([sys.executable, "-c", CHILD, *words], cwd=ROOT, capture_output=True,
                          text=True, env=inherited | environment, timeout=120)


@pytest.mark.slow
def test_device_and_memory_are_set_before_jax_starts():
    done = child("--device=cpu", "--memory=0.5")
    assert done.returncode == 0 and done.stdout.split() == [
        "cpu", "0.5", "None", "-individual_convolution"]
    assert child("--memory=grow").stdout.split()[1:] == ["None", "false", "-individual_convolution"]
    wrong = child("--device=cuda:2", CUDA_VISIBLE_DEVICES="4,5")
    assert wrong.returncode == 2 and "expected a number below 2" in wrong.stderr
    absent = child("--device=tpu", JAX_PLATFORMS="")
    assert absent.returncode == 2  # libtpu, where it is installed, speaks first
    assert absent.stderr.splitlines()[-1].startswith("error: --device: tpu is not here")
    absent = child("--device=gpu", CUDA_VISIBLE_DEVICES="-1")
    assert absent.returncode == 2 and absent.stderr.startswith("error: --device: gpu is not here")
    assert len(absent.stderr.splitlines()) == 1


def test_convolutions_are_not_left_to_one_core(monkeypatch):
    """And what XLA_FLAGS says of it already stays."""
    form = lambda image, kernel: plain_convolution(image, kernel, 1, 1, ((1, 1), (1, 1)))
    program = jax.jit(form).lower(np.zeros((44, 32, 32, 32)), np.zeros((3, 3, 32, 32))).compile()
    assert "convolution(" in program.as_text() and "__ynn_fusion" not in program.as_text()
    for before, after in {"": f"{cli.YNNPACK}=-individual_convolution",
                          "--other=1": f"--other=1 {cli.YNNPACK}=-individual_convolution",
                          f"{cli.YNNPACK}= --other=1": f"{cli.YNNPACK}= --other=1",
                          "flags.txt": "flags.txt"}.items():
        monkeypatch.setenv("XLA_FLAGS", before)
        cli.set_xla_flags()
        assert os.environ["XLA_FLAGS"] == after


def test_one_gpu_is_chosen_of_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", " GPU-1a , MIG-2b/1/0,-1,3")
    with pytest.raises(InputError, match="cuda:2; expected a number below 2"):
        cli._select_gpu(2)
    cli._select_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-2b/1/0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU is visible: not all of them
    with pytest.raises(InputError, match="cuda:0; expected a number below 0"):
        cli._select_gpu(0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    cli._select_gpu(3)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


HELP = """
import importlib, sys
from cellseg_jax import cli

for name in sys.argv[1:]:
    module = importlib.import_module(f"cellseg_jax.{name}")
    assert cli.run_command(module.main, module.define_flags, [name, "--help"]) == 0
    assert not {"jax", "numpy"} & set(sys.modules), name
"""


def test_help_needs_no_array_library_and_names_every_format():
    commands = ("main", "study", "predict", "doctor", "plan", "analyze", "export")
    done = subprocess.run([sys.executable, "-c", HELP, *commands], capture_output=True, text=True,
                          env=child_environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for name in commands:
        assert f"python -m cellseg_jax.{name}" in text
    for name, format_ in FORMATS.items():
        assert f"{name} ({format_.what}) in IMAGE{format_.suffix}" in text


TRAINING_ALONE = {
    "optax", "grain", "tensorboardX", "matplotlib", "torch", "scipy.optimize", "scipy.stats",
    "cellseg_jax.optim.directions", "cellseg_jax.step.train_step", "cellseg_jax.train",
    "cellseg_jax.studies"}
NEVER = {"doctor": TRAINING_ALONE | {"orbax", "cellseg_jax.inference"}, "predict": TRAINING_ALONE}
ALL_IMPORTS = """
import ast, importlib, json, pathlib, sys

loaded = {}
for name in sys.argv[1:]:
    module = importlib.import_module(f"cellseg_jax.{name}")
    for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), name, "exec"))
    loaded[name] = sorted(sys.modules)
print(json.dumps(loaded))
"""


def test_the_doctor_and_prediction_import_nothing_of_training_or_of_studies():
    """With the imports inside their functions."""
    done = subprocess.run([sys.executable, "-c", ALL_IMPORTS, *NEVER], capture_output=True,
                          text=True, env=child_environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert {name: set(loaded[name]) & modules for name, modules in NEVER.items()} == {
        name: set() for name in NEVER}
    assert {"jax", "cellseg_jax.step.spec"} <= set(loaded["doctor"])
    assert {"orbax", "cellseg_jax.inference.segment"} <= set(loaded["predict"])


@pytest.mark.parametrize("words, code, out, err", [
    ([], 0, "cellseg COMMAND", ""),
    (["--help"], 0, "segment images with a trained run", ""),
    (["--version"], 0, f"cellseg_jax {cli.version()}", ""),
    (["predict", "--version"], 0, f"cellseg_jax {cli.version()}", ""),
    (["predict", "--help"], 0, "--images", ""),
    (["train", "--help"], 0, "metrics.jsonl", ""),
    (["predikt"], 2, "", "error: command: got 'predikt'; expected one of train, eval"),
    (["eval", "--workdir=none"], 2, "", "error: --workdir: no run in none"),
    (["train"], 2, "", "error: --config: missing"),
])
def test_all_commands_have_one_name(capsys, words, code, out, err):
    assert __main__.main(["cellseg", *words]) == code
    printed = capsys.readouterr()
    assert out in printed.out and printed.err.startswith(err)
    assert len(printed.err.splitlines()) == bool(err)


def test_every_command_is_listed_and_installed():
    files = {path.stem for path in (ROOT / "cellseg_jax").glob("*.py")
             if "run_command(main, define_flags)" in path.read_text()}
    modules = [module for module, *_ in __main__.COMMANDS.values()]
    assert files <= set(modules)
    for module in modules:
        assert callable(importlib.import_module(f"cellseg_jax.{module}").define_flags)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"cellseg": "cellseg_jax.__main__:main"}


@pytest.mark.parametrize("code", [0, 2])
def test_sigterm_while_python_ends_leaves_the_exit_code(code):
    """What a library or the interpreter does at the end takes time, in which no handler runs."""
    done = subprocess.run([sys.executable, "-c", f"""
import atexit, os, signal, sys
from cellseg_jax import cli
from cellseg_jax.errors import InputError

def main(args, overrides):
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    if {code}:
        raise InputError("a")
    return 0

sys.exit(cli.run_command(main, lambda values: None))
"""], cwd=ROOT, capture_output=True, text=True, timeout=60, env=child_environment())
    assert (done.returncode, done.stderr) == (code, "error: a\n" if code else "")


def test_sigterm_in_a_callback_of_the_garbage_collector_is_not_lost():
    """What a handler raises there, Python prints and forgets."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", """
import gc, os, signal, sys, time
from cellseg_jax import cli

def collecting(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)

def main(args, overrides):
    gc.callbacks.append(collecting)
    gc.collect()
    time.sleep(60)

sys.exit(cli.run_command(main, lambda values: None))
"""], cwd=ROOT, capture_output=True, text=True, timeout=60, env=child_environment())
    assert (done.returncode, done.stderr) == (stopping.INTERRUPTED, "")
    assert time.monotonic() - began < stopping.GRACE


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, stopping.INTERRUPTED), (signal.SIGINT, stopping.CTRL_C)])
def test_a_signal_during_an_import_raises_nothing_in_it(tmp_path, number, code):
    """An extension module whose types are being made ends in an abort then, as this one does."""
    (tmp_path / "making_types.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(9)\n"
        "except BaseException:\n    os.abort()\n")
    done = subprocess.run([sys.executable, "-c", """
import signal, sys
from cellseg_jax import cli

def main(args, overrides):
    import making_types

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background
sys.exit(cli.run_command(main, lambda values: None))
"""], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=child_environment() | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("error, line", [
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
     "error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes. more); smaller "
     "images or batches need less\n"),
    (MemoryError("Unable to allocate 9 GiB"),
     "error: out of memory (Unable to allocate 9 GiB); smaller images or batches need less\n")])
def test_memory_that_is_not_given_is_one_line(capsys, error, line):
    def fail(args, overrides):
        raise error

    assert cli.run_command(fail, lambda values: None, ["a"]) == 1
    assert capsys.readouterr().err == line


def test_other_errors_of_jax_are_not_taken_for_it():
    def fail(args, overrides):
        raise jax.errors.JaxRuntimeError("INTERNAL: something")

    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.run_command(fail, lambda values: None, ["a"])


def test_sigterm_is_handled_in_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, stopping.stopping_at_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == stopping.INTERRUPTED == 75
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words, message", [
    (["--count=few"], "--count: got 'few'; expected a positive integer"),
    (["--count=0"], "--count: got '0'; expected a positive integer"),
    (["--loud=maybe"], "--loud: got 'maybe'; expected true or false"),
    (["--cuont=2"], "--cuont: no such flag; did you mean count?"),
    (["--train.epochs=2"], "--train.epochs: no such flag; .*--config.train.epochs=50"),
    (["--noconfig.data.balance=x"], "expected --noconfig.data.balance, or --config.data.balance="),
    (["there"], "'there': not a flag"),
    (["--config.data.cache", "--count=2"], "--config.data.cache: no value; expected"),
    (["--config.data.cache"], "--config.data.cache: no value"),
])
def test_flags_are_typed_and_known(words, message):
    def define(values):
        cli.integer(values, "count", "how many", default=1, lowest=1)
        cli.switch(values, "loud", "or not")

    assert cli.parse(["x"], define)[0].count == 1
    args, overrides = cli.parse(["x", "--count=3", "--config.a.b=4", "--noconfig.c",
                                 "--config.d", "-1"], define)
    assert args.count == 3 and overrides == [("a.b", "4"), ("c", "false"), ("d", "-1")]
    with pytest.raises(InputError, match=message):
        cli.parse(["x", *words], define)


@pytest.mark.parametrize("words, message", [
    (["--split=tset"], "--split: got 'tset'; expected one of train, val, test; did you mean"),
    (["--split=all"], "--split: got 'all'; expected one of train, val, test"),
    (["--tuned"], "--tuned: nothing reads it without --mode=eval"),
    (["--tune=ap50"], "--tune: nothing reads it without --mode=eval"),
    (["--labels=d"], "--labels: nothing reads it without --mode=eval"),
    (["--mode=describe", "--split=val"], "--split: nothing reads it without --mode=train or eval"),
    (["--mode=eval", "--split=tset"], "--split: got 'tset'; expected one of train, val, test, all"),
])
def test_what_comes_after_training_is_checked_before_it(tmp_path, capsys, words, message):
    words = ["main", CONFIG, f"--workdir={tmp_path}/run", *words]
    assert cli.run_command(main.main, main.define_flags, words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_help_lists_our_flags_alone(capsys):
    assert cli.run_command(main.main, main.define_flags, ["main", "--help"]) == 0
    assert "--flagfile" not in capsys.readouterr().out


CONFIG = f"--config={ROOT}/configs/quickstart.py"
RUN = [CONFIG, "--workdir=run"]
STUDY = f"--study={ROOT}/configs/studies/nuclei.py"


@pytest.mark.parametrize("command, words, key", [
    ("main", [CONFIG, "--workdir=gs://b/x"], "--workdir"),
    ("main", ["--mode=eval", "--workdir=gs://b/x"], "--workdir"),
    ("main", ["--config=https://b/x.py", "--workdir=run"], "--config"),
    ("main", [*RUN, "--config.data.root=gs://b/x"], "config.data.root"),
    ("main", [*RUN, "--config.data.cache=s3://b/x"], "config.data.cache"),
    ("main", [*RUN, "--config.data.split=gs://b/split.json"], "config.data.split"),
    ("main", [*RUN, "--config.data.mix=('bbbc039:gs://b/x',)"], "config.data.mix"),
    ("main", [*RUN, "--config.train.weights=https://b/x.pt"], "config.train.weights"),
    ("study", [STUDY, "--workdir=gs://b/x"], "--workdir"),
    ("study", ["--study=gs://b/x.py"], "--study"),
    ("study", [STUDY, "--workdir=s", "--config.data.root=gs://b/x"], "config.data.root"),
    ("predict", ["--workdir=run,gs://b/x", "--images=i", "--out=o"], "--workdir"),
    ("predict", ["--workdir=run", "--images=i", "--images=http://b/*.tif", "--out=o"], "--images"),
    ("predict", ["--workdir=run", "--images=i", "--out=gs://b/x"], "--out"),
    ("doctor", [CONFIG, "--out=gs://b/x.html"], "--out"),
    ("doctor", [CONFIG, "--config.data.root=gs://b/x"], "config.data.root"),
    ("plan", [CONFIG, "--json=gs://b/x.json"], "--json"),
    ("plan", [CONFIG, "--config.data.root=gs://b/x"], "config.data.root"),
    ("analyze", ["--workdir=gs://b/x", "--analysis=weights"], "--workdir"),
    ("export", ["--workdir=gs://b/x", "--format=onnx"], "--workdir"),
    ("export", ["--workdir=run", "--format=onnx", "--out=gs://b/x"], "--out"),
    ("data.synthetic.__main__", ["--like=livecell", "--out=gs://b/x"], "--out"),
])
def test_a_url_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, command, words,
                                                     key):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"cellseg_jax.{command}")
    assert cli.run_command(module.main, module.define_flags, [command, *words]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "://b/" in line and "gcsfuse" in line and "gcloud storage rsync" in line
    # A message on a study's base begins with the study's file.
    assert f"{key}: got " in line
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_refused_in_a_config_file_and_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far.py").write_text(
        "from cellseg_jax.config import default\n\ndef get_config():\n"
        "    config = default()\n    config.data.root = 'gs://b/x'\n    return config\n")
    with pytest.raises(InputError, match="config.data.root: got 'gs://b/x'"):
        config_lib.load("far.py")
    with pytest.raises(InputError, match="workdirs: got 'gs://b/x'"):
        train.train([tiny_config()], ["gs://b/x"])
    assert [path.name for path in tmp_path.iterdir()] == ["far.py"]


def test_what_follows_a_failed_save_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "__unraisablehook__", printed.append)
    closed, other = (types.SimpleNamespace(exc_value=RuntimeError(text))
                     for text in ("Event loop is closed", "another"))
    for found in (closed, other):
        cli._report_unraisable(found)
    assert printed == [other]
