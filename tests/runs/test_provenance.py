"""The hash of the code covers every module that decides a number."""

import ast
import shutil

import pytest

from cellseg_jax.runs import provenance

PACKAGE = provenance.PACKAGE
# Reachable from training and scoring, but they only read, write and show.
SHOW_ONLY = {"cli", "errors", "files", "report", "runs"}


def imported(path):
    """Files of the package that a module imports, at module level or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cellseg_jax"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("cellseg_jax.")]
        for name in names:
            place = PACKAGE.joinpath(*name.split(".")[1:])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file() and file != PACKAGE / "__init__.py":
                    yield file


def reachable(*starts):
    found, new = set(), set(starts)
    while new:
        found |= new
        new = {file for path in new for file in imported(path)} - found
    return found


def test_every_module_that_training_and_scoring_reach_is_hashed_or_only_shows():
    found = reachable(PACKAGE / "train/loop.py", PACKAGE / "inference/evaluate.py")
    assert {PACKAGE / name for name in (
        "losses/pixelwise.py", "metrics/instance.py", "data/order.py", "train/loop.py",
        "step/train_step.py")} <= found
    rooms = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in found}
    hashed = set(provenance.number_sources())
    missing = {str(path) for path in found - hashed
               if rooms[path] not in SHOW_ONLY and path.name != "page.py"}
    assert not missing
    assert not SHOW_ONLY & set(provenance.NUMBERS)
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in hashed} == set(
        provenance.NUMBERS)


@pytest.mark.parametrize("file, counts", [
    ("train/loop.py", True), ("data/cache.py", True), ("models/onednn.cc", True),
    ("runs/page.py", False), ("data/quality/page.py", False), ("report/svg.py", False)])
def test_code_hash_changes_with_code_that_decides_a_number(file, counts, tmp_path):
    package = tmp_path / "cellseg_jax"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert provenance.code_hash(package) == provenance.code_hash()
    with open(package / file, "a") as changed:
        changed.write("\nX = 1\n")
    assert (provenance.code_hash(package) != provenance.code_hash()) == counts


def test_environment_names_code_and_packages():
    found = provenance.environment()
    assert list(found) == ["command", "python", "platform", "packages", "commit", "code",
                           "devices", "processes", "arithmetic"]
    assert list(found["arithmetic"]) == ["jaxlib", "cores", "convolutions"]
    assert found["code"] == provenance.code_hash() and found["packages"]["jax"]
