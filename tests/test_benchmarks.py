"""Every benchmark still runs: its smallest case, in one round, prints its numbers."""

import ast
import importlib
import re
import subprocess
import sys
import types

import pytest
from helpers import ROOT, child_environment

from cellseg_jax.data.synthetic import twins

# {benchmark: (arguments, twin of a dataset for --root or "", what it imports, its last lines)}
NUMBER = r"\d+(\.\d+)?(e-\d+)?"
CASES = {
    "augment": ("--cases=none,elastic --size=32 --rounds=1", "", (),
                rf"elastic +{NUMBER} +-?{NUMBER}%"),
    "classical_ebhi": ("", "ebhi_seg", (), rf"\| otsu \| {NUMBER} \|"),
    "grain_readers": ("--count=8 --size=32 --rounds=1", "dsb2018", (),
                      rf"rows of a step: {NUMBER} us by grain, {NUMBER} us without"),
    "input_pipeline": ("--count=8 --size=32 --epochs=2 --batch_size=4", "dsb2018",
                       ("torch", "albumentations", "cv2"), rf"cached peer, later epochs: {NUMBER}"),
    "large_labels": ("--side=400 --targets=distance", "", (),
                     rf"\| distance \| 400 \| 100 \| 100 \| 0 \|( {NUMBER} \|){{4}}"),
    "member_convolution": ("--quick", "", (), rf"4 channels, 8x8, K = 2: one by one {NUMBER}"),
    "nuclei_monai": ("--size=64 --epochs=1 --batch_size=4", "dsb2018", ("torch", "monai"),
                     rf'"dice_mean": {NUMBER}'),
    "population": ("--slots=1,2 --backends=vmap --rounds=1 --steps=1", "", (),
                   rf"\| vmap \| 2 \| {NUMBER} \| {NUMBER} \|"),
    "pruning": ("--size=16 --channels=4,8 --images=8 --levels=1 --rounds=1", "", (),
                rf"\| one program \| {NUMBER} \| {NUMBER} \|"),
    "target_survival": ("--targets=distance --every=20", "dsb2018", (),
                        rf"\| distance \|( {NUMBER} \|){{7}}"),
    "train_step": ("--cases=simple_conv_64 --steps=1", "", ("torch", "monai", "einops"),
                   rf"\| simple_conv_64 \| {NUMBER} \|( {NUMBER} \|)+"),
}
PARTS = {"torch_networks"}  # of other benchmarks


def test_no_benchmark_is_left_out():
    assert set(CASES) | PARTS == {path.stem for path in (ROOT / "benchmarks").glob("*.py")}


def resolve(module, name):
    """An attribute or submodule of a module of the package; AttributeError if there is none."""
    found = importlib.import_module(module)
    try:
        return getattr(found, name)
    except AttributeError:
        try:
            return importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"{module} has no {name}") from None


@pytest.mark.parametrize("name", CASES)
def test_benchmark_uses_names_that_the_package_has(name):
    """Also of a benchmark that cannot run here, since a peer that it measures is not installed."""
    tree, modules = ast.parse((ROOT / f"benchmarks/{name}.py").read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cellseg_jax":
            for alias in node.names:
                found = resolve(node.module, alias.name)
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found.__name__
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:
                resolve(modules[node.value.id], node.attr)


@pytest.mark.weekly
@pytest.mark.parametrize("name", CASES)
def test_benchmark_prints_its_numbers(name, tmp_path):
    arguments, twin, needed, wanted = CASES[name]
    for module in needed:
        pytest.importorskip(module)
    arguments = arguments.split()
    if twin:
        twins.write(twin, tmp_path / twin, count={"ebhi_seg": 1, "dsb2018": 16}[twin],
                    size=(32, 32))
        root = next(path for path in (tmp_path / twin / "stage1_train", tmp_path / twin)
                    if path.is_dir())
        arguments.append(f"--root={root}")
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=ROOT,
                          env=child_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(wanted, done.stdout), done.stdout
